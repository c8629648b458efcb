"""What every probe needs: a site, one line per observation, raw libc calls, and the runner.

A probe is a function that does something to sockets and says what it saw. Each one runs in a child
process of its own, so that signals, threads and leaked descriptors of one cannot reach the next.
The same file runs natively and in a guest; the lines must not differ. What cannot be the same twice
(ephemeral ports, process ids, times) is masked or turned into a comparison by the probe itself.

    python3 probe_X.py [NAME…]      all without names; the site comes as JSON in the environment variable SITE

Output, one JSON object per line: {"probe", "say", "got"[, "want"]} and {"probe", "end"}.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MISSING = object()
PROBE_SECONDS = 25.0
"""A probe that takes longer has hung; its observations so far are kept."""
HUNG_ENOUGH = 8
AT_ONCE = 8


# --- the site ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Net:
    """The site as one address family sees it."""

    version: int  # 4 or 6
    family: socket.AddressFamily
    peer: str  # the machine that runs far.py
    host: str  # the address the world reaches this host by
    any: str
    loop: str
    local_name: str
    nowhere: dict[str, str]  # errno name → an address whose route gives it

    @property
    def size(self) -> int:
        return 16 if self.version == 4 else 28

    def raw(self, host: str, port: int) -> bytes:
        """struct sockaddr_in or sockaddr_in6."""
        packed = socket.inet_pton(self.family, host)
        head = int(self.family).to_bytes(2, sys.byteorder) + port.to_bytes(2, "big")
        if self.version == 4:
            return head + packed + bytes(8)
        return head + bytes(4) + packed + bytes(4)

    def socket(self, flags: int = 0) -> socket.socket:
        return socket.socket(self.family, socket.SOCK_STREAM | flags)

    def far(self, service: str, timeout: float | None = 10) -> socket.socket:
        """A socket connected to a service of far.py."""
        sock = self.socket()
        sock.settimeout(timeout)
        sock.connect((self.peer, PORTS[service]))
        sock.settimeout(None)
        return sock

    def listener(self, host: str | None = None, backlog: int = 16) -> socket.socket:
        sock = self.socket()
        sock.bind((self.any if host is None else host, 0))
        sock.listen(backlog)
        return sock


SITE = json.loads(os.environ.get("SITE", "{}"))
PORTS: dict[str, int] = SITE.get("ports", {})


def nets() -> list[Net]:
    found = []
    if SITE.get("peer4"):
        found.append(
            Net(
                4,
                socket.AF_INET,
                SITE["peer4"],
                SITE["host4"],
                "0.0.0.0",
                "127.0.0.1",
                "127.0.0.1",
                SITE["nowhere4"],
            )
        )
    if SITE.get("peer6"):
        found.append(
            Net(
                6,
                socket.AF_INET6,
                SITE["peer6"],
                SITE["host6"],
                "::",
                "::1",
                "::1",
                SITE["nowhere6"],
            )
        )
    return found


class Far:
    """The control connection to far.py on the peer: what the world does at our request."""

    def __init__(self) -> None:
        net = nets()[0]
        self._sock = net.far("control", None)
        self._file = self._sock.makefile("rwb")

    def ask(self, **request: object) -> dict[str, object]:
        self._file.write(json.dumps(request).encode() + b"\n")
        self._file.flush()
        line = self._file.readline()
        if not line:
            raise ConnectionError("far.py hung up")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise TypeError(answer)
        return answer

    def blackhole(self, net: Net) -> int:
        """A port of the peer that leaves SYNs unanswered until `open` is called."""
        return int(str(self.ask(op="blackhole", family=net.version)["port"]))

    def open(self, port: int) -> None:
        """From now on the blackhole accepts and echoes."""
        self.ask(op="open", port=port)

    def box(self, token: str) -> object:
        """What a service of far.py noted under `token` (waits for it)."""
        return self.ask(op="box", token=token)["value"]

    def close(self) -> None:
        self._file.close()
        self._sock.close()


def token() -> str:
    return os.urandom(6).hex()


# --- observations ------------------------------------------------------------------------------

_probe = ""


def say(what: str, got: object, want: object = MISSING) -> None:
    """Print one observation; `want` where the right answer is known on every kernel."""
    line: dict[str, object] = {"probe": _probe, "say": what, "got": got}
    if want is not MISSING:
        line["want"] = want
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def outcome(call: Callable[..., object], *arguments: object) -> object:
    """What a call returned, or the name of its errno. Sockets and None are "ok"."""
    try:
        value = call(*arguments)
    except socket.gaierror as error:
        return f"gai {error.errno}"
    except OSError as error:
        if error.errno is None:
            return type(error).__name__
        return name(error.errno)
    if value is None or isinstance(value, socket.socket):
        return "ok"
    return value.decode("latin-1") if isinstance(value, bytes) else value


def name(number: int) -> str:
    """0 is "ok"; of names that share a number, the one sockets use."""
    if number == 0:
        return "ok"
    return "EOPNOTSUPP" if number == 95 else errno.errorcode.get(number, str(number))


def pending(sock: socket.socket) -> str:
    """SO_ERROR, which reading clears."""
    return name(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


_EVENTS = [
    (select.POLLIN, "IN"),
    (select.POLLPRI, "PRI"),
    (select.POLLOUT, "OUT"),
    (select.POLLERR, "ERR"),
    (select.POLLHUP, "HUP"),
    (select.POLLNVAL, "NVAL"),
    (select.POLLRDHUP, "RDHUP"),
]


def events(mask: int) -> str:
    return "|".join(text for bit, text in _EVENTS if mask & bit) or "-"


def poll(sock: socket.socket | int, mask: int = 0xFFFF, seconds: float = 10) -> str:
    """The events of one descriptor, waiting until there is one."""
    poller = select.poll()
    poller.register(sock, mask & (select.POLLIN | select.POLLPRI | select.POLLOUT | 0x2000))
    found = poller.poll(seconds * 1000)
    return events(found[0][1]) if found else "-"


def wait_for(what: Callable[[], object], seconds: float = 10) -> bool:
    """Look again until `what` is true; for state that has no event (FIONREAD, a process' end)."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def mask(address: object, *known: tuple[int, str]) -> object:
    """A socket name with its port replaced: 0 stays, a known port gets its name, others are *."""
    if not isinstance(address, tuple) or len(address) < 2:
        return address
    names = dict(known)
    host, port = address[0], address[1]
    shown = "0" if port == 0 else names.get(port, "*")
    return f"{host} {shown}"


def echo(sock: socket.socket, text: bytes = b"hello") -> str:
    """Send, and read the same number of bytes back."""
    sock.sendall(text)
    return read(sock, len(text)).decode()


def read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            break
        data += more
    return data


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


# --- raw libc: what Python hides (EINTR, EFAULT, lengths) ---------------------------------------

libc = ctypes.CDLL(None, use_errno=True)


def raw(function: str, *arguments: object) -> str | int:
    """Call libc without Python's retries: the result, or the errno's name for -1."""
    ctypes.set_errno(0)
    result = int(getattr(libc, function)(*arguments))
    return name(ctypes.get_errno()) if result == -1 else result


def raw_connect(sock: socket.socket, address: bytes, size: int | None = None) -> str | int:
    size = len(address) if size is None else size
    return raw("connect", sock.fileno(), ctypes.c_char_p(address), size)


def set_timeval(sock: socket.socket, option: int, seconds: float) -> None:
    whole = int(seconds)
    value = whole.to_bytes(8, sys.byteorder) + int((seconds - whole) * 1e6).to_bytes(
        8, sys.byteorder
    )
    sock.setsockopt(socket.SOL_SOCKET, option, value)


# --- processes ---------------------------------------------------------------------------------


@contextlib.contextmanager
def child(body: Callable[[], object]) -> Iterator[int]:
    """Run `body` in a forked child; leaving the block waits for it. Its failure is said aloud."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException:
            say("child failed", traceback.format_exc())
        finally:
            sys.stdout.flush()
            os._exit(status)
    try:
        yield pid
    finally:
        os.waitpid(pid, 0)


def places(net: Net) -> list[tuple[str, tuple[str, int]]]:
    """Two echo services: the peer's, and one in a process of the program's own on loopback."""
    listener = net.listener(net.loop)
    if os.fork() == 0:
        while True:
            conn, _ = listener.accept()
            if os.fork() == 0:
                # A client that hangs up early is part of the probe.
                with contextlib.suppress(OSError):
                    while data := conn.recv(65536):
                        conn.sendall(data)
                os._exit(0)
            conn.close()
    port = int(listener.getsockname()[1])
    listener.close()
    return [("world", (net.peer, PORTS["echo"])), ("loopback", (net.loop, port))]


# --- the runner --------------------------------------------------------------------------------

_probes: dict[str, Callable[[], None]] = {}


def probe(function: Callable[[], None]) -> Callable[[], None]:
    _probes[function.__name__] = function
    return function


def both(function: Callable[[Net], None]) -> Callable[[Net], None]:
    """One probe per address family the site has."""

    def bind(net: Net) -> Callable[[], None]:
        return lambda: function(net)

    for net in nets():
        _probes[f"{function.__name__}.{net.version}"] = bind(net)
    return function


def _start(title: str, function: Callable[[], None]) -> int:
    """Start one probe in a child and a process group of its own; its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return pid
    global _probe
    _probe = title
    os.setpgid(0, 0)
    end = "ok"
    try:
        function()
    except BaseException as error:
        trace = traceback.extract_tb(error.__traceback__)
        where = ", ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in trace[-3:])
        end = f"{type(error).__name__}: {error} ({where})"
    print(json.dumps({"probe": title, "end": end}), flush=True)
    os._exit(0)


def _finish(title: str, pid: int, hung: bool) -> None:
    """Reap a probe, and whatever it left behind."""
    if hung:
        print(json.dumps({"probe": title, "end": "hung"}), flush=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        print(json.dumps({"probe": title, "end": f"signal {os.WTERMSIG(status)}"}), flush=True)


def main() -> None:
    """Run the probes named on the command line, or all; most of them wait, so several at once."""
    wanted = sys.argv[1:]
    waiting = [t for t in _probes if not wanted or t in wanted or t.split(".")[0] in wanted]
    running: dict[int, tuple[str, int, float]] = {}  # pidfd → probe, process, deadline
    hung = 0
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            title = waiting.pop(0)
            if hung >= HUNG_ENOUGH:
                print(json.dumps({"probe": title, "end": "not tried: too many hung"}), flush=True)
                continue
            pid = _start(title, _probes[title])
            running[os.pidfd_open(pid)] = (title, pid, time.monotonic() + PROBE_SECONDS)
        ended, _, _ = select.select(list(running), [], [], 0.5)
        for handle, (title, pid, deadline) in list(running.items()):
            late = time.monotonic() > deadline
            if handle in ended or late:
                del running[handle]
                os.close(handle)
                hung += handle not in ended
                _finish(title, pid, handle not in ended)
