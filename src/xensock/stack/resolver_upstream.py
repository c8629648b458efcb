"""Asking the host's DNS servers: one message out, one message back, over UDP or TCP.

Rules
- Every UDP question leaves from a fresh socket, so from a fresh random port, under a fresh random
  identifier (RFC 5452), and only a reply to the same question under it, from the server asked (the
  socket is connected), is taken; everything else that arrives is ignored.
- Order, timeouts and attempts are libc's (glibc's resolv/res_send.c), with one addition: a server
  that kept silent is asked last for a while.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING

from xensock.stack import resolver_wire as wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.address import IPAddress
    from xensock.stack.hostfiles import ResolvConf

    MakeSocket = Callable[[int, int, int], socket.socket]

SILENT_FOR = 30.0  # seconds for which a silent server is asked last
_LONGEST = 65535
# A reply with one of these sends libc to its next server.
_NEXT = frozenset({wire.SERVFAIL, wire.NOTIMP, wire.REFUSED})


class Upstream:
    """The host's DNS servers, on `port`; `make_socket(family, type, protocol)` makes what they are asked by."""

    def __init__(self, port: int, make_socket: MakeSocket = socket.socket) -> None:
        self._port = port
        self._make = make_socket
        self._silent: dict[IPAddress, float] = {}  # until when (monotonic)
        self._turn = 0

    async def ask(
        self, query: bytes, question: wire.Question, conf: ResolvConf, first: IPAddress | None
    ) -> bytes | None:
        """The best answer to `query`, under an identifier of its own choice: None when no server
        answers. `first` is the server that the guest asked: if it is one of the host's, it is
        asked first, which makes a guest that tries its servers itself behave as natively."""
        best: bytes | None = None
        order = self._order(conf, first)
        for _ in range(conf.attempts):
            for server in order:
                try:
                    async with asyncio.timeout(conf.timeout):
                        answer = None if conf.use_vc else await self._udp(server, query, question)
                    if answer is None or wire.head(answer)[1] & wire.TC:
                        best = answer or best
                        async with asyncio.timeout(conf.timeout):
                            answer = await self._tcp(server, query, question)
                except TimeoutError:
                    self._silent[server] = time.monotonic() + SILENT_FOR
                    continue
                except (OSError, OverflowError):
                    continue  # unreachable, refused, its interface is gone: the next one
                self._silent.pop(server, None)
                best = answer
                if wire.rcode(answer) not in _NEXT:
                    return answer
        return best

    def _order(self, conf: ResolvConf, first: IPAddress | None) -> list[IPAddress]:
        servers = list(dict.fromkeys(conf.servers))
        if conf.rotate:
            self._turn = (self._turn + 1) % len(servers)
            servers = servers[self._turn :] + servers[: self._turn]
        now = time.monotonic()
        self._silent = {server: until for server, until in self._silent.items() if until > now}
        servers.sort(key=lambda server: (not same(server, first), server in self._silent))
        return servers

    def _socket(self, server: IPAddress, kind: int) -> tuple[socket.socket, tuple[str | int, ...]]:
        """A socket for `server` and the address to connect it to. Raises OSError."""
        if server.version == 4:
            return self._make(socket.AF_INET, kind, 0), (str(server), self._port)
        scope = 0
        if server.scope_id is not None:
            scope = (
                int(server.scope_id)
                if server.scope_id.isdigit()
                else socket.if_nametoindex(server.scope_id)
            )
        host = str(server).partition("%")[0]
        return self._make(socket.AF_INET6, kind, 0), (host, self._port, 0, scope)

    async def _udp(self, server: IPAddress, query: bytes, question: wire.Question) -> bytes:
        loop = asyncio.get_running_loop()
        sock, address = self._socket(server, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with sock:
            sock.connect(address)  # immediate, and the kernel picks a random port
            identifier = int.from_bytes(os.urandom(2), "big")
            await loop.sock_sendall(sock, wire.with_id(query, identifier))
            while True:
                answer = await loop.sock_recv(sock, _LONGEST)
                if _answers(answer, identifier, query, question):
                    return answer

    async def _tcp(self, server: IPAddress, query: bytes, question: wire.Question) -> bytes:
        loop = asyncio.get_running_loop()
        sock, address = self._socket(server, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with sock:
            await loop.sock_connect(sock, address)
            identifier = int.from_bytes(os.urandom(2), "big")
            message = wire.with_id(query, identifier)
            await loop.sock_sendall(sock, len(message).to_bytes(2, "big") + message)
            length = int.from_bytes(await _exactly(sock, 2), "big")
            answer = await _exactly(sock, length)
            if not _answers(answer, identifier, query, question):
                raise ConnectionError(f"{server} answered another question over TCP")
            return answer


def same(one: IPAddress, other: IPAddress | None) -> bool:
    """Whether both are one address. Scopes do not count: a guest has other interfaces."""
    return other is not None and one.packed == other.packed


async def _exactly(sock: socket.socket, size: int) -> bytes:
    """Read `size` bytes. Raises ConnectionError when the stream ends before."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < size:
        more = await loop.sock_recv(sock, size - len(data))
        if not more:
            raise ConnectionError("the server hung up within an answer")
        data += more
    return bytes(data)


def _answers(answer: bytes, identifier: int, query: bytes, question: wire.Question) -> bool:
    """Whether `answer` replies to `query` as sent under `identifier`."""
    if len(answer) < wire.HEADER:
        return False
    got, flags = wire.head(answer)
    if got != identifier or not flags & wire.QR:
        return False
    if (flags ^ wire.head(query)[1]) & wire.OPCODE:
        return False
    if answer[4:6] == b"\0\0" and wire.rcode(answer) != wire.NOERROR:
        return True  # servers that cannot read a question do not repeat it
    try:
        echoed = wire.read_question(answer)
    except wire.WireError:
        return False
    return (echoed.labels, echoed.type, echoed.cls) == (
        question.labels,
        question.type,
        question.cls,
    )
