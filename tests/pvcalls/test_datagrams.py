"""Datagrams, echoes and questions for names through the backend."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from backkit import Front, NoNames, Serving, Stream, free_port, front, sockaddr, until
from xensock.calls.address import Endpoint
from xensock.calls.call import Decision
from xensock.pvcalls.serving import datagrams as served
from xensock.pvcalls.serving.datagrams import decide
from xensock.pvcalls.serving.held import Held
from xensock.pvcalls.serving.telling import ask_for
from xensock.wire.extensions import ALL, Extension
from xensock.wire.frames import Frame, FrameFlag, decode_frame, largest_payload, next_frame
from xensock.wire.packet_info import ROOM, PacketInfo
from xensock.wire.requests import (
    Attach,
    Bind,
    Connect,
    GetName,
    Listen,
    Release,
    SetOption,
    Shutdown,
    Socket,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERY = ALL - {Extension.SHARED_RINGS, Extension.EXPLAIN, Extension.PACKET_INFO}
UNSPEC = bytes(16)


class Echoing(NoNames):
    """A name service that answers with the question and who was asked."""

    async def explained(
        self, message: bytes, server: object, *, datagram: bool
    ) -> tuple[bytes, Decision] | None:
        if message == b"nothing":
            return None
        limit = 512 if datagram else 65535
        return (message + str(server).encode())[:limit], Decision(True, "any name")


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving(names=lambda guest: Echoing()) as made:
        yield made


@pytest.fixture
def guest(serving: Serving) -> Iterator[Front]:
    with front(serving, EVERY) as made:
        yield made


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        made.settimeout(10)
        yield made


class Datagrams:
    """A datagram socket of a guest."""

    def __init__(
        self, guest: Front, domain: int = socket.AF_INET, protocol: int = 0, order: int = 6
    ) -> None:
        self.guest, self.id = guest, guest.new_id()
        assert guest.ret(Socket(self.id, domain, socket.SOCK_DGRAM, protocol)) == 0
        self.stream: Stream = guest.stream(order)
        assert guest.ret(Attach(self.id, self.stream.ref, self.stream.port)) == 0

    def bind(self, port: int = 0) -> tuple[str, int]:
        response = self.guest.command(Bind(self.id, sockaddr("127.0.0.1", port)))
        assert response.ret == 0
        return "127.0.0.1", int.from_bytes(response.address[2:4], "big")

    def connect(self, address: bytes) -> int:
        return self.guest.ret(Connect(self.id, address, 0, 0, 0))

    def send(
        self, payload: bytes, to: tuple[str, int] | None = None, info: PacketInfo | None = None
    ) -> None:
        self.stream.send(Frame(payload, sockaddr(*to) if to else b"", info=info).encode())

    def recv(self) -> Frame:
        while self.stream.ring.readable < 40:
            self.stream.wait(self.stream.ring.arm_read)
        raw, notify = self.stream.ring.read(next_frame(self.stream.ring.peek(40)))
        if notify:
            self.stream.event.notify()
        return decode_frame(raw, informed=True)[0]


@pytest.fixture
def informed(serving: Serving) -> Iterator[Front]:
    with front(serving, EVERY | {Extension.PACKET_INFO}) as made:
        yield made


def mapped(host: str) -> bytes:
    return bytes(10) + b"\xff\xff" + socket.inet_aton(host)


def test_what_ip_says_beside_the_payload(informed: Front, peer: socket.socket) -> None:
    ask_for(peer)
    mine = Datagrams(informed)
    mine.send(b"usual", peer.getsockname())
    peer.recv(100)
    mine.send(b"one", peer.getsockname(), PacketInfo(mapped("127.0.0.3"), 7, 0xB8))
    data, control, _, source = peer.recvmsg(100, ROOM)
    assert (data, source[0]) == (b"one", "127.0.0.3")
    assert PacketInfo.told(control) == PacketInfo(mapped("127.0.0.1"), 7, 0xB8)
    peer.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 9)
    peer.sendto(b"two", source)
    came = mine.recv()
    assert (came.payload, came.info) == (b"two", PacketInfo(mapped("127.0.0.3"), 9, 0))


@pytest.mark.parametrize(
    "info",
    [PacketInfo(mapped("127.0.0.3")), PacketInfo(bytes(15) + b"\1"), PacketInfo(hops=0)],
    ids=["another address than the bound one", "IPv6", "hops"],
)
def test_what_cannot_be_said_is_refused(
    informed: Front, peer: socket.socket, info: PacketInfo
) -> None:
    mine = Datagrams(informed)
    mine.bind()
    mine.send(b"x", peer.getsockname(), info)
    assert mine.recv().error == -errno.EINVAL
    mine.send(b"y", peer.getsockname(), PacketInfo(mapped("127.0.0.1")))
    assert peer.recv(10) == b"y"


def test_a_frame_that_lacks_what_it_announces_ends_the_session(informed: Front) -> None:
    mine = Datagrams(informed)
    raw = bytearray(Frame(b"x" * 8, sockaddr("127.0.0.1", 9)).encode())
    raw[4] = FrameFlag.INFO
    mine.stream.send(bytes(raw))
    until(lambda: informed.session.world.reason is not None)
    assert "packet information" in (informed.session.world.reason or "")


def test_datagrams_keep_their_boundaries_and_addresses(guest: Front, peer: socket.socket) -> None:
    mine = Datagrams(guest)
    address = mine.bind()
    for payload in (b"one", b"", os.urandom(9000)):
        mine.send(payload, peer.getsockname())
        got, source = peer.recvfrom(65536)
        assert (got, source) == (payload, address)
        peer.sendto(payload[::-1], source)
        assert mine.recv() == Frame(payload[::-1], sockaddr(*peer.getsockname()))


def test_many_datagrams_wrap_around(guest: Front, peer: socket.socket) -> None:
    mine = Datagrams(guest, order=2)
    for number in range(300):
        payload = b"%d" % number * (number % 200)
        mine.send(payload, peer.getsockname())
        got, source = peer.recvfrom(65536)
        assert got == payload
        peer.sendto(got, source)
        assert mine.recv().payload == payload


def test_a_connected_one_hears_its_peer_only(guest: Front, peer: socket.socket) -> None:
    mine = Datagrams(guest)
    assert mine.connect(sockaddr(*peer.getsockname())) == 0
    mine.send(b"hello")
    _, source = peer.recvfrom(100)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"not you", source)
    peer.sendto(b"you", source)
    assert mine.recv().payload == b"you"
    assert guest.command(GetName(mine.id, 1)).address == sockaddr(*peer.getsockname())
    assert mine.connect(UNSPEC) == 0
    assert guest.ret(GetName(mine.id, 1)) == -errno.ENOTCONN
    mine.send(b"whereto")
    assert mine.recv().error == -errno.EDESTADDRREQ


def test_what_came_too_long_is_cut_and_says_so(guest: Front, peer: socket.socket) -> None:
    mine = Datagrams(guest, order=1)
    address = mine.bind()
    longest = largest_payload(mine.stream.ring.size)
    peer.sendto(bytes(longest + 1), address)
    frame = mine.recv()
    assert (len(frame.payload), frame.truncated) == (longest, True)


def test_a_refused_destination_is_told_and_recorded(peer: socket.socket) -> None:
    with Serving(allow=()) as serving, front(serving, EVERY) as guest:
        mine = Datagrams(guest)
        for _ in range(2):
            mine.send(b"x", peer.getsockname())
            frame = mine.recv()
            assert (frame.error, frame.address) == (-errno.EACCES, sockaddr(*peer.getsockname()))
        assert mine.connect(sockaddr(*peer.getsockname())) == -errno.EACCES
        peer.settimeout(0.05)
        with pytest.raises(TimeoutError):
            peer.recv(1)
        verbs = [(r.verb, r.decision) for r in serving.records]
        assert verbs == [("send", "deny"), ("connect", "deny")]


def test_errors_come_back(guest: Front) -> None:
    mine = Datagrams(guest)
    assert mine.connect(sockaddr("127.0.0.1", free_port())) == 0
    mine.send(b"x")
    assert mine.recv().error == -errno.ECONNREFUSED
    mine.send(bytes(70000 if mine.stream.ring.size > 70000 else 65508))
    assert mine.recv().error in (-errno.EMSGSIZE, -errno.ECONNREFUSED)
    other = Datagrams(guest)
    other.stream.send(Frame(b"x", sockaddr("::1", 9)).encode())
    assert other.recv().error == -errno.EAFNOSUPPORT


def test_a_frame_that_is_none_ends_the_session(serving: Serving) -> None:
    with front(serving, EVERY) as guest:
        mine = Datagrams(guest)
        mine.stream.send(struct.pack("<III", 2**31, 0, 0) + bytes(28))
        until(lambda: guest.session.world.reason is not None)
        assert "frame" in guest.session.world.reason


def test_attach_wants_a_datagram_socket_without_a_ring(guest: Front) -> None:
    mine = Datagrams(guest)
    stream = guest.stream()
    assert guest.ret(Attach(mine.id, stream.ref, stream.port)) == -errno.EISCONN
    assert guest.ret(Attach(guest.socket(), stream.ref, stream.port)) == -errno.EOPNOTSUPP
    assert guest.ret(Attach(999, stream.ref, stream.port)) == -errno.EBADF
    assert guest.ret(Shutdown(mine.id, 1)) == -errno.ENOTCONN
    assert guest.ret(Release(mine.id)) == 0


def test_a_port_of_datagrams_is_one_guests(serving: Serving, guest: Front) -> None:
    port = free_port()
    Datagrams(guest).bind(port)
    with front(serving, EVERY) as other:
        id = other.new_id()
        assert other.ret(Socket(id, socket.AF_INET, socket.SOCK_DGRAM, 0)) == 0
        assert other.ret(Bind(id, sockaddr("127.0.0.1", port))) == -errno.EADDRINUSE


def test_a_slow_reader_loses_datagrams_and_nothing_else(guest: Front, peer: socket.socket) -> None:
    mine = Datagrams(guest, order=1)
    address = mine.bind()
    for number in range(200):
        peer.sendto(b"%d" % number + bytes(300), address)
    seen = [mine.recv().payload.rstrip(b"\0") for _ in range(20)]
    assert seen == [b"%d" % number for number in range(20)]
    assert guest.ret(Release(mine.id)) == 0


def test_the_guests_own_sockets_need_no_rule() -> None:
    with Serving(allow=()) as serving, front(serving, EVERY) as guest:
        one, two = Datagrams(guest), Datagrams(guest)
        address = one.bind()
        two.send(b"to myself", address)
        frame = one.recv()
        assert frame.payload == b"to myself"
        one.stream.send(Frame(b"and back", frame.address).encode())
        # It was sent from an address that the host chose, which is the guest's own, too.
        assert two.recv().payload == b"and back"


# --- names


def test_questions_are_answered_by_the_name_service(guest: Front) -> None:
    names = Datagrams(guest, domain=0, protocol=53)
    for question in (b"first", b"nothing", b"second"):
        names.send(question)
    assert {names.recv().payload, names.recv().payload} == {b"firstNone", b"secondNone"}
    assert guest.ret(GetName(names.id, 0)) == -errno.EOPNOTSUPP
    assert guest.ret(Bind(names.id, sockaddr("127.0.0.1", 0))) == -errno.EOPNOTSUPP
    assert names.connect(sockaddr("127.0.0.1", 53)) == -errno.EOPNOTSUPP
    assert guest.ret(Release(names.id)) == 0


def test_port_53_of_any_address_is_the_name_service(guest: Front) -> None:
    mine = Datagrams(guest)
    mine.send(b"who", ("192.0.2.53", 53))
    assert mine.recv() == Frame(b"who192.0.2.53", sockaddr("192.0.2.53", 53))
    assert mine.connect(sockaddr("192.0.2.54", 53)) == 0
    mine.send(b"else")
    assert mine.recv() == Frame(b"else192.0.2.54", sockaddr("192.0.2.54", 53))


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


@pytest.mark.parametrize("extensions", [EVERY, frozenset()], ids=["own", "v1"])
def test_names_over_tcp(serving: Serving, extensions: frozenset[Extension]) -> None:
    """What a v1 frontend has for names; the answers come as they are ready."""
    with front(serving, extensions) as guest:
        id, stream, response = guest.connect(("192.0.2.53", 53))
        assert response.ret == 0
        stream.send(framed(b"one") + framed(b"two")[:3])
        assert stream.recv_exactly(15) == framed(b"one192.0.2.53")
        stream.send(framed(b"two")[3:])
        assert stream.recv_exactly(15) == framed(b"two192.0.2.53")
        if extensions:
            assert guest.command(GetName(id, 1)).address == sockaddr("192.0.2.53", 53)
            assert guest.ret(Shutdown(id, 1)) == 0
            assert stream.recv() == b""
        assert guest.ret(Release(id)) == 0
        record = next(r for r in serving.records if r.verb == "connect")
        assert (record.target, record.rule) == ("192.0.2.53:53", "name service")


def test_what_is_no_question_over_tcp_ends_it(guest: Front) -> None:
    _, stream, response = guest.connect(("192.0.2.53", 53))
    assert response.ret == 0
    stream.send(framed(b"nothing"))
    with contextlib.suppress(ConnectionResetError):
        assert stream.recv_all() == b""


def test_a_guests_own_name_server_comes_first(guest: Front) -> None:
    listener = guest.socket()
    if guest.ret(Bind(listener, sockaddr("127.0.0.1", 53))):
        return  # this host has a name server there, or we may not have the port
    assert guest.ret(Listen(listener, 1)) == 0
    cookie, _, far = guest.accept(listener)
    _, near, response = guest.connect(("127.0.0.1", 53))
    assert (response.ret, guest.result(cookie).ret) == (0, 0)
    near.send(b"mine")
    assert far.recv() == b"mine"


def test_what_icmp_says_is_told_to_who_asks(guest: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """With IP_RECVERR a report says about which datagram; nobody is at its queue afterwards."""
    looks: list[int] = []
    receive = served.Datagrams._receive
    monkeypatch.setattr(served.Datagrams, "_receive", lambda self: looks.append(1) or receive(self))
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        closed = sock.getsockname()
    mine = Datagrams(guest)
    recverr = SetOption(mine.id, socket.IPPROTO_IP, 11, struct.pack("=i", 1))
    assert guest.ret(recverr) == 0
    for payload in (b"first", b"second"):
        mine.send(payload, closed)
        frame = mine.recv()
        assert (frame.error, frame.address) == (-errno.ECONNREFUSED, sockaddr(*closed))
        assert frame.icmp is not None
        said = frame.icmp
        assert (said.type, said.code, said.info, said.quote) == (3, 3, 0, payload)
        assert said.sender == bytes(10) + b"\xff\xff\x7f\0\0\1"
    before = len(looks)
    for _ in range(20):  # each is a turn of the backend's loop
        assert guest.ret(recverr) == 0
    assert len(looks) <= before + 1


def test_strangers_need_a_port_that_the_guest_may_have(peer: socket.socket) -> None:
    """Where the rules allow no port, only answers come, as in a guest of `xensock run`."""
    with (
        Serving(allow=("loopback", "listen:any:9/udp")) as serving,
        front(serving, EVERY) as guest,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
    ):
        mine = Datagrams(guest)
        address = mine.bind()
        stranger.sendto(b"let me in", address)
        mine.send(b"question", peer.getsockname())
        assert peer.recvfrom(100) == (b"question", address)
        peer.sendto(b"answer", address)
        assert mine.recv().payload == b"answer"


# --- ICMP


def ping_allowed() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
    except PermissionError:
        return False
    return True


def test_an_echo_comes_back(serving: Serving) -> None:
    with front(serving, EVERY) as guest:
        if not ping_allowed():
            refused = Socket(5, socket.AF_INET, socket.SOCK_DGRAM, 1)
            assert guest.ret(refused) == -errno.EACCES
            return
        mine = Datagrams(guest, protocol=1)
        mine.send(struct.pack(">BBHHH", 8, 0, 0, 0, 77) + b"ping", ("127.0.0.1", 0))
        frame = mine.recv()
        assert (frame.payload[0], frame.payload[6:]) == (0, struct.pack(">H", 77) + b"ping")


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        ("loopback", True),
        ("loopback/icmp", True),
        ("loopback:80", False),
        ("loopback/udp", False),
        ("loopback/tcp", False),
    ],
)
def test_an_echo_is_decided_by_its_address(rule: str, allowed: bool) -> None:
    with Serving(allow=(rule,)) as serving, front(serving, EVERY):
        (session,) = serving.backend.sessions.values()
        assert session.guest is not None
        held = Held(session.guest, 1, socket.AF_INET, socket.SOCK_DGRAM, 1, None)
        decision, _ = decide(session.guest, held, Endpoint.from_python(("127.0.0.1", 0)))
        assert decision.allowed == allowed
