"""connect(2) and bind(2) of datagram sockets, as a program in a guest sees them."""

from __future__ import annotations

import errno
import socket

import pytest

import guestkit


@pytest.fixture(params=guestkit.paths())
def datapath(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_connect_is_refused_at_once(datapath: str) -> None:
    said, calls = guestkit.run(
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        said(error_of(sock.connect, ("169.254.169.254", 80)))
        said(error_of(sock.connect, ("127.0.0.1", 80)))
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        said(error_of(sock.connect, ("::ffff:169.254.169.254", 80)))
        """,
        datapath=datapath,
    )
    assert said == ["EACCES", "", "EACCES"]
    refused = [c for c in calls if c.verb == "connect"]
    assert {(c.target, c.decision, c.error) for c in refused} == {
        ("169.254.169.254:80/udp", "deny", errno.EACCES)
    }


def test_connect_sends_nothing_so_it_may_go_where_tcp_may(datapath: str) -> None:
    """getaddrinfo(3) connects datagram sockets to sort addresses."""
    said, calls = guestkit.run(
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        said(error_of(sock.connect, ("203.0.113.7", 443)) in ("", "ENETUNREACH"))
        said(error_of(sock.connect, ("203.0.113.7", 80)))
        """,
        datapath=datapath,
        rules=["203.0.113.7:443/tcp"],
    )
    assert said == [True, "EACCES"]
    assert [c.target for c in calls if c.decision == "deny"] == ["203.0.113.7:80/udp"]


def test_a_dissolved_socket_binds_and_connects_again() -> None:
    said, _ = guestkit.run(
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("127.0.0.1", 9))
        libc = ctypes.CDLL(None, use_errno=True)
        said(libc.connect(sock.fileno(), bytes(16), 16))
        said(error_of(sock.getpeername))
        said(error_of(sock.bind, ("127.0.0.1", 0)))
        said(error_of(sock.connect, ("127.0.0.1", 9)))
        """
    )
    assert said == [0, "ENOTCONN", "", ""]


def test_bind_takes_the_port_of_the_host(datapath: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        port = taken.getsockname()[1]
        said, calls = guestkit.run(
            f"""
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            said(error_of(sock.bind, ("0.0.0.0", {port})))
            said(error_of(sock.bind, ("127.0.0.1", {port})))
            other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            said(error_of(other.bind, ("0.0.0.0", 0)))
            said(other.getsockname()[1] > 1023)
            third = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            said(error_of(third.bind, other.getsockname()))
            other.close()
            """,
            datapath=datapath,
        )
    assert said == ["EADDRINUSE", "", "", True, "EADDRINUSE"]
    shown = [(c.decision, c.datapath, c.error) for c in calls if c.verb == "bind"]
    assert shown == [
        ("allow", "relay", errno.EADDRINUSE),
        ("guest", "guest", 0),
        ("allow", "relay", 0),
        ("allow", "relay", errno.EADDRINUSE),
    ]


def test_bind_is_refused_by_policy_but_for_clients(datapath: str) -> None:
    said, calls = guestkit.run(
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        said(error_of(sock.bind, ("0.0.0.0", 5005)))
        said(error_of(sock.bind, ("0.0.0.0", 0)))
        """,
        datapath=datapath,
        rules=["deny listen:any/udp"],
    )
    assert said == ["EACCES", ""]
    rules = [(c.decision, c.rule) for c in calls if c.verb == "bind"]
    assert rules == [("deny", "listen:any/udp"), ("allow", "answers only (listen:any/udp)")]


def test_the_kernel_words_what_is_no_address() -> None:
    said, _ = guestkit.run(
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        libc = ctypes.CDLL(None, use_errno=True)
        for call in (libc.bind, libc.connect):
            for address, length in ((bytes([2, 0]) + bytes(14), 8), (bytes([99, 0]) + bytes(14), 16)):
                said([call(sock.fileno(), address, length), errno.errorcode[ctypes.get_errno()]])
        said(error_of(sock.listen))
        """
    )
    assert said == [
        [-1, "EINVAL"],
        [-1, "EAFNOSUPPORT"],
        [-1, "EINVAL"],
        [-1, "EAFNOSUPPORT"],
        "ENOTSUP",  # the same number as EOPNOTSUPP
    ]


def test_a_name_server_of_the_guests_own_stays_inside() -> None:
    said, calls = guestkit.run(
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        said(error_of(sock.bind, ("127.0.0.1", 53)))
        """
    )
    assert said in ([""], ["EACCES"])  # as root, or as nobody in particular
    assert all(c.datapath in ("guest", "") for c in calls if c.verb == "bind")
