"""What ICMP said of a socket's datagrams, for MSG_ERRQUEUE of recvmsg(2) (ip(7), IP_RECVERR; ipv6(7), IPV6_RECVERR).

A backend reports errors between the datagrams that come. Those that recv() has told wait here until they are read, as
in the kernel's queue; one that datagrams are before is found once those are read.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from typing import TYPE_CHECKING

from xensock.calls.address import MAPPED, Endpoint

if TYPE_CHECKING:
    from xensock.wire.frames import Frame, Icmp
    from xensock.wire.packet_info import Control

SWITCHES = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
MOST = 128  # the kernel's are as many as SO_RCVBUF has room for
ORIGIN_ICMP, ORIGIN_ICMP6 = 2, 3  # linux/errqueue.h
_ERROR = struct.Struct("=IBBBxII")  # struct sock_extended_err
_SENDER4 = struct.Struct("=H2x4s8x")
_SENDER6 = struct.Struct("=H6x16s4x")
_NOBODY = bytes(16)


class Reports:
    """The queue of one socket. Used by whoever reads from it."""

    def __init__(self, family: int) -> None:
        self._switch = SWITCHES[socket.AddressFamily(family)]
        self._family = family
        self._waiting: deque[Frame] = deque()

    def keep(self, frame: Frame) -> None:
        """A failure was told; with what an ICMP message said it can be read here, too. What is too much is lost."""
        if frame.icmp is not None and len(self._waiting) < MOST:
            self._waiting.append(frame)

    def take(self) -> Frame | None:
        """The oldest."""
        return self._waiting.popleft() if self._waiting else None

    def switched(self, option: tuple[int, int], value: bytes) -> None:
        """An option was set: without IP_RECVERR there is no queue."""
        if option == self._switch and not any(value[:4]):
            self._waiting.clear()

    def control(self, frame: Frame) -> list[Control]:
        """The control message for one of them."""
        icmp = frame.icmp
        assert icmp is not None
        four = Endpoint.from_sockaddr(frame.address).unmapped().host.version == 4
        origin = ORIGIN_ICMP if four else ORIGIN_ICMP6
        error = _ERROR.pack(-frame.error, origin, icmp.type, icmp.code, icmp.info, 0)
        return [(*self._switch, error + self._sender(icmp))]

    def _sender(self, icmp: Icmp) -> bytes:
        if self._family == socket.AF_INET:
            if not icmp.sender.startswith(MAPPED):
                return bytes(_SENDER4.size)
            return _SENDER4.pack(socket.AF_INET, icmp.sender[12:])
        known = socket.AF_INET6 if icmp.sender != _NOBODY else 0
        return _SENDER6.pack(known, icmp.sender)
