"""Another network namespace as a stack."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from world.namespaces import eventually
from xensock.stack.netns import Netns, RightsError

if TYPE_CHECKING:
    from pathlib import Path

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="setns(2) into another namespace is root's"
)


def test_what_is_no_namespace(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Netns("x", str(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="not a network namespace") as found:
        Netns("x", str(tmp_path / "file"))
    assert not isinstance(found.value, RightsError)


@needs_root
def test_sockets_are_made_inside_and_a_namespace_that_went_is_known(tmp_path: Path) -> None:
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    try:
        path, ours = f"/proc/{holder.pid}/ns/net", os.stat("/proc/self/ns/net").st_ino
        eventually(lambda: os.stat(path).st_ino != ours, 10, "the namespace")
        link = tmp_path / "net"
        link.symlink_to(path)
        space = Netns("space", str(link))
        with space.make(socket.AF_INET, socket.SOCK_STREAM, 0) as made:
            with socket.socket() as own:
                assert made.getsockopt(socket.SOL_SOCKET, 71, 8) != own.getsockopt(
                    socket.SOL_SOCKET, 71, 8
                )  # SO_NETNS_COOKIE
            with pytest.raises(OSError, match="unreachable"):
                made.connect(("127.0.0.1", 9))  # its loopback is down
        assert not space.gone
        link.unlink()
        link.symlink_to("/proc/self/ns/net")
        assert space.gone
        space.close()
        space.close()
        with pytest.raises(OSError, match="down"):
            space.make(socket.AF_INET, socket.SOCK_STREAM, 0)
    finally:
        holder.kill()
        holder.wait(10)
