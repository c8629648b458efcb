"""The service manager's store as it sees us, and without one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from xensock.backend.store import Store, inherited

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

HANDED_OVER = """
import os
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="3", LISTEN_FDNAMES="one::three")
from xensock.backend.store import inherited
found = inherited()
print(sorted(found.items()), [os.get_inheritable(fd) for fd in found.values()])
"""


def test_keep_and_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        manager.bind(f"{tmp_path}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
        store = Store()
        assert store.there
        with open(tmp_path / "kept", "w") as kept:
            store.keep("one", kept.fileno())
            data, fds, _, _ = socket.recv_fds(manager, 100, 2)
            assert data == b"FDSTORE=1\nFDPOLL=0\nFDNAME=one"
            assert os.path.sameopenfile(fds[0], kept.fileno())
            os.close(fds[0])
        store.drop("one")
        assert socket.recv_fds(manager, 100, 2)[:2] == (b"FDSTOREREMOVE=1\nFDNAME=one", [])
        manager.close()
        store.drop("two")  # nobody hears it
        store.close()


def test_without_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", "vsock:2:1", f"{tmp_path}/absent"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        store = Store()
        assert not store.there
        store.keep("one", 0)
        store.close()
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))  # another's
    assert inherited() == {}


def test_what_was_handed_over() -> None:
    files = [os.memfd_create("one"), os.memfd_create("three")]
    code = f"import os\nos.dup2({files[0]}, 103); os.dup2({files[1]}, 105)\n"
    code += "os.dup2(103, 3); os.closerange(4, 5); os.dup2(105, 5)\n" + HANDED_OVER
    done = subprocess.run(
        [sys.executable, "-c", code], pass_fds=files, capture_output=True, text=True, check=True
    )
    for fd in files:
        os.close(fd)
    assert done.stdout == "[('one', 3), ('three', 5)] [False, False]\n"
