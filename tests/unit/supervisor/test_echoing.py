"""Sockets that ping: which kind, and which answers a raw one takes."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import guestkit
from xensock.supervisor import echoing


def judged(program: bytes, packet: bytes) -> int:
    """What classic BPF answers about a packet: the few instructions that the filter uses."""
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    a = x = at = 0
    while True:
        op, yes, no, k = code[at]
        at += 1
        where = k + (x if op in (0x48, 0x50) else 0)
        size = {0x28: 2, 0x48: 2, 0x30: 1, 0x50: 1}.get(op, 0)
        if op == 0x06:
            return k
        if op == 0x15:
            at += yes if a == k else no
        elif (op == 0xB1 and not packet) or (size and where + size > len(packet)):
            return 0  # a load beyond the packet ends the filter (bpf(4))
        elif op == 0xB1:
            x = 4 * (packet[k] & 0xF)
        else:
            a = int.from_bytes(packet[where : where + size], "big")


@given(st.integers(0, 255), st.integers(0, 65535), st.integers(0, 65535), st.binary(max_size=20))
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_raw_socket_takes_its_own_answers_only(
    family: int, kind: int, identifier: int, own: int, rest: bytes
) -> None:
    message = struct.pack("!BBHH", kind, 0, 0, identifier) + rest
    head = bytes([0x46]) + bytes(23) if family == socket.AF_INET else b""
    wanted = kind == (0 if family == socket.AF_INET else 129) and identifier == own
    assert bool(judged(echoing.reply_filter(family, own), head + message)) == wanted


@given(st.binary(max_size=6))
def test_what_is_too_short_is_not_taken(data: bytes) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        assert judged(echoing.reply_filter(family, 7), data) == 0 or len(data) >= 6


def test_a_socket_is_made_where_pinging_is_permitted() -> None:
    if not echoing.permitted():
        with pytest.raises(PermissionError):
            echoing.open_echo(socket.AF_INET)
        return
    made, identifier = echoing.open_echo(socket.AF_INET)
    with made:
        assert made.type in (socket.SOCK_DGRAM, socket.SOCK_RAW)
        assert (identifier == 0) == (made.type == socket.SOCK_DGRAM)


def test_ping_sockets_are_there_when_the_host_may_ping() -> None:
    said, calls = guestkit.run(
        """
        def ping():
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
        said(error_of(ping))
        said(error_of(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        said(error_of(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0))
        """
    )
    assert said == ["" if echoing.permitted() else "EACCES", "EPERM", "EPERM"]
    assert not calls or os.geteuid() >= 0
