"""Runs one module of CPython's own network tests and prints what became of each test, as JSON.

    suite.py MODULE [URL [PATTERN]]

With URL the standard library's sockets are those of the backend there (`xensock.install`), and what is known not to be
carried is not run; without it they are the kernel's, which is the control. The tests are those of the running
interpreter (package `test`).
"""

from __future__ import annotations

import json
import sys
import time
import unittest
from typing import Any

from known import is_foreign, reason


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


def wanted(suite: unittest.TestSuite, own: bool) -> unittest.TestSuite:
    """The tests that are about families we carry; of own sockets those that are about what they carry."""
    kept = unittest.TestSuite()
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            kept.addTest(wanted(test, own))
        elif not is_foreign(test.id()) and not (own and reason(test.id())):
            kept.addTest(test)
    return kept


def main(module: str, url: str | None = None, pattern: str | None = None) -> None:
    """Run it. Standard output gets the JSON alone."""
    if url is not None:
        from xensock.client.install import install

        install(url)
    from test import support

    support.verbose = 0
    loader = unittest.TestLoader()
    if pattern:
        loader.testNamePatterns = [f"*{pattern}*"]
    outcomes = Outcomes()
    wanted(loader.loadTestsFromName(module), url is not None).run(outcomes)
    json.dump(outcomes.found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], *(each or None for each in sys.argv[2:4]))
