"""Datagrams: packets as the core reads and writes them, and what guests find where nobody outside is asked."""

from __future__ import annotations

import errno
import struct
import time
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

import guestkit
from xensock import _core
from xensock.calls.address import Endpoint, IPAddress, packed, unpacked
from xensock.calls.call import Protocol
from xensock.supervisor.datagram_records import target
from xensock.supervisor.datagrams import ECHO, UDP

PORT = st.integers(0, 65535)
FOUR = st.ip_addresses(v=4)
SIX = st.ip_addresses(v=6).filter(lambda a: a.ipv4_mapped is None)
PAIRS = st.one_of(st.tuples(FOUR, FOUR), st.tuples(SIX, SIX))


def checksum(data: bytes) -> int:
    """RFC 1071, written otherwise than the core's."""
    data += b"\0" * (len(data) % 2)
    total = 0
    for (word,) in struct.iter_unpack("!H", data):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def packets(
    pair: tuple[IPAddress, IPAddress],
    protocol: int,
    payload: bytes,
    piece: int = 0,
    number: int = 7,
) -> list[bytes]:
    """IP packets with this payload, in fragments of `piece` bytes (a multiple of 8; 0: whole)."""
    src, dst = pair
    step = piece or max(len(payload), 1)
    out = []
    for at in range(0, max(len(payload), 1), step):
        part, more = payload[at : at + step], at + step < len(payload)
        if src.version == 4:
            flags = (0x2000 if more else 0) | at // 8 if piece else 0x4000
            head = struct.pack("!BBHHHBBH", 0x45, 3, 20 + len(part), number, flags, 61, protocol, 0)
        elif piece:
            head = struct.pack("!IHBB", 6 << 28 | 3 << 20, 8 + len(part), 44, 61)
            part = struct.pack("!BBHI", protocol, 0, at | more, number) + part
        else:
            head = struct.pack("!IHBB", 6 << 28 | 3 << 20, len(part), protocol, 61)
        out.append(head + src.packed + dst.packed + part)
    return out


def udp(sport: int, dport: int, data: bytes) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data


@given(PAIRS, PORT, PORT, st.binary(max_size=3000), st.sampled_from([0, 8, 16, 1480]))
def test_a_datagram_is_read_whole_or_from_fragments(
    pair: tuple[IPAddress, IPAddress], sport: int, dport: int, data: bytes, piece: int
) -> None:
    src, dst = pair
    read = _core.udp_read_packets(packets(pair, 17, udp(sport, dport, data), piece))
    assert read == [(UDP, packed(src), sport, packed(dst), dport, 61, 3, piece == 0, data)]


@given(PAIRS, st.binary(min_size=20, max_size=200), st.permutations(range(6)))
def test_fragments_count_only_in_order(
    pair: tuple[IPAddress, IPAddress], data: bytes, order: list[int]
) -> None:
    """The guest's kernel sends them so; anything else is lost, and nothing is ever made up."""
    pieces = packets(pair, 17, udp(1, 2, data.ljust(40, b".")), 8)
    shuffled = [pieces[i] for i in order]
    whole = _core.udp_read_packets(shuffled)
    assert all(item[-1] == data.ljust(40, b".") for item in whole) or len(data) > 40
    if order == sorted(order) and len(pieces) == 6:
        assert len(whole) == 1


@given(PAIRS, st.lists(st.binary(min_size=8, max_size=64), min_size=2, max_size=8, unique=True))
def test_fragments_of_several_datagrams_may_alternate(
    pair: tuple[IPAddress, IPAddress], texts: list[bytes]
) -> None:
    split = [packets(pair, 17, udp(1, 2, text), 8, number) for number, text in enumerate(texts)]
    mixed = [pieces[i] for i in range(max(map(len, split))) for pieces in split if i < len(pieces)]
    assert sorted(item[-1] for item in _core.udp_read_packets(mixed)) == sorted(texts)


@given(st.lists(st.binary(max_size=120), max_size=5))
def test_no_bytes_confuse_the_reader(junk: list[bytes]) -> None:
    for item in _core.udp_read_packets(junk):
        assert item[0] in (UDP, ECHO)
        assert len(item[-1]) <= max(map(len, junk))


