"""Runs one module of CPython's own network tests and prints what became of each test, as JSON.

    suite.py MODULE [--url URL] [--host ADDRESS] [--pattern PATTERN] [--only] [--list]

With a URL the standard library's sockets are those of the backend there (`xensock.install`), and what is known not to
be carried is not run; without one they are the kernel's, which is the control. `--host`: the address that the tests
take for this machine's, in place of 127.0.0.1. `--only`: no other tests than those that
standard input names; `--list`: only print the names. The tests are those of the running interpreter (package `test`).
"""

from __future__ import annotations

import argparse
import gc
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
import unittest
from typing import TYPE_CHECKING, Any

from known import is_foreign, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Outcomes(unittest.TestResult):
    """One word for each test: passed, failed, error, skipped; and why."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[str, str]] = {}
        self._began = 0.0

    def _put(self, test: Any, word: str, why: str = "") -> None:
        name = test.id() if hasattr(test, "id") else str(test)
        self.found[name] = (word, why.strip().splitlines()[-1][:200] if why.strip() else "")

    def startTest(self, test: Any) -> None:
        """A dot on stderr for those who wait."""
        super().startTest(test)
        self._began = time.monotonic()
        print(test.id(), end=" ", file=sys.stderr, flush=True)

    def stopTest(self, test: Any) -> None:
        """How long it took."""
        super().stopTest(test)
        word = self.found.get(test.id(), ("?", ""))[0]
        print(f"{word} {time.monotonic() - self._began:.2f}s", file=sys.stderr, flush=True)

    def addSuccess(self, test: Any) -> None:
        """Passed."""
        self._put(test, "passed")

    def addSkip(self, test: Any, reason: str) -> None:
        """Skipped."""
        self._put(test, "skipped", reason)

    def addFailure(self, test: Any, err: Any) -> None:
        """An assertion did not hold."""
        self._put(test, "failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    def addError(self, test: Any, err: Any) -> None:
        """Something else was raised."""
        self._put(test, "error", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        """A part of a test: the test fails with it."""
        if err is not None:
            self._put(test, "failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        """Fails natively too, as its authors know."""
        self._put(test, "passed")


def chosen(suite: unittest.TestSuite, wanted: Callable[[str], bool]) -> unittest.TestSuite:
    """The tests of a suite that are wanted."""
    kept = unittest.TestSuite()
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            kept.addTest(chosen(test, wanted))
        elif wanted(test.id()):
            kept.addTest(test)
    return kept


def flat(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Every test of a suite."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flat(test)
        else:
            yield test


class Moved(importlib.machinery.SourceFileLoader):
    """Loads a module as if another address stood where it says 127.0.0.1."""

    host = ""

    def get_code(self, fullname: str) -> Any:
        """From the source: what is cached is the unchanged one."""
        path = self.get_filename(fullname)
        text = self.get_data(path).decode()
        for quote in "'", '"':
            text = text.replace(f"{quote}127.0.0.1{quote}", f"{quote}{self.host}{quote}")
        return compile(text, path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    """Has asyncio's tests loaded so: they have no name for the address."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """As the usual one, with our loader."""
        if not name.startswith("test.test_asyncio."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = Moved(name, spec.origin)
        return spec


def stand_at(host: str) -> None:
    """Have the modules of tests, which are imported later, use this address as this machine's."""
    from test.support import socket_helper

    socket_helper.HOST = socket_helper.HOSTv4 = host
    socket_helper.bind_port.__defaults__ = (host,)
    Moved.host = host
    sys.meta_path.insert(0, Finder())


def main() -> None:
    """Run it. Standard output gets the JSON alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--url")
    parser.add_argument("--host")
    parser.add_argument("--pattern")
    parser.add_argument("--only", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.url is not None:
        from xensock.client.install import install

        install(options.url)
    only = set(sys.stdin.read().split()) if options.only else None
    from test import support

    support.verbose = 0
    if options.host is not None:
        stand_at(options.host)
    loader = unittest.TestLoader()
    if options.pattern:
        loader.testNamePatterns = [f"*{options.pattern}*"]

    def wanted(test: str) -> bool:
        if is_foreign(test) or (options.url is not None and reason(test)):
            return False
        return only is None or test in only

    found = loader.loadTestsFromName(options.module)
    if options.list:
        json.dump([test.id() for test in flat(found)], sys.stdout)
        return
    outcomes = Outcomes()
    tests = chosen(found, wanted)
    # A suite forgets each test that it ran. What was loaded is no garbage: tests that collect it a thousand times would
    # look at all of that each time.
    del found
    gc.collect()
    gc.freeze()
    tests.run(outcomes)
    json.dump(outcomes.found, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # some tests leave threads that never end


if __name__ == "__main__":
    main()
