"""MSG_ERRQUEUE: what ICMP said of datagrams, read as from the kernel's queue."""

from __future__ import annotations

import errno
import select
import socket as standard
from typing import TYPE_CHECKING, Any

import pytest

from xensock.client.reports import MOST, SWITCHES, Reports
from xensock.wire.frames import Frame, Icmp

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Api

PATIENCE_S = 10
DGRAM, ERRQUEUE = standard.SOCK_DGRAM, standard.MSG_ERRQUEUE
PLACES = {
    "ipv4": (standard.AF_INET, "127.0.0.1"),
    "ipv6": (standard.AF_INET6, "::1"),
    "mapped": (standard.AF_INET6, "::ffff:127.0.0.1"),
}


def closed(family: int, host: str) -> Any:
    """An address where nobody is."""
    with standard.socket(family, DGRAM) as sock:
        sock.bind((host, 0))
        return sock.getsockname()


def told(sock: Any) -> None:
    """Wait until an error, or anything else, is there."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    assert poll.poll(PATIENCE_S * 1000)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except OSError as error:
        return type(error).__name__, errno.errorcode.get(error.errno or 0)


def switch_on(sock: Any, family: int) -> None:
    """As programs do that want to hear of mapped addresses, too: both."""
    sock.setsockopt(*SWITCHES[standard.AF_INET], 1)
    if family == standard.AF_INET6:
        sock.setsockopt(*SWITCHES[standard.AF_INET6], 1)


@pytest.mark.parametrize("kind", [standard.SOCK_STREAM, DGRAM])
@pytest.mark.parametrize("limit", [None, 0.0, 0.05])
def test_an_empty_queue(both: tuple[Api, Api], kind: int, limit: float | None) -> None:
    """Nobody waits, and what arrived stays; with a time limit Python says that it passed."""

    def ask(api: Any) -> list[Any]:
        with (
            api.socket(standard.AF_INET, kind) as one,
            standard.socket(standard.AF_INET, kind) as two,
        ):
            two.bind(("127.0.0.1", 0))
            one.settimeout(limit)
            seen = [outcome(lambda: one.recvmsg(10, 100, ERRQUEUE))]
            seen.append(outcome(lambda: one.recv(10, ERRQUEUE)))
            if kind == DGRAM:
                one.settimeout(PATIENCE_S)
                one.bind(("127.0.0.1", 0))
                two.sendto(b"here", one.getsockname())
                told(one)
                one.settimeout(limit)
                seen.append(outcome(lambda: one.recvfrom(10, ERRQUEUE)))
                seen.append(one.recv(10))
        return seen

    native, own = map(ask, both)
    assert native == own


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("first", [True, False], ids=["told by recv", "read here alone"])
@pytest.mark.parametrize("connected", [True, False])
def test_what_a_report_says(
    both: tuple[Api, Api], place: str, first: bool, connected: bool
) -> None:
    family, host = PLACES[place]
    where = closed(family, host)

    def ask(api: Any) -> list[Any]:
        with api.socket(family, DGRAM) as sock:
            switch_on(sock, family)
            if connected:
                sock.connect(where)
                sock.send(b"payload")
            else:
                sock.sendto(b"payload", where)
            told(sock)
            seen = [outcome(lambda: sock.recv(10))] if first else []
            seen += [outcome(lambda: sock.recvmsg(100, 200, ERRQUEUE)) for _ in range(2)]
            sock.setblocking(False)
            seen.append(outcome(lambda: sock.recv(10)))
        return seen

    native, own = map(ask, both)
    assert native == own
    assert native[int(first)][0] == b"payload"


def test_what_does_not_fit(both: tuple[Api, Api]) -> None:
    where = closed(*PLACES["ipv4"])

    def ask(api: Any) -> list[Any]:
        seen = []
        with api.socket(standard.AF_INET, DGRAM) as sock:
            switch_on(sock, standard.AF_INET)
            for data, room in ((3, 200), (100, 0), (100, 30)):
                sock.sendto(b"payload", where)
                told(sock)
                seen.append(
                    outcome(lambda data=data, room=room: sock.recvmsg(data, room, ERRQUEUE))
                )
            sock.sendto(b"payload", where)
            told(sock)
            sock.setblocking(False)
            seen.append(outcome(lambda: sock.recv(10)))
            sock.setsockopt(*SWITCHES[standard.AF_INET], 0)
            seen.append(outcome(lambda: sock.recvmsg(10, 100, ERRQUEUE)))
        return seen

    native, own = map(ask, both)
    assert native == own


def test_who_does_not_ask_has_no_queue(both: tuple[Api, Api]) -> None:
    where = closed(*PLACES["ipv4"])

    def ask(api: Any) -> list[Any]:
        with api.socket(standard.AF_INET, DGRAM) as sock:
            sock.connect(where)
            sock.send(b"payload")
            told(sock)
            return [
                outcome(lambda: sock.recvmsg(10, 100, ERRQUEUE)),
                outcome(lambda: sock.recv(10)),
                outcome(lambda: sock.recvmsg(10, 100, ERRQUEUE)),
            ]

    native, own = map(ask, both)
    assert native == own


def test_the_queue_has_an_end_and_senders_may_be_unknown() -> None:
    reports = Reports(standard.AF_INET)
    about = standard.AF_INET.to_bytes(2, "little") + bytes(14)
    for number in range(MOST + 10):
        reports.keep(Frame(b"", about, error=-111, icmp=Icmp(3, 3, 0, bytes(16), b"%d" % number)))
    reports.keep(Frame(b"", error=-13))
    kept = list(iter(reports.take, None))
    assert [each.icmp.quote for each in kept if each.icmp] == [b"%d" % n for n in range(MOST)]
    ((_, _, value),) = reports.control(kept[0])
    assert value[16:] == bytes(16)
