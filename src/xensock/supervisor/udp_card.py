"""The far end of a guest's card, by which its datagrams leave it: a packet socket (packet(7)) in its network."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from xensock.supervisor.rtnetlink import FAR_END

if TYPE_CHECKING:
    from xensock.supervisor.guest import Guest

BUFFER = 8 << 20  # bytes that a guest may send faster than they can be passed on
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, ETH_P_ALL = 263, 15, 23, 3
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32


def open_card(guest: Guest) -> socket.socket:
    """Raises OSError where the kernel lacks packet sockets."""
    card = guest.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        card.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        with suppress(OSError):  # Linux 4.20; without it we see our own packets
            card.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        for force, name in (
            (SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            try:
                card.setsockopt(socket.SOL_SOCKET, force, BUFFER)
            except PermissionError:  # only the host's root: as much as anybody gets
                card.setsockopt(socket.SOL_SOCKET, name, BUFFER)
        card.bind((FAR_END, ETH_P_ALL))
    except BaseException:
        card.close()
        raise
    return card
