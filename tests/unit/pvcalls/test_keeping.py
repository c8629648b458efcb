"""The journal: what was written down is read, whatever cut it off."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import TYPE_CHECKING

import pytest

from xensock.pvcalls.keeping import PAUSE_S, Journal, KeptRest, Record, read, records
from xensock.wire import local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SESSION: Record = ("session", 1, 10, 100, 1000)
TERMS: Record = ([1, 2], 3, ["urgent"])


def at_once(what: Callable[[], None]) -> None:
    what()


def test_records_come_back_in_order() -> None:
    journal = Journal(lambda: [], at_once)
    wanted: list[Record] = [SESSION, ("held", 1, 7, {"fd": 3, "start": (1, 2, 3, 4)}), ("gone", 1)]
    for record in wanted:
        journal.note(*record)
    assert list(records(journal.fd)) == wanted
    journal.close()


def test_what_was_cut_off_is_no_record() -> None:
    journal = Journal(lambda: [], at_once)
    journal.note(*SESSION)
    whole = os.fstat(journal.fd).st_size
    journal.note("names", 1, 5)
    end = os.fstat(journal.fd).st_size
    for size in range(whole, end):
        os.truncate(journal.fd, size)
        assert list(records(journal.fd)) == [SESSION]
        os.truncate(journal.fd, end)  # zeroes
        assert list(records(journal.fd)) == [SESSION]
    journal.close()


def test_a_long_one_begins_anew() -> None:
    state: list[Record] = [SESSION]
    journal = Journal(lambda: state, at_once, longest=1000)
    number = journal.fd
    for at in range(500):
        journal.note("names", 1, at)
    state.append(("names", 1, 499))
    journal.rewrite()
    assert journal.fd == number
    assert list(records(journal.fd)) == state
    journal.close()


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """What is written to files ends there, as where memory ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("left", [0, 5], ids=["nothing", "half"])
def test_one_that_cannot_be_written_says_nothing_until_it_can(left: int) -> None:
    state: list[Record] = [SESSION, ("names", 1, 6)]
    later: list[Callable[[], None]] = []
    now = 0.0
    journal = Journal(lambda: state, later.append, clock=lambda: now)
    journal.note(*SESSION)
    with files_end_at(os.fstat(journal.fd).st_size + left):
        journal.note("names", 1, 5)  # nobody is the worse for it
        assert list(records(journal.fd)) == []
        journal.note("names", 1, 6)
        assert list(records(journal.fd)) == []
    with files_end_at(0):
        later.pop()()
        assert list(records(journal.fd)) == []
        journal.note("names", 1, 7)
        assert not later  # not at every record
    now += PAUSE_S
    journal.note("names", 1, 7)
    state[1] = ("names", 1, 7)
    later.pop()()
    journal.note("names", 1, 8)
    assert list(records(journal.fd)) == [*state, ("names", 1, 8)]
    assert not later
    journal.close()


def test_one_that_cannot_begin_anew_goes_on_and_tries_again() -> None:
    later: list[Callable[[], None]] = []
    now = 0.0
    journal = Journal(lambda: [SESSION], later.append, longest=100, clock=lambda: now)
    wanted: list[Record] = [SESSION]
    journal.note(*SESSION)
    for at in range(20):
        wanted.append(("names", 1, at))
        journal.note(*wanted[-1])
    with files_end_at(0):
        later.pop()()
    assert list(records(journal.fd)) == wanted
    now += PAUSE_S
    journal.note("names", 1, 20)
    later.pop()()
    assert list(records(journal.fd)) == [SESSION]
    journal.close()


def test_requests_wait_until_they_are_answered() -> None:
    journal = Journal(lambda: [], at_once)
    journal.note(*SESSION)
    journal.note("ring", 1, 0xFFFFFFFF, 0xFFFFFFFE, b"last", {4: b"old"}, *TERMS)
    journal.note("taken", 1, 5, [b"five", b"six"])
    journal.note("answered", 1, 5, b"answer")
    session = read(journal.fd).sessions[1]
    assert session.waiting == {4: b"old", 6: b"six"}
    assert (session.ring, session.answer) == ((1, 0xFFFFFFFF), b"answer")
    journal.close()


def test_descriptors_that_were_given_back_are_not_named() -> None:
    """Their numbers may be others' by then."""
    journal = Journal(lambda: [], at_once)
    journal.note(*SESSION)
    first, second = local.encode(local.Memory(1, 8)), local.encode(local.Memory(9, 8))
    event = local.encode(local.Event(3))
    journal.note("said", 1, first, [20])
    journal.note("said", 1, second, [21])
    journal.note("said", 1, event, [22, 23])
    journal.note("said", 1, local.encode(local.Unmap(1)), [])
    journal.note("said", 1, local.encode(local.Unevent(3)), [])
    journal.note("held", 1, 7, {"fd": 30})
    journal.note("held", 1, 8, {"fd": -1})
    journal.note("held", 1, 9, {"fd": 31})
    journal.note("dropped", 1, 9)
    kept = read(journal.fd)
    assert kept.sessions[1].said == [(second, [21])]
    assert kept.descriptors() == {10, 21, 30}
    journal.close()


def test_a_ring_that_was_unmapped_is_none() -> None:
    journal = Journal(lambda: [], at_once)
    journal.note(*SESSION)
    journal.note("ring", 1, 0, 0, b"", {}, *TERMS)
    journal.note("names", 1, 30)
    session = read(journal.fd).sessions[1]
    assert (session.ring, session.terms, session.names) == ((0, 0), TERMS, 30)
    journal.note("names", 1, -1)
    journal.note("unringed", 1)
    kept = read(journal.fd)
    assert (kept.sessions[1].ring, kept.descriptors()) == (None, {10})
    journal.close()


def test_what_a_guest_says_again_and_again_is_there_once() -> None:
    """What it takes to read a journal grows as what it says, not by every message that led there."""
    journal = Journal(lambda: [], at_once)
    journal.note(*SESSION)
    hello = local.encode(local.Hello("guest"))
    journal.note("said", 1, hello, [])
    for number in range(100):
        journal.note("said", 1, local.encode(local.Write({})), [])
        journal.note("said", 1, local.encode(local.Write({"a": str(number), "b": "5"})), [])
        journal.note("said", 1, local.encode(local.Memory(1, 8)), [20])
        journal.note("said", 1, local.encode(local.Unmap(1)), [])
        journal.note("said", 1, local.encode(local.Unevent(number + 1)), [])
    again = local.encode(local.Memory(1, 4))
    journal.note("said", 1, again, [21])
    nodes = [local.encode(local.Write(each)) for each in ({"a": "99"}, {"b": "5"})]
    session = read(journal.fd).sessions[1]
    assert session.said == [(hello, []), *((packet, []) for packet in nodes), (again, [21])]
    assert session.last == again
    journal.close()


def test_rests_outlive_their_session() -> None:
    journal = Journal(lambda: [], at_once)
    journal.note(*SESSION)
    journal.note("rest", 77, 40, 12345, 41, 1000, 5, False)
    journal.note("rest", 78, 42, 12346, 43, 1000, 5, True)
    journal.note("gone", 1)
    journal.note("rested", 78)
    kept = read(journal.fd)
    assert (kept.sessions, kept.rests) == ({}, {77: KeptRest(40, 12345, 41, 1000, 5, False)})
    journal.close()
