"""Paths as a thread means them, tried on this process: what its root, directory and descriptors make of them."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import pytest

from xensock.supervisor import unix_paths

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        yield path


def found(path: str | Path) -> tuple[str, str]:
    """The text of the path, and where it leads."""
    with unix_paths.View(os.getpid(), os.fsencode(path)) as view:
        there = view.find()
        try:
            assert there.is_socket
            assert os.fstat(there.fd).st_ino == os.stat(there.real).st_ino
            devices, inode = there.identity(os.getpid())
            assert os.stat(there.real).st_dev in devices
            assert inode == os.stat(there.real).st_ino
            return view.text, there.real
        finally:
            os.close(there.fd)


def test_spellings(bound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, real = bound.parent, str(bound)
    (directory / "link").symlink_to("socket")
    (directory / "absolute").symlink_to(bound)
    assert found(bound) == (real, real)
    assert found(directory / "link") == (f"{directory}/link", real)
    assert found(f"{directory}/../{directory.name}//absolute") == (f"{directory}/absolute", real)
    monkeypatch.chdir(directory)
    assert found("socket") == (real, real)
    assert found("absolute") == (f"{directory}/absolute", real)
    assert found(f"../{directory.name}/socket") == (real, real)
    held = os.open(directory, os.O_PATH)
    try:
        for own in (f"/proc/self/fd/{held}", f"/dev/fd/{held}", "/proc/thread-self/cwd"):
            assert found(f"{own}/socket") == (f"{own}/socket", real)
        assert found(f"/proc/self/root{real}") == (f"/proc/self/root{real}", real)
    finally:
        os.close(held)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("none", errno.ENOENT),
        ("socket/below", errno.ENOTDIR),
        ("loop", errno.ELOOP),
        (f"{'n' * 256}", errno.ENAMETOOLONG),
    ],
)
def test_what_is_not_there(bound: Path, path: str, number: int) -> None:
    (bound.parent / "loop").symlink_to("loop")
    with (
        unix_paths.View(os.getpid(), os.fsencode(bound.parent / path)) as view,
        pytest.raises(OSError) as raised,  # noqa: PT011 - its number is what matters
    ):
        view.find()
    assert raised.value.errno == number


def test_the_path_of_an_address() -> None:
    assert unix_paths.path_in(b"\1\0/run/s\0rest") == b"/run/s"
    assert unix_paths.path_in(b"\1\0" + b"/" * 108) == b"/" * 108
    for no_path in (b"", b"\1\0", b"\1\0\0abstract", b"\1\0" + b"/" * 109):
        assert unix_paths.path_in(no_path) == b""
