"""Error numbers: the specification's table, Linux's own beyond it, both ways."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.wire.errors import BEYOND_TABLE, ENOTSUP, TABLE, from_wire, to_wire

# The numbers of the specification in its order, written a second time on purpose.
SPECIFIED = [
    *range(-1, -15, -1), *range(-16, -20, -1), -21, -22, -23, -24, -28, -30, -31, -33, -34, -35,
    -36, -37, -38, -39, -61, -62, -74, -75, -84, -85, -88, -95, -97, -98, -99, -105, -106, -107,
    -110, -524,
]  # fmt: skip


def test_the_table_is_the_specification_s() -> None:
    assert sorted(set(TABLE.values()), reverse=True) == SPECIFIED
    assert TABLE["EAGAIN"] == TABLE["EWOULDBLOCK"] == -11
    assert len(TABLE) == len(SPECIFIED) + 1
    assert not set(TABLE.values()) & set(BEYOND_TABLE.values())


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the wire has Linux x86's numbers")
def test_the_numbers_are_linux_x86_s() -> None:
    for name, number in {**TABLE, **BEYOND_TABLE}.items():
        if name != "ENOTSUP":
            assert getattr(errno, name) == -number, name


@pytest.mark.parametrize(
    ("own", "ret"),
    [
        (0, 0),
        (errno.ECONNREFUSED, -111),
        (errno.ECONNRESET, -104),
        (errno.ECONNABORTED, -103),
        (errno.EPIPE, -32),
        (errno.ENETUNREACH, -101),
        (errno.EHOSTUNREACH, -113),
        (errno.EINPROGRESS, -115),
        (errno.EALREADY, -114),
        (errno.EDESTADDRREQ, -89),
        (errno.EMSGSIZE, -90),
        (errno.EPROTONOSUPPORT, -93),
        (errno.ENOPROTOOPT, -92),
        (errno.ENOTCONN, -107),
        (errno.EACCES, -13),
    ],
)
def test_both_ways(own: int, ret: int) -> None:
    assert to_wire(own) == ret
    assert from_wire(ret) == own


def test_every_error_that_travels_comes_back() -> None:
    for name in {**TABLE, **BEYOND_TABLE}:
        number = getattr(errno, name)
        assert from_wire(to_wire(number)) == number


def test_enotsup_is_not_supported_here_too() -> None:
    assert from_wire(ENOTSUP) == errno.EOPNOTSUPP
    assert to_wire(errno.EOPNOTSUPP) == -95


@given(st.integers())
def test_any_number_has_a_form(number: int) -> None:
    assert number == 0 or -524 <= to_wire(number) < 0
    assert number >= 0 or from_wire(number) in errno.errorcode
    assert number < 0 or from_wire(number) == 0


@pytest.mark.parametrize("internal", [512, 513, 530, 4095, 100000])
def test_internal_numbers_are_eio(internal: int) -> None:
    assert to_wire(internal) == -errno.EIO
    assert from_wire(-internal) == errno.EIO
