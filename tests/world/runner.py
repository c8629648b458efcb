"""Run a program natively or in a guest, by the same words, and see which calls were mediated."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .internet import CHECKOUT, World
from .namespaces import describe, eventually, stop

KEPT = ("verb", "target", "name", "decision", "rule", "hint", "result", "error")
"""What of a traced call is the same from run to run, but for ports that were chosen."""


@dataclass(slots=True)
class Running:
    """A program that runs until the test ends it; use it as a context manager."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        """The process the test started: the program itself natively, else `xensock run`."""
        return self.process.pid

    @property
    def stdout(self) -> str:
        return self.out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self.err.read_text(errors="replace")

    def wait(self, timeout: float = 30) -> int:
        """The exit status once the program has ended by itself. Raises TimeoutExpired."""
        return self.process.wait(timeout)

    def stop(self) -> int:
        """End it if it still runs."""
        return stop(self.process)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(slots=True)
class Guest:
    """Runs programs on the world's host: natively or in guests, as `datapath` says."""

    world: World
    datapath: str
    xensock: list[str]
    directory: Path
    _before: set[int] = field(default_factory=set)
    _backends: dict[tuple[str, ...], str] = field(default_factory=dict)
    _running: list[Running] = field(default_factory=list)
    _count: int = 0

    @classmethod
    def create(cls, world: World, datapath: str, xensock: list[str]) -> Guest:
        """A runner with a directory of its own, which belongs to the world's ordinary user."""
        directory = world.directory / f"guest-{time.monotonic_ns():x}"
        directory.mkdir(mode=0o755)
        world.user.own(directory)
        return cls(world, datapath, xensock, directory, world.host.pids())

    @property
    def native(self) -> bool:
        return self.datapath == "native"

    def command(
        self, argv: list[str], options: tuple[str, ...] = (), user: str | None = "xstest"
    ) -> list[str]:
        """`argv` as it is natively, else wrapped in `xensock run` with its own trace file.

        Over rings the rules among the options are those of a backend of `user`, which decides by them.
        """
        argv = [str(word) for word in argv]
        if self.native:
            return argv
        self._count += 1
        trace = self.directory / f"trace-{self._count}.json"
        wrap = [*self.xensock, "run", "--trace=json", "--trace-file", str(trace)]
        if self.datapath != "ring":
            return [*wrap, "--datapath", self.datapath, *options, "--", *argv]
        rules, rest = split_rules(options)
        return [*wrap, "--backend", self.backend(rules, user), *rest, "--", *argv]

    def backends(self) -> list[Running]:
        """The backends that were started for this runner's guests."""
        return [each for each in self._running if each.err.name.startswith("backend-")]

    def backend(self, rules: tuple[str, ...], user: str | None) -> str:
        """The URL of a backend with these rules, which is started when it is first asked for."""
        key = (user or "", *rules)
        if key not in self._backends:
            number = len(self._backends)
            path = self.directory / f"backend-{number}.socket"
            name = f"backend-{number}"
            out, err = self.directory / f"{name}.out", self.directory / f"{name}.err"
            argv = [*self.xensock, "backend", "--listen", f"local:{path}", *rules]
            with out.open("wb") as stdout, err.open("wb") as stderr:
                process = self.world.host.popen(
                    argv, user=user, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL
                )
            running = Running(process, out, err)
            self._running.append(running)

            def ready() -> bool:
                assert running.process.poll() is None, self._said(running)
                return "listening at" in running.stderr

            eventually(ready, 20, "the backend listens")
            self._backends[key] = f"local:{path}"
        return self._backends[key]

    def run(
        self,
        argv: list[str],
        *,
        options: tuple[str, ...] = (),
        user: str | None = "xstest",
        check: bool = False,
        **kw: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run to the end; as `Namespace.run`. `options` are given to `xensock run`."""
        kw.setdefault("cwd", self.directory)
        try:
            done = self.world.host.run(self.command(argv, options, user), user=user, **kw)
        except subprocess.TimeoutExpired as error:
            error.add_note(f"stdout: {error.stdout}\nstderr: {error.stderr}\n{self.tail()}")
            raise
        if check and done.returncode:
            raise AssertionError(
                f"{argv} gave {done.returncode} over {self.datapath}\n"
                f"{done.stdout}\n{done.stderr}\n{self.tail()}"
            )
        return done

    def popen(
        self,
        argv: list[str],
        *,
        options: tuple[str, ...] = (),
        user: str | None = "xstest",
        listens: int | tuple[int, ...] = (),
        timeout: float = 20,
        **kw: Any,
    ) -> Running:
        """Start a program that stays; with `listens`, return once the host listens on these ports.

        Raises AssertionError, with what it said, when it ends before or takes over `timeout` s.
        """
        kw.setdefault("cwd", self.directory)
        kw.setdefault("stdin", subprocess.DEVNULL)
        name = f"{len(self._running)}-{Path(str(argv[0])).name}"
        out, err = self.directory / f"{name}.out", self.directory / f"{name}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = self.world.host.popen(
                self.command(argv, options, user), user=user, stdout=stdout, stderr=stderr, **kw
            )
        running = Running(process, out, err)
        self._running.append(running)
        ports = {listens} if isinstance(listens, int) else set(listens)
        if ports:
            try:
                self._wait_listening(running, ports, timeout)
            except BaseException:
                running.stop()
                raise
        return running

    def _wait_listening(self, running: Running, ports: set[int], timeout: float) -> None:
        def ready() -> bool:
            # A program that put itself into the background with status 0 may still come to listen.
            if running.process.poll():
                raise AssertionError(
                    f"ended with {running.process.returncode} {self._said(running)}"
                )
            return ports <= self.world.host.listening()

        try:
            eventually(ready, timeout, f"the host listens on {sorted(ports)}")
        except AssertionError as error:
            error.add_note(self._said(running))
            raise

    def _said(self, running: Running) -> str:
        return f"stdout: {running.stdout[-2000:]}\nstderr: {running.stderr[-2000:]}\n{self.tail()}"

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Every record traced so far by this runner's guests, guest by guest in order of start."""
        found = []
        for number in range(1, self._count + 1):
            trace = self.directory / f"trace-{number}.json"
            with contextlib.suppress(FileNotFoundError):
                lines = trace.read_bytes().splitlines(keepends=True)
                # The last one may be half written.
                found += [json.loads(line) for line in lines if line.endswith(b"\n")]
        return found

    def mediated(
        self, minimum: int = 1, verb: str = "", target: str = "", timeout: float = 5
    ) -> None:
        """Assert that at least so many calls (of this verb, with this in the target) were mediated.

        Natively there are none, and nothing is asserted. A call within the guest does not count.
        """
        if self.native:
            return
        datapath = "dns" if verb == "resolve" else self.datapath

        def seen() -> list[dict[str, Any]]:
            return [
                call
                for call in self.calls
                if call["datapath"] == datapath
                and (not verb or call["verb"] == verb)
                and target in call["target"]
            ]

        what = f"{minimum} mediated calls {verb} {target} over {self.datapath}"
        try:
            eventually(lambda: len(seen()) >= minimum, timeout, what)
        except AssertionError as error:
            error.add_note(self.tail())
            raise

    def tail(self, lines: int = 20) -> str:
        """The last records, for a failure's message."""
        last = "\n".join(json.dumps(call) for call in self.calls[-lines:])
        return f"last calls:\n{last}" if last else ""

    def port(self) -> int:
        """A free TCP port of the host."""
        return self.world.host.free_port()

    def close(self, grace: float = 5) -> None:
        """End what still runs; fail when anything is on the host `grace` seconds after that."""
        for running in reversed(self._running):
            running.stop()

        def left() -> set[int]:
            return self.world.host.pids() - self._before

        deadline = time.monotonic() + grace
        while left() and time.monotonic() < deadline:
            time.sleep(0.01)
        behind = [describe(pid) for pid in left()]
        for pid in left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.directory)
        assert not behind, "processes left behind on the host:\n" + "\n".join(behind)


