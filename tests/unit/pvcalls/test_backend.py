"""The backend's v1: what it answers, command by command, to a frontend that speaks it by hand."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from backkit import Front, Serving, free_port, front, pair, sockaddr, until
from xensock.pvcalls.serving.limits import Limits
from xensock.wire import requests
from xensock.wire.commands import encode_request
from xensock.wire.errors import ENOTSUP
from xensock.wire.extensions import Extension
from xensock.wire.requests import Accept, Bind, Connect, Listen, Poll, Release, Socket
from xensock.wire.states import State

if TYPE_CHECKING:
    from collections.abc import Iterator

INET, STREAM = socket.AF_INET, socket.SOCK_STREAM


@pytest.fixture
def guest(serving: Serving) -> Iterator[Front]:
    with front(serving) as made:
        yield made


def test_v1_is_what_is_offered_and_what_is_agreed(serving: Serving) -> None:
    near, far = pair()
    serving.serve(far)
    offer = Front(near).offer()
    assert (offer.versions, offer.function_calls, offer.max_page_order) == (("1",), True, 9)
    assert Extension.SHUTDOWN in offer.extensions
    near.close()
    until(lambda: near.world.reason is not None)


@pytest.mark.parametrize(
    ("domain", "kind", "protocol"),
    [
        (socket.AF_INET6, STREAM, 0),
        (socket.AF_UNIX, STREAM, 0),
        (INET, socket.SOCK_DGRAM, 0),
        (INET, socket.SOCK_RAW, 0),
        (INET, STREAM, 6),
        (0, socket.SOCK_DGRAM, 53),
        (40, STREAM, 0),
        (2**32 - 1, 2**32 - 1, 2**32 - 1),
    ],
)
def test_v1_has_inet_streams_only(guest: Front, domain: int, kind: int, protocol: int) -> None:
    assert guest.ret(Socket(1, domain, kind, protocol)) == ENOTSUP


def test_an_id_is_used_once(guest: Front) -> None:
    assert guest.ret(Socket(7, INET, STREAM, 0)) == 0
    assert guest.ret(Socket(7, INET, STREAM, 0)) == -errno.EEXIST
    assert guest.ret(Release(7)) == 0
    assert guest.ret(Socket(7, INET, STREAM, 0)) == 0


@pytest.mark.parametrize(
    "request_",
    [
        Connect(99, sockaddr("127.0.0.1", 80), 0, 1, 1),
        Release(99),
        Bind(99, sockaddr("0.0.0.0", 0)),
        Listen(99, 1),
        Accept(99, 100, 1, 1),
        Poll(99),
    ],
    ids=lambda request: type(request).__name__,
)
def test_a_call_for_no_socket_is_answered(guest: Front, request_: requests.Request) -> None:
    """Linux's backend forgets to answer POLL of an unknown id."""
    assert guest.ret(request_) == -errno.EBADF


def test_commands_of_extensions_do_not_exist_for_a_v1_frontend(guest: Front) -> None:
    id = guest.socket()
    for request in (requests.Shutdown(id, 1), requests.GetName(id, 0), requests.Close(id)):
        assert guest.ret(request) == ENOTSUP
    guest.push(struct.pack("<IIQ", 77, 4711, id).ljust(64, b"\0"))
    response = guest.result(77)
    assert (response.cmd, response.ret, response.id) == (4711, ENOTSUP, id)


def test_the_answers_of_a_v1_frontend_hold_nothing_else(guest: Front) -> None:
    id = guest.socket()
    response = guest.command(Bind(id, sockaddr("127.0.0.1", 0)))
    assert (response.ret, response.id, response.body) == (0, id, bytes(40))


def test_the_hosts_port_is_the_guests(guest: Front) -> None:
    port = free_port()
    guest.listener(port=port)
    with socket.create_connection(("127.0.0.1", port), 5):
        pass


def test_bind_says_what_bind_says(guest: Front) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        id = guest.socket()
        assert guest.ret(Bind(id, sockaddr(*taken.getsockname()))) == -errno.EADDRINUSE
    assert guest.ret(Bind(id, sockaddr("192.0.2.77", 0))) == -errno.EADDRNOTAVAIL
    assert guest.ret(Bind(id, sockaddr("::1", 0))) == -errno.EAFNOSUPPORT
    assert guest.ret(Bind(id, b"\2\0\1")) == -errno.EINVAL
    assert guest.ret(Bind(id, sockaddr("127.0.0.1", 0))) == 0
    assert guest.ret(Bind(id, sockaddr("127.0.0.1", 0))) == -errno.EINVAL


def test_a_port_is_one_guests(serving: Serving, guest: Front) -> None:
    port = free_port()
    guest.listener(port=port)
    with front(serving) as other:
        address = sockaddr("127.0.0.1", port)
        assert other.ret(Bind(other.socket(), address)) == -errno.EADDRINUSE


