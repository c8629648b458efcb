"""Packets that answer a held SYN, as bytes."""

from __future__ import annotations

import errno
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.supervisor.synreplay import Syn, capture_filter, checksum, listener_filter

ports = st.integers(1, 0xFFFF)
isns = st.integers(0, 0xFFFFFFFF)
v4 = st.integers(0, 2**32 - 1).map(IPv4Address)
v6 = st.integers(0, 2**128 - 1).map(IPv6Address)
SYN, ACK, RST = 2, 16, 4


def packet(source, target, sport, dport, isn, flags=SYN, options=b""):
    doff = (20 + len(options)) // 4
    segment = (
        struct.pack("!HHIIBBHHH", sport, dport, isn, 0, doff << 4, flags, 65535, 0, 0) + options
    )
    if target.version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 7, 0x4000, 64, 6, 0)
    else:
        head = struct.pack("!IHBB", 6 << 28, len(segment), 6, 64)
    return head + source.packed + target.packed + segment


def valid(data: bytes, protocol: int) -> bool:
    """Whether the checksum of what an IP packet carries is right, by the definition: the sum with it is 0."""
    if data[0] >> 4 == 4:
        body = data[20:]
        pseudo = data[12:20] + struct.pack("!BBH", 0, protocol, len(body))
        return checksum(body if protocol == 1 else pseudo + body) == 0
    body = data[40:]
    return checksum(data[8:40] + struct.pack("!II", len(body), protocol) + body) == 0


ends = st.one_of(st.tuples(v4, v4), st.tuples(v6, v6))
options = st.sampled_from(
    [b"", b"\x02\x04\x05\xb4", b"\x02\x04\xff\xd7\x04\x02\x08\x0a" + bytes(8) + b"\x01\x03\x03\x07"]
)


@given(ends, ports, ports, isns, options)
def test_the_same_syn_again(ends, sport, dport, isn, more):
    raw = packet(*ends, sport, dport, isn, options=more)
    syn = Syn.parse(raw)
    assert (syn.source.host, syn.source.port) == (ends[0], sport)
    assert (syn.target.host, syn.target.port) == (ends[1], dport)
    again = syn.again()
    at = syn.header + 16
    assert valid(again, 6)
    assert again[:at] + again[at + 2 :] == raw[:at] + raw[at + 2 :]


@given(ends, ports, ports, isns)
def test_refusal_acknowledges_the_syn(ends, sport, dport, isn):
    syn = Syn.parse(packet(*ends, sport, dport, isn))
    reset = syn.answer(errno.ECONNREFUSED)
    assert valid(reset, 6)
    header = 20 if ends[0].version == 4 else 40
    assert reset[header - 2 * len(ends[0].packed) : header] == ends[1].packed + ends[0].packed
    got = struct.unpack_from("!HHIIBB", reset, header)
    assert got == (dport, sport, 0, (isn + 1) & 0xFFFFFFFF, 0x50, RST | ACK)


@pytest.mark.parametrize(
    ("number", "code4", "code6"),
    [(errno.ENETUNREACH, 0, 0), (errno.EHOSTUNREACH, 1, 3), (errno.EACCES, 13, 1)],
)
@given(ends=ends, isn=isns)
def test_unreachable_quotes_the_syn(number, code4, code6, ends, isn):
    raw = packet(*ends, 40000, 80, isn)
    message = Syn.parse(raw).answer(number)
    if ends[0].version == 4:
        assert valid(message, 1)
        assert message[9] == 1
        assert message[20:22] == bytes((3, code4))
        assert message[28:] == raw[:28]
    else:
        assert valid(message, 58)
        assert message[6] == 58
        assert message[40:42] == bytes((1, code6))
        assert message[48:] == raw


def test_time_out_is_silence_and_the_unsayable_is_refusal():
    syn = Syn.parse(packet(IPv4Address("10.0.2.100"), IPv4Address("192.0.2.1"), 40000, 80, 1))
    assert syn.answer(errno.ETIMEDOUT) is None
    assert syn.answer(errno.ENOMEM) == syn.answer(errno.ECONNREFUSED)


@given(st.binary(max_size=80))
def test_anything_else_is_no_syn(data):
    syn = Syn.parse(data)
    assert syn is None or data[syn.header + 13] & 0x17 == SYN


@pytest.mark.parametrize("flags", [SYN | ACK, RST, ACK, 1])
def test_only_a_first_packet(flags):
    assert (
        Syn.parse(packet(IPv4Address("10.0.2.100"), IPv4Address("192.0.2.1"), 1, 2, 3, flags))
        is None
    )


def run(program: bytes, data: bytes, mark: int) -> int:
    """Classic BPF as far as the two filters use it."""
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    a = x = pc = 0
    while True:
        op, yes, no, k = code[pc]
        pc += 1
        if op == 0x06:
            return k
        if op == 0x20:
            assert k == 0xFFFFF014
            a = mark
        elif op in (0x28, 0x30, 0x50):
            size = 2 if op == 0x28 else 1
            at = k + (x if op == 0x50 else 0)
            if at + size > len(data):
                return 0  # the kernel drops what is too short
            a = int.from_bytes(data[at : at + size], "big")
        elif op == 0xB1:
            x = (data[k] & 15) * 4
        elif op == 0x54:
            a &= k
        elif op in (0x15, 0x45):
            pc += yes if (a == k if op == 0x15 else a & k) else no
        else:
            raise AssertionError(hex(op))


@given(ends, st.integers(0, 0x3F), st.sampled_from([0, 5, 7]))
def test_filters(ends, flags, mark):
    raw = packet(*ends, 1, 2, 3, flags)
    pure = flags & 0x17 == SYN
    version = ends[0].version
    header = 20 if version == 4 else 40
    assert bool(run(listener_filter(7), raw[header:], mark)) == (not pure or mark == 7)
    assert bool(run(capture_filter(version, 7), raw, mark)) == (pure and mark != 7)
