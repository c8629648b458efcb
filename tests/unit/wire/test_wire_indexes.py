"""The indexes page: offsets, ring orders, references, and the arithmetic of free-running indices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wirekit import layouts, u32

from xensock.wire import indexes as ix
from xensock.wire.errors import WireError


def test_offsets_of_the_reference() -> None:
    assert (ix.IN_CONS, ix.IN_PROD, ix.IN_ERROR) == (0, 4, 8)
    assert (ix.OUT_CONS, ix.OUT_PROD, ix.OUT_ERROR) == (64, 68, 72)
    assert (ix.RING_ORDER, ix.REFS) == (128, 132)
    assert (ix.IN_PROD_EVENT, ix.IN_CONS_EVENT) == (16, 20)
    assert (ix.OUT_PROD_EVENT, ix.OUT_CONS_EVENT, ix.STATUS) == (80, 84, 88)


def test_bytes_of_a_page() -> None:
    page = bytearray(4096)
    ix.write_layout(page, ix.Layout(2, (7, 8, 0x0102, 0xFFFFFFFF)))
    assert bytes(page[:128]) == bytes(128)
    assert bytes(page[128:148]) == bytes.fromhex("02000000 07000000 08000000 02010000 ffffffff")
    assert bytes(page[148:]) == bytes(4096 - 148)


@given(layouts())
def test_round_trip(layout: ix.Layout) -> None:
    page = bytearray(4096)
    ix.write_layout(page, layout)
    assert ix.read_layout(page, ix.MAX_LARGE_ORDER) == layout
    assert ix.read_layout(memoryview(page), ix.MAX_LARGE_ORDER) == layout
    assert layout.indirect is (layout.order > 9)
    assert layout.indirect or len(layout.refs) == layout.pages


@pytest.mark.parametrize("order", [0, 10, 13, 31, 0xFFFFFFFF])
def test_orders_beyond_v1_are_refused(order: int) -> None:
    page = bytearray(4096)
    page[128:132] = order.to_bytes(4, "little")
    with pytest.raises(WireError):
        ix.read_layout(page)


@pytest.mark.parametrize("order", [2, 5, 9])
def test_the_backend_s_own_limit_holds(order: int) -> None:
    page = bytearray(4096)
    ix.write_layout(page, ix.Layout(order, tuple(range(1 << order))))
    assert ix.read_layout(page, order).order == order
    with pytest.raises(WireError):
        ix.read_layout(page, order - 1)


@given(st.binary(max_size=4200))
def test_any_page_is_read_or_refused(raw: bytes) -> None:
    try:
        layout = ix.read_layout(raw, ix.MAX_LARGE_ORDER)
    except WireError:
        return
    assert len(layout.refs) == ix.refs_in_page(layout.order)


def test_what_is_no_layout_is_not_written() -> None:
    for layout in (
        ix.Layout(0, (1,)),
        ix.Layout(14, (1,) * 16),
        ix.Layout(1, (1,)),
        ix.Layout(1, (1, 1 << 32)),
        ix.Layout(10, (1, 2)),
    ):
        page = bytearray(4096)
        with pytest.raises(WireError):
            ix.write_layout(page, layout)
        assert page == bytearray(4096)


def test_sizes() -> None:
    assert [ix.direction_size(order) for order in (1, 6, 9, 13)] == [
        4096,
        128 * 1024,
        1024 * 1024,
        16 * 1024 * 1024,
    ]
    assert [ix.refs_in_page(order) for order in (1, 9, 10, 13)] == [2, 512, 1, 8]


@given(u32, st.integers(0, 1 << 20))
def test_queued_is_the_difference(cons: int, amount: int) -> None:
    size = 1 << 20
    assert ix.queued((cons + amount) & 0xFFFFFFFF, cons, size) == amount


@given(u32, u32, st.sampled_from([4096, 1 << 20]))
def test_false_indices_stay_in_the_ring(prod: int, cons: int, size: int) -> None:
    assert 0 <= ix.queued(prod, cons, size) <= size


@given(u32, st.integers(0, 100), st.integers(-200, 200))
def test_an_event_is_passed_when_it_lies_behind_old_and_not_behind_new(
    old: int, moved: int, ahead: int
) -> None:
    wrapped = 0xFFFFFFFF
    told = ix.passed(old, (old + moved) & wrapped, (old + ahead) & wrapped)
    assert told is (0 < ahead <= moved)
