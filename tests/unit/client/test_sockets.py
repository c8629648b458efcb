"""The own sockets behave as the kernel's: every test runs with both."""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket as standard
import struct
import threading
from typing import TYPE_CHECKING, Any

import pytest

from xensock.client import sockets
from xensock.client.link import Link
from xensock.pvcalls.frontend import Frontend
from xensock.transport.url import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Api

HOST = "127.0.0.1"
PATIENCE_S = 10


@pytest.fixture
def pair(api: Api) -> Iterator[tuple[Any, Any]]:
    """A client and the server's end of its connection."""
    with api.create_server((HOST, 0)) as listener:
        listener.settimeout(PATIENCE_S)
        client = api.create_connection(listener.getsockname(), timeout=PATIENCE_S)
        server, _ = listener.accept()
    server.settimeout(PATIENCE_S)
    with client, server:
        yield client, server


def ready(sock: Any, events: int, timeout: float = PATIENCE_S) -> int:
    poll = select.poll()
    poll.register(sock, events)
    return next((seen for _, seen in poll.poll(timeout * 1000)), 0)


def refused(number: int) -> Any:
    """The OSError with this errno is raised."""
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


def read_all(sock: Any, length: int) -> bytes:
    got = bytearray()
    while len(got) < length:
        part = sock.recv(1 << 16)
        if not part:
            break
        got += part
    return bytes(got)


def free_port() -> int:
    with standard.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_bytes_go_both_ways_in_order(pair: tuple[Any, Any]) -> None:
    client, server = pair
    data = os.urandom(1 << 20)
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    assert read_all(server, len(data)) == data
    sender.join()
    server.sendall(b"answer")
    assert client.recv(100) == b"answer"


def test_names_agree(pair: tuple[Any, Any]) -> None:
    client, server = pair
    assert client.getpeername() == server.getsockname()
    assert client.getsockname() == server.getpeername()
    assert client.getsockname()[0] == HOST


def test_half_close(pair: tuple[Any, Any]) -> None:
    client, server = pair
    client.sendall(b"question")
    client.shutdown(standard.SHUT_WR)
    assert read_all(server, 100) == b"question"
    server.sendall(b"answer")
    server.close()
    assert read_all(client, 100) == b"answer"


def test_close_delivers_what_was_sent(pair: tuple[Any, Any]) -> None:
    client, server = pair
    data = os.urandom(300_000)
    reader: list[bytes] = []
    thread = threading.Thread(target=lambda: reader.append(read_all(server, len(data) + 1)))
    thread.start()
    client.sendall(data)
    client.close()
    thread.join()
    assert reader == [data]


def test_a_reset_arrives_as_one(pair: tuple[Any, Any]) -> None:
    client, server = pair
    server.setsockopt(standard.SOL_SOCKET, standard.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_peer_that_is_gone_refuses_what_is_sent(pair: tuple[Any, Any]) -> None:
    client, server = pair
    server.close()
    assert client.recv(1) == b""

    def send_on() -> None:
        for _ in range(10_000):
            client.send(b"x" * 1000)

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_on()


def test_nobody_listens(api: Api) -> None:
    with api.socket() as sock:
        with pytest.raises(ConnectionRefusedError):
            sock.connect((HOST, free_port()))
        assert sock.connect_ex((HOST, free_port())) == errno.ECONNREFUSED


def test_connecting_without_waiting(api: Api) -> None:
    with api.create_server((HOST, 0)) as listener, api.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        assert ready(sock, select.POLLOUT) & select.POLLOUT
        assert sock.getsockopt(standard.SOL_SOCKET, standard.SO_ERROR) == 0
        listener.settimeout(PATIENCE_S)
        accepted, address = listener.accept()
        with accepted:
            assert address == sock.getsockname()


def test_a_refusal_without_waiting(api: Api) -> None:
    with api.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex((HOST, free_port())) == errno.EINPROGRESS
        assert ready(sock, select.POLLOUT)
        assert sock.getsockopt(standard.SOL_SOCKET, standard.SO_ERROR) == errno.ECONNREFUSED
        assert sock.getsockopt(standard.SOL_SOCKET, standard.SO_ERROR) == 0


def test_time_limits(pair: tuple[Any, Any]) -> None:
    client, server = pair
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)
    server.sendall(b"x")
    assert ready(client, select.POLLIN) & select.POLLIN
    assert client.recv(1) == b"x"