def test_privileged_ports_and_refused_ones() -> None:
    with Serving(allow=(), deny=["listen:any:7000"]) as serving, front(serving) as guest:
        assert guest.ret(Bind(guest.socket(), sockaddr("0.0.0.0", 80))) == -errno.EACCES
        assert guest.ret(Bind(guest.socket(), sockaddr("0.0.0.0", 7000))) == -errno.EACCES
        denied = [r for r in serving.records if r.decision == "deny"]
        assert [(r.verb, r.target) for r in denied] == [
            ("bind", "0.0.0.0:80"),
            ("bind", "0.0.0.0:7000"),
        ]
        assert denied[0].hint == "--allow listen:any:80"
        assert {r.guest for r in denied} == {"guest"}


def test_listen_without_bind_takes_a_port(serving: Serving, guest: Front) -> None:
    id = guest.socket()
    assert guest.ret(Listen(id, 5)) == 0
    (record,) = serving.records
    assert (record.verb, record.decision, record.datapath) == ("listen", "allow", "ring")
    assert not record.target.endswith(":0")


def test_accept_and_poll_want_a_listener(guest: Front) -> None:
    id = guest.socket()
    assert guest.ret(Poll(id)) == -errno.EINVAL
    assert guest.ret(Accept(id, 50, 1, 1)) == -errno.EINVAL


def test_a_refused_connect_is_refused_before_anything_happens() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Serving(allow=()) as serving,
        front(serving) as guest,
    ):
        _, _, response = guest.connect(server.getsockname())
        assert response.ret == -errno.EACCES
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()
        (record,) = serving.records
        assert (record.verb, record.decision, record.error) == ("connect", "deny", errno.EACCES)
        assert record.rule == "default: host loopback"
        assert record.datapath == ""


def test_connect_says_what_connect_says(guest: Front) -> None:
    port = free_port()
    id, stream, response = guest.connect(("127.0.0.1", port))
    assert response.ret == -errno.ECONNREFUSED
    for address, error in (
        (sockaddr("::1", port), errno.EAFNOSUPPORT),
        (b"", errno.EINVAL),
        (b"\2\0", errno.EINVAL),
        (sockaddr("255.255.255.255", 1), errno.ENETUNREACH),
    ):
        request = Connect(id, address, 0, stream.ref, stream.port)
        assert guest.ret(request) == -error, address


