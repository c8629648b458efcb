"""One module of CPython's tests in guests, beside a native run of it: on loopback, and at an address of the host's."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from world.runner import Guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from conformance.running import Outcome
    from world.internet import World
    from world.runner import Running

HERE = Path(__file__).parent
PATHS = ("native", "direct", "relay")
ASYNCIO = "test.test_asyncio."

# Module → calls that each guest makes at least on the host's network, with the host's address. Of asyncio's modules
# those that use sockets. (test_selectors has socket pairs only.)
QUICK = {"test.test_httplib": 15, "test.test_socketserver": 50}
SLOW = {
    "test.test_socket": 400,
    "test.test_ssl": 150,
    "test.test_ftplib": 300,
    "test.test_smtplib": 80,
    ASYNCIO + "test_events": 100,
    ASYNCIO + "test_server": 2,
    ASYNCIO + "test_sock_lowlevel": 60,
    ASYNCIO + "test_sendfile": 100,
    ASYNCIO + "test_streams": 20,
    ASYNCIO + "test_buffered_proto": 2,
}
SECONDS = 200


@dataclass(slots=True)
class Run:
    """A module's tests over one path at one address."""

    guest: Guest
    place: str  # "loopback" or "host"
    running: Running | None = None
    found: dict[str, Outcome] | None = None

    @property
    def mediated(self) -> int:
        """Calls on the host's network."""
        return sum(call["datapath"] == self.guest.datapath for call in self.guest.calls)


@dataclass(slots=True)
class Suite:
    """Where and how the tests run."""

    world: World
    xensock: Callable[[], list[str]]
    directory: Path

    @classmethod
    def create(cls, world: World, xensock: Callable[[], list[str]]) -> Suite:
        """Put the suite where the world's ordinary user can read it."""
        directory = world.directory / "conformance"
        if not directory.exists():
            directory.mkdir()
            for name in ("suite.py", "known.py"):
                shutil.copy(HERE / name, directory)
        return cls(world, xensock, directory)

    def command(self, module: str, place: str, *options: str) -> list[str]:
        """The command of a run."""
        host = ["--host", self.world.host.addr4] if place == "host" else []
        return [self.world.python, str(self.directory / "suite.py"), module, *host, *options]

    def run(self, module: str, only: Iterable[str] | None = None) -> list[Run]:
        """All six runs, at once; each has its own files. The caller closes the guests."""
        runs = []
        for path in PATHS:
            command = self.xensock() if path != "native" else []
            runs += [Run(Guest.create(self.world, path, command), p) for p in ("loopback", "host")]
        try:
            for run in runs:
                self._start(run, module, only)
            for run in runs:
                assert run.running is not None
                try:
                    status = run.running.wait(SECONDS)
                except subprocess.TimeoutExpired:
                    # Some tests look for a free port and bind it later; another run may have had it meanwhile, and
                    # then they wait for ever. Once more, with nobody beside it.
                    run.running.stop()
                    self._start(run, module, only)
                    status = run.running.wait(SECONDS)
                assert status == 0, run.running.stderr[-3000:]
                run.found = {k: tuple(v) for k, v in json.loads(run.running.stdout).items()}
        except BaseException:
            close(runs)
            raise
        return runs

    def _start(self, run: Run, module: str, only: Iterable[str] | None) -> None:
        options: dict[str, Any] = {}
        if only is not None:
            wanted = run.guest.directory / "only"
            wanted.write_text("\n".join(only))
            options["stdin"] = wanted.open()
        argv = self.command(module, run.place, *(["--only"] if only is not None else []))
        try:
            run.running = run.guest.popen(argv, **options)
        finally:
            if only is not None:
                options["stdin"].close()


def close(runs: list[Run]) -> None:
    """End what still runs, of all of them, before any looks for what is left."""
    for run in runs:
        if run.running is not None:
            run.running.stop()
    for run in runs:
        run.guest.close()


def differing(runs: list[Run]) -> dict[str, tuple[str, Outcome, Outcome]]:
    """Tests that came to something else in a guest than natively: where, natively and there."""
    native = {run.place: run.found or {} for run in runs if run.guest.native}
    found = {}
    for run in runs:
        for test, theirs in (run.found or {}).items():
            ours = native[run.place].get(test, ("absent", ""))
            if ours[0] != theirs[0]:
                found[test] = (f"{run.guest.datapath}, {run.place}", ours, theirs)
    return found
