"""Store nodes: what each side writes, reads and refuses, and what they agree on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wirekit import choices, nodes, offers

from xensock.wire import store
from xensock.wire.errors import WireError
from xensock.wire.extensions import ALL, NEEDS, Extension

LINUX_BACK = {"versions": "1", "max-page-order": "4", "function-calls": "1"}
LINUX_FRONT = {"version": "1", "ring-ref": "8", "port": "21"}


def test_linux_s_nodes() -> None:
    offer = store.parse_backend(LINUX_BACK)
    assert offer == store.Offer(4)
    assert offer.nodes() == LINUX_BACK
    choice = store.parse_frontend(LINUX_FRONT)
    assert choice == store.Choice((8,), 21)
    assert choice.nodes() == LINUX_FRONT
    features = store.agree(offer, choice)
    assert (features.extensions, features.max_page_order, features.slots) == (frozenset(), 4, 32)


def test_versions_stay_exactly_1() -> None:
    assert store.Offer(extensions=ALL, max_large_page_order=13).nodes()["versions"] == "1"


def test_nodes_of_everything() -> None:
    offer = store.Offer(9, max_ring_page_order=2, max_large_page_order=13, extensions=ALL)
    written = offer.nodes()
    assert written["max-ring-page-order"] == "2"
    assert written["max-large-page-order"] == "13"
    assert {name: value for name, value in written.items() if name.startswith("feature-")} == {
        f"feature-{name}": "1"
        for name in (
            "data-events", "shutdown", "names", "options", "ipv6", "async-connect", "close",
            "datagrams", "icmp-echo", "resolve", "explain", "unix", "large-rings", "shared-rings",
            "hops", "packet-info", "urgent",
        )
    }  # fmt: skip
    choice = store.Choice((8, 9, 10, 11), 21, frozenset({Extension.NAMES}))
    assert choice.nodes() == {
        "version": "1", "port": "21", "ring-page-order": "2", "request-names": "1",
        "ring-ref0": "8", "ring-ref1": "9", "ring-ref2": "10", "ring-ref3": "11",
    }  # fmt: skip
    features = store.agree(offer, choice)
    assert Extension.NAMES in features
    assert Extension.IPV6 not in features
    assert features.slots == 128


@given(offers())
def test_round_trip_of_a_backend(offer: store.Offer) -> None:
    assert store.parse_backend(offer.nodes()) == offer
    assert store.parse_backend(offer.nodes() | {"state": "2", "feature-other": "1"}) == offer


@given(choices())
def test_round_trip_of_a_frontend(choice: store.Choice) -> None:
    assert store.parse_frontend(choice.nodes()) == choice
    assert store.parse_frontend(choice.nodes() | {"state": "3"}) == choice


@given(offers(), choices())
def test_what_was_not_offered_is_not_agreed(offer: store.Offer, choice: store.Choice) -> None:
    try:
        features = store.agree(offer, choice)
    except WireError:
        lacking = {one for one, need in NEEDS.items() if one in choice.extensions}
        assert (
            choice.extensions - offer.extensions
            or choice.ring_page_order > offer.max_ring_page_order
            or any(NEEDS[one] not in choice.extensions for one in lacking)
        )
        return
    assert features.extensions == choice.extensions <= offer.extensions
    assert (features.max_page_order > 9) is (Extension.LARGE_RINGS in choice.extensions)


@pytest.mark.parametrize(
    "change",
    [
        {"versions": "2"},
        {"versions": "11"},
        {"versions": None},
        {"max-page-order": "0"},
        {"max-page-order": None},
        {"max-page-order": "-1"},
        {"max-page-order": "4294967296"},
        {"max-page-order": "0x4"},
        {"max-page-order": "\u0664"},
        {"max-page-order": " 4"},
        {"max-page-order": ""},
        {"function-calls": "0"},
        {"function-calls": None},
        {"feature-names": "yes"},
        {"feature-large-rings": "1"},
        {"max-ring-page-order": "x"},
    ],
    ids=str,
)
def test_backends_that_are_refused(change: dict[str, str | None]) -> None:
    written = {k: v for k, v in {**LINUX_BACK, **change}.items() if v is not None}
    with pytest.raises(WireError):
        store.parse_backend(written)


@pytest.mark.parametrize(
    "change",
    [
        {"version": None},
        {"port": None},
        {"port": "4294967296"},
        {"ring-ref": None},
        {"ring-ref": "eight"},
        {"ring-page-order": "1"},
        {"ring-page-order": "1", "ring-ref0": "1"},
        {"ring-page-order": "5"},
        {"ring-page-order": "31"},
        {"request-names": "2000000000000"},
        {"request-telepathy": "1"},
    ],
    ids=str,
)
def test_frontends_that_are_refused(change: dict[str, str | None]) -> None:
    written = {k: v for k, v in {**LINUX_FRONT, **change}.items() if v is not None}
    with pytest.raises(WireError):
        store.parse_frontend(written)


@pytest.mark.parametrize(
    "choice",
    [
        store.Choice((8,), 21, version="2"),
        store.Choice((8, 9), 21),
        store.Choice((8,), 21, frozenset({Extension.NAMES})),
    ],
    ids=["version", "ring", "extension"],
)
def test_a_plain_offer_is_exactly_v1(choice: store.Choice) -> None:
    with pytest.raises(WireError):
        store.agree(store.parse_backend(LINUX_BACK), choice)


def test_a_request_of_zero_is_none() -> None:
    assert store.parse_frontend(LINUX_FRONT | {"request-names": "0"}).extensions == frozenset()


def test_larger_numbers_than_ours_are_not_used() -> None:
    offer = store.parse_backend(
        LINUX_BACK
        | {
            "max-page-order": "20",
            "max-ring-page-order": "9",
            "max-large-page-order": "30",
            "feature-large-rings": "1",
        }
    )
    assert (offer.max_page_order, offer.max_ring_page_order, offer.max_large_page_order) == (
        9,
        4,
        13,
    )


@given(nodes, st.dictionaries(st.sampled_from([*LINUX_BACK, *LINUX_FRONT]), st.text(max_size=12)))
def test_any_nodes_are_read_or_refused(some: dict[str, str], more: dict[str, str]) -> None:
    for parse, base in ((store.parse_backend, LINUX_BACK), (store.parse_frontend, LINUX_FRONT)):
        for written in (some, {**base, **more}):
            try:
                parse(written)
            except WireError:
                continue


def test_slots_of_command_rings() -> None:
    assert [store.slots(order) for order in range(5)] == [32, 64, 128, 256, 512]
    with pytest.raises(WireError):
        store.Choice((1, 2, 3), 4).nodes()
    with pytest.raises(WireError):
        store.Choice((), 4).nodes()
