"""The multicast groups that the host's sockets of one guest are in (ip(7), ipv6(7)); see `memberships`."""

from __future__ import annotations

import errno
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.address import IPAddress

JOIN4, LEAVE4 = 35, 36  # IP_ADD_MEMBERSHIP, IP_DROP_MEMBERSHIP
JOIN6, LEAVE6 = 20, 21  # IPV6_JOIN_GROUP, IPV6_LEAVE_GROUP
GROUP = "group"  # in names of what is kept for a successor


class Groups:
    """The groups that a guest's sockets (by cookie) are in outside. From any thread.

    find    the host's socket of the port to which the socket with a cookie is bound; None: to none
    make    a socket of the host's network
    keep    has a copy of a descriptor kept for a successor of this backend, by name; None: there is none
    drop    undoes that
    """

    def __init__(
        self,
        find: Callable[[int], socket.socket | None],
        make: Callable[[int], socket.socket],
        keep: Callable[[str, int], None] | None = None,
        drop: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._lock = threading.RLock()
        self._keep = keep
        self._drop = drop
        self._find = find
        self._make = make
        self._of: dict[int, set[IPAddress]] = {}
        self._names: dict[tuple[int, IPAddress], str] = {}  # under which they are kept
        self._joined: dict[int, set[IPAddress]] = {}  # by descriptor of the host's sockets

    def waiting(self, key: int) -> set[IPAddress]:
        """The groups that a socket has joined."""
        with self._lock:
            return set(self._of.get(key, ()))

    def join(self, key: int, group: IPAddress, inode: int) -> None:
        """`inode`: the socket's, by which a successor knows whether it is still there. Raises OSError as the host's
        kernel does: ENODEV where no interface leads to the group."""
        with self._lock:
            outer = self._find(key)
            if outer is None:  # so that the program hears now what the host will say
                with self._make(socket.AF_INET if group.version == 4 else socket.AF_INET6) as probe:
                    _member(probe, group, True)
                    _member(probe, group, False)
                    self._note(key, group, inode, probe)  # until it is bound a name is all there is
            else:
                self._enter(outer, group)
                self._note(key, group, inode, outer)
            self._of.setdefault(key, set()).add(group)

    def bound(self, key: int, outer: socket.socket) -> None:
        """A socket has got one of the host's for its port. Raises OSError."""
        with self._lock:
            for group in self._of.get(key, ()):
                self._enter(outer, group)

    def resume(
        self, key: int, group: IPAddress, inode: int, outer: socket.socket | None = None
    ) -> None:
        """A socket joined it while a predecessor was there. `outer`: the host's of its port, if it has one. Raises
        OSError."""
        with self._lock:
            self._of.setdefault(key, set()).add(group)
            self._names[key, group] = kept_as(key, group, inode)
            if outer is None:
                return
            try:
                self._enter(outer, group)  # the predecessor may not have come so far
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                self._joined[outer.fileno()].add(group)

    def _note(self, key: int, group: IPAddress, inode: int, sock: socket.socket) -> None:
        if self._keep is not None:
            self._names[key, group] = kept_as(key, group, inode)
            self._keep(self._names[key, group], sock.fileno())

    def _forget(self, key: int, group: IPAddress) -> None:
        name = self._names.pop((key, group), None)
        if name is not None:
            self._drop(name)

    def _enter(self, outer: socket.socket, group: IPAddress) -> None:
        joined = self._joined.setdefault(outer.fileno(), set())
        if group not in joined:
            _member(outer, group, True)
            joined.add(group)

    def leave(self, key: int, group: IPAddress) -> None:
        """The host's socket leaves with the last one of its port."""
        with self._lock:
            outer = self._find(key)
            self._of.get(key, set()).discard(group)
            self._forget(key, group)
            if outer is not None and not any(
                group in groups and self._find(each) is outer for each, groups in self._of.items()
            ):
                self._exit(outer, group)

    def _exit(self, outer: socket.socket, group: IPAddress) -> None:
        joined = self._joined.get(outer.fileno(), set())
        if group in joined:
            joined.discard(group)
            _member(outer, group, False)

    def gone(self, key: int) -> None:
        """A socket of the guest's was closed."""
        with self._lock:
            for group in self.waiting(key):
                self.leave(key, group)
            self._of.pop(key, None)

    def closing(self, outer: socket.socket) -> None:
        """One of the host's is about to be, which leaves all groups."""
        with self._lock:
            self._joined.pop(outer.fileno(), None)

    def judge(self, allowed: Callable[[IPAddress, int], bool]) -> None:
        """Other rules hold: what they do not allow ends."""
        with self._lock:
            for key, groups in self._of.items():
                outer = self._find(key)
                for group in set(groups) if outer is not None else ():
                    assert outer is not None
                    if not allowed(group, outer.getsockname()[1]):
                        groups.discard(group)
                        self._forget(key, group)
                        self._exit(outer, group)


def kept_as(key: int, group: IPAddress, inode: int) -> str:
    """The name of what is kept of a membership."""
    return f"{GROUP}.{key}.{group.packed.hex()}.{inode}"


def _member(sock: socket.socket, group: IPAddress, enter: bool) -> None:
    """Join or leave by whichever interface the host's routes say."""
    if group.version == 4:
        sock.setsockopt(socket.IPPROTO_IP, JOIN4 if enter else LEAVE4, group.packed + bytes(4))
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, JOIN6 if enter else LEAVE6, group.packed + bytes(4))