@given(PAIRS, st.integers(0, 255), st.binary(min_size=8, max_size=60))
def test_only_echo_requests_of_icmp_are_carried(
    pair: tuple[IPAddress, IPAddress], kind: int, data: bytes
) -> None:
    four = pair[0].version == 4
    message = bytes([kind, 0]) + data
    read = _core.udp_read_packets(packets(pair, 1 if four else 58, message))
    if kind == (8 if four else 128):
        assert [(r[0], r[2], r[-1]) for r in read] == [
            (ECHO, int.from_bytes(message[4:6], "big"), message)
        ]
    else:
        assert read == []


@given(PAIRS, PORT, PORT, st.integers(0, 65000))
@pytest.mark.parametrize(
    ("number", "four", "six"),
    [
        (errno.ENETUNREACH, (3, 6), (1, 0)),
        (errno.EHOSTUNREACH, (3, 1), (1, 3)),
        (errno.ECONNREFUSED, (3, 3), (1, 4)),
        (errno.EACCES, (3, 13), (1, 1)),
        (errno.EPERM, (3, 13), (1, 1)),
    ],
)
def test_an_error_quotes_the_datagram_and_has_true_checksums(
    number: int,
    four: tuple[int, int],
    six: tuple[int, int],
    pair: tuple[IPAddress, IPAddress],
    sport: int,
    dport: int,
    length: int,
) -> None:
    src, dst = pair
    packet = _core.udp_error_packet(
        packed(dst), UDP, packed(src), sport, packed(dst), dport, length, number
    )
    if src.version == 4:
        assert checksum(packet[:20]) == 0xFFFF
        assert (packet[12:16], packet[16:20]) == (dst.packed, src.packed)
        message, kind, inner = packet[20:], four, packet[28:]
        assert checksum(message) == 0xFFFF
        assert (inner[12:16], inner[16:20], inner[9]) == (src.packed, dst.packed, 17)
        ports = inner[20:24]
    else:
        assert (packet[8:24], packet[24:40]) == (dst.packed, src.packed)
        message, kind, inner = packet[40:], six, packet[48:]
        pseudo = packet[8:40] + struct.pack("!II", len(message), 58)
        assert checksum(pseudo + message) == 0xFFFF
        assert (inner[8:24], inner[24:40], inner[6]) == (src.packed, dst.packed, 17)
        ports = inner[40:44]
    assert (message[0], message[1]) == kind
    assert ports == struct.pack("!HH", sport, dport)


def test_what_no_network_says_is_no_packet() -> None:
    end = packed(IPv4Address("192.0.2.1"))
    assert _core.udp_error_packet(end, UDP, end, 1, end, 2, 0, errno.ENOMEM) == b""


@given(st.one_of(FOUR, SIX))
def test_addresses_are_packed_and_unpacked(host: IPAddress) -> None:
    assert unpacked(packed(host)) == host
    assert len(packed(host)) == 16


def test_targets_name_the_protocol() -> None:
    four, six = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
    assert target(Endpoint(four, 9), Protocol.UDP) == "192.0.2.1:9/udp"
    assert target(Endpoint(six, 9), Protocol.UDP) == "[2001:db8::1]:9/udp"
    assert target(Endpoint(four, 0), Protocol.ICMP) == "192.0.2.1/icmp"
    assert target(Endpoint(six, 0), Protocol.ICMP) == "[2001:db8::1]/icmp"


def test_a_refused_flow_is_told_and_recorded() -> None:
    """A socket that has no peer asks for errors to hear of them, as natively behind a firewall."""
    said, calls = guestkit.run(
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(5)
        sock.setsockopt(socket.IPPROTO_IP, 11, 1)
        sock.sendto(b"x", ("169.254.169.254", 80))
        said(error_of(sock.recv, 10))
        sock.sendto(b"x", ("224.0.0.251", 5353))
        sock.close()
        """
    )
    assert said == ["EHOSTUNREACH"]
    sends = [c for c in calls if c.verb == "send"]
    assert [(c.target, c.decision, c.datapath, c.error) for c in sends][:1] == [
        ("169.254.169.254:80/udp", "deny", "", errno.EACCES)
    ]
    assert sends[0].hint == "--allow 169.254.169.254:80/udp"


def test_a_flood_of_flows_is_bounded() -> None:
    """More destinations than flows are remembered, all refused: the backend and the guest go on."""
    start = time.monotonic()
    said, _ = guestkit.run(
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for number in range(12000):
            sock.sendto(b"x", ("169.254.%d.%d" % (1 + number // 250, 1 + number % 250), 80))
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        said(error_of(other.connect, ("169.254.1.1", 80)))
        """
    )
    assert said == ["EACCES"]
    assert time.monotonic() - start < 30
