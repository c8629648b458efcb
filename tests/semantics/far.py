"""The far end of every probe: services on the peer host, and a control port that acts on request.

    python3 far.py          prints one JSON line with the port of each service, then serves

The control port takes one JSON request per line: dial back to a guest's listener, make a port that
leaves SYNs unanswered, open it later, and hand out what a service noted under a token.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import select
import socket
import struct
import sys
import threading
from typing import TYPE_CHECKING, Any

import far_datagrams
import far_ports

if TYPE_CHECKING:
    from collections.abc import Callable

RESET = struct.pack("ii", 1, 0)
SIOCATMARK = 0x8905  # linux/sockios.h

_boxes: dict[str, object] = {}
_noted = threading.Condition()
_holes: dict[int, tuple[socket.socket, list[socket.socket]]] = {}
_digging = threading.Lock()


def note(token: str, value: object) -> None:
    with _noted:
        _boxes[token] = value
        _noted.notify_all()


def name_of(sock: socket.socket, peer: bool) -> list[object]:
    host, port = (sock.getpeername() if peer else sock.getsockname())[:2]
    return [host.removeprefix("::ffff:"), port]


def line(sock: socket.socket) -> str:
    """One line, byte by byte: what follows it belongs to the service."""
    data = b""
    while not data.endswith(b"\n"):
        more = sock.recv(1)
        if not more:
            break
        data += more
    return data.decode().strip()


def drain(sock: socket.socket) -> dict[str, object]:
    """Read to the end and say how it ended."""
    count, digest, end = 0, hashlib.sha256(), "eof"
    try:
        while data := sock.recv(65536):
            count += len(data)
            digest.update(data)
    except OSError as error:
        end = errno.errorcode.get(error.errno or 0, str(error))
    return {"count": count, "sha": digest.hexdigest()[:16], "end": end}


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65536):
        sock.sendall(data)


def greet(sock: socket.socket) -> None:
    """Who the client is, as seen from here."""
    sock.sendall(json.dumps(name_of(sock, peer=True)).encode())


def sink(sock: socket.socket) -> None:
    """Everything up to the client's half-close, then a summary."""
    sock.sendall(json.dumps(drain(sock)).encode())


def source(sock: socket.socket) -> None:
    """As many bytes as the client asks for."""
    left = int(line(sock))
    block = bytes(range(256)) * 256
    while left:
        sock.sendall(block[: min(left, len(block))])
        left -= min(left, len(block))


