"""Guests that OCI runtimes start: containers, and the processes that engines execute in them.

`xensock-runtime` connects for each (native/runtime), hands over what the engine asked for and gets it back with
xensock-init in front of the program. The connection then is that step's: it sends the listener of the filter it
installed, and waits until the guest is served. One container is one guest, however many processes come into it.
Messages are SOCK_SEQPACKET packets: words ended by NUL from the runtime, `struct msg` of native/init from the step.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xensock.backend import oci, resuming, systemd
from xensock.backend.embedded import choose_path
from xensock.backend.groups import GroupNames, Groups
from xensock.backend.resuming import Description, Keeping, Session
from xensock.backend.serving import Carriers, Serving, Terms, serve
from xensock.backend.store import Store, inherited
from xensock.policy.networks import GUEST, Network
from xensock.policy.point import in_force
from xensock.policy.routes import Routes
from xensock.stack.kernel import Kernel
from xensock.stack.resolver import Resolver
from xensock.stack.stacks import Stacks
from xensock.supervisor import filter as guest_filter
from xensock.supervisor import joined
from xensock.supervisor.guest import MESSAGE
from xensock.supervisor.launch import LaunchError
from xensock.supervisor.refreshing import refresh

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from xensock.backend.groups import Member
    from xensock.calls.record import Record
    from xensock.policy.point import Current
    from xensock.policy.policy import Policy
    from xensock.supervisor.publication import Publication
    from xensock.supervisor.supervisor import Supervisor

LONGEST = 16 * 1024  # bytes of a packet
ENDS_S = 10.0  # for the end of the container that had the id before
_UCRED = struct.Struct("=iii")
SCM_CREDENTIALS = 2
MALFORMED = (AttributeError, TypeError, ValueError)  # a description that is not as specified
log = logging.getLogger("xensock.backend")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a container may do."""

    policy: Policy | Current
    publications: tuple[Publication, ...] = ()
    datapath: str = "auto"
    group: str = ""  # of containers that know each other by name
    published_only: bool = False  # the world reaches what is published, and nothing else


