"""Limits as they are written, and how ports are counted."""

from __future__ import annotations

import errno
import os
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from xensock.supervisor.limits import LimitError, Limits, Taken, check, take_port

if TYPE_CHECKING:
    from xensock.supervisor.supervisor import Supervisor


def test_what_is_not_said_is_the_default() -> None:
    assert Limits.parse([]) == Limits()
    assert Limits.parse(["ports=7"]) == Limits(ports=7)
    assert Limits.parse(["ports=7", "calls=1", "ports=8"]) == Limits(ports=8, calls=1)


@pytest.mark.parametrize(
    "text", ["", "ports", "ports=", "ports=0", "ports=-1", "ports=1e3", "ports=²", "doors=1", "=1",
             f"ports={1 << 31}"],
)  # fmt: skip
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(LimitError) as failed:
        Limits.parse([text])
    assert failed.value.hint


def supervisor(limits: Limits, open_sockets: set[int]) -> tuple[Supervisor, list[str]]:
    said: list[str] = []
    parts = SimpleNamespace(limits=limits, name="guest", warn=said.append)
    made = SimpleNamespace(parts=parts, taken=Taken(), open_sockets=lambda: set(open_sockets))
    return cast("Supervisor", made), said


def test_ports_of_closed_sockets_are_free_again() -> None:
    alive: set[int] = set()
    sup, said = supervisor(Limits(ports=2), alive)
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        alive |= {os.fstat(each.fileno()).st_ino for each in (one, two)}
        take_port(sup, one)
        take_port(sup, two)
        for _ in range(2):
            with pytest.raises(OSError, match=r"in use") as failed:
                take_port(sup, three)
            assert failed.value.errno == errno.EADDRINUSE
        assert len(said) == 1
        assert "--limit ports=N" in said[0]
        alive.discard(os.fstat(one.fileno()).st_ino)
        take_port(sup, three)


def test_a_count_is_checked_against_its_limit() -> None:
    sup, said = supervisor(Limits(connects=3), set())
    check(sup, "connects", 2, errno.EAGAIN)
    assert said == []
    with pytest.raises(BlockingIOError):
        check(sup, "connects", 3, errno.EAGAIN)
