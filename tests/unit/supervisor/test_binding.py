"""What another thread of the guest may do to a socket while its bind or listen is judged."""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from xensock.calls import Endpoint
from xensock.calls.call import Decision
from xensock.stack.stacks import DecidedError
from xensock.supervisor import binding, options

if TYPE_CHECKING:
    from xensock.supervisor.question import Question
    from xensock.supervisor.supervisor import Supervisor

LOOPBACK = IPv4Address("127.0.0.1")


def listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def test_a_listener_that_lost_its_port_listens_nowhere_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        judged = Endpoint(LOOPBACK, sock.getsockname()[1])
        sock.shutdown(socket.SHUT_RDWR)  # as by another thread: without a port of its own now
        with pytest.raises(OSError, match=r"Invalid argument") as failed:
            binding._listen_judged(sock, judged, 1)
        assert failed.value.errno == errno.EINVAL
        assert not listens(sock)


@pytest.mark.parametrize("early", [False, True])
def test_a_listener_that_is_what_was_judged_listens(early: bool) -> None:
    """`early`: the port is chosen only now, and was judged as any (IP_BIND_ADDRESS_NO_PORT)."""
    with socket.socket() as sock:
        sock.setsockopt(socket.IPPROTO_IP, 24, int(early))
        sock.bind(("127.0.0.1", 0))
        binding._listen_judged(sock, Endpoint(LOOPBACK, sock.getsockname()[1]), 1)
        assert listens(sock)


def test_a_second_bind_is_never_carried_out() -> None:
    """Whether the socket has lost its port meanwhile or not, nothing is bound that nobody judged."""
    sup = cast("Supervisor", SimpleNamespace())
    with socket.socket() as unbound:
        q = cast("Question", SimpleNamespace(host=True, sock=unbound))
        for host, error in (("127.0.0.1", errno.EINVAL), ("192.0.2.77", errno.EADDRNOTAVAIL)):
            with pytest.raises(OSError, match=r"Invalid argument|Cannot assign") as failed:
                binding._bound_already(sup, q, Endpoint(IPv4Address(host), 0))
            assert failed.value.errno == error
        assert unbound.getsockname()[1] == 0


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(errno.EADDRNOTAVAIL, errno.EADDRNOTAVAIL), (errno.EACCES, errno.EINVAL)],
)
@pytest.mark.parametrize("freebind", [0, 1])
def test_of_a_second_bind_another_backend_is_asked_for_the_address_alone(
    theirs: int, ours: int, freebind: int
) -> None:
    asked: list[tuple[str, int]] = []

    class Theirs(socket.socket):
        def bind(self, address: Any) -> None:
            asked.append(address)
            raise DecidedError(theirs, Decision(False, "theirs"))

    stacks = SimpleNamespace(default=SimpleNamespace(make=Theirs, local=False))
    parts = SimpleNamespace(stacks=stacks, guest=SimpleNamespace(socket=socket.socket))
    sup = cast("Supervisor", SimpleNamespace(parts=parts))
    with socket.socket() as sock:
        sock.setsockopt(*options.freebind(socket.AF_INET), freebind)
        q = cast("Question", SimpleNamespace(host=False, sock=sock))
        with pytest.raises(OSError, match=r"Invalid argument|Cannot assign") as failed:
            binding._bound_already(sup, q, Endpoint(IPv4Address("127.0.0.2"), 8080))
    assert failed.value.errno == (errno.EINVAL if freebind else ours)
    assert type(failed.value) is OSError  # nothing was decided about the call itself
    assert asked == ([] if freebind else [("127.0.0.2", 0)])


@pytest.mark.parametrize("number", [errno.ENOPROTOOPT, errno.ENOMEM])
def test_a_backend_of_version_1_carries_no_options(number: int) -> None:
    """What matters to bind(2) is not carried there; any other failure is one."""

    class Far:
        def setsockopt(self, *_: object) -> None:
            raise OSError(number, "")

    with socket.socket() as sock:
        if number == errno.ENOPROTOOPT:
            binding._like(sock, cast("Any", Far()))
        else:
            with pytest.raises(OSError, match="12"):
                binding._like(sock, cast("Any", Far()))
