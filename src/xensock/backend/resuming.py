"""What a container leaves to the backend that comes after this one, and how that finds it.

In the store are, under names with the container's key: a description, its network, its /proc, the listener of each of
its filters with the calls that are under way, the sockets by which its questions and datagrams come, and what it
learned of names. What it holds itself, connections and listeners, is nobody else's and needs no keeping.
See docs/explanation/restart.md.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from xensock.backend.oci import Container

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xensock.backend.store import Store

PREFIX = "guest"
LISTENER = "runtimes"  # where runtimes come to


@dataclass(frozen=True, slots=True)
class Description:
    """A container as the next backend has to know it. `member`: its number among groups' members."""

    container: Container
    direct: bool
    level: int
    member: int

    def file(self) -> int:
        """A memfd with it."""
        fd = os.memfd_create("xensock-container", os.MFD_CLOEXEC)
        os.write(fd, json.dumps(asdict(self)).encode())
        return fd

    @classmethod
    def read(cls, fd: int) -> Description:
        """Raises OSError; ValueError, TypeError, KeyError for what is none."""
        found = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
        known = found.pop("container")
        known["images"] = tuple(known.get("images", ()))
        return cls(Container(**known), **found)


@dataclass(frozen=True, slots=True)
class Session:
    """A filter that processes of the container are under. -1: no journal."""

    number: int
    listener: int
    killable: bool
    journal: int = -1


class Keeping:
    """What is in the store of one container."""

    def __init__(self, store: Store, key: str = "", had: Mapping[str, int] | None = None) -> None:
        self._store = store
        self._key = key or secrets.token_hex(8)
        self._names = set(had or ())

    def keep(self, name: str, fd: int) -> None:
        """See Store."""
        self._names.add(name)
        self._store.keep(f"{PREFIX}.{self._key}.{name}", fd)

    def drop(self, name: str) -> None:
        """See Store. A name that is not kept is fine."""
        if name in self._names:
            self._drop(name)

    def begin(self, session: Session) -> None:
        """Keep what serves a filter's processes; the journal first: where a listener is, one is."""
        if session.journal >= 0:
            self.keep(f"journal.{session.number}", session.journal)
        self.keep(f"listener.{session.number}.{int(session.killable)}", session.listener)

    def end(self, number: int) -> None:
        """The filter has no processes any more."""
        wanted = (f"journal.{number}", f"listener.{number}.0", f"listener.{number}.1")
        self._drop(*(name for name in wanted if name in self._names))

    def close(self) -> None:
        """The container has ended."""
        self._drop(*self._names)

    def _drop(self, *names: str) -> None:
        for name in names:
            self._names.discard(name)
            self._store.drop(f"{PREFIX}.{self._key}.{name}")


def by_key(left: dict[str, int]) -> dict[str, dict[str, int]]:
    """The predecessor's containers: descriptors by name, by key. They are taken out of `left`."""
    found: dict[str, dict[str, int]] = {}
    for whole in [name for name in left if name.startswith(f"{PREFIX}.")]:
        _, key, name = whole.split(".", 2)
        found.setdefault(key, {})[name] = left.pop(whole)
    return found


def sessions(left: dict[str, int]) -> list[Session]:
    """The filters of a container, the oldest first. They are taken out of `left`."""
    found = []
    for name in [name for name in left if name.startswith("listener.")]:
        _, number, killable = name.split(".")
        journal = left.pop(f"journal.{number}", -1)
        found.append(Session(int(number), left.pop(name), killable == "1", journal))
    return sorted(found, key=lambda session: session.number)


def journal() -> int:
    """A memfd for the calls of a filter that are under way."""
    return os.memfd_create("xensock-journal", os.MFD_CLOEXEC)
