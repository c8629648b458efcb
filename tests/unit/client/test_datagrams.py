"""Own datagram sockets behave as the kernel's: every test runs with both."""

from __future__ import annotations

import errno
import select
import socket as standard
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Api

HOST = "127.0.0.1"
PATIENCE_S = 10
LONGEST_V4 = 65507  # of UDP over IPv4


def ready(sock: Any, timeout: float = PATIENCE_S) -> int:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return next((seen for _, seen in poll.poll(timeout * 1000)), 0)


def refused(number: int) -> Any:
    """The OSError with this errno is raised."""
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


@pytest.fixture
def pair(api: Api) -> Iterator[tuple[Any, Any]]:
    """Two bound sockets."""
    with (
        api.socket(standard.AF_INET, standard.SOCK_DGRAM) as one,
        api.socket(standard.AF_INET, standard.SOCK_DGRAM) as two,
    ):
        for each in (one, two):
            each.bind((HOST, 0))
            each.settimeout(PATIENCE_S)
        yield one, two


def test_boundaries_order_and_addresses(pair: tuple[Any, Any]) -> None:
    one, two = pair
    for message in (b"first", b"", b"third " * 1000):
        assert one.sendto(message, two.getsockname()) == len(message)
        assert two.recvfrom(10_000) == (message, one.getsockname())


def test_a_connected_socket(pair: tuple[Any, Any]) -> None:
    one, two = pair
    one.connect(two.getsockname())
    assert one.getpeername() == two.getsockname()
    assert one.send(b"question") == 8
    assert two.recvfrom(100) == (b"question", one.getsockname())
    two.sendto(b"answer", one.getsockname())
    assert one.recv(100) == b"answer"
    one.sendall(b"again")
    assert two.recv(100) == b"again"


def test_what_does_not_fit_is_lost(pair: tuple[Any, Any]) -> None:
    one, two = pair
    for _ in range(2):
        one.sendto(b"0123456789", two.getsockname())
    assert two.recv(3) == b"012"
    data, _, flags, address = two.recvmsg(4)
    assert (data, flags & standard.MSG_TRUNC) == (b"0123", standard.MSG_TRUNC)
    assert address == one.getsockname()
    two.setblocking(False)
    with pytest.raises(BlockingIOError):
        two.recv(1)


IP, IP_PKTINFO, IP_RECVTTL, TTL, TOS = standard.IPPROTO_IP, 8, 12, 2, 1


def test_control_messages(both: tuple[Api, Api]) -> None:
    """Given and received as natively; but the number of an interface is not told."""

    def ask(api: Any) -> Any:
        kind = standard.AF_INET, standard.SOCK_DGRAM
        with api.socket(*kind) as one, api.socket(*kind) as two:
            two.settimeout(PATIENCE_S)
            one.bind(("0.0.0.0", 0))
            two.bind((HOST, 0))
            seen = [two.getsockopt(IP, IP_RECVTTL)]
            for option in (IP_PKTINFO, IP_RECVTTL, standard.IP_RECVTOS):
                two.setsockopt(IP, option, 1)
            seen.append(two.getsockopt(IP, IP_RECVTTL))
            source = bytes(4) + standard.inet_aton("127.0.0.3") + bytes(4)
            given = [
                (IP, IP_PKTINFO, source),
                (IP, TTL, b"\7\0\0\0"),
                (IP, TOS, b"\x10"),
            ]
            for room in (0, 30, 200):
                one.sendmsg([b"x"], given, 0, two.getsockname())
                data, control, flags, address = two.recvmsg(10, room)
                shown = [
                    (level, name, value[4:] if name == IP_PKTINFO else value)
                    for level, name, value in control
                ]
                seen += [data, shown, flags & standard.MSG_CTRUNC, address[0]]
            two.setsockopt(IP, IP_PKTINFO, 0)
            one.sendto(b"y", two.getsockname())
            seen += [level[:2] for level in two.recvmsg(10, 200)[1]]
        return seen

    native, own = map(ask, both)
    assert native == own


@pytest.mark.parametrize("message", [(IP, TTL, bytes(4)), (IP, 99, b"")])
def test_other_control_messages(pair: tuple[Any, Any], message: tuple[int, int, bytes]) -> None:
    one, two = pair
    with refused(errno.EINVAL):
        one.sendmsg([b"x"], [message], 0, two.getsockname())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_nothing_is_urgent(both: tuple[Api, Api], host: str) -> None:
    """MSG_OOB with datagrams: what is sent, received or refused."""

    def ask(api: Api) -> list[Any]:
        family = standard.AF_INET6 if ":" in host else standard.AF_INET
        seen: list[Any] = []

        def call(made: Callable[[], Any]) -> None:
            try:
                seen.append(made())
            except OSError as error:
                seen.append(errno.errorcode[error.errno or 0])

        with (
            api.socket(family, standard.SOCK_DGRAM) as near,
            standard.socket(family, standard.SOCK_DGRAM) as far,
        ):
            far.bind((host, 0))
            where = far.getsockname()[:2]
            for sock in (near, far):
                sock.settimeout(PATIENCE_S)
            call(lambda: near.send(b"nobody", standard.MSG_OOB))
            call(lambda: near.sendto(b"!", standard.MSG_OOB, where))
            near.connect(where)
            call(lambda: near.send(b"!", standard.MSG_OOB))
            call(lambda: near.sendmsg([b"!"], [], standard.MSG_OOB))
            near.send(b"the end")
            while (data := far.recv(100)) != b"the end":
                seen.append(data)
            far.sendto(b"answer", near.getsockname()[:2])
            call(lambda: near.recv(100, standard.MSG_OOB))
        return seen

    native, own = map(ask, both)
    assert native == own


