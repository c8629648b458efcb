"""Datagrams as frames: bytes, round trips, and frames that lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wirekit import datagrams, reports

from xensock.wire import frames
from xensock.wire.errors import WireError
from xensock.wire.packet_info import PacketInfo

TO = bytes.fromhex("0200 0035 c6336407")


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (
            frames.Frame(b"hello", TO),
            f"05000000 00000000 08000000 02000035c6336407 {'00' * 20} 68656c6c6f 000000",
        ),
        (frames.Frame(b""), f"00000000 00000000 00000000 {'00' * 28}"),
        (frames.Frame(b"12345678", b"", True), f"08000000 01000000 00000000 {'00' * 28} 3132333435363738"),
        (
            frames.Frame(b"", TO, False, -111),
            f"04000000 02000000 08000000 02000035c6336407 {'00' * 20} 91ffffff 00000000",
        ),
        (
            frames.Frame(b"", TO, False, -111, frames.Icmp(3, 4, 1400, bytes(range(16)), b"hi")),
            f"1e000000 06000000 08000000 02000035c6336407 {'00' * 20} 91ffffff"
            "03040000 78050000 000102030405060708090a0b0c0d0e0f 6869 0000",
        ),
        (
            frames.Frame(b"hi", TO, info=PacketInfo(bytes(range(16)), 7, 0xB8)),
            f"1a000000 08000000 08000000 02000035c6336407 {'00' * 20}"
            "0707b80000000000 000102030405060708090a0b0c0d0e0f 6869 000000000000",
        ),
    ],
    ids=["addressed", "empty", "truncated", "error", "icmp", "info"],
)  # fmt: skip
def test_bytes(frame: frames.Frame, text: str) -> None:
    raw = bytes.fromhex(text)
    assert frame.encode() == raw
    assert frames.decode_frame(raw, informed=True) == (frame, len(raw))


def test_without_the_extension_its_flag_is_padding() -> None:
    raw = frames.Frame(b"hi", TO, info=PacketInfo(None, 7)).encode()
    frame, size = frames.decode_frame(raw)
    assert (frame.payload[-2:], len(frame.payload), frame.info, size) == (b"hi", 26, None, len(raw))


@pytest.mark.parametrize("length", [0, 23])
def test_packet_information_is_whole_or_refused(length: int) -> None:
    raw = bytearray(frames.Frame(bytes(length)).encode())
    raw[4] = frames.FrameFlag.INFO
    with pytest.raises(WireError):
        frames.decode_frame(bytes(raw), informed=True)


@given(st.lists(st.one_of(datagrams, reports), max_size=5))
def test_round_trip_of_a_queue(queue: list[frames.Frame]) -> None:
    raw = b"".join(frame.encode() for frame in queue)
    read = []
    while raw:
        size = frames.next_frame(raw[: frames.HEADER])
        frame, same = frames.decode_frame(raw)
        told = 0 if frame.icmp is None else 24 + len(frame.icmp.quote)
        assert (
            size
            == same
            == frames.frame_size(len(frame.payload) or (4 if frame.error else 0) + told)
        )
        assert size % 8 == 0
        read.append(frame)
        raw = raw[size:]
    assert read == queue


@given(st.one_of(datagrams, reports), st.data())
def test_part_of_a_frame_is_none(frame: frames.Frame, data: st.DataObject) -> None:
    raw = frame.encode()
    with pytest.raises(WireError):
        frames.decode_frame(raw[: data.draw(st.integers(0, len(raw) - 1))])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_refused(raw: bytes) -> None:
    try:
        frame, size = frames.decode_frame(raw)
    except WireError:
        return
    assert 40 <= size <= len(raw)
    assert len(frame.payload) <= size


@pytest.mark.parametrize(
    "text",
    [
        f"00000000 00000000 1d000000 {'00' * 28}",
        f"ffffffff 00000000 00000000 {'00' * 28} {'00' * 64}",
        f"f8ffffff 00000000 00000000 {'00' * 28} {'00' * 64}",
        f"05000000 02000000 00000000 {'00' * 28} 91ffffff 00000000",
        f"04000000 02000000 00000000 {'00' * 28} 6f000000 00000000",
        f"04000000 02000000 00000000 {'00' * 28} 00000000 00000000",
        f"08000000 06000000 00000000 {'00' * 28} 91ffffff 03030000",
    ],
    ids=["address", "length", "wraps", "error-size", "error-positive", "error-zero", "icmp-size"],
)
def test_lies(text: str) -> None:
    with pytest.raises(WireError):
        frames.decode_frame(bytes.fromhex(text))


def test_flags_beyond_these_are_ignored() -> None:
    raw = bytes.fromhex(f"00000000 fdffffff 00000000 {'00' * 28}")
    assert frames.decode_frame(raw) == (frames.Frame(b"", b"", True), 40)


def test_what_is_no_frame_is_not_encoded() -> None:
    for frame in (
        frames.Frame(b"", bytes(29)),
        frames.Frame(b"x", b"", False, -1),
        frames.Frame(b"", b"", False, 1 << 31),
    ):
        with pytest.raises(WireError):
            frame.encode()


def test_the_largest_datagram_fills_a_direction() -> None:
    assert frames.frame_size(frames.largest_payload(4096)) == 4096
