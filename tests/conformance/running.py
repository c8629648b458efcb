"""One module of CPython's tests with own sockets, and what differs from the kernel's."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SUITE = Path(__file__).with_name("suite.py")
PACKAGE = "Debian's libpython3.11-testsuite"

# Module → seconds it may take. The first part runs in `make test`, the second in `.ci/run` (make conformance).
QUICK = {
    "test.test_socketserver": 60,
    "test.test_ftplib": 60,
    "test.test_smtplib": 60,
    "test.test_httplib": 60,
    "test.test_urllib2_localnet": 60,
}
SLOW = {
    "test.test_selectors": 120,
    "test.test_socket": 300,
    "test.test_ssl": 300,
    "test.test_asyncio": 900,
}
MODULES = {**QUICK, **SLOW}

Outcome = tuple[str, str]


def missing(module: str) -> str:
    """Why this interpreter cannot run that module's tests; nothing when it can."""
    if importlib.util.find_spec("test") is None or importlib.util.find_spec(module) is None:
        return f"this Python came without its own tests ({PACKAGE})"
    return ""


def run(
    module: str,
    directory: Path,
    *,
    url: str | None = None,
    only: set[str] | None = None,
    timeout: float,
) -> dict[str, Outcome]:
    """What became of each test. Files that the tests make are left in `directory`."""
    command = [sys.executable, str(SUITE), module]
    command += ["--url", url] if url else []
    command += ["--only"] if only is not None else []
    log = directory / "log"
    with log.open("w") as progress:
        done = subprocess.run(
            command,
            input="\n".join(only or ()),
            stdout=subprocess.PIPE,
            stderr=progress,
            text=True,
            cwd=directory,
            timeout=timeout,
            check=False,
        )
    assert done.returncode == 0, log.read_text()[-3000:]
    return {test: (word, why) for test, (word, why) in json.loads(done.stdout).items()}


def listed(module: str) -> list[str]:
    """The ids of its tests."""
    command = [sys.executable, str(SUITE), module, "--list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return list(json.loads(done.stdout))


@dataclass(frozen=True)
class Comparison:
    """Own sockets against the kernel's."""

    own: dict[str, Outcome]
    native: dict[str, Outcome]  # of those tests that did not pass with own sockets

    @property
    def differing(self) -> dict[str, Outcome]:
        """The tests that pass with the kernel's sockets only."""
        return {
            test: outcome
            for test, outcome in self.own.items()
            if outcome[0] != "passed" and self.native.get(test, ("", ""))[0] == "passed"
        }

    @property
    def counts(self) -> Counter[str]:
        """How many tests came to what, with own sockets."""
        return Counter(word for word, _ in self.own.values())


def compare(module: str, url: str, directory: Path) -> Comparison:
    """Run with own sockets; what does not pass once more, then natively."""
    limit = MODULES[module]
    own = run(module, directory, url=url, timeout=limit)
    rest = {test for test, (word, _) in own.items() if word != "passed"}
    if not rest:
        return Comparison(own, {})
    native = run(module, directory, only=rest, timeout=limit)
    again = {test for test in rest if native.get(test, ("", ""))[0] == "passed"}
    if again:
        # These tests have deadlines of their own, on a machine that does other things, too.
        own |= run(module, directory, url=url, only=again, timeout=limit)
    return Comparison(own, native)
