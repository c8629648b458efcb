"""Rules that ask for labels: each guest of one backend is under those of its own."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from backkit import BackSide, Front, pair, sockaddr, until
from xensock.policy.load import parse
from xensock.wire.requests import Connect

if TYPE_CHECKING:
    import socket

    from backkit import Serving


def connects(serving: Serving, labels: dict[str, str], server: socket.socket) -> int:
    """What a guest with these labels is answered."""
    near, far = pair()
    assert isinstance(far, BackSide)
    far.labels = labels
    serving.serve(far)
    guest = Front(near, frozenset(), 0).handshake()
    try:
        stream = guest.stream()
        address = sockaddr(*server.getsockname())
        return guest.ret(Connect(guest.socket(), address, 0, stream.ref, stream.port))
    finally:
        guest.close()
        until(lambda: near.world.reason is not None)


@pytest.mark.parametrize(
    ("labels", "answer"),
    [
        ({"xen.name": "one", "xen.uuid": "1"}, 0),
        ({"xen.name": "two", "xen.uuid": "2"}, 0),
        ({"xen.name": "two", "xen.uuid": "1"}, -errno.EACCES),
        ({}, -errno.EACCES),
    ],
)
def test_each_guest_is_under_its_own_rules(
    serving: Serving, server: socket.socket, labels: dict[str, str], answer: int
) -> None:
    rules = "".join(
        f'[[rule]]\nallow = "127.0.0.1:{server.getsockname()[1]}"\nlabels = {{ "{key}" = "{value}" }}\n'
        for key, value in (("xen.name", "one"), ("xen.uuid", "2"))
    )
    policy = parse(rules.encode(), "policy.toml").policy()
    serving.backend.current.policy = policy
    assert connects(serving, labels, server) == answer
