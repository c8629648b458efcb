"""The local transport's messages: bytes, round trips, and packets that lie."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import find, given
from hypothesis import strategies as st
from wirekit import back_messages, front_messages

from xensock.wire import local
from xensock.wire.errors import WireError

FRONT = [
    (local.Hello("web"), "01000000 03000000 01000000 00000000 776562"),
    (local.Memory(1, 512), "02000000 00000000 01000000 00020000"),
    (local.Event(3), "03000000 00000000 03000000 00000000"),
    (local.Unevent(3), "04000000 00000000 03000000 00000000"),
    (local.Write({"port": "3"}), "05000000 07000000 00000000 00000000 706f727400 3300"),
    (local.Unmap(9), "06000000 00000000 09000000 00000000"),
]
BACK = [
    (local.Welcome(), "10000000 00000000 01000000 00000000"),
    (local.Nodes({"state": "2"}), "11000000 08000000 00000000 00000000 737461746500 3200"),
    (local.Goodbye("no"), "12000000 02000000 00000000 00000000 6e6f"),
    (local.Shared(5, 17), "13000000 00000000 05000000 11000000"),
    (local.Peer(5), "14000000 00000000 05000000 00000000"),
]


@pytest.mark.parametrize(("message", "text"), FRONT + BACK, ids=lambda part: type(part).__name__)
def test_bytes(message: local.Message, text: str) -> None:
    raw = bytes.fromhex(text)
    assert local.encode(message) == raw
    decode = local.decode_front if raw[0] < 16 else local.decode_back
    other = local.decode_back if raw[0] < 16 else local.decode_front
    assert decode(raw) == message
    with pytest.raises(WireError):
        other(raw)


@pytest.mark.parametrize(
    ("messages", "kinds"),
    [(front_messages, local.FrontMessage), (back_messages, local.BackMessage)],
    ids=["front", "back"],
)
def test_every_message_is_among_the_round_trips(
    messages: st.SearchStrategy[local.Message], kinds: Any
) -> None:
    for kind in get_args(kinds):
        assert isinstance(find(messages, lambda one, kind=kind: isinstance(one, kind)), kind)


@given(front_messages, back_messages)
def test_round_trip(front: local.FrontMessage, back: local.BackMessage) -> None:
    assert local.decode_front(local.encode(front)) == front
    assert local.decode_back(local.encode(back)) == back


@given(st.binary(max_size=64), st.sampled_from([*local.Type, 0, 7, 19]), st.binary(max_size=40))
def test_any_packet_is_a_message_or_refused(raw: bytes, kind: int, payload: bytes) -> None:
    shaped = b"".join(
        (kind.to_bytes(4, "little"), len(payload).to_bytes(4, "little"), b"\1\0\0\0" * 2, payload)
    )
    for packet in (raw, shaped):
        for decode in (local.decode_front, local.decode_back):
            try:
                message = decode(packet)
            except WireError:
                continue
            assert decode(local.encode(message)) == message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "01000000 03000000 01000000",
        "01000000 04000000 01000000 00000000 776562",
        "01000000 00000000 01000000 00000000",
        f"01000000 41000000 01000000 00000000 {'61' * 65}",
        "01000000 01000000 01000000 00000000 ff",
        "02000000 00000000 00000000 01000000",
        "02000000 00000000 01000000 00000000",
        "02000000 00000000 ffffffff 02000000",
        "02000000 01000000 01000000 01000000 00",
        "03000000 00000000 00000000 00000000",
        "05000000 03000000 00000000 00000000 610062",
        "05000000 02000000 00000000 00000000 6100",
        "05000000 03000000 00000000 00000000 006100",
        "05000000 08000000 00000000 00000000 6100620061006300",
        "07000000 00000000 00000000 00000000",
    ],
)
def test_lies(text: str) -> None:
    with pytest.raises(WireError):
        local.decode_front(bytes.fromhex(text))


@pytest.mark.parametrize(
    "message",
    [
        local.Hello(""),
        local.Hello("é" * 33),
        local.Hello("\ud800"),
        local.Memory(1, 1 << 32),
        local.Write({"a\0": "b"}),
        local.Write({"": "b"}),
        local.Nodes({"a": "b" * 65536}),
    ],
    ids=["empty", "long", "surrogate", "range", "nul", "key", "large"],
)
def test_what_is_no_message_is_not_encoded(message: local.Message) -> None:
    with pytest.raises(WireError):
        local.encode(message)


def test_messages_with_descriptors() -> None:
    counts = {type(message): local.descriptors(message) for message, _ in FRONT + BACK}
    assert {kind: count for kind, count in counts.items() if count} == {
        local.Memory: 1,
        local.Event: 2,
        local.Shared: 1,
        local.Peer: 1,
    }
