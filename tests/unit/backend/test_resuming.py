"""What a container leaves, by name. Whole containers: tests/containers/test_restart.py."""

from __future__ import annotations

import os

import pytest

from xensock.backend import resuming
from xensock.backend.oci import Container
from xensock.backend.resuming import Description, Keeping, Session
from xensock.backend.store import Store


class Kept(Store):
    """A store that can be looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, int] = {}

    def keep(self, name: str, fd: int) -> None:
        self.held[name] = fd

    def drop(self, name: str) -> None:
        del self.held[name]


def test_a_description() -> None:
    labels = {"xensock.group": "shop"}
    container = Container("abc", "web", "box", "none", labels, images=("sha256:12", "other"))
    made = Description(container, True, 2, 7)
    fd = made.file()
    assert Description.read(fd) == made
    os.close(fd)


@pytest.mark.parametrize("text", [b"", b"{}", b'{"container": {}}', b"[1]", b"7"])
def test_no_description(text: bytes) -> None:
    fd = os.memfd_create("container")
    os.write(fd, text)
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        Description.read(fd)
    os.close(fd)


def test_from_one_backend_to_the_next() -> None:
    store = Kept()
    one, other = Keeping(store), Keeping(store)
    one.keep("container", 10)
    one.begin(Session(12, 20, True, 21))
    one.begin(Session(3, 30, False))
    one.begin(Session(4, 40, True, 41))
    one.end(4)
    one.end(99)
    other.keep("container", 50)
    other.begin(Session(5, 60, True, 61))
    left = {**store.held, "runtimes": 9}
    found = resuming.by_key(left)
    assert left == {"runtimes": 9}
    (key, first), (_, second) = found.items()
    again = Keeping(store, key, first)
    assert resuming.sessions(first) == [Session(3, 30, False), Session(12, 20, True, 21)]
    assert first == {"container": 10}
    assert resuming.sessions(second) == [Session(5, 60, True, 61)]
    again.close()
    assert set(store.held) == {
        name for name in store.held if not name.startswith(f"{resuming.PREFIX}.{key}.")
    }
    other.close()
    assert store.held == {}


def test_a_journal_is_a_file_in_memory() -> None:
    fd = resuming.journal()
    assert os.fstat(fd).st_size == 0
    os.close(fd)