def test_a_full_socket_is_not_writable(pair: tuple[Any, Any]) -> None:
    client, server = pair
    client.setblocking(False)
    sent = 0
    # The far side does not read: after a while nothing is taken any more, for good.
    while ready(client, select.POLLOUT, 0.3) & select.POLLOUT:
        try:
            sent += client.send(b"x" * (1 << 16))
        except BlockingIOError:
            continue
    assert not ready(client, select.POLLOUT, 0) & select.POLLOUT
    assert len(read_all(server, sent)) == sent
    assert ready(client, select.POLLOUT) & select.POLLOUT


@pytest.mark.parametrize("kind", ["SelectSelector", "PollSelector", "EpollSelector"])
def test_every_way_to_wait(pair: tuple[Any, Any], kind: str) -> None:
    client, server = pair
    reads, writes = selectors.EVENT_READ, selectors.EVENT_WRITE
    with getattr(selectors, kind)() as selector:
        selector.register(client, reads | writes)
        assert [seen for _, seen in selector.select(PATIENCE_S)] == [writes]
        selector.modify(client, reads)
        assert selector.select(0) == []
        server.sendall(b"x")
        assert [(key.fileobj, seen) for key, seen in selector.select(PATIENCE_S)] == [
            (client, reads)
        ]
        assert client.recv(10) == b"x"
        assert selector.select(0) == []
        server.close()
        assert [seen for _, seen in selector.select(PATIENCE_S)] == [reads]
        assert client.recv(10) == b""


def test_hang_ups(pair: tuple[Any, Any]) -> None:
    client, server = pair
    assert not ready(client, select.POLLIN | select.POLLRDHUP, 0)
    server.shutdown(standard.SHUT_WR)
    seen = ready(client, select.POLLIN | select.POLLRDHUP)
    assert seen & select.POLLRDHUP
    assert not seen & select.POLLHUP
    client.sendall(b"still heard")
    assert server.recv(100) == b"still heard"
    client.shutdown(standard.SHUT_WR)
    assert server.recv(100) == b""
    assert ready(server, select.POLLHUP) & select.POLLHUP


def test_an_accept_that_waits(api: Api) -> None:
    with api.create_server((HOST, 0)) as listener:
        listener.setblocking(False)
        assert not ready(listener, select.POLLIN, 0)
        with pytest.raises(BlockingIOError):
            listener.accept()
        with api.create_connection(listener.getsockname(), timeout=PATIENCE_S) as client:
            assert ready(listener, select.POLLIN) & select.POLLIN
            accepted, address = listener.accept()
            assert address == client.getsockname()
            accepted.close()


def test_a_port_is_free_after_close(api: Api) -> None:
    with api.create_server((HOST, 0)) as first:
        address = first.getsockname()
        with api.socket() as other, refused(errno.EADDRINUSE):
            other.bind(address)
    with api.create_server(address) as second:
        assert second.getsockname() == address


def test_options(api: Api) -> None:
    with api.socket() as sock:
        sock.setsockopt(standard.SOL_SOCKET, standard.SO_KEEPALIVE, 1)
        assert sock.getsockopt(standard.SOL_SOCKET, standard.SO_KEEPALIVE) == 1
        sock.setsockopt(standard.IPPROTO_TCP, standard.TCP_NODELAY, True)
        assert sock.getsockopt(standard.IPPROTO_TCP, standard.TCP_NODELAY) == 1
        linger = struct.pack("ii", 1, 5)
        sock.setsockopt(standard.SOL_SOCKET, standard.SO_LINGER, linger)
        assert sock.getsockopt(standard.SOL_SOCKET, standard.SO_LINGER, 8) == linger
        assert sock.getsockopt(standard.SOL_SOCKET, standard.SO_TYPE) == standard.SOCK_STREAM
        with refused(errno.ENOPROTOOPT):
            sock.setsockopt(standard.IPPROTO_TCP, 4711, 1)


@pytest.mark.parametrize("name", ["127.0.0.1", "::1"])
def test_both_families(api: Api, name: str) -> None:
    family = standard.AF_INET6 if ":" in name else standard.AF_INET
    with api.create_server((name, 0), family=family) as listener:
        listener.settimeout(PATIENCE_S)
        with api.create_connection(listener.getsockname()[:2], timeout=PATIENCE_S) as client:
            accepted, address = listener.accept()
            with accepted:
                assert address == client.getsockname()
                assert accepted.family == client.family == family


def test_calls_in_the_wrong_state(api: Api) -> None:
    with api.socket() as sock:
        for call, number in (
            (lambda: sock.getpeername(), errno.ENOTCONN),
            (lambda: sock.recv(1), errno.ENOTCONN),
            (lambda: sock.send(b"x"), errno.EPIPE),
            (lambda: sock.accept(), errno.EINVAL),
            (lambda: sock.shutdown(standard.SHUT_WR), errno.ENOTCONN),
        ):
            with refused(number):
                call()