@dataclass(eq=False, slots=True)
class _Guest:
    """A container whose first process was announced, and once that runs, what serves it."""

    container: oci.Container
    allowance: Allowance
    keeping: Keeping
    undo: ExitStack = field(default_factory=ExitStack)
    member: Member | None = None
    serving: Serving | None = None
    sessions: set[int] = field(default_factory=set)  # numbers of filters with processes
    others: dict[int, Supervisor] = field(default_factory=dict)  # of those that came later
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Containers:
    """Serves containers on the running event loop.

    judge   what a container may do; raises oci.RefusedError for one that is not to start
    users   user ids whose processes may be runtimes, beside the backend's own and root
    """

    def __init__(
        self,
        judge: Callable[[oci.Container], Allowance],
        record: Callable[[Record], None] | None = None,
        users: tuple[int, ...] = (),
    ) -> None:
        self._judge = judge
        self._record = record
        self._users = {os.geteuid(), 0, *users}
        self._guests: dict[str, _Guest] = {}
        self._listener: socket.socket | None = None
        self._path = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = 0
        self._groups = Groups()
        self._store = Store()
        self._leaving: set[_Guest] = set()  # ended, and their last bytes are under way
        self._loop = asyncio.get_running_loop()

    def refresh(self) -> None:
        """The backend's policy was replaced: put it in force for those who have it."""
        for each in list(self._guests.values()):
            if each.serving is not None:
                refresh(each.serving.first)

    def guests(self) -> list[tuple[oci.Container, int]]:
        """The containers that are served, with the number of filters that processes of theirs are under."""
        return [
            (each.container, len(each.sessions))
            for each in self._guests.values()
            if each.serving is not None
        ]

    async def listen(self, path: str) -> None:
        """Listen at a path; a socket that a dead backend left there is replaced. Raises OSError.

        One that the service manager listens at is used, and stays when this backend ends.
        """
        from xensock.backend.control import listening_socket

        left = inherited()
        self._listener = systemd.socket_at(path, socket.SOCK_SEQPACKET)
        if self._listener is None:
            self._listener = listening_socket(path, socket.SOCK_SEQPACKET)
            self._store.keep(resuming.LISTENER, self._listener.fileno())
            self._path = path
        elif left.get(resuming.LISTENER) == self._listener.fileno():
            self._path = path  # a predecessor's own
        for key, descriptors in resuming.by_key(left).items():
            self._resume(key, descriptors)
        self._start(self._accept(self._listener))

    async def close(self) -> None:
        """Stop listening and let go of every guest: what they still ask for is refused from then on."""
        self._store.close()  # what is in there is for a successor, if there is one
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            if self._path:
                with suppress(FileNotFoundError):
                    os.unlink(self._path)
        for guest in (*self._guests.values(), *self._leaving):
            await asyncio.to_thread(_let_go, guest)
        self._guests.clear()
        self._groups.close()

    def _start(self, what: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = await self._loop.sock_accept(listener)
            except OSError as error:
                log.warning("cannot take a runtime: %s", error.strerror or error)
                await asyncio.sleep(0.5)
                continue
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            if _UCRED.unpack(raw)[1] not in self._users:
                log.warning("user %d may not start containers here", _UCRED.unpack(raw)[1])
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._start(self._converse(sock))

    async def _converse(self, sock: socket.socket) -> None:
        """One process that is to start in a container, from its announcement until it runs."""
        with sock:
            data, fds, _ = await _receive(sock)
            words = data.split(b"\0")
            if len(words) != 5 or len(fds) != 1:
                _close(fds)
                return
            verb, ident, bundle, number = (os.fsdecode(word) for word in words[:4])
            try:
                if verb == "exec":
                    guest = self._known(ident)
                else:
                    guest = await self._announced(ident, bundle, fds[0])
                apart = oci.apart(guest.container)
                described = await asyncio.to_thread(_rewritten, fds[0], verb, int(number), apart)
            except (oci.RefusedError, LaunchError, OSError, *MALFORMED) as error:
                log.warning("container %s: %s", ident[:12], error)
                _send(sock, b"N" + f"xensock: {error}".encode()[:2000])
                return
            finally:
                _close(fds)
            direct, landlock = choose_path(guest.allowance.datapath, None)
            datagrams = in_force(guest.allowance.policy).unix_datagrams
            terms = joined.terms(guest_filter.build(direct, unix_datagrams=datagrams), landlock)
            try:
                _send(sock, b"O", described)
                _send(sock, MESSAGE.pack(ord("T"), 0, 0, 0), terms)
            finally:
                _close([described, terms])
            await self._arrives(sock, guest, direct)

    def _known(self, ident: str) -> _Guest:
        guest = self._guests.get(ident)
        if guest is None or guest.serving is None:
            raise oci.RefusedError(
                "this backend does not serve the container, which runs since before the backend does; restart it"
            )
        return guest

    async def _announced(self, ident: str, bundle: str, fd: int) -> _Guest:
        config = oci.read(await asyncio.to_thread(_content, fd))
        container = await asyncio.to_thread(oci.identify, ident, bundle, config)
        oci.check_network(config, container)
        allowance = self._judge(container)
        before = self._guests.get(ident)
        if before is not None and before.serving is not None:
            # Restarted: its last processes are dead, but we may not have seen to it yet.
            with suppress(TimeoutError):
                await asyncio.wait_for(before.gone.wait(), ENDS_S)
        guest = self._guests[ident] = _Guest(container, allowance, Keeping(self._store))
        return guest

    async def _arrives(self, sock: socket.socket, guest: _Guest, direct: bool) -> None:
        """The first step is in the container: serve what it stands for, then let it go on."""
        data, fds, pid = await _receive(sock)
        if len(data) != MESSAGE.size or len(fds) != 1 or not pid:
            _close(fds)  # it was never started
            if guest.serving is None and self._guests.get(guest.container.id) is guest:
                del self._guests[guest.container.id]
            return
        killable = bool(MESSAGE.unpack(data)[1])
        self._numbers += 1
        journal = resuming.journal() if self._store.there else -1
        session = Session(self._numbers, fds[0], killable, journal)
        try:
            if guest.serving is None:
                await asyncio.to_thread(self._begin, guest, session, pid, direct)
            else:
                await asyncio.to_thread(self._join, guest, session)
        except (oci.RefusedError, LaunchError, OSError) as error:
            log.warning("container %s: %s", guest.container.name, error)
            text = f"{error}".encode()[:1000]
            _send(sock, MESSAGE.pack(ord("N"), 0, 0, 0) + text)
            return
        finally:
            _close([journal] if journal >= 0 else [])
        _send(sock, MESSAGE.pack(ord("G"), 0, 0, 0))

    def _begin(self, guest: _Guest, session: Session, pid: int, direct: bool) -> None:
        """Serve a container from its first process on. On a thread."""
        undo = guest.undo
        try:
            cards = joined.devices(pid)
            if cards:
                raise oci.RefusedError(
                    f"it has a network of the engine's ({', '.join(cards)}), which would be a way around the "
                    "rules; start it with --network none"
                )
            made = joined.join(pid)
            undo.callback(made.close)
            made.pidfd = os.pidfd_open(pid)
            made.level = joined.level(pid)
            made.proc = os.open(
                os.path.join(f"/proc/{pid}/root", "proc"), os.O_RDONLY | os.O_DIRECTORY
            )
            self._serve(guest, made, session, direct)
        except BaseException:
            os.close(session.listener)
            undo.close()
            guest.keeping.close()
            raise

    def _resume(self, key: str, left: dict[str, int]) -> None:
        """Serve a container that a predecessor served. One that cannot be served is refused what it asks for, by the
        kernel. On the loop, which is not to hear of its end before all of it is here."""
        name, keeping, undo = "?", Keeping(self._store, key, left), ExitStack()
        sessions = resuming.sessions(left)
        listeners = [each.listener for each in sessions]
        try:
            known = Description.read(left["container"])
            name = known.container.name
            if not sessions:
                raise KeyError("listener")
            guest = _Guest(known.container, self._judge(known.container), keeping, undo)
            made = joined.rejoin(left["netns"])
            undo.callback(made.close)
            made.left, made.resumed = left, True
            made.pidfd, made.proc, made.level = left.pop("pidfd"), left.pop("proc"), known.level
            for at, each in enumerate(sessions):
                self._numbers = max(self._numbers, each.number)
                if at == 0:
                    self._serve(guest, made, each, known.direct, known.member)
                else:
                    self._join(guest, each)
                listeners.remove(each.listener)
            self._guests[known.container.id] = guest
            log.info("container %s goes on", name)
        except Exception as error:  # of one container: the others are to be served
            if sessions:  # else it had not begun
                log.error("container %s cannot go on: %s; restart it", name, error)
            _close(listeners)
            undo.close()
            keeping.close()
        finally:
            _close([each.journal for each in sessions if each.journal >= 0])
            _close(list(left.values()))

    def _serve(
        self, guest: _Guest, made: joined.Joined, session: Session, direct: bool, had: int = 0
    ) -> None:
        """Serve a container under the filter of its first process. `had`: its number among members before."""
        undo, number = guest.undo, session.number
        made.listener, made.killable = session.listener, session.killable
        made.journal = session.journal
        if self._store.there:
            made.keep, made.drop = guest.keeping.keep, guest.keeping.drop
        guest.sessions.add(number)
        try:
            resolver = Resolver()
            allowance = guest.allowance
            member = guest.member = self._groups.join(allowance.group, _names(guest.container), had)
            undo.callback(member.leave)
            if made.keep is not None and not made.resumed:
                self._keep(guest, made, session, direct)
            carriers = self._carriers(guest.container, allowance, member, resolver)
            undo.callback(carriers.undo.close)
            terms = Terms(
                guest.container.name,
                allowance.policy,
                direct,
                allowance.publications,
                self._record,
                lambda text: log.error("container %s: %s", guest.container.name, text.rstrip()),
                labels=guest.container.labels,
                inner=member.inner if allowance.published_only else None,
                near=member,
            )
            serving = serve(made, terms, carriers, undo, self._ending(guest, number))
            member.published = allowance.publications
            member.listens = serving.first.listens
            guest.serving = serving
        except BaseException:
            guest.sessions.discard(number)
            raise

    def _keep(self, guest: _Guest, made: joined.Joined, session: Session, direct: bool) -> None:
        assert guest.member is not None
        described = Description(guest.container, direct, made.level, guest.member.number)
        fds = {"container": described.file(), "netns": made.network()}
        for name, fd in (*fds.items(), ("pidfd", made.pidfd), ("proc", made.proc)):
            guest.keeping.keep(name, fd)
        _close(list(fds.values()))
        guest.keeping.begin(session)

    def _carriers(
        self, container: oci.Container, allowance: Allowance, member: Member, resolver: Resolver
    ) -> Carriers:
        """Who carries a container's calls: this host, and the networks of its policy. Raises RightsError."""
        name = container.name
        host, names, undo = Kernel(), GroupNames(member, resolver), ExitStack()
        policy = in_force(allowance.policy)
        if not policy.networks_needed:
            return Carriers(Stacks(Routes((), "host"), [host]), names, resolver, undo)
        from xensock.backend.networks import reach
        from xensock.stack.networks import NetworkResolver

        networks = list(policy.networks)
        if container.labels.get(oci.NETWORK) == "guest":
            own = Network(GUEST, netns=container.interface, resolv_conf=container.resolv_conf)
            networks.append(own)
        made = reach(
            networks,
            host,
            resolver,
            name,
            self._record,
            lambda text: log.warning("container %s: %s", name, text),
        )
        undo.callback(made.close)
        answering = NetworkResolver(names, resolver, made)
        return Carriers(Stacks(Routes((), "host"), [host], made), answering, resolver, undo)

    def _join(self, guest: _Guest, session: Session) -> None:
        """Serve a process that an engine executes in a container that runs. On a thread."""
        assert guest.serving is not None
        number = session.number
        guest.sessions.add(number)
        if self._store.there:
            guest.keeping.begin(session)
        made = guest.serving.also(
            session.listener, session.killable, self._ending(guest, number), session.journal
        )
        guest.others[number] = made
        made.start()

    def _ending(self, guest: _Guest, number: int) -> Callable[[], None]:
        def ended() -> None:
            with suppress(RuntimeError):  # the loop is closed, and everything with it
                self._loop.call_soon_threadsafe(self._ended, guest, number)

        return ended

    def _ended(self, guest: _Guest, number: int) -> None:
        guest.sessions.discard(number)
        guest.keeping.end(number)
        if (other := guest.others.pop(number, None)) is not None:
            self._start(asyncio.to_thread(other.stop))
        if not guest.sessions and not guest.gone.is_set():
            self._start(self._release(guest))

    async def _release(self, guest: _Guest) -> None:
        serving = guest.serving
        assert serving is not None
        if guest.member is not None:
            guest.member.leave()
        guest.keeping.close()
        await asyncio.to_thread(serving.first.stop)  # its ports are free
        guest.gone.set()
        if self._guests.get(guest.container.id) is guest:
            del self._guests[guest.container.id]
        self._leaving.add(guest)
        try:
            await asyncio.to_thread(serving.deliver)
            await asyncio.to_thread(guest.undo.close)
        finally:
            self._leaving.discard(guest)


def _names(container: oci.Container) -> frozenset[str]:
    """By which its group knows it: its own, and that of its service in a Compose file."""
    service = container.labels.get("com.docker.compose.service", "")
    return frozenset(name.lower() for name in (container.name, service) if name)


def _let_go(guest: _Guest) -> None:
    for other in guest.others.values():
        other.stop()
    guest.undo.close()


async def _receive(sock: socket.socket) -> tuple[bytes, list[int], int]:
    """The next packet, its descriptors, and the process that sent it (0: not told). Nothing at the end."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock)
    try:
        data, notes, _, _ = sock.recvmsg(LONGEST, 256, socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return b"", [], 0
    fds: list[int] = []
    pid = 0
    for level, kind, value in notes:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += struct.unpack(f"={len(value) // 4}i", value)
        elif (level, kind) == (socket.SOL_SOCKET, SCM_CREDENTIALS):
            pid = _UCRED.unpack(value)[0]
    return data, fds, pid


def _send(sock: socket.socket, data: bytes, *fds: int) -> None:
    """Into the queue, which has room for the few packets of a conversation; a peer that is gone does not matter."""
    with suppress(OSError):
        socket.send_fds(sock, [data], fds, socket.MSG_NOSIGNAL)


def _content(fd: int) -> bytes:
    with open(os.dup(fd), "rb") as file:
        file.seek(0)
        return file.read()


def _rewritten(fd: int, verb: str, number: int, apart: bool) -> int:
    """A memfd with the description as it is to be. Raises RefusedError."""
    what = oci.read(_content(fd))
    if verb == "exec":
        oci.wrap_process(what, number)
    else:
        oci.wrap_config(what, oci.init_path(), number, apart)
    made = os.memfd_create("xensock-description", os.MFD_CLOEXEC)
    with open(os.dup(made), "wb") as file:
        file.write(json.dumps(what).encode())
    os.lseek(made, 0, os.SEEK_SET)
    return made


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
