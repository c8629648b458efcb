"""Name resolution: a socket whose datagrams are DNS messages, each answered by one.

Questions go through the policy and the backend's resolver, as the supervisor's guests' do. Whoever
sends datagrams to port 53 of any address gets his answers from here too: rules by name hold only
for addresses that this backend resolved.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from xensock.calls.hops import passed_on
from xensock.pvcalls.serving.explaining import explanation
from xensock.pvcalls.serving.framing import Frames
from xensock.pvcalls.serving.held import Held, Phase
from xensock.wire.extensions import Extension
from xensock.wire.frames import Frame

if TYPE_CHECKING:
    from xensock.calls.address import Endpoint, IPAddress
    from xensock.pvcalls.serving.guest import Guest
    from xensock.wire.requests import Socket


def make(guest: Guest, request: Socket) -> Held:
    """A socket for questions; there is none of the host behind it."""
    phase, kind = Phase.DATAGRAMS, socket.SOCK_DGRAM
    return Held(guest, request.id, 0, kind, request.protocol, None, phase, hops=request.hops)


def attached(guest: Guest, held: Held) -> None:
    """The socket has its ring: serve it."""
    ring = held.ring
    assert ring is not None

    def take(frame: Frame) -> bool:
        ask(held, frame.payload, None, frames)
        return True

    frames = Frames(guest, ring, take, lambda: None)
    held.close = frames.close


def ask(held: Held, message: bytes, server: Endpoint | None, frames: Frames) -> None:
    """Answer a question in its own time; the answer comes from `server`, if it was sent to one."""
    guest = held.guest
    host: IPAddress | None = server.unmapped().host if server is not None else None
    address = server.sockaddr() if server is not None else b""

    async def answer() -> None:
        passed_on.set(held.hops)
        # Only datagrams to a name server have UDP's limits.
        found = await guest.names.explained(message, host, datagram=server is not None)
        if found is None:
            return
        payload, decision = found
        guest.asked(decision)
        if server is None and Extension.EXPLAIN in guest.extensions:
            payload = explanation(decision).encode() + payload
        if len(payload) <= frames.longest:
            frames.put(Frame(payload, address))

    task = asyncio.get_running_loop().create_task(answer())
    guest.tasks.add(task)
    task.add_done_callback(guest.tasks.discard)
