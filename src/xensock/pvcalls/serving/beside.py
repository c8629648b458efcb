"""Datagrams of a guest's socket that a rule sends by another network: which one that is, and of those of this host the
socket there, beside the host's own one.

A datagram that finds a buffer full is lost, as on a wire. Only those to whom the guest may send by that network are
heard: nobody else knows the port.
"""

from __future__ import annotations

import errno
import socket
import typing
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from xensock.policy.networks import AWAY, HOST, NO_WAY
from xensock.pvcalls.serving import redirecting
from xensock.pvcalls.serving.addresses import name_of
from xensock.pvcalls.serving.framing import TURN
from xensock.pvcalls.serving.telling import ask_for
from xensock.wire.frames import Frame
from xensock.wire.packet_info import ROOM, PacketInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xensock.calls.address import Endpoint
    from xensock.calls.call import Decision
    from xensock.calls.call import Protocol as Transport
    from xensock.pvcalls.serving.afar import Afar, Passer
    from xensock.pvcalls.serving.framing import Frames
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held
    from xensock.wire.packet_info import Control

    Found = tuple[Decision, "Network | None", Endpoint | None]

LONGEST = 65535


class Seen(Protocol):
    """What a look at a route showed (stack.stacks.Look)."""

    @property
    def error(self) -> int:
        """0, or the errno of connect(2)."""
        ...

    @property
    def own(self) -> Endpoint | None:
        """The address that they come from, where that is known."""
        ...

    @property
    def decision(self) -> Decision | None:
        """What another backend decided, where it says so."""
        ...


class Network(Protocol):
    """A network. `passer`: another backend, by which they go; None where it is one of this host's."""

    name: str

    @property
    def passer(self) -> Passer | None:
        """See above."""
        ...

    def make(self, family: int, type: int, protocol: int, /) -> socket.socket:
        """A socket of it. Raises OSError."""
        ...

    def look(self, protocol: Transport, end: Endpoint, /) -> Seen:
        """Whether and from where datagrams would be sent to `end`."""
        ...


def networks(guest: Guest, decision: Decision) -> list[Network]:
    """Those that may carry what was decided about, in their order; none where that is the host's own, or refused."""
    if not decision.allowed or decision.via in ((), (HOST,)):
        return []
    there = redirecting.carriers(guest.backend.elsewhere, decision)
    return typing.cast("list[Network]", there)


def carried(
    decision: Decision,
    protocol: Transport,
    end: Endpoint,
    by: Sequence[Network],
    afar: Mapping[Network, Afar],
) -> Found:
    """The decision about an (unmapped) destination, what carries it (None: the host's own network), and the address
    that it is sent from, where that is known. Refused is what none of the networks that are there carries.

    `afar` has the sockets of those that are other backends, which may be slow to answer.
    """
    if not decision.allowed or decision.via in ((), (HOST,)):
        return decision, None, None
    error = errno.ENETUNREACH
    for network in by:
        seen = network.look(protocol, end) if network.passer is None else afar[network].look(end)
        if not seen.error:
            said = replace(decision.by(network.name), cacheable=False)
            return said, None if network.name == HOST else network, seen.own
        error = seen.error
        if error not in AWAY:
            theirs = seen.decision
            if theirs is not None and not theirs.allowed:
                return replace(theirs, error=error, cacheable=False), None, None
            break
    return (
        replace(
            decision,
            allowed=False,
            rule=f"{decision.rule}: no network of its via carries datagrams there",
            error=error,
            cacheable=False,
            via=(),
            hint=NO_WAY,
        ),
        None,
        None,
    )


class Beside:
    """A socket of another network, on the loop's thread. `heard`: whether one who sends may be heard.

    Raises OSError where there is none for the guest's.
    """

    def __init__(
        self, held: Held, network: Network, frames: Frames, heard: Callable[[Endpoint], bool]
    ) -> None:
        self._sock = network.make(held.family, socket.SOCK_DGRAM, held.protocol)
        self._sock.setblocking(False)
        if frames.informed:
            ask_for(self._sock)
        self._held, self._frames, self._heard = held, frames, heard
        self._loop = held.guest.backend.loop
        self._loop.add_reader(self._sock.fileno(), self._receive)

    def send(self, payload: bytes, to: Endpoint, control: list[Control]) -> int:
        """The errno of sendmsg(2)."""
        for last in (False, True):
            try:
                self._sock.sendmsg([payload], control, 0, to.as_python())
            except BlockingIOError:
                return 0
            except OSError as error:
                if (
                    last or error.errno != errno.ECONNREFUSED
                ):  # else an earlier one's failure, told late
                    return error.errno or errno.EIO
            else:
                self._held.guest.counters.sent += len(payload)
                return 0
        return 0

    def close(self) -> None:
        """Let go of it."""
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _receive(self) -> None:
        from xensock.calls.address import Endpoint

        informed = self._frames.informed
        room = min(LONGEST, self._frames.longest), ROOM if informed else 0
        for _ in range(TURN):
            try:
                payload, control, flags, source = self._sock.recvmsg(*room)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return
                continue  # what became of an earlier one
            if self._heard(Endpoint.from_python(source)):
                cut = bool(flags & socket.MSG_TRUNC)
                info = PacketInfo.told(control) if informed else None
                if self._frames.put(Frame(payload, name_of(source), truncated=cut, info=info)):
                    self._held.guest.counters.received += len(payload)
