"""Responses: 24 bytes of v1, and the names and values that extensions put behind them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wirekit import addresses, responses, values

from xensock.wire.errors import WireError
from xensock.wire.responses import Response


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (Response(7, 0, 0, 5), "07000000 00000000 00000000 00000000 0500000000000000"),
        (Response(8, 1, -111, 5), "08000000 01000000 91ffffff 00000000 0500000000000000"),
        (Response(9, 99, -524, 1 << 63), "09000000 63000000 f4fdffff 00000000 0000000000000080"),
        (
            Response(7, 257, 0, 5).with_address(b"\2\0\0\x50\x7f\0\0\1"),
            "07000000 01010000 00000000 00000000 0500000000000000 08000000 020000507f000001",
        ),
        (
            Response(7, 259, 0, 5).with_value(b"\1\0\0\0"),
            "07000000 03010000 00000000 00000000 0500000000000000 04000000 01000000",
        ),
        (
            Response(7, 259, 0, 5).with_length(232),
            "07000000 03010000 00000000 00000000 0500000000000000 e8000000",
        ),
    ],
    ids=["socket", "refused", "unknown", "name", "option", "option-in-page"],
)
def test_bytes(response: Response, text: str) -> None:
    raw = bytes.fromhex(text).ljust(64, b"\0")
    assert response.encode() == raw
    assert Response.decode(raw) == response


@given(responses)
def test_round_trip(response: Response) -> None:
    raw = response.encode()
    assert len(raw) == 64
    assert Response.decode(raw) == response


@given(addresses, values)
def test_names_and_values_come_back(address: bytes, value: bytes) -> None:
    plain = Response(1, 2, 0, 3)
    named = Response.decode(plain.with_address(address).encode())
    assert (named.address, named.length) == (address, len(address))
    assert Response.decode(plain.with_value(value).encode()).value == value
    assert (plain.address, plain.value) == (b"", b"")


@given(st.binary(min_size=64, max_size=64))
def test_any_64_bytes_are_a_response(raw: bytes) -> None:
    response = Response.decode(raw)
    length = int.from_bytes(raw[24:28], "little")
    for read, room in ((lambda: response.address, 28), (lambda: response.value, 36)):
        if length <= room:
            assert read() == raw[28 : 28 + length]
        else:
            with pytest.raises(WireError):
                read()


def test_false_sizes() -> None:
    for raw in (b"", bytes(24), bytes(65)):
        with pytest.raises(WireError):
            Response.decode(raw)
    plain = Response(1, 2, 0, 3)
    for make in (
        lambda: plain.with_address(bytes(29)),
        lambda: plain.with_value(bytes(37)),
        lambda: Response(1, 2, 0, 3, bytes(41)),
        lambda: Response(1 << 32, 2, 0, 3).encode(),
        lambda: Response(1, 2, 1 << 31, 3).encode(),
    ):
        with pytest.raises(WireError):
            make()
