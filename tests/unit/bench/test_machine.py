"""The machine's facts, its address, and the command lines of both sides."""

from __future__ import annotations

import json
import socket
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from xensock.bench import machine, side
from xensock.bench.failure import BenchError

if TYPE_CHECKING:
    from pathlib import Path

OUTER = IPv4Address("198.51.100.7")


def test_the_address_is_this_hosts() -> None:
    address = machine.host_address()
    with socket.create_server((str(address), 0)):
        assert not address.is_link_local


def test_a_host_with_nothing_else_has_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "OUTSIDE", ("127.0.0.1", 9))
    assert machine.host_address() == machine.LOOPBACK


def test_a_free_port_can_be_bound() -> None:
    port = machine.free_port(machine.LOOPBACK)
    socket.create_server(("127.0.0.1", port)).close()


def test_facts_are_json() -> None:
    facts = json.loads(json.dumps(machine.facts(OUTER)))
    assert facts["address"] == "198.51.100.7"
    assert facts["processors"] >= 1
    assert facts["kernel"].count(".") >= 1


def test_loopback_of_the_host_needs_a_rule() -> None:
    outer = side.Setting("xensock", OUTER).in_guest(["curl", "--", "x"], "relay")
    assert outer == ["xensock", "run", "--datapath", "relay", "--", "curl", "--", "x"]
    inner = side.Setting("xensock", machine.LOOPBACK).in_guest(["true"])
    assert inner == [
        "xensock", "run", "--datapath", "auto", "--allow", "loopback", "--", "true",
    ]  # fmt: skip


def test_the_command_is_found_beside_python_or_in_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchError) as caught:
        side.xensock()
    assert caught.value.hint
    (tmp_path / "xensock").touch()
    assert side.xensock() == str(tmp_path / "xensock")
