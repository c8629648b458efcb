"""--backend and --route as written; what is wrong with them is in tests/unit/cli/test_run_backends.py."""

from __future__ import annotations

import pytest

from xensock.backend.carriers import CarrierError, parse


def test_backends_are_named_by_themselves_or_by_their_place() -> None:
    named, table = parse(["local:/a", "vpn=local:/b", "local:/c=d"], [])
    assert named == (("backend", "local:/a"), ("vpn", "local:/b"), ("backend3", "local:/c=d"))
    assert table == ()
    assert parse([], []) == ((), ())


def test_routes_keep_their_order() -> None:
    _, table = parse(["vpn=local:/a"], ["10.0.0.0/8=vpn", "*.corp.example=vpn", "any:25=host"])
    assert [(str(route.rule), route.stack) for route in table] == [
        ("10.0.0.0/8", "vpn"),
        ("*.corp.example", "vpn"),
        ("any:25", "host"),
    ]


def test_an_error_has_a_cause_and_a_hint() -> None:
    with pytest.raises(CarrierError, match="called 'other'") as caught:
        parse(["vpn=local:/a"], ["any=other"])
    assert "any=other" in caught.value.cause
    assert "vpn, host" in caught.value.hint
