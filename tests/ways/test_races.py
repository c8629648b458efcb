"""What another thread of the guest changes while the backend judges a call or carries it out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from semantics.attempts import Service

from .conftest import beside, everywhere, outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from world.internet import World
    from world.runner import Guest

SECONDS = "3"


@beside
def test_an_attempt_taken_apart_while_it_is_joined(
    guest: Guest, world: World, compiled: Callable[[str], Path]
) -> None:
    """A second connect(2) is answered by the socket's state; the address in it is judged by nobody."""
    peer = world.peer
    with Service(peer.listen(peer.addr4)) as refused:
        argv = [str(compiled("rejoin")), peer.addr4, world.silent4, str(refused.port), SECONDS]
        seen = outcome(guest, argv, options=("--deny", f"{peer.addr4}:{refused.port}"))
        assert bool(seen["reached"]) == guest.native, seen
        assert bool(refused.clients) == guest.native


@everywhere
@pytest.mark.parametrize(
    "call",
    [
        "listen",
        "connect",
        "ioctl",
        *(pytest.param(c, marks=pytest.mark.slow) for c in ("bind", "loopback")),
    ],
)
def test_a_descriptor_that_names_another_file_by_then(
    guest: Guest, world: World, compiled: Callable[[str], Path], call: str
) -> None:
    """Looked at as a unix socket, as one for the guest's own loopback, or as no socket at all, a call must not run on a
    socket of the host's."""
    peer = world.peer
    with (
        Service(peer.listen(peer.addr4)) as refused,
        Service(world.host.listen("127.0.0.1")) as local,
    ):
        place = {
            "connect": (peer.addr4, refused.port),
            "loopback": ("127.0.0.1", local.port),
        }.get(call, (world.host.addr4, guest.port()))
        argv = [str(compiled("swapped")), call, SECONDS, *map(str, place)]
        rules = ("--deny", f"{peer.addr4}:{refused.port}")
        if call in ("listen", "bind"):
            rules += ("--deny", "listen:any")
        seen = outcome(guest, argv, options=rules)
        reached = bool(refused.clients or local.clients)
    assert guest.native or seen["tried"] > 50
    assert reached == (guest.native and call in ("connect", "loopback"))
    # Over the other paths the socket is the guest's own: what it is bound to in the guest's network is no way out.
    inside = call in ("listen", "bind") and guest.datapath != "direct"
    assert bool(seen["got"]) == guest.native or inside
