"""Requests: literal bytes of each, with the offsets of the reference, and round trips."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import example, find, given
from hypothesis import strategies as st
from wirekit import requests as every_request
from wirekit import u32

from xensock.wire import commands as c
from xensock.wire import requests
from xensock.wire.errors import WireError
from xensock.wire.extensions import ALL, V1, Extension
from xensock.wire.responses import Response

IN4 = bytes.fromhex("0200 0050 c6336407") + bytes(8)  # 198.51.100.7:80
IN6 = bytes.fromhex("0a00 01bb 00000000 20010db8 00000000 00000000 00000001 03000000")
UNIX = c.PageAddress(1, 0x21, 110)

# Every request with its 64 bytes; `|` marks the end of the header and of each field.
GOLDEN: list[tuple[str, c.Request, str]] = [
    (
        "socket",
        c.Socket(0x1122334455667788, 2, 1, 0),
        "07000000 00000000 8877665544332211 | 02000000 | 01000000 | 00000000 |",
    ),
    (
        "socket-hops",
        c.Socket(5, 2, 1, 0, 3),
        "07000000 00000000 0500000000000000 | 02000000 | 01000300 | 00000000 |",
    ),
    (
        "connect",
        c.Connect(5, IN4, 0, 0x0102, 0x0304),
        "07000000 01000000 0500000000000000 | 0200 0050 c6336407 0000000000000000"
        "000000000000000000000000 | 10000000 | 00000000 | 02010000 | 04030000 |",
    ),
    (
        "connect6",
        c.Connect(5, IN6, 0, 0x0102, 0x0304),
        "07000000 01000000 0500000000000000 | 0a00 01bb 00000000 20010db8 00000000 00000000"
        "00000001 03000000 | 1c000000 | 00000000 | 02010000 | 04030000 |",
    ),
    (
        "connect-async",
        c.Connect(5, IN4, 1, 9, 8),
        "07000000 01000000 0500000000000000 | 0200 0050 c6336407 0000000000000000"
        "000000000000000000000000 | 10000000 | 01000000 | 09000000 | 08000000 |",
    ),
    (
        "connect-unix",
        c.Connect(5, b"", 2, 9, 8, UNIX),
        "07000000 01000000 0500000000000000 | 0100 0000 21000000 0000000000000000"
        "000000000000000000000000 | 6e000000 | 02000000 | 09000000 | 08000000 |",
    ),
    ("release", c.Release(5), "07000000 02000000 0500000000000000 | 00 |"),
    ("release-reuse", c.Release(5, True), "07000000 02000000 0500000000000000 | 01 |"),
    (
        "bind",
        c.Bind(5, IN4),
        "07000000 03000000 0500000000000000 | 0200 0050 c6336407 0000000000000000"
        "000000000000000000000000 | 10000000 |",
    ),
    ("listen", c.Listen(5, 128), "07000000 04000000 0500000000000000 | 80000000 |"),
    (
        "accept",
        c.Accept(5, 0x0807060504030201, 0x11, 0x12),
        "07000000 05000000 0500000000000000 | 0102030405060708 | 11000000 | 12000000 |",
    ),
    ("poll", c.Poll(5), "07000000 06000000 0500000000000000 |"),
    ("shutdown", c.Shutdown(5, 1), "07000000 00010000 0500000000000000 | 01000000 |"),
    ("getname", c.GetName(5, 1), "07000000 01010000 0500000000000000 | 01000000 |"),
    (
        "setopt",
        c.SetOption(5, 6, 1, b"\1\0\0\0"),
        "07000000 02010000 0500000000000000 | 06000000 | 01000000 | 04000000 | 01000000 |",
    ),
    (
        "getopt",
        c.GetOption(5, 6, 11, 232, 0x31),
        "07000000 03010000 0500000000000000 | 06000000 | 0b000000 | e8000000 | 31000000 |",
    ),
    ("close", c.Close(5, 1), "07000000 04010000 0500000000000000 | 01000000 |"),
    (
        "attach",
        c.Attach(5, 0x11, 0x12),
        f"07000000 05010000 0500000000000000 | {'00' * 36} | 11000000 | 12000000 |",
    ),
    ("explain", c.Explain(5, 0x31), "07000000 06010000 0500000000000000 | 31000000 |"),
]
NAMES = [name for name, _, _ in GOLDEN]
PAIRS = [(request, text) for _, request, text in GOLDEN]


def slot(text: str) -> bytes:
    return bytes.fromhex(text.replace("|", "")).ljust(64, b"\0")


@pytest.mark.parametrize(("request_", "text"), PAIRS, ids=NAMES)
def test_bytes_of_every_request(request_: c.Request, text: str) -> None:
    assert c.encode_request(7, request_) == slot(text)
    assert c.decode_request(slot(text)) == (7, request_)


def test_every_command_has_its_bytes_here() -> None:
    assert {c.command_of(request) for request, _ in PAIRS} == set(c.Command)


@pytest.mark.parametrize("kind", get_args(c.Request), ids=lambda kind: kind.__name__)
def test_every_command_is_among_the_round_trips(kind: type) -> None:
    assert isinstance(find(every_request, lambda one: isinstance(one, kind)), kind)


def test_numbers_of_the_commands() -> None:
    # The specification's prose has v1's numbers one too low; its #defines have these.
    assert [(command.name, command.value) for command in requests.Command] == [
        *zip(
            ("SOCKET", "CONNECT", "RELEASE", "BIND", "LISTEN", "ACCEPT", "POLL"),
            range(7),
            strict=False,
        ),
        *zip(
            ("SHUTDOWN", "GETNAME", "SETOPT", "GETOPT", "CLOSE", "ATTACH", "EXPLAIN"),
            range(256, 263),
            strict=False,
        ),
    ]
    assert set(requests.EXTENDED) == {command for command in requests.Command if command >= 256}


def test_offsets_of_the_reference() -> None:
    raw = c.encode_request(1, c.Connect(2, bytes(range(1, 29)), 1, 0xA0A1A2A3, 0xB0B1B2B3))
    assert raw[16:44] == bytes(range(1, 29))
    words = {offset: int.from_bytes(raw[offset : offset + 4], "little") for offset in (44, 48)}
    assert words == {44: 28, 48: 1}
    assert raw[52:56] == bytes.fromhex("a3a2a1a0")
    assert raw[56:60] == bytes.fromhex("b3b2b1b0")
    assert raw[60:] == bytes(4)
    raw = c.encode_request(1, c.Attach(2, 0xA0A1A2A3, 0xB0B1B2B3))
    assert (raw[52:56], raw[56:60]) == (bytes.fromhex("a3a2a1a0"), bytes.fromhex("b3b2b1b0"))


@given(u32, every_request)
def test_round_trip(req_id: int, request_: c.Request) -> None:
    raw = c.encode_request(req_id, request_)
    assert len(raw) == c.SLOT
    assert c.decode_request(raw) == (req_id, request_)


@pytest.mark.parametrize(("request_", "text"), PAIRS, ids=NAMES)
def test_reserved_bytes_are_ignored(request_: c.Request, text: str) -> None:
    if isinstance(request_, c.Attach):
        text = text.replace("00" * 36, "ff" * 36)
    noisy = bytes.fromhex(text.replace("|", "")).ljust(64, b"\xff")
    if isinstance(request_, c.SetOption):
        noisy = noisy[:32] + b"\xff" * 32  # what follows the value's length
    assert c.decode_request(noisy) == (7, request_)


@pytest.mark.parametrize("command", [7, 8, 255, 263, 0xFFFFFFFF])
@pytest.mark.parametrize("extensions", [V1, ALL], ids=["v1", "all"])
def test_an_unknown_command_is_answered_with_enotsup(
    command: int, extensions: frozenset[Extension]
) -> None:
    raw = slot(f"2a000000 {command.to_bytes(4, 'little').hex()} 0100000000000080")
    with pytest.raises(c.UnknownCommand) as caught:
        c.decode_request(raw, extensions)
    told = caught.value
    assert (told.req_id, told.cmd, told.id, told.ret) == (42, command, 1 << 63 | 1, -524)


@pytest.mark.parametrize(
    ("request_", "text"), [pair for pair in PAIRS if c.command_of(pair[0]) >= 256]
)
def test_without_its_extension_a_command_is_unknown(request_: c.Request, text: str) -> None:
    extension = c.EXTENDED[c.command_of(request_)]
    for others in (V1, ALL - {extension}):
        with pytest.raises(c.UnknownCommand):
            c.decode_request(slot(text), others)
    assert c.decode_request(slot(text), frozenset({extension})) == (7, request_)


@pytest.mark.parametrize(
    ("request_", "text"), [pair for pair in PAIRS if c.command_of(pair[0]) < 256]
)
def test_without_extensions_there_is_exactly_v1(request_: c.Request, text: str) -> None:
    if isinstance(request_, c.Connect) and request_.page:
        with pytest.raises(c.BadRequest, match="length is 110"):
            c.decode_request(slot(text), V1)
        return
    plain = replace(request_, flags=0) if isinstance(request_, c.Connect) else request_
    if isinstance(request_, c.Socket):
        plain = replace(request_, type=request_.type | request_.hops << 16, hops=0)
    assert c.decode_request(slot(text), V1) == (7, plain)


def test_flags_of_connect_are_reserved_in_v1() -> None:
    raw = bytearray(c.encode_request(1, c.Connect(2, IN4, 0, 3, 4)))
    raw[48:52] = b"\xff\xff\xff\xff"
    plain = c.Connect(2, IN4, 0, 3, 4)
    assert c.decode_request(bytes(raw), V1) == (1, plain)
    _, some = c.decode_request(bytes(raw), frozenset({Extension.ASYNC_CONNECT}))
    assert some == c.Connect(2, IN4, 1, 3, 4)


@pytest.mark.parametrize(
    ("name", "offset", "value"),
    [
        ("connect", 44, 29),
        ("connect", 44, 0xFFFFFFFF),
        ("connect-unix", 44, 111),
        ("bind", 44, 29),
        ("shutdown", 16, 3),
        ("getname", 16, 2),
        ("setopt", 24, 37),
        ("getopt", 24, 4097),
    ],
)
def test_a_false_field_is_answered_with_einval(name: str, offset: int, value: int) -> None:
    raw = bytearray(slot(PAIRS[NAMES.index(name)][1]))
    raw[offset : offset + 4] = value.to_bytes(4, "little")
    with pytest.raises(c.BadRequest) as caught:
        c.decode_request(bytes(raw))
    told = caught.value
    assert (told.req_id, told.id, told.ret) == (7, 5, -errno.EINVAL)
    assert not isinstance(told, c.UnknownCommand)


@given(st.binary(min_size=64, max_size=64), st.sampled_from([*c.Command, 7, 512]))
@example(b"\xff" * 64, 1)
def test_no_64_bytes_raise_anything_else(raw: bytes, command: int) -> None:
    for slot_ in (raw, raw[:4] + command.to_bytes(4, "little") + raw[8:]):
        for extensions in (V1, ALL):
            try:
                req_id, request_ = c.decode_request(slot_, extensions)
            except c.BadRequest as told:
                req_id, answer = told.req_id, Response(told.req_id, told.cmd, told.ret, told.id)
                assert Response.decode(answer.encode()).ret < 0
            else:
                again = c.encode_request(req_id, request_)
                assert c.decode_request(again, extensions) == (req_id, request_)
            assert req_id == int.from_bytes(raw[:4], "little")


@given(st.binary(max_size=200).filter(lambda raw: len(raw) != 64))
def test_only_64_bytes_are_a_request(raw: bytes) -> None:
    with pytest.raises(WireError) as caught:
        c.decode_request(raw)
    assert not isinstance(caught.value, c.BadRequest)


@pytest.mark.parametrize(
    "request_",
    [
        c.Connect(1, bytes(29), 0, 1, 1),
        c.Bind(1, bytes(29)),
        c.SetOption(1, 1, 1, bytes(37)),
        c.Socket(1 << 64, 2, 1, 0),
        c.Socket(1, -1, 1, 0),
        c.Socket(1, 2, 1, 0, 256),
        c.Listen(1, 1 << 32),
        c.Accept(1, -1, 1, 1),
    ],
    ids=repr,
)
def test_what_has_no_room_is_not_encoded(request_: c.Request) -> None:
    with pytest.raises(WireError):
        c.encode_request(1, request_)
