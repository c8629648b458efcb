from __future__ import annotations

from ipaddress import ip_address

import dns.message
import dns.name
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.stack import resolver_wire as wire

labels = st.binary(min_size=1, max_size=63)
names = st.lists(labels, max_size=8).filter(lambda ls: sum(map(len, ls)) + len(ls) < 255)


@given(names, st.integers(0, 0xFFFF).filter(lambda kind: kind not in (41, 250)))
def test_questions_are_read_as_dnspython_reads_them(parts: list[bytes], kind: int) -> None:
    name = dns.name.Name((*parts, b""))
    query = dns.message.QueryMessage(id=7)
    query.flags = 0x0100
    query.find_rrset(query.question, name, 1, kind, create=True)
    raw = query.to_wire()
    question = wire.read_question(raw)
    assert question.labels == tuple(part.lower() for part in parts)
    assert question.type == kind
    assert question.end == len(raw)
    assert dns.name.from_text(question.name) == dns.name.Name((*question.labels, b""))


def test_a_dot_inside_a_label_is_not_a_separator() -> None:
    raw = bytes(4) + b"\0\1" + bytes(6) + b"\x08web.test\0" + b"\0\1\0\1"
    assert wire.read_question(raw).name == "web\\046test"


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_question_or_an_error(raw: bytes) -> None:
    try:
        question = wire.read_question(raw)
    except wire.WireError:
        return
    assert question.end <= len(raw)


@pytest.mark.parametrize(
    "body",
    [
        b"\xc0\x0c\0\1\0\1",  # a pointer to itself
        b"\x40" + b"a" * 64 + b"\0\0\1\0\1",
        b"\x03we",
        b"\x03web\0\0\1",
        (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1",  # 257 bytes
    ],
)
def test_bad_names_are_refused(body: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.read_question(bytes(4) + b"\0\1" + bytes(6) + body)


def test_replies_repeat_the_question_and_answer_edns_with_edns() -> None:
    for edns in (False, True):
        query = dns.message.make_query("Web.Test.", "A", use_edns=edns)
        raw = query.to_wire()
        data = [(wire.A, ip_address("192.0.2.1").packed)]
        reply = dns.message.from_wire(wire.reply(raw, wire.read_question(raw), 0, data, ttl=9))
        assert query.is_response(reply)
        assert reply.answer[0].to_text() == "Web.Test. 9 IN A 192.0.2.1"
        assert (reply.edns >= 0) is edns


@given(st.ip_addresses())
def test_reverse_names_give_their_address(address) -> None:
    assert wire.reverse_address(address.reverse_pointer.encode().split(b".")) == address


@given(st.lists(labels, max_size=40))
def test_other_names_are_no_address(parts: list[bytes]) -> None:
    for suffix in ((b"in-addr", b"arpa"), (b"ip6", b"arpa")):
        address = wire.reverse_address((*parts, *suffix))
        if address is not None:
            back = address.reverse_pointer.encode().split(b".")
            assert tuple(back) == tuple(label.lower() for label in (*parts, *suffix))


@pytest.mark.parametrize("name", ["", "a..b", "a" * 64, ".".join(["a" * 63] * 4), "bücher.test"])
def test_names_that_dns_cannot_carry(name: str) -> None:
    with pytest.raises(wire.WireError):
        wire.encode_name(name)


def test_names_are_encoded_as_dnspython_does() -> None:
    assert wire.encode_name("web.test.") == dns.name.from_text("web.test.").to_wire()
