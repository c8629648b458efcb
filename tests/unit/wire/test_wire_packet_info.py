"""What IP says of a datagram: its bytes, and its control messages beside the kernel's."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.pvcalls.serving.telling import ask_for
from xensock.wire.errors import WireError
from xensock.wire.packet_info import (
    IP_RECEIVE,
    IPV6_RECEIVE,
    ROOM,
    SIZE,
    PacketInfo,
    fitting,
)

PATIENCE_S = 10
IP, IPV6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
IP_PKTINFO = 8
numbers = st.none() | st.integers(0, 255)
infos = st.builds(PacketInfo, st.none() | st.binary(min_size=16, max_size=16), numbers, numbers)


@given(infos, st.binary(max_size=8))
def test_round_trip(info: PacketInfo, payload: bytes) -> None:
    raw = info.encode()
    assert len(raw) == SIZE
    assert PacketInfo.decode(raw + payload) == info


@given(st.binary(max_size=40))
def test_any_bytes_are_information_or_refused(raw: bytes) -> None:
    if len(raw) < SIZE:
        with pytest.raises(WireError):
            PacketInfo.decode(raw)
    else:
        info = PacketInfo.decode(raw)
        assert PacketInfo.decode(info.encode()) == info


@pytest.mark.parametrize(
    "info", [PacketInfo(bytes(4)), PacketInfo(hops=256), PacketInfo(tos=-1)], ids=str
)
def test_what_has_no_bytes(info: PacketInfo) -> None:
    with pytest.raises(WireError):
        info.encode()


def mapped(host: str) -> bytes:
    return bytes(10) + b"\xff\xff" + ip_address(host).packed


@pytest.mark.parametrize(
    ("family", "bound", "called", "source"),
    [
        (socket.AF_INET, "0.0.0.0", "127.0.0.2", mapped("127.0.0.3")),
        (socket.AF_INET6, "::", "::1", ip_address("::1").packed),
        (socket.AF_INET6, "::", "::ffff:127.0.0.2", mapped("127.0.0.3")),
    ],
    ids=["IPv4", "IPv6", "mapped"],
)
def test_the_kernel_sends_and_tells_it(family: int, bound: str, called: str, source: bytes) -> None:
    """Given to one socket, told by the other: and told again as the kernel told it."""
    four = source.startswith(mapped("0.0.0.0")[:12])
    with (
        socket.socket(family, socket.SOCK_DGRAM) as one,
        socket.socket(family, socket.SOCK_DGRAM) as two,
    ):
        two.settimeout(PATIENCE_S)
        one.bind((bound, 0))
        two.bind((bound, 0))
        ask_for(two)
        given_ = PacketInfo(source, 7, 0xB8).for_sending(family, four)
        one.sendmsg([b"x"], given_, 0, (called, two.getsockname()[1]))
        _, control, flags, sender = two.recvmsg(1, ROOM)
        told = PacketInfo.told(control)
        host = ip_address(called)
        assert told == PacketInfo(host.packed if host.version == 6 else mapped(called), 7, 0xB8)
        assert ip_address(sender[0]) == ip_address(
            source if not four or family == socket.AF_INET6 else source[12:]
        )
        assert not flags & socket.MSG_CTRUNC
    wanted = IP_RECEIVE | (IPV6_RECEIVE if family == socket.AF_INET6 else frozenset())
    if family == socket.AF_INET6:
        wanted -= {(IP, IP_PKTINFO)}
    mine = told.as_received(wanted, four)
    assert [each[:2] for each in mine] == [each[:2] for each in control]
    assert [without_interface(*each) for each in mine] == [without_interface(*e) for e in control]


def without_interface(level: int, kind: int, data: bytes) -> bytes:
    if (level, kind) == (IP, IP_PKTINFO):
        return data[4:]
    return data[:16]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("room", range(0, 130, 3))
def test_a_buffer_that_is_too_short(family: int, room: int) -> None:
    """What recvmsg(2) shows in so many bytes is what fitting() leaves."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with (
        socket.socket(family, socket.SOCK_DGRAM) as one,
        socket.socket(family, socket.SOCK_DGRAM) as two,
    ):
        two.settimeout(PATIENCE_S)
        two.bind((host, 0))
        ask_for(two)
        for _ in range(2):
            one.sendto(b"x", two.getsockname())
        _, whole, _, _ = two.recvmsg(1, ROOM)
        _, short, flags, _ = two.recvmsg(1, room)
    assert fitting(whole, room) == (short, bool(flags & socket.MSG_CTRUNC))


INT = struct.Struct("=i")


@pytest.mark.parametrize(
    ("message", "number"),
    [
        ((IP, 2, INT.pack(0)), errno.EINVAL),
        ((IP, 2, INT.pack(256)), errno.EINVAL),
        ((IP, 2, b"\1"), errno.EINVAL),
        ((IP, 1, INT.pack(256)), errno.EINVAL),
        ((IP, IP_PKTINFO, bytes(11)), errno.EINVAL),
        ((IP, IP_PKTINFO, INT.pack(1 << 30) + bytes(8)), errno.ENODEV),
        ((IP, 99, bytes(4)), errno.EINVAL),
        ((IPV6, socket.IPV6_HOPLIMIT, INT.pack(-2)), errno.EINVAL),
        ((IPV6, socket.IPV6_TCLASS, INT.pack(256)), errno.EINVAL),
        ((IPV6, socket.IPV6_TCLASS, bytes(5)), errno.EINVAL),
        ((IPV6, socket.IPV6_PKTINFO, bytes(16) + INT.pack(1 << 30)), errno.ENODEV),
    ],
)
def test_what_a_program_cannot_give(message: tuple[int, int, bytes], number: int) -> None:
    """The kernel refuses each with the same errno."""

    def outcome(call: Any) -> int:
        with pytest.raises(OSError, match=r"\[Errno \d+\]") as caught:
            call()
        return caught.value.errno or 0

    family = socket.AF_INET if message[0] == IP else socket.AF_INET6
    host = "127.0.0.1" if message[0] == IP else "::1"
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        native = outcome(lambda: sock.sendmsg([b"x"], [message], 0, (host, 9)))
    assert (outcome(lambda: PacketInfo.given([message])), number) == (native, native)


def test_what_says_nothing() -> None:
    usual = [
        (IPV6, socket.IPV6_HOPLIMIT, INT.pack(-1)),
        (IPV6, socket.IPV6_TCLASS, INT.pack(-1)),
        (IPV6, socket.IPV6_PKTINFO, bytes(20)),
        (IP, IP_PKTINFO, bytes(12)),
    ]
    assert PacketInfo.given(usual) == PacketInfo()
    assert PacketInfo().for_sending(socket.AF_INET, four=True) == []


def test_an_address_of_the_other_version() -> None:
    with pytest.raises(OSError, match=rf"\[Errno {errno.EINVAL}\]"):
        PacketInfo(bytes(15) + b"\1").for_sending(socket.AF_INET, four=True)
