"""One network namespace as an object: run programs in it, open sockets in it, look at its ports.

A namespace is named (ip-netns(8)), so that a later session finds what a killed one left, sees by
the process id in the name that its maker is dead, and removes it with every process inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .listeners import listening_ports
from .processes import (
    PATH,
    User,
    alive,
    describe,
    eventually,
    needs,
    needs_users,
    network_of,
    program,
    stop,
)

__all__ = [
    "PATH",
    "Namespace",
    "User",
    "alive",
    "describe",
    "eventually",
    "needs",
    "needs_users",
    "program",
    "stop",
    "sweep",
]

CLONE_NEWNET = 0x40000000
RUN = Path("/run/netns")
NAME = re.compile(r"xensock-(\d+)-\w+")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Namespace:
    """A network namespace; `mount` is the mount namespace that belongs to it, if it has its own."""

    name: str
    user: User
    addr4: str = ""
    addr6: str = ""
    mount: str = ""
    identity: str = ""
    _services: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def create(cls, label: str, user: User) -> Namespace:
        """Make namespace `label` with its loopback up. Raises CalledProcessError."""
        name = f"xensock-{os.getpid()}-{label}"
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True, text=True)
        space = cls(name, user, identity=f"net:[{(RUN / name).stat().st_ino}]")
        space.ip("link set lo up")
        return space

    def ip(self, *commands: str) -> None:
        """Run ip(8) commands here, as one batch. Raises AssertionError with what ip said."""
        batch = "".join(f"{command}\n" for command in commands)
        done = subprocess.run(
            ["ip", "-n", self.name, "-batch", "-"],
            input=batch,
            capture_output=True,
            text=True,
            env={"PATH": PATH},
        )
        assert done.returncode == 0, f"ip in {self.name}: {done.stderr}\n{batch}"

    def command(
        self, argv: list[str], *, user: str | None = None, cwd: str | Path | None = None
    ) -> list[str]:
        """The full command that becomes `argv` in this namespace, by exec alone: same process id.

        `user` None stays root; any other name is the world's ordinary user.
        """
        chain = ["nsenter", f"--net={RUN / self.name}"]
        if self.mount:
            chain.append(f"--mount={self.mount}")
        # nsenter goes to / of the namespace, so the directory is set last.
        where = ["env", "-C", str(cwd or "/"), "--"]
        return [*chain, "--", *self._as(user), *where, *map(str, argv)]

    def _as(self, user: str | None) -> list[str]:
        if user in (None, "root"):
            return []
        assert user == self.user.name, f"the world has no user {user}"
        return self.user.become()

    def environment(self, user: str | None, more: dict[str, str] | None = None) -> dict[str, str]:
        """A small environment, the same on every machine."""
        ordinary = user not in (None, "root")
        home = str(self.user.home) if ordinary else "/root"
        base = {"PATH": PATH, "HOME": home, "LANG": "C.UTF-8", "TERM": "dumb", "TZ": "UTC"}
        base["USER"] = base["LOGNAME"] = self.user.name if ordinary else "root"
        if ordinary:
            base["XDG_RUNTIME_DIR"] = str(self.user.runtime)
        return base | (more or {})

    def popen(
        self,
        argv: list[str],
        *,
        user: str | None = None,
        env: dict[str, str] | None = None,
        cwd: str | Path | None = None,
        **kw: Any,
    ) -> subprocess.Popen[Any]:
        """Start a program here, in a session of its own; see `stop`. `kw` goes to Popen."""
        kw.setdefault("start_new_session", True)
        return subprocess.Popen(
            self.command(argv, user=user, cwd=cwd),
            env=self.environment(user, env),
            **kw,
        )

    def run(
        self,
        argv: list[str],
        *,
        user: str | None = None,
        env: dict[str, str] | None = None,
        input: str | bytes | None = None,
        timeout: float = 30,
        cwd: str | Path | None = None,
        text: bool = True,
        check: bool = False,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a program here to its end. Raises TimeoutExpired, CalledProcessError with check."""
        pipe: IO[Any] | int = subprocess.PIPE
        process = self.popen(
            argv,
            user=user,
            env=env,
            cwd=cwd,
            text=text,
            stdin=subprocess.DEVNULL if input is None else pipe,
            stdout=pipe,
            stderr=pipe,
        )
        try:
            out, err = process.communicate(input, timeout)
        except subprocess.TimeoutExpired as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # A survivor outside the group may hold the pipes: never wait for them without end.
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, err = process.communicate(timeout=2)
                error.output, error.stderr = out, err
            raise
        finally:
            stop(process)
        done = subprocess.CompletedProcess(argv, process.returncode, out, err)
        if check and done.returncode:
            raise AssertionError(f"{argv} gave {done.returncode}\n{out}\n{err}")
        return done

    def service(
        self, argv: list[str], log: Path, *, user: str | None = None, **kw: Any
    ) -> subprocess.Popen[bytes]:
        """Start a server of the world: it and all it forks die with `close`, and with pytest.

        It gets a PID namespace, whose end kills every process inside (pid_namespaces(7)).
        """
        wrap = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--pid"]
        wrap += ["--kill-child=KILL", "--mount-proc", "--", *self._as(user), *map(str, argv)]
        with log.open("ab") as out:
            process = self.popen(
                wrap, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, **kw
            )
        self._services.append(process)
        return process

    def socket(
        self, family: int = socket.AF_INET, type: int = socket.SOCK_STREAM, proto: int = 0
    ) -> socket.socket:
        """A socket of this namespace for the test itself; it has a timeout of 10 seconds."""
        return self.inside(lambda: _with_timeout(socket.socket(family, type, proto)))

    def inside(self, work):
        """What `work()` answers in a thread that is in this namespace (setns(2) is per thread)."""
        answer: list[Any] = []

        def enter() -> None:
            try:
                with (RUN / self.name).open() as file:
                    if _libc.setns(file.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"setns {self.name}")
                answer.append((work(), None))
            except BaseException as error:
                answer.append((None, error))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        result, error = answer[0]
        if error is not None:
            raise error
        return result

    def connect(self, address: str, port: int, timeout: float = 10) -> socket.socket:
        """A TCP connection made from here. Raises OSError."""
        peer = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            peer.settimeout(timeout)
            peer.connect((address, port))
        except BaseException:
            peer.close()
            raise
        return peer

    def listen(self, address: str, port: int = 0, backlog: int = 128) -> socket.socket:
        """A TCP listener here. Raises OSError."""
        listener = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
        return listener

    def listening(self) -> set[int]:
        """Ports on which something in this namespace listens for TCP."""
        return self.inside(listening_ports)

    def free_port(self) -> int:
        """A TCP port nobody has here, outside the range the kernel picks from by itself."""
        taken = self.listening()
        for _ in range(1000):
            port = next(_ports)
            if port not in taken:
                return port
        raise AssertionError("no free port")

    def pids(self) -> set[int]:
        """Processes in this namespace that run (zombies hold nothing)."""
        found = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
        return {pid for pid in found if network_of(pid) == self.identity and alive(pid)}

    def close(self) -> None:
        """Stop the services, kill whatever else runs here, remove the namespace."""
        for process in reversed(self._services):
            process.kill()
            process.wait(10)
        self._services.clear()
        remove(self.name)


def _with_timeout(made: socket.socket) -> socket.socket:
    made.settimeout(10)
    return made


def _cycle():
    while True:
        yield from range(20000, 30000)


_ports = _cycle()


def remove(name: str) -> None:
    """Kill every process of a named namespace and remove it."""

    def empty() -> bool:
        listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
        pids = [int(pid) for pid in listed.stdout.split() if alive(int(pid))]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    eventually(empty, 10, f"processes of {name} gone")
    subprocess.run(["ip", "netns", "del", name], check=True, capture_output=True)


def sweep(directory: Path) -> list[str]:
    """Remove what sessions that were killed left: namespaces with processes, and directories.

    Names carry the maker's process id; only those whose maker is dead are touched.
    """
    gone = []
    spaces = sorted(RUN.glob("xensock-*")) if RUN.exists() else []
    for path in [*spaces, *sorted(directory.glob("xensock-*-world"))]:
        owner = NAME.fullmatch(path.name)
        if owner is None or alive(int(owner[1])):
            continue
        if path.parent == RUN:
            remove(path.name)
        else:
            shutil.rmtree(path)
        gone.append(path.name)
    return gone