@pytest.mark.parametrize("order", [0, 10, 2**32 - 1])
def test_a_ring_of_a_false_order_is_refused(guest: Front, order: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        id, stream = guest.socket(), guest.stream()
        stream.page[128:132] = struct.pack("<I", order)
        address = sockaddr(*server.getsockname())
        assert guest.ret(Connect(id, address, 0, stream.ref, stream.port)) == -errno.EINVAL
        assert guest.ret(Connect(id, address, 0, 4000000, stream.port)) == -errno.EINVAL
        stream.page[128:132] = struct.pack("<I", 3)
        assert guest.ret(Connect(id, address, 0, stream.ref, 99)) == -errno.EINVAL


def test_parked_calls_are_answered_when_their_listener_goes(guest: Front) -> None:
    listener = guest.listener()
    poll = guest.submit(Poll(listener))
    first, _, _ = guest.accept(listener)
    second, _, _ = guest.accept(listener)
    assert guest.pending(first)
    assert guest.pending(poll)
    assert guest.ret(Release(listener)) == 0
    assert {guest.result(c).ret for c in (poll, first, second)} == {-errno.EBADF}


def test_an_accept_is_given_up_by_releasing_what_it_promised(guest: Front) -> None:
    listener = guest.listener()
    cookie, id, _ = guest.accept(listener)
    assert guest.ret(Listen(id, 1)) == -errno.EBADF
    assert guest.ret(Release(id)) == 0
    assert guest.result(cookie).ret == -errno.EBADF
    assert guest.ret(Release(id)) == -errno.EBADF


def test_an_accept_promises_an_id_once(guest: Front) -> None:
    listener = guest.listener()
    _, id, _ = guest.accept(listener)
    other = guest.stream()
    assert guest.ret(Accept(listener, id, other.ref, other.port)) == -errno.EEXIST
    assert guest.ret(Accept(listener, listener, other.ref, other.port)) == -errno.EEXIST
    assert guest.ret(Accept(listener, 1000, 4000000, other.port)) == -errno.EINVAL


def test_poll_is_answered_when_a_connection_waits(guest: Front) -> None:
    port = free_port()
    listener = guest.listener(port=port)
    first, second = guest.submit(Poll(listener)), guest.submit(Poll(listener))
    assert guest.pending(first)
    with socket.create_connection(("127.0.0.1", port), 5):
        assert guest.result(first).ret == 0
        assert guest.result(second).ret == 0
        assert guest.ret(Poll(listener)) == 0


def test_a_parked_call_delays_nobody(guest: Front) -> None:
    """All slots but one parked, and still every other call is answered."""
    listener = guest.listener()
    parked = [guest.submit(Poll(listener)) for _ in range(31)]
    for _ in range(100):
        assert guest.ret(Release(guest.socket())) == 0
    assert guest.ret(Release(listener)) == 0
    assert {guest.result(cookie).ret for cookie in parked} == {-errno.EBADF}


def test_limits_of_sockets_and_pages() -> None:
    limits = Limits(sockets=3, pages=20)
    with Serving(limits=limits) as serving, front(serving) as guest:
        listener = guest.listener()
        _, one, _ = guest.accept(listener)
        _, _, _ = guest.accept(listener)
        assert guest.ret(Socket(90, INET, STREAM, 0)) == -errno.ENFILE
        assert guest.ret(Release(one)) == 0
        assert guest.ret(Socket(90, INET, STREAM, 0)) == 0
        assert guest.ret(Release(90)) == 0
        cookie, _, _ = guest.accept(listener)
        assert guest.pending(cookie)
        assert guest.ret(Release(listener)) == 0
    with Serving(limits=Limits(pages=10)) as serving, front(serving) as guest:
        listener = guest.listener()
        first, one, _ = guest.accept(listener)
        stream = guest.stream()
        too_many = Accept(listener, 70, stream.ref, stream.port)
        assert guest.ret(too_many) == -errno.ENOMEM
        assert guest.ret(Release(one)) == 0
        assert guest.result(first).ret == -errno.EBADF
        assert guest.pending(guest.submit(too_many))


def test_guests_beyond_the_limit_are_told_why() -> None:
    with Serving(limits=Limits(guests=1)) as serving, front(serving):
        near, far = pair()
        serving.serve(far)
        until(lambda: near.world.reason is not None)
        assert near.world.reason == "1 guests are connected, which is the limit"


def test_a_socket_that_is_gone_frees_its_port(serving: Serving) -> None:
    port = free_port()
    with front(serving) as guest:
        guest.listener(port=port)
    with front(serving) as guest:
        guest.listener(port=port)


def test_an_orderly_end_by_the_frontend(serving: Serving) -> None:
    near, far = pair()
    session = serving.serve(far)
    made = Front(near).handshake()
    made.listener()
    made.state(State.CLOSING)
    until(lambda: made.back == State.CLOSING)
    assert session.guest is None
    made.state(State.CLOSED)
    until(lambda: made.back == State.CLOSED or near.world.reason is not None)
    assert serving.backend.sessions == {}
    made.close()


def test_an_orderly_end_by_the_backend(serving: Serving) -> None:
    near, far = pair()
    session = serving.serve(far)
    made = Front(near).handshake()
    serving.call(session.stop, "enough")
    until(lambda: made.back == State.CLOSING)
    made.state(State.CLOSED)
    until(lambda: near.world.reason is not None)
    assert near.world.reason == "enough"
    made.close()


def test_a_frontend_that_breaks_the_order_of_states_is_disconnected(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "xensock.backend")
    near, far = pair()
    serving.serve(far)
    made = Front(near)
    made.offer()
    made.state(State.CONNECTED)
    until(lambda: near.world.reason is not None)
    assert near.world.reason == "state CONNECTED after INIT_WAIT"
    lines = [r.getMessage() for r in caplog.records if "disconnected" in r.getMessage()]
    assert len(lines) == 1
    assert lines[0].endswith("disconnected: state CONNECTED after INIT_WAIT")


def test_an_impossible_request_index_ends_the_session(serving: Serving) -> None:
    near, far = pair()
    serving.serve(far)
    made = Front(near).handshake()
    made.socket()
    made.pages.memory[0:4] = struct.pack("<I", 5000)
    made.event.notify()
    until(lambda: near.world.reason is not None)
    assert serving.backend.sessions == {}
    made.close()


def test_requests_that_came_before_the_backend_listened_are_served(serving: Serving) -> None:
    near, far = pair()
    serving.serve(far)
    made = Front(near)
    made.offer()
    made.prepare()
    made.ring.push(encode_request(5, Socket(1, INET, STREAM, 0)))  # and no event
    made.choose()
    made._last = 5
    assert made.result(5).ret == 0
    made.close()
    until(lambda: near.world.reason is not None)


def test_larger_command_rings(serving: Serving) -> None:
    with front(serving, order=2) as guest:
        listener = guest.listener()
        parked = [guest.submit(Poll(listener)) for _ in range(100)]
        assert guest.ret(Release(guest.socket())) == 0
        assert guest.ret(Release(listener)) == 0
        assert {guest.result(cookie).ret for cookie in parked} == {-errno.EBADF}


def test_frontends_that_do_not_get_on_are_disconnected() -> None:
    with Serving(limits=Limits(handshake=0.1)) as serving:
        near, far = pair()
        serving.serve(far)
        until(lambda: near.world.reason is not None)
        assert near.world.reason == "it took longer than 0.1 s"
        near, far = pair()
        serving.serve(far)
        slow = Front(near).handshake()
        with front(serving) as other:
            assert slow.pending(slow.submit(Poll(slow.listener())), 0.2)  # connected, it has time
            slow.state(State.CLOSING)
            until(lambda: near.world.reason is not None)
            assert other.ret(Release(other.socket())) == 0
        slow.close()
