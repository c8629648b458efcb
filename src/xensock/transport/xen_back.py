"""The backend's side between Xen domains: `xen:` serves every frontend whose device names this domain.

The toolstack makes backend/pvcalls/DOMAIN/DEVICE below this domain's directory in xenstore and names there where the
frontend's nodes are. Whatever a frontend writes is bounded and checked here.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from xensock.transport import budget, xen_events
from xensock.transport.base import GrantError, Limits, Nodes
from xensock.transport.xen_memory import Allowance, Mappings
from xensock.transport.xen_store import Store
from xensock.wire import store as nodes_of
from xensock.wire.extensions import Extension
from xensock.wire.states import State, seen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xensock.transport.xen_events import XenEvent

MOST_NODES = 128
"""Nodes of one frontend that are read: a command ring of 16 pages and every extension are below 40."""
MOST_PAGES = 16384
"""Pages of one domain that are mapped at a time: 64 MiB, or 496 connections of Linux's driver."""
MOST_PORTS = 1024
"""Event channels of one domain."""
PORT_DESCRIPTORS = 4
"""Descriptors of an event channel: two eventfds, and the bridge's duplicates of them."""
TURN = 64
"""Changes taken in before others have their turn."""
_DIRECTORY = "backend/pvcalls"
_KEY = re.compile(r"[A-Za-z0-9_/.@:-]{1,256}", re.ASCII)
_VALUE = re.compile(r"[ -~]{0,4096}", re.ASCII)

log = logging.getLogger("xensock.transport")


