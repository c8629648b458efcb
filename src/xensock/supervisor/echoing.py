"""Sockets of the host that send ICMP echo requests for a guest: ping sockets, or raw ones where only root may ping."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from xensock.supervisor.relay_wire import attach_filter

if TYPE_CHECKING:
    from collections.abc import Callable

REPLY4, REPLY6 = 0, 129
_LD_H, _LD_B, _LD_H_X, _LD_B_X, _LDX_IHL, _JEQ, _RET = 0x28, 0x30, 0x48, 0x50, 0xB1, 0x15, 0x06


def open_echo(
    family: int, make: Callable[[int, int, int], socket.socket] = socket.socket
) -> tuple[socket.socket, int]:
    """(socket, 0) for a ping socket (icmp(7)), (socket, identifier) for a raw one that takes only answers to that.
    `make` makes sockets of a network.

    Raises OSError: EACCES where this user may not ping (net.ipv4.ping_group_range).
    """
    protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    with suppress(PermissionError):
        return make(family, socket.SOCK_DGRAM, protocol), 0
    try:
        raw = make(family, socket.SOCK_RAW, protocol)
    except PermissionError as error:
        raise PermissionError(13, os.strerror(13)) from error
    number = int.from_bytes(os.urandom(2), "big") | 1
    attach_filter(raw, reply_filter(family, number))
    return raw, number


def permitted() -> bool:
    """Whether this user may ping."""
    try:
        made, _ = open_echo(socket.AF_INET)
    except OSError:
        return False
    made.close()
    return True


def reply_filter(family: int, number: int) -> bytes:
    """Classic BPF for a raw ICMP socket: echo replies with this identifier. IPv4 comes with its header."""
    head: tuple[tuple[int, int, int, int], ...]
    if family == socket.AF_INET:
        head = ((_LDX_IHL, 0, 0, 0), (_LD_B_X, 0, 0, 0), (_JEQ, 0, 3, REPLY4), (_LD_H_X, 0, 0, 4))
    else:
        head = ((_LD_B, 0, 0, 0), (_JEQ, 0, 3, REPLY6), (_LD_H, 0, 0, 4))
    code = (*head, (_JEQ, 0, 1, number), (_RET, 0, 0, 0xFFFFFF), (_RET, 0, 0, 0))
    return b"".join(struct.pack("=HBBI", *line) for line in code)
