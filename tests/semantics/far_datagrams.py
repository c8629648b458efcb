"""The far end's datagram service, on one port of both families.

What comes back depends on what is sent: `who` is answered with the sender's address, `many COUNT SIZE` with so many
datagrams, anything else with itself; always from the address that was asked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import threading
from typing import Any

import far_ports

IN6_PKTINFO = 20


def start() -> int:
    """Serve; the port."""
    sock = far_ports.bound(socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    threading.Thread(target=_serve, args=(sock,), daemon=True).start()
    return int(sock.getsockname()[1])


def _serve(sock: socket.socket) -> None:
    while True:
        # An error here is that of an earlier answer, whose asker has gone.
        with contextlib.suppress(OSError):
            data, control, _, sender = sock.recvmsg(70000, 200)
            info = [
                (level, kind, value[:16] + bytes(4))
                for level, kind, value in control
                if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
            ]
            for answer in _answers(data, sender):
                sock.sendmsg([answer], info, 0, sender)


def _answers(data: bytes, sender: Any) -> list[bytes]:
    if data == b"who":
        return [json.dumps([sender[0].removeprefix("::ffff:"), sender[1]]).encode()]
    if data.startswith(b"many "):
        count, size = map(int, data.split()[1:])
        return [bytes([number % 256]) * size for number in range(count)]
    return [data]


def dial(request: dict[str, Any]) -> dict[str, object]:
    """Send what is asked for to the guest, one datagram each, and tell what came back and from whom."""
    family = socket.AF_INET6 if ":" in request["host"] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(request.get("seconds", 5))
        sock.connect((request["host"], request["port"]))
        got: list[str] = []
        answer: dict[str, object] = {"me": list(sock.getsockname()[:2]), "got": got}
        try:
            for text in request["say"]:
                sock.send(text.encode())
                got.append(sock.recv(70000)[:200].decode("latin-1"))
        except TimeoutError:
            answer["end"] = "timeout"
        except OSError as error:
            answer["end"] = errno.errorcode.get(error.errno or 0, str(error))
        return answer
