"""A trapped call as Python sees it: the socket, the address argument."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock import _core
from xensock.calls.address import Endpoint
from xensock.supervisor import binding
from xensock.supervisor.question import QUESTION, Question

if TYPE_CHECKING:
    from collections.abc import Iterator

FOUR = Endpoint.from_python(("192.0.2.1", 80))
SIX = Endpoint.from_python(("2001:db8::1", 80, 0, 0))


def question(family: int, addr: bytes) -> Question:
    with socket.socket(family) as sock:
        fd = os.dup(sock.fileno())
    args = (0,) * 6
    event = (
        QUESTION,
        7,
        8,
        _core.SYS["connect"],
        args,
        fd,
        family,
        1,
        1,
        addr,
        0,
        0,
        9,
        0,
        b"curl",
    )
    return Question.from_event(event)


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> Iterator[int]:
    return request.param  # type: ignore[no-any-return]


def test_an_event_becomes_a_question(family: int) -> None:
    q = question(family, b"abc")
    with q.sock:
        assert (q.id, q.tid, q.addr, q.start_ns, q.host) == (7, 8, b"abc", 9, True)
        assert q.sock.family == family
        assert q.sock.type == socket.SOCK_STREAM
        assert q.blocking
        q.sock.setblocking(False)
        assert not q.blocking


@pytest.mark.parametrize(
    ("family", "raw", "expected"),
    [
        (socket.AF_INET, FOUR.sockaddr(), FOUR),
        (socket.AF_INET, FOUR.sockaddr() + bytes(112), FOUR),
        (socket.AF_INET, FOUR.sockaddr()[:15], None),
        (socket.AF_INET, SIX.sockaddr(), None),
        (socket.AF_INET, b"", None),
        (socket.AF_INET, b"\2", None),
        (socket.AF_INET6, SIX.sockaddr(), SIX),
        (socket.AF_INET6, SIX.sockaddr()[:24], SIX),  # RFC 2133: without a scope
        (socket.AF_INET6, SIX.sockaddr()[:23], None),
        (socket.AF_INET6, FOUR.sockaddr(), None),
        (socket.AF_INET6, struct.pack("=H", socket.AF_UNSPEC) + bytes(26), None),
    ],
)
def test_the_address(family: int, raw: bytes, expected: Endpoint | None) -> None:
    q = question(family, raw)
    with q.sock:
        assert q.endpoint() == expected


@given(family=st.sampled_from([socket.AF_INET, socket.AF_INET6]), raw=st.binary(max_size=128))
def test_any_bytes_are_an_address_or_none(family: int, raw: bytes) -> None:
    q = question(family, struct.pack("=H", family) + raw)
    with q.sock:
        end = q.endpoint()
        needed = 16 if family == socket.AF_INET else 24
        assert (end is None) is (len(q.addr) < needed)
        if end is not None:
            assert end.family == family


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("length", [*range(2, 32), 128])
@pytest.mark.parametrize(
    "named", [socket.AF_UNSPEC, socket.AF_UNIX, socket.AF_INET, socket.AF_INET6]
)
def test_a_wrong_address_to_bind_is_worded_as_the_kernel_words_it(
    family: int, length: int, named: int
) -> None:
    raw = (struct.pack("=HH", named, 0) + bytes(124))[:length]
    q = question(family, raw)
    with q.sock, socket.socket(family) as twin:
        local = binding.local_of(q)
        mine = binding.wrong(q) if local is None else 0
        theirs = _bind(twin, raw)
        assert mine == theirs or (mine == 0 and local is not None and theirs == 0)


def _bind(sock: socket.socket, raw: bytes) -> int:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.bind(sock.fileno(), raw, len(raw))
    error = ctypes.get_errno() if done else 0
    return 0 if error == errno.EADDRNOTAVAIL else error
