"""What the kernel tells of sockets, against what getsockopt(2) says of the same."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing

from xensock.calls.address import Endpoint
from xensock.supervisor import tcpinfo
from xensock.supervisor.diag import NETLINK_SOCK_DIAG, cookie


def seen(sock: socket.socket) -> tcpinfo.Seen:
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)) as link:
        (found,) = [one for one in tcpinfo.dump(link) if one.cookie == cookie(sock)]
    return found


def test_a_connection_as_the_kernel_sees_it() -> None:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.create_server((host, 0), family=family) as server:
            with socket.socket(family) as client:
                client.connect(server.getsockname())
                far, _ = server.accept()
                with far:
                    client.sendall(b"x" * 1000)
                    assert len(far.recv(1000, socket.MSG_WAITALL)) == 1000
                    found, there = seen(client), seen(far)
                    assert tcpinfo.STATES[found.state] == "established"
                    assert found.end(found.local) == Endpoint.from_python(client.getsockname())
                    assert found.end(found.remote) == Endpoint.from_python(client.getpeername())
                    assert found.inode == os.fstat(client.fileno()).st_ino
                    assert found.user == os.geteuid()
                    assert found.rtt is not None
                    assert tcpinfo.counted(found.info, False)[0] == 1000
                    assert tcpinfo.counted(there.info, True)[0] == 0
            assert tcpinfo.STATES[seen(server).state] == "listening"


def test_a_connection_that_never_was() -> None:
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", 1)) == errno.ECONNREFUSED
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 280)
    assert tcpinfo.counted(info, False) == (0, 0, errno.ENOTCONN)


def test_a_kernel_that_counts_nothing() -> None:
    assert tcpinfo.counted(bytes(104), False) == (None, None, 0)
