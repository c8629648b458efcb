"""DNS over TCP: a connection to port 53 of any address ends at the guest's name service (RFC 7766).

So names work for frontends that have streams only, whatever server their resolver is told to ask, and
what they resolve is known to rules by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from xensock.calls.address import Endpoint
from xensock.calls.call import Decision
from xensock.calls.hops import passed_on
from xensock.pvcalls.serving import moving
from xensock.pvcalls.serving.attempt import Way
from xensock.pvcalls.serving.held import Joined, in_family

if TYPE_CHECKING:
    from xensock.pvcalls.serving.held import Held

PORT = 53
SERVED = Decision(True, "name service")
IDLE = 10.0  # seconds of silence after which a connection is closed
PIPELINED = 64  # questions of one connection under way


def way(held: Held, end: Endpoint) -> Way:
    """How to connect to the name service, by the address that was asked."""
    guest = held.guest

    def move(held: Held) -> None:
        far, near = socket.socketpair()
        near.setblocking(False)
        try:
            token = moving.join(held, far.detach())
        except OSError:
            near.close()
            raise
        moving.carried(held, token, 0)
        held.joined = Joined(token, loopback_name(held), end)
        task = guest.backend.loop.create_task(_serve(held, near, end))
        guest.tasks.add(task)
        task.add_done_callback(guest.tasks.discard)

    return Way(lambda sock: 0, move)


def loopback_name(held: Held) -> Endpoint:
    """The socket's own address; there is no way to a server that could say which it is."""
    own = Endpoint.from_python(held.host.getsockname())
    if own.port:
        return own
    held.host.bind(("127.0.0.1" if held.family == socket.AF_INET else "::1", 0))
    held.guest.backend.ports.note(held)
    return in_family(Endpoint.from_python(held.host.getsockname()), held.family)


async def _serve(held: Held, near: socket.socket, end: Endpoint) -> None:
    """Answer the questions of a connection, each when its answer is there, until it ends."""
    guest = held.guest
    passed_on.set(held.hops)
    reader, writer = await asyncio.open_connection(sock=near)
    room = asyncio.Semaphore(PIPELINED)
    pending: set[asyncio.Task[None]] = set()

    async def one(message: bytes) -> None:
        try:
            found = await guest.names.explained(message, end.unmapped().host, datagram=False)
            if found is None:
                writer.transport.abort()  # not DNS: there is nothing to answer
                return
            answer, decision = found
            guest.asked(decision)
            writer.write(len(answer).to_bytes(2, "big") + answer)
            async with asyncio.timeout(IDLE):
                await writer.drain()
        except (OSError, TimeoutError):
            writer.transport.abort()
        finally:
            room.release()

    try:
        while True:
            await room.acquire()
            async with asyncio.timeout(IDLE):
                length = await reader.readexactly(2)
                message = await reader.readexactly(int.from_bytes(length, "big"))
            task = asyncio.get_running_loop().create_task(one(message))
            pending.add(task)
            task.add_done_callback(pending.discard)
    except (asyncio.IncompleteReadError, TimeoutError, OSError):
        # A client may say that it asks no more and still read (half-close).
        await asyncio.gather(*pending, return_exceptions=True)
    finally:
        for task in pending:
            task.cancel()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