def test_a_look_takes_nothing(pair: tuple[Any, Any]) -> None:
    one, two = pair
    one.sendto(b"still there", two.getsockname())
    assert two.recv(5, standard.MSG_PEEK) == b"still"
    assert two.recv(100) == b"still there"


def test_buffers(pair: tuple[Any, Any]) -> None:
    one, two = pair
    assert one.sendmsg([b"in ", b"parts"], (), 0, two.getsockname()) == 8
    got = bytearray(20)
    assert two.recvfrom_into(got) == (8, one.getsockname())
    assert got[:8] == b"in parts"
    one.sendto(b"abcdef", two.getsockname())
    first, second = bytearray(2), bytearray(10)
    count, _, _, address = two.recvmsg_into([first, second])
    assert (count, bytes(first), bytes(second[:4]), address) == (
        6,
        b"ab",
        b"cdef",
        one.getsockname(),
    )


def test_the_longest(pair: tuple[Any, Any]) -> None:
    one, two = pair
    message = bytes(range(256)) * 255 + bytes(LONGEST_V4 - 255 * 256)
    one.sendto(message, two.getsockname())
    assert two.recv(1 << 16) == message
    with refused(errno.EMSGSIZE):
        one.sendto(bytes(1 << 16), two.getsockname())


def test_readiness(pair: tuple[Any, Any]) -> None:
    one, two = pair
    assert not ready(two, 0)
    one.sendto(b"x", two.getsockname())
    assert ready(two) & select.POLLIN
    two.recv(1)
    assert not ready(two, 0)


def test_a_time_limit(pair: tuple[Any, Any]) -> None:
    one, _ = pair
    one.settimeout(0.05)
    with pytest.raises(TimeoutError):
        one.recv(1)


def test_nobody_is_there(pair: tuple[Any, Any]) -> None:
    one, two = pair
    address = two.getsockname()
    two.close()
    one.connect(address)
    one.send(b"x")
    assert ready(one)
    with pytest.raises(ConnectionRefusedError):
        one.recv(1)


def test_calls_in_the_wrong_state(api: Api) -> None:
    with api.socket(standard.AF_INET, standard.SOCK_DGRAM) as sock:
        for call, number in (
            (lambda: sock.getpeername(), errno.ENOTCONN),
            (lambda: sock.send(b"x"), errno.EDESTADDRREQ),
            (lambda: sock.listen(), errno.EOPNOTSUPP),
            (lambda: sock.accept(), errno.EOPNOTSUPP),
        ):
            with refused(number):
                call()


def test_ipv6(api: Api) -> None:
    with (
        api.socket(standard.AF_INET6, standard.SOCK_DGRAM) as one,
        api.socket(standard.AF_INET6, standard.SOCK_DGRAM) as two,
    ):
        two.bind(("::1", 0))
        two.settimeout(PATIENCE_S)
        one.bind(("::1", 0))
        one.sendto(b"x", two.getsockname())
        assert two.recvfrom(1) == (b"x", one.getsockname())


def test_a_closed_socket(api: Api) -> None:
    sock = api.socket(standard.AF_INET, standard.SOCK_DGRAM)
    sock.close()
    assert sock.family == standard.AF_INET
    with refused(errno.EBADF):
        sock.sendto(b"x", (HOST, 9))
    with refused(errno.EBADF):
        sock.recv(1)


def test_a_bound_port_is_free_after_close(api: Api) -> None:
    with api.socket(standard.AF_INET, standard.SOCK_DGRAM) as first:
        first.bind((HOST, 0))
        address = first.getsockname()
        with (
            api.socket(standard.AF_INET, standard.SOCK_DGRAM) as second,
            refused(errno.EADDRINUSE),
        ):
            second.bind(address)
    with api.socket(standard.AF_INET, standard.SOCK_DGRAM) as second:
        second.bind(address)
        assert second.getsockname() == address


def test_options(api: Api) -> None:
    with api.socket(standard.AF_INET, standard.SOCK_DGRAM) as sock:
        sock.setsockopt(standard.SOL_SOCKET, standard.SO_BROADCAST, 1)
        assert sock.getsockopt(standard.SOL_SOCKET, standard.SO_BROADCAST) == 1
        sock.setsockopt(standard.IPPROTO_IP, standard.IP_TTL, 7)
        assert sock.getsockopt(standard.IPPROTO_IP, standard.IP_TTL) == 7
        assert sock.getsockopt(standard.SOL_SOCKET, standard.SO_TYPE) == standard.SOCK_DGRAM


def test_ping(both: tuple[Api, Api]) -> None:
    """Our ping sockets come and go as the kernel's do for the backend's user (icmp(7), ping_group_range)."""

    def ask(api: Any) -> Any:
        try:
            sock = api.socket(standard.AF_INET, standard.SOCK_DGRAM, standard.IPPROTO_ICMP)
        except OSError as error:
            return error.errno
        with sock:
            sock.settimeout(PATIENCE_S)
            sock.sendto(b"\x08\0\0\0\0\0\0\1payload", (HOST, 0))
            answer, address = sock.recvfrom(100)
            return answer[0], answer[6:], address[0]

    native, own = map(ask, both)
    assert native == own
