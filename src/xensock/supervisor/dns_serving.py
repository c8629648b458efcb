"""The event loop of the guest's DNS server: datagrams and streams in, decided answers out.

Rules
- Every question is its own task, so that none waits for another one's server; their number is
  bounded, as are streams and what is under way on each.
- What the answers are is `questions`' business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from xensock.supervisor.dns import IP_PKTINFO
from xensock.supervisor.questions import Questions

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from xensock.calls import IPAddress
    from xensock.supervisor.dns import DnsServer

MAX_STREAMS = 128
MAX_PIPELINED = 64
BATCH = 32  # datagrams read before other work gets its turn
_QUERY_BYTES = 4096

_PKTINFO = struct.Struct("=I4s4s")  # struct in_pktinfo, ip(7)
_PKTINFO6 = struct.Struct("=16sI")  # struct in6_pktinfo, ipv6(7)

log = logging.getLogger(__name__)


def serve(server: DnsServer, udp: tuple[socket.socket, ...], wake: int) -> None:
    """Serve until `server.closing`; `wake` (an eventfd) tells of new streams and of closing."""
    asyncio.run(_Serving(server, udp, wake).run())


class _Serving:
    def __init__(self, server: DnsServer, udp: tuple[socket.socket, ...], wake: int) -> None:
        self._server = server
        self._udp = udp
        self._wake = wake
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams = 0
        self._questions = Questions(server)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        stopped = loop.create_future()
        for sock in self._udp:
            loop.add_reader(sock, self._readable, sock)
        loop.add_reader(self._wake, self._woken, stopped)
        try:
            await stopped
        finally:
            for sock in self._udp:
                loop.remove_reader(sock)
            loop.remove_reader(self._wake)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _woken(self, stopped: asyncio.Future[None]) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        if self._server.closing:
            if not stopped.done():
                stopped.set_result(None)
            return
        while self._server.streams:
            sock = self._server.streams.popleft()
            if self._streams >= MAX_STREAMS:
                sock.close()
                continue
            self._streams += 1
            self._spawn(self._stream(sock))

    # Datagrams

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                message, control, flags, client = sock.recvmsg(_QUERY_BYTES, 256)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("receiving a DNS query: %s", error)
                return
            asked = _asked(control)
            if flags & socket.MSG_TRUNC or asked is None:
                continue
            address, back = asked
            reply = self._datagram_replier(sock, back, client)
            self._spawn(self._datagram(message, address, reply))

    def _datagram_replier(
        self, sock: socket.socket, back: list[tuple[int, int, bytes]], client: Any
    ) -> Callable[[bytes], None]:
        def reply(answer: bytes) -> None:
            try:
                sock.sendmsg([answer], back, 0, client)
            except OSError as error:  # its buffer is full, or the guest's network is gone
                log.debug("answering a DNS query: %s", error)

        return reply

    async def _datagram(
        self, message: bytes, address: IPAddress, reply: Callable[[bytes], None]
    ) -> None:
        answer = await self._questions.answer(message, address, datagram=True)
        if answer is not None:
            reply(answer)

    # Streams

    async def _stream(self, sock: socket.socket) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            address = _local_address(sock)
            sock.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=sock)
            await self._pipelined(reader, writer, address)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            log.debug("a DNS stream ended: %s", error)
        finally:
            self._streams -= 1
            if writer is None:
                sock.close()
            else:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _pipelined(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: IPAddress | None
    ) -> None:
        """Answer the questions of a stream, each when its answer is there (RFC 7766, 6.2.1.1).

        Raises IncompleteReadError at its end, TimeoutError when it is silent for too long.
        """
        room = asyncio.Semaphore(MAX_PIPELINED)
        writing = asyncio.Lock()
        pending: set[asyncio.Task[None]] = set()

        async def one(message: bytes) -> None:
            try:
                answer = await self._questions.answer(message, address, datagram=False)
                if answer is None:
                    writer.transport.abort()  # not DNS: there is nothing to answer
                    return
                async with writing, asyncio.timeout(self._server.idle):
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    await writer.drain()
            except (OSError, TimeoutError):  # the client is gone, or does not read its answers
                writer.transport.abort()
            finally:
                room.release()

        try:
            while True:
                await room.acquire()
                message = await self._next(reader, pending)
                task = asyncio.get_running_loop().create_task(one(message))
                pending.add(task)
                task.add_done_callback(pending.discard)
        except (asyncio.IncompleteReadError, TimeoutError):
            # A client may say that it asks no more and still read (half-close).
            await asyncio.gather(*pending, return_exceptions=True)
            raise
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _next(self, reader: asyncio.StreamReader, pending: set[asyncio.Task[None]]) -> bytes:
        while True:
            try:
                async with asyncio.timeout(self._server.idle):
                    length = await reader.readexactly(2)
                break
            except TimeoutError:
                if not pending:
                    raise
        async with asyncio.timeout(self._server.idle):
            return await reader.readexactly(int.from_bytes(length, "big"))


def _asked(
    control: list[tuple[int, int, bytes]],
) -> tuple[IPAddress, list[tuple[int, int, bytes]]] | None:
    """The address that a datagram was sent to, and the control message that makes the reply leave
    from there; None for groups, which nobody asks."""
    for level, kind, data in control:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            _, _, packed = _PKTINFO.unpack_from(data)
            address: IPAddress = IPv4Address(packed)
            back = _PKTINFO.pack(0, packed, bytes(4))
        elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            packed, index = _PKTINFO6.unpack_from(data)
            address = six = IPv6Address(packed)
            # Only a link-local address needs its interface; others leave where the route says.
            back = _PKTINFO6.pack(packed, index if six.is_link_local else 0)
            address = six.ipv4_mapped or six
        else:
            continue
        if address.is_multicast or address == IPv4Address("255.255.255.255"):
            return None
        return address, [(level, kind, back)]
    return None


def _local_address(sock: socket.socket) -> IPAddress | None:
    """The server address that the client of a stream connected to, if it is an internet one."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    address = ip_address(str(sock.getsockname()[0]).partition("%")[0])
    return address.ipv4_mapped or address if address.version == 6 else address