class XenBackSession:
    """A frontend in another domain (`transport.base.BackSession`)."""

    uid = 0
    """Domains have no users: who configures them decides."""
    pid = 0
    lacks = frozenset({Extension.SHARED_RINGS})
    waits = True

    def __init__(self, listener: XenListener, back: str, front: str, domain: int) -> None:
        self._listener: XenListener | None = listener
        self._store = Store()  # of its own: it may outlive the listener
        self._ports = listener.ports.share()
        self._back = back
        self._front = front
        self.domain = domain
        self.nodes: Nodes = {}
        self._nodes_seen = False
        self._port_allowance = listener.port_allowance(domain)
        try:
            self._mappings = Mappings(domain, listener.page_allowance(domain))
            self._named = self._name()
            self.guest = self._named or f"domain-{domain}"
            self.labels = self._labels()
            # Another backend, of another version, may have left what is not announced now.
            self._store.remove(
                back, [n for n in self._store.names(back) if n.startswith("feature-")]
            )
            self._store.watch(front, "front")
        except BaseException:
            self._ports.close()
            self._store.close()
            raise

    def _name(self) -> str:
        """The domain's name, which the toolstack gave it; "" where it does not show, as outside dom0."""
        with contextlib.suppress(OSError):
            name = self._store.read(f"{self._store.path_of(self.domain)}/name")
            if name and _VALUE.fullmatch(name):
                return name[:64]
        return ""

    @property
    def uuid(self) -> str:
        """The domain's UUID, "" where it does not show."""
        with contextlib.suppress(OSError):
            where = self._store.read(f"{self._store.path_of(self.domain)}/vm")
            if where and where.startswith("/vm/"):
                return where.removeprefix("/vm/")[:64]
        return ""

    def _labels(self) -> Mapping[str, str]:
        """The domain's name and UUID: nodes that only its toolstack writes. What does not show is no label."""
        found = {"xen.name": self._named, "xen.uuid": self.uuid}
        return {key: value for key, value in found.items() if value}

    def fileno(self) -> int:
        """Readable when the frontend's nodes may have changed; -1 after `close()`."""
        return self._store.fileno()

    def receive(self) -> bool:
        """Read the frontend's nodes anew."""
        for _ in range(TURN):
            if self._store.changed() is None:
                break
        try:
            found = self._store.tree(self._front, MOST_NODES)
        except OSError:
            found = {}
        valid = {k: v for k, v in found.items() if _KEY.fullmatch(k) and _VALUE.fullmatch(v)}
        gone = self._nodes_seen and nodes_of.STATE not in valid
        self._nodes_seen = self._nodes_seen or nodes_of.STATE in valid
        # What a frontend wrote before it begins is of an earlier session.
        self.nodes = valid
        return not gone

    def write(self, nodes: Nodes) -> None:
        """Change nodes of ours. A device that is gone needs none."""
        try:
            self._store.write(self._back, nodes)
        except OSError as error:
            log.debug("%s: %s", self._back, error)

    def share(self, memory: int, pages: int) -> int:
        """Pages of this domain's are not granted to frontends. Raises OSError."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def introduce(self, number: int, event: int) -> None:
        """See `share`."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def map(self, refs: Sequence[int]) -> memoryview:
        """Map grants of the domain."""
        try:
            return self._mappings.map(refs)
        except OSError as error:
            number = errno.ENOMEM if error.errno in (errno.ENOSPC, errno.ENOMEM) else errno.EINVAL
            raise GrantError(str(error), number) from None

    def bind(self, port: int) -> XenEvent:
        """Bind an event channel of the domain."""
        if not self._port_allowance.take():
            raise GrantError("the domain has all the event channels it may have", errno.ENFILE)
        own = (self._port_allowance.used - 1) * PORT_DESCRIPTORS
        if not budget.DESCRIPTORS.take(own, PORT_DESCRIPTORS):
            self._port_allowance.give()
            raise GrantError("this process is short of descriptors", errno.ENFILE)
        try:
            event = self._ports.bound(self.domain, port)
        except OSError as error:
            self._unbound()
            raise GrantError(f"port {port}: {error.strerror}", errno.EINVAL) from None
        event.when_closed = self._unbound
        return event

    def _unbound(self) -> None:
        budget.DESCRIPTORS.give(PORT_DESCRIPTORS)
        self._port_allowance.give()

    def close(self, reason: str = "") -> None:
        """Say that it is over, and let go."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        if reason:
            log.debug("%s: %s", self._back, reason)
        with contextlib.suppress(OSError):
            self._store.write(self._back, {nodes_of.STATE: str(int(State.CLOSED))})
        self._mappings.close()
        self._ports.close()
        self._store.close()
        listener.forget(self._back)


class XenListener:
    """Devices that name this domain as their backend (`transport.base.Listener`)."""

    def __init__(self, limits: Limits | None = None) -> None:
        """Raises TransportError, OSError."""
        self.limits = Limits() if limits is None else limits
        self.store = Store()
        try:
            self._directory = f"{self.store.path_of(self.store.own_domain())}/{_DIRECTORY}"
            self.ports = xen_events.ports()
        except BaseException:
            self.store.close()
            raise
        self._sessions: dict[str, XenBackSession] = {}
        # Kept by who uses them: mapped pages outlive their session, and count against the next one.
        self._pages: WeakValueDictionary[int, Allowance] = WeakValueDictionary()
        self._ports_of: WeakValueDictionary[int, Allowance] = WeakValueDictionary()
        self._look = True
        self._watched: dict[str, str] = {}
        self.store.watch(self._directory, "devices")

    @property
    def url(self) -> str:
        """What frontends give: the number of their device."""
        return "xen:"

    def fileno(self) -> int:
        """xenstore's descriptor."""
        return self.store.fileno()

    def page_allowance(self, domain: int) -> Allowance:
        """The pages that a domain may have mapped here, over all its devices."""
        most = min(self.limits.pages, MOST_PAGES)
        return self._pages.setdefault(domain, Allowance(most))

    def port_allowance(self, domain: int) -> Allowance:
        """The event channels that a domain may have here, over all its devices."""
        most = min(self.limits.ports, MOST_PORTS)
        return self._ports_of.setdefault(domain, Allowance(most))

    def accept(self) -> XenBackSession | None:
        """The next frontend that begins."""
        while self.store.changed() is not None:
            self._look = True
        if self._look:
            for back, domain in self._devices():
                if back in self._sessions:
                    continue
                # Outside dom0 the nodes of a domain that is gone are forbidden, not missing; others have their turn.
                with contextlib.suppress(PermissionError):
                    if (found := self._begin(back, domain)) is not None:
                        return found
            self._look = False
        return None

    def _devices(self) -> list[tuple[str, int]]:
        found = [
            (f"{self._directory}/{domain}/{device}", int(domain))
            for domain in self.store.names(self._directory)
            if domain.isdigit()
            for device in self.store.names(f"{self._directory}/{domain}")
            if device.isdigit()
        ]
        for back in self._watched.keys() - {back for back, _ in found}:
            self.store.unwatch(f"{self._watched.pop(back)}/{nodes_of.STATE}", back)
        return found

    def _begin(self, back: str, domain: int) -> XenBackSession | None:
        front = self.store.read(f"{back}/frontend")
        if front is None:
            return None
        theirs = seen(self.store.read(f"{front}/{nodes_of.STATE}") or "")
        ours = seen(self.store.read(f"{back}/{nodes_of.STATE}") or "")
        # Who is Initialised while we are Closed was expelled: it begins when it says so, or we would expel it for ever.
        ended = ours in (State.CONNECTED, State.CLOSING, State.CLOSED)
        begins = theirs is State.INITIALISING and ours is not State.CONNECTED
        if begins or (theirs is State.INITIALISED and not ended):
            session = XenBackSession(self, back, front, domain)
            self._sessions[back] = session
            self._watch(back, front)
            return session
        if ours not in (State.CLOSING, State.CLOSED):
            # An earlier backend served it, or nobody did. Its session cannot be taken up: it begins anew.
            with contextlib.suppress(OSError):
                over = theirs in (State.CLOSED, State.UNKNOWN)
                word = State.CLOSED if over else State.CLOSING
                self.store.write(back, {nodes_of.STATE: str(int(word))})
        elif ours is State.CLOSING and theirs in (State.CLOSED, State.UNKNOWN):
            with contextlib.suppress(OSError):
                self.store.write(back, {nodes_of.STATE: str(int(State.CLOSED))})
        self._watch(back, front)
        return None

    def _watch(self, back: str, front: str) -> None:
        """The frontend's own nodes tell that it begins, not the device's directory here."""
        if self._watched.get(back) != front:
            self.store.watch(f"{front}/{nodes_of.STATE}", back)
            self._watched[back] = front

    def forget(self, back: str) -> None:
        """A session is over; the device may begin another."""
        self._sessions.pop(back, None)

    def close(self) -> None:
        """Stop listening; sessions go on."""
        self.ports.close()
        self.store.close()


def listen(limits: Limits | None = None) -> XenListener:
    """Serve the frontends of this domain's backend/pvcalls. Raises TransportError, OSError."""
    return XenListener(limits)
