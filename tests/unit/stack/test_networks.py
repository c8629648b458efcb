"""Networks by name: which are there, which come later, and who answers for names in the meantime."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import pytest

from world.namespaces import eventually
from xensock.stack import networks
from xensock.stack import resolver_wire as wire
from xensock.stack.kernel import Kernel
from xensock.stack.networks import NetworkResolver, Networks, Opened, unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

QUESTION = b"\0\7\1\0\0\1\0\0\0\0\0\0\3git\4corp\7example\0\0\1\0\1"


class Named(Kernel):
    """A stack that answers with its name, or with `error`."""

    def __init__(self, name: str, answer: bytes = b"") -> None:
        self.name = name
        self.gone = False
        self.closed = 0
        self._answer = answer

    def live(self) -> int:
        return 1

    def close(self, patience: float = 0) -> None:
        self.closed += 1

    async def query(self, message: bytes, server: object = None) -> bytes:
        if self._answer == b"gone":
            raise OSError(errno.ENETDOWN, "gone")
        return self._answer or wire.reply(message, wire.read_question(message), wire.NOERROR)

    def hosts_names(self, address: object) -> tuple[str, ...]:
        return (self.name,)


def opened(stack: Named) -> Opened:
    return Opened(stack, stack)


def away() -> Opened:
    raise OSError(errno.ENOENT, "nothing there")


def make(**openers: Callable[[], Opened]) -> tuple[Networks, list[str]]:
    said: list[str] = []
    made = Networks((opened(Named("host")),), openers, said.append)
    made.open()
    return made, said


def names(made: Networks, *wanted: str) -> list[str]:
    return [each.stack.name for each in made.find(wanted)]


def test_those_that_are_there_in_the_order_of_the_rule() -> None:
    lab = Named("lab")
    made, said = make(lab=lambda: opened(lab), vpn=away)
    assert names(made, "vpn", "lab", "host") == ["lab", "host"]
    assert names(made, "host", "lab") == ["host", "lab"]
    assert names(made, "vpn") == []
    assert names(made, "guest", "lab") == ["lab"]
    assert names(made, "guest") == []
    assert said == [
        "the network vpn cannot be reached for now: nothing there",
        "there is no network guest here: rules send calls by it in vain",
    ]
    assert made.live() == 1
    made.close()
    assert lab.closed == 1


def test_one_that_may_never_be_entered_is_an_error_at_once() -> None:
    def refused() -> Opened:
        raise PermissionError(errno.EPERM, "no")

    with pytest.raises(PermissionError):
        make(vpn=refused)


def test_one_that_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "RETRY_S", 0.0)
    there: list[Named] = []

    def come() -> Opened:
        return opened(there[-1]) if there else away()

    made, said = make(vpn=come)
    assert names(made, "vpn") == []
    there.append(Named("vpn"))
    eventually(lambda: names(made, "vpn") == ["vpn"], 10, "the network came")
    assert "the network vpn can be reached now" in said
    first = there.pop()
    first.gone = True
    assert names(made, "vpn") == []
    there.append(Named("vpn"))
    eventually(lambda: names(made, "vpn") == ["vpn"], 10, "it came again")
    assert first.closed == 1
    made.close()


def test_names_are_asked_for_in_the_first_network_that_answers() -> None:
    servfail = wire.reply(QUESTION, wire.read_question(QUESTION), wire.SERVFAIL)
    made, _ = make(
        vpn=away,
        dead=lambda: opened(Named("dead", b"gone")),
        mute=lambda: opened(Named("mute", servfail)),
        lab=lambda: opened(Named("lab")),
    )
    home = Named("home", servfail)
    resolver = NetworkResolver(home, home, made)

    def code(*wanted: str) -> int:
        answer = asyncio.run(resolver.query_via(wanted, QUESTION))
        assert wire.head(answer)[0] == 7
        return wire.rcode(answer)

    assert code("vpn", "dead", "mute", "lab") == wire.NOERROR
    assert code("vpn", "dead") == wire.SERVFAIL
    assert code("mute") == wire.SERVFAIL
    assert asyncio.run(resolver.query(QUESTION)) == servfail
    assert resolver.hosts_names(None) == ("home",)  # type: ignore[arg-type]
    assert unreachable(["vpn"]).errno == errno.ENETUNREACH
    made.close()