def reset(sock: socket.socket) -> None:
    """Hang up with RST after one line."""
    line(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def leave(sock: socket.socket) -> None:
    """Half-close first, then note under the client's token how its half ended."""
    token = line(sock)
    sock.sendall(b"bye")
    with contextlib.suppress(OSError):  # reset already: the end of its half tells
        sock.shutdown(socket.SHUT_WR)
    note(token, drain(sock))


def watch(sock: socket.socket) -> None:
    """Note under the client's token how the connection ended."""
    note(line(sock), drain(sock))


def hold(sock: socket.socket) -> None:
    """Read nothing until the client's first line, told over another connection, says so."""
    token = line(sock)
    with _noted:
        _noted.wait_for(lambda: f"go {token}" in _boxes, 30)
    note(token, drain(sock))


def urgent(sock: socket.socket) -> None:
    """One byte out of band in the middle, at the client's line."""
    line(sock)
    sock.sendall(b"ab")
    sock.send(b"!", socket.MSG_OOB)
    sock.sendall(b"cd")
    line(sock)


def hear(sock: socket.socket) -> None:
    """Report what came before an urgent byte, that byte and what came behind it."""
    poll = select.poll()
    poll.register(sock, select.POLLPRI)
    poll.poll(10_000)
    before = b""
    while not at_mark(sock):
        before += sock.recv(65536)
    byte = sock.recv(1, socket.MSG_OOB)
    behind = b"".join(iter(lambda: sock.recv(65536), b""))
    sock.sendall(json.dumps([each.decode() for each in (before, byte, behind)]).encode())


def at_mark(sock: socket.socket) -> bool:
    """sockatmark(3)."""
    return fcntl.ioctl(sock, SIOCATMARK, bytes(4)) != bytes(4)


def dial(request: dict[str, Any]) -> dict[str, object]:
    """Connect to the guest and talk as asked: say, then read to the end."""
    family = socket.AF_INET6 if ":" in request["host"] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    with sock:
        sock.settimeout(request.get("seconds", 5))
        try:
            sock.connect((request["host"], request["port"]))
        except TimeoutError:
            return {"connect": "timeout"}
        except OSError as error:
            # A reset that comes at once may end the connect itself.
            end = {"end": "ECONNRESET"} if error.errno == errno.ECONNRESET else {}
            return {"connect": errno.errorcode.get(error.errno or 0, str(error)), **end}
        answer: dict[str, object] = {"connect": "ok"}
        try:
            answer["me"] = name_of(sock, peer=False)
            try:
                answer["you"] = name_of(sock, peer=True)
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise  # else reset meanwhile: what is read next says so
            if say := request.get("say"):
                sock.sendall(say.encode())
            if byte := request.get("urgent"):
                sock.send(byte.encode(), socket.MSG_OOB)
            if request.get("reset"):
                sock.recv(1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                return answer
            if request.get("half", True):
                sock.shutdown(socket.SHUT_WR)
            data = b""
            while more := sock.recv(65536):
                data += more
            answer["got"] = data[:200].decode("latin-1")
        except OSError as error:
            answer["end"] = errno.errorcode.get(error.errno or 0, str(error))
        return answer


def blackhole(version: int) -> dict[str, object]:
    """A listener whose accept queue is full: Linux drops further SYNs without an answer."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with _digging:
        port, listener = dug(family)
        fillers: list[socket.socket] = []
        _holes[port] = (listener, fillers)
    while True:
        filler = socket.socket(family, socket.SOCK_STREAM)
        filler.setblocking(False)
        filler.connect_ex(("::1" if version == 6 else "127.0.0.1", port))
        if not select.select([], [filler], [], 0.15)[1]:
            filler.close()
            break
        fillers.append(filler)
    return {"port": port}


def dug(family: int) -> tuple[int, socket.socket]:
    """A listener on a port that no other hole has: the kernel gives the two families the same number now and then."""
    tried: list[socket.socket] = []
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
        if port not in _holes:
            break
        tried.append(listener)  # held meanwhile, so that the kernel gives another
    listener.listen(0)
    for each in tried:
        each.close()
    return port, listener


def open_hole(port: int) -> dict[str, object]:
    listener, fillers = _holes.pop(port)
    for filler in fillers:
        filler.close()
    serve(listener, echo)
    return {}


def control(sock: socket.socket) -> None:
    holes: list[int] = []
    dials: list[threading.Thread] = []
    with sock.makefile("rwb") as file:
        for text in file:
            request = json.loads(text)
            match request.pop("op"):
                case "dial":
                    answer = dial(request)
                case "datagram":
                    answer = far_datagrams.dial(request)
                case "dial later":
                    # Dials while the guest goes on; the answer waits under the token.
                    token = request.pop("token")

                    dials_by = far_datagrams.dial if request.pop("datagrams", False) else dial

                    def later(
                        token: str = token, request: Any = request, dials_by: Any = dials_by
                    ) -> None:
                        note(token, dials_by(request))

                    dials.append(threading.Thread(target=later, daemon=True))
                    dials[-1].start()
                    answer = {}
                case "blackhole":
                    answer = blackhole(request["family"])
                    holes.append(answer["port"])  # type: ignore[arg-type]
                case "open":
                    answer = open_hole(request["port"])
                case "note":
                    note(request["token"], request["value"])
                    answer = {}
                case "box":
                    with _noted:
                        token = request["token"]
                        _noted.wait_for(lambda token=token: token in _boxes, 10)
                        answer = {"value": _boxes.pop(token, "nothing came")}
                case other:
                    answer = {"error": f"unknown request {other}"}
            file.write(json.dumps(answer).encode() + b"\n")
            file.flush()
    for port in holes:
        if port in _holes:
            listener, fillers = _holes.pop(port)
            for each in [listener, *fillers]:
                each.close()


def serve(listener: socket.socket, service: Callable[[socket.socket], None]) -> None:
    def one(sock: socket.socket) -> None:
        # A client that hangs up is part of the probe, not a failure of the service.
        with sock, contextlib.suppress(OSError):
            service(sock)

    def loop() -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=one, args=(sock,), daemon=True).start()

    threading.Thread(target=loop, daemon=True).start()


def main() -> None:
    services = [echo, greet, sink, source, reset, leave, watch, hold, urgent, hear, control]
    ports = {}
    for service in services:
        listener = far_ports.bound(socket.SOCK_STREAM)
        listener.listen(512)
        ports[service.__name__] = listener.getsockname()[1]
        serve(listener, service)
    # A port that stays closed: bound, never listening, so nobody else gets it either.
    closed = far_ports.bound(socket.SOCK_STREAM)
    ports["closed"] = closed.getsockname()[1]
    ports["datagrams"] = far_datagrams.start()
    print(json.dumps(ports), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