def split_rules(options: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The --allow, --deny and --policy of `options` with their values, and the others."""
    rules: list[str] = []
    rest: list[str] = []
    words = iter(options)
    for word in words:
        if word in ("--allow", "--deny", "--policy"):
            rules += [word, next(words)]
        else:
            rest.append(word)
    return tuple(rules), tuple(rest)


def install(world: World) -> list[str]:
    """The command `xensock` that the world's ordinary user can run.

    The checkout's own where that user may read it. Else (a checkout in root's home) a wheel of it
    in an environment of the world, with the libraries it needs copied beside.
    """
    own = CHECKOUT / ".venv" / "bin" / "xensock"
    if not own.exists():
        own = Path(sys.prefix) / "bin" / "xensock"
    assert own.exists(), f"{own} is missing: run `make build`"
    if world.host.run([str(own), "--help"], user=world.user.name).returncode == 0:
        return [str(own)]
    return [str(install_copy(world, own.parent / "python"))]


def install_copy(world: World, python: Path) -> Path:
    """Build a wheel, install it where everybody may read; returns the command."""
    wheels, target = world.directory / "wheels", world.directory / "venv"
    path = f"{python.parent}:{os.environ['PATH']}"

    def must(*argv: str | Path) -> str:
        done = subprocess.run(
            list(map(str, argv)),
            capture_output=True,
            text=True,
            cwd=CHECKOUT,
            umask=0o022,
            env={**os.environ, "PATH": path},
        )
        assert done.returncode == 0, f"{argv} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    quiet = ("-q", "--disable-pip-version-check")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    must(world.python, "-m", "venv", "--without-pip", target)
    libraries = must(python, "-c", where)
    ours = must(target / "bin" / "python", "-c", where)
    skip = shutil.ignore_patterns("*xensock*", "__pycache__", "pip*")
    shutil.copytree(libraries, ours, ignore=skip, dirs_exist_ok=True)
    # The build directory is the copy's own: the checkout's belongs to its editable install.
    build = f"--config-settings=build-dir={world.directory / 'build'}"
    flags = ("--no-deps", "--no-build-isolation")
    must(python, "-m", "pip", "wheel", *quiet, *flags, build, "-w", wheels, CHECKOUT)
    wheel = next(wheels.glob("*.whl"))
    must(python, "-m", "pip", *quiet, "--python", target / "bin" / "python", "install",
         "--no-deps", "--no-index", wheel)  # fmt: skip
    must("chmod", "-R", "a+rX", target)
    return target / "bin" / "xensock"