def test_connected_and_listening_sockets_do_not_connect(api: Api) -> None:
    with (
        api.create_server((HOST, 0)) as listener,
        api.create_connection(listener.getsockname()) as client,
    ):
        assert client.connect_ex(listener.getsockname()) == errno.EISCONN
        with refused(errno.EINVAL):
            client.listen()


def test_a_duplicate_is_the_same_socket(pair: tuple[Any, Any]) -> None:
    client, server = pair
    with client.dup() as twin:
        assert twin.getpeername() == client.getpeername()
        client.close()
        twin.sendall(b"from the twin")
        assert server.recv(100) == b"from the twin"
    assert server.recv(1) == b""


def test_a_detached_descriptor_becomes_a_socket_again(api: Api, pair: tuple[Any, Any]) -> None:
    client, server = pair
    peer = client.getpeername()
    with api.socket(fileno=client.detach()) as again:
        assert again.getpeername() == peer
        assert again.family == standard.AF_INET
        again.sendall(b"x")
        assert server.recv(1) == b"x"


def test_files_of_a_socket(pair: tuple[Any, Any]) -> None:
    client, server = pair
    with (
        client.makefile("rw", encoding="utf-8", newline="\n") as ours,
        server.makefile("rb") as theirs,
    ):
        ours.write("a line\n")
        ours.flush()
        assert theirs.readline() == b"a line\n"
        server.sendall("zurück\n".encode())
        assert ours.readline() == "zurück\n"


def test_buffers_and_messages(pair: tuple[Any, Any]) -> None:
    client, server = pair
    assert client.sendmsg([b"one ", b"two ", b"three"]) == 13
    got = bytearray(4)
    assert server.recv_into(got) == 4
    assert got == b"one "
    first, second = bytearray(2), bytearray(20)
    ready(server, select.POLLIN)
    count, control, _, _ = server.recvmsg_into([first, second])
    assert (bytes(first) + bytes(second))[:count] == b"two three"
    assert control == []
    client.sendall(b"peek")
    assert server.recv(4, standard.MSG_PEEK | standard.MSG_WAITALL) == b"peek"
    assert server.recvfrom(10) == (b"peek", None)


def test_a_child_inherits_the_bytes(pair: tuple[Any, Any]) -> None:
    client, server = pair
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if os.write(client.fileno(), b"from the child") == 14 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert server.recv(100) == b"from the child"
    client.close()
    assert server.recv(1) == b""


def test_families_of_the_guests_own(api: Api) -> None:
    with api.socket(standard.AF_UNIX, standard.SOCK_DGRAM) as sock:
        assert sock.family == standard.AF_UNIX


def test_types_that_are_not_carried(api: Api) -> None:
    with refused(errno.ESOCKTNOSUPPORT):
        api.socket(standard.AF_INET, standard.SOCK_SEQPACKET)


def test_a_backend_of_version_1_has_no_half_close(backend_url: str) -> None:
    link = Link(Frontend(connect(backend_url, name="one"), wanted=frozenset(), ring_page_order=0))
    with standard.create_server((HOST, 0)) as listener:
        listener.settimeout(PATIENCE_S)
        try:
            with sockets.socket(link=link) as client:
                client.connect(listener.getsockname())
                server, _ = listener.accept()
                client.sendall(b"all of it")
                for how in (standard.SHUT_WR, standard.SHUT_RDWR):
                    with refused(errno.EOPNOTSUPP):
                        client.shutdown(how)
                client.sendall(b", and more")
            with server:
                server.settimeout(PATIENCE_S)
                assert read_all(server, 100) == b"all of it, and more"
        finally:
            link.close()


def test_a_listener_at_a_backend_of_version_1(backend_url: str) -> None:
    """Connections that come, one by one and together, and the end of a listener that is asked for the next."""
    link = Link(Frontend(connect(backend_url, name="one"), wanted=frozenset(), ring_page_order=0))
    try:
        for _ in range(20):
            port = free_port()
            with sockets.socket(link=link) as listener:
                listener.bind((HOST, port))
                listener.listen(8)
                listener.settimeout(PATIENCE_S)
                for together in (1, 3):
                    callers = [standard.create_connection((HOST, port)) for _ in range(together)]
                    for _ in callers:
                        server, name = listener.accept()
                        with server:
                            assert name == ("0.0.0.0", 0), "version 1 has no names"
                            server.sendall(b"hello")
                    for caller in callers:
                        with caller:
                            caller.settimeout(PATIENCE_S)
                            assert read_all(caller, 100) == b"hello"
    finally:
        link.close()
