"""What the supervisor decides and records: whose loopback, whose network, by which rule."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

import pytest

import guestkit
from guestkit import shown
from xensock.calls.address import Endpoint
from xensock.supervisor import connecting
from xensock.supervisor.supervisor import peer_of

CONNECT = "said(error_of(socket.socket().connect, ({host!r}, {port})))"
paths = pytest.mark.parametrize("path", guestkit.paths())


def test_what_the_other_end_is_called() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        assert peer_of(client) == "?"
        client.connect(server.getsockname())
        assert peer_of(client) == f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("0.0.0.0", True),
        ("::1", True),
        ("::", True),
        ("192.0.0.8", True),
        ("fd78:656e:736f::100", True),
        ("192.0.0.9", False),
        ("10.0.0.1", False),
        ("2001:db8::1", False),
    ],
)
def test_addresses_that_mean_the_guest(host: str, own: bool) -> None:
    assert connecting.is_own(ip_address(host)) is own


def test_what_an_address_is_called() -> None:
    assert connecting.describe(Endpoint.from_python(("192.0.2.1", 80)).sockaddr()) == "192.0.2.1:80"
    assert connecting.describe(b"\1\0/tmp/x") == "[8 bytes]"


@paths
def test_the_hosts_loopback_only_by_rule(path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as host:
        port = host.getsockname()[1]
        script = CONNECT.format(host="127.0.0.1", port=port)
        said, calls = guestkit.run(script, datapath=path)
        assert said == ["ECONNREFUSED"]
        assert shown(calls, "connect") == [("connect", "guest", "guest", errno.ECONNREFUSED)]
        assert calls[-1].hint == f"--allow loopback:{port}"
        said, calls = guestkit.run(script, datapath=path, rules=[f"loopback:{port}"])
        assert said == [""]
        assert shown(calls, "connect") == [("connect", "allow", path, 0)]
        host.settimeout(10)
        host.accept()[0].close()


@paths
def test_the_guests_own_listener_comes_first(path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as host:
        port = host.getsockname()[1]
        said, calls = guestkit.run(
            f"""
            server = listener("127.0.0.1", {port})
            said(error_of(socket.socket().connect, ("127.0.0.1", {port})))
            said(error_of(socket.socket().connect, ("0.0.0.0", {port})))
            server.close()
            said(error_of(socket.socket().connect, ("127.0.0.1", {port})))
            """,
            datapath=path,
            rules=["loopback"],
        )
    assert said == ["", "", ""]
    assert [c.datapath for c in calls if c.verb == "connect"] == ["guest", "guest", path]


@paths
def test_a_refused_address(path: str) -> None:
    said, calls = guestkit.run(
        """
        for _ in range(2):
            said(error_of(socket.socket().connect, ("198.51.100.7", 443)))
        """,
        datapath=path,
        rules=["deny 198.51.100.0/24"],
    )
    assert said == ["EACCES", "EACCES"]
    assert shown(calls, "connect") == [("connect", "deny", "", errno.EACCES)] * 2
    assert {(c.rule, c.target) for c in calls} == {("198.51.100.0/24", "198.51.100.7:443")}


@paths
def test_an_allowed_address_that_cannot_be_reached_so(path: str) -> None:
    """The record says what was decided, and the errno why it could not be carried out."""
    said, calls = guestkit.run(
        """
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        said(error_of(sock.connect, ("198.51.100.7", 443)))
        """,
        datapath=path,
        rules=["198.51.100.0/24"],
    )
    assert said == ["EINVAL"]
    assert shown(calls, "connect") == [("connect", "allow", path, errno.EINVAL)]
    assert calls[-1].rule == "198.51.100.0/24"


@paths
def test_listening(path: str) -> None:
    said, calls = guestkit.run(
        """
        inside, outside = listener("127.0.0.1"), listener("")
        said(error_of(listener, "", outside.getsockname()[1]))
        said(error_of(listener, "127.0.0.1", outside.getsockname()[1]))
        said(error_of(socket.socket().connect, ("127.0.0.1", outside.getsockname()[1])))
        said(error_of(listener, "", 7070))
        """,
        datapath=path,
        rules=["deny listen:any:7070"],
    )
    assert said == ["EADDRINUSE", "EADDRINUSE", "", "EACCES"]
    seen = shown(calls, "listen")
    assert seen == [("listen", "guest", "guest", 0), ("listen", "allow", path, 0)]
    assert shown(calls, "bind")[-1] == ("bind", "deny", "", errno.EACCES)


@paths
def test_addresses_of_no_family(path: str) -> None:
    said, _ = guestkit.run(
        """
        libc = ctypes.CDLL(None, use_errno=True)
        def raw(call, sock, data, length=None):
            if call(sock.fileno(), data, len(data) if length is None else length) == 0:
                return ""
            return errno.errorcode[ctypes.get_errno()]
        sock = socket.socket()
        unspec, inet6 = struct.pack("=H", 0) + bytes(14), struct.pack("=H", 10) + bytes(26)
        said(raw(libc.connect, sock, unspec))
        said(raw(libc.connect, sock, inet6))
        said(raw(libc.connect, sock, b"\\2\\0", 2))
        said(raw(libc.connect, sock, b"\\2\\0", -1))
        said(raw(libc.bind, sock, inet6))
        said(raw(libc.bind, sock, unspec))
        said(sock.getsockname()[1] > 0)
        """,
        datapath=path,
    )
    assert said == ["", "EAFNOSUPPORT", "EINVAL", "EINVAL", "EAFNOSUPPORT", "", True]


@paths
def test_many_calls_at_once_each_get_their_own_answer(path: str) -> None:
    said, calls = guestkit.run(
        """
        import threading
        servers = [listener() for _ in range(8)]
        wrong = []
        def work(server):
            for _ in range(20):
                with socket.create_connection(server.getsockname(), 20) as client:
                    far, _ = server.accept()
                    with far:
                        if far.getpeername() != client.getsockname():
                            wrong.append(server.getsockname())
        threads = [threading.Thread(target=work, args=(server,)) for server in servers]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        said(wrong)
        """,
        datapath=path,
    )
    assert said == [[]]
    assert len([c for c in calls if c.verb == "connect"]) == 160
