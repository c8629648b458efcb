"""`xensock backend`: a process that carries out the socket calls of guests that connect to it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import resource
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xensock.backend import places
from xensock.backend.control import Control
from xensock.backend.holder import take
from xensock.backend.keeper import Keeper
from xensock.backend.names import GuestNames
from xensock.backend.store import Store, inherited
from xensock.backend.strict import Strict
from xensock.observe.tap import Tap
from xensock.policy.point import Current
from xensock.pvcalls.backend import Backend
from xensock.pvcalls.serving.limits import Limits
from xensock.stack.kernel import Kernel
from xensock.stack.resolver import Resolver
from xensock.transport import local_back, url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xensock.backend.containers import Allowance, Containers
    from xensock.backend.oci import Container
    from xensock.backend.reloading import FileWatch, Reloader, Source
    from xensock.calls.record import Record
    from xensock.policy.gate import Gate
    from xensock.policy.policy import Policy
    from xensock.stack.networks import Answers, Networks
    from xensock.transport.base import Listener

LAST_BYTES_S = 10.0  # for bytes on their way at a stop
log = logging.getLogger("xensock.backend")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a daemon serves and to whom.

    listen    URLs where frontends come to, as local:PATH
    control   path of the control socket, if there is to be one
    users     user ids whose processes may be frontends, beside the daemon's own and root
    ready     is called once everything listens
    source    of the policy, which is loaded anew when its file changes, or at SIGHUP
    containers  path where OCI runtimes come to, if there are to be containers; `judge` then says what one may do
    gate      what refuses every call for the moment, if anything does (Point)
    held      whether a holder starts it again, and can replace it
    """

    listen: Sequence[str]
    policy: Policy | Current
    record: Callable[[Record], None] | None = None
    control: str | None = None
    users: tuple[int, ...] = ()
    ready: Callable[[], None] = lambda: None
    source: Source | None = None
    containers: str | None = None
    judge: Callable[[Container], Allowance] | None = None
    gate: Gate | None = None
    held: bool = False


class Daemon:
    """A backend with its listeners and its control socket, on the running event loop.

    signals   whether SIGTERM and SIGINT end it; only the main thread can have them
    """

    def __init__(self, settings: Settings, *, signals: bool = True) -> None:
        self._settings = settings
        self.held = settings.held
        self._signals = (signal.SIGTERM, signal.SIGINT) if signals else ()
        self._stopping = asyncio.Event()
        self._reason = ""
        self._resolver = Resolver()
        self._strict = Strict()
        policy = settings.policy
        self.current = policy if isinstance(policy, Current) else Current(policy)
        self._networks: Networks | None = None
        answers: Answers = self._resolver
        if self.current.policy.networks_needed:
            from xensock.backend.networks import reach
            from xensock.stack.networks import NetworkResolver

            self._networks = reach(
                self.current.policy.networks,
                Kernel(),
                self._resolver,
                "backend",
                settings.record,
                log.warning,
            )
            answers = NetworkResolver(self._resolver, self._resolver, self._networks)
        self.tap = settings.record if isinstance(settings.record, Tap) else None
        self.backend = Backend(
            self.current,
            lambda guest: GuestNames(guest, answers, self.current.policy, settings.record),
            settings.record,
            limits=Limits.for_descriptors(raise_descriptors()),
            threads=os.cpu_count() or 1,
            gate=settings.gate,
            strict=self._strict,
            elsewhere=self._networks,
        )
        self._listeners: list[Listener] = []
        self._kept: dict[int, str] = {}  # descriptors of listeners: their names in the store
        self._paused: set[int] = set()
        self.containers: Containers | None = None
        self._reloader: Reloader | None = None
        self._keeper: Keeper | None = None
        self._store = Store()

    def _listen(self, where: str) -> Listener:
        """Listen for frontends; where a predecessor did, its socket is used. Raises UrlError, OSError."""
        place = url.parse(where)
        users = self._settings.users
        name = "listen-" + hashlib.sha256(os.fsencode(place.path)).hexdigest()[:32]
        left = inherited().get(name, -1) if self.held else -1
        listener: Listener
        if left >= 0:
            listener = local_back.taken_over(socket.socket(fileno=left), place.path, users)
        else:
            listener = url.listen(where, uids=users)
            if not self.held or place.scheme != "local":
                return listener
            self._store.keep(name, listener.fileno())
        self._kept[listener.fileno()] = name
        return listener

    def _leave(self, listener: Listener) -> None:
        """Listen there no more. Where a predecessor still does, nothing of it is changed."""
        fd = listener.fileno()
        if fd not in self._paused:
            asyncio.get_running_loop().remove_reader(fd)
        name = self._kept.pop(fd, "")
        if name and not (isinstance(listener, local_back.LocalListener) and listener.stays):
            self._store.drop(name)  # its path goes: whoever comes next shall not wait at it
        listener.close()

    async def run(self) -> None:
        """Serve until `stop` or a signal. Raises UrlError, OSError for what cannot be listened at."""
        loop = asyncio.get_running_loop()
        for number in self._signals:
            loop.add_signal_handler(number, self._signalled, number)
        control: Control | None = None
        watch = self._follow()
        try:
            for where in self._settings.listen:
                self._listeners.append(self._listen(where))
            if self._settings.control is not None:
                control = Control(self, self._settings.users)
                await control.listen(self._settings.control)
            # What can fail without the containers has not: now the backend that this one replaces may end.
            await asyncio.to_thread(take)
            ours = [each for each in self._listeners if isinstance(each, local_back.LocalListener)]
            for each in ours:
                each.stays = False
            if self.held and self._settings.listen:
                self._keeper = Keeper(self.backend, ours)
                self._keeper.start()
            for listener in self._listeners:
                loop.add_reader(listener.fileno(), self._accept, listener)
            if self._settings.containers is not None:
                self.containers = await self._serve_containers(self._settings.containers)
            with places.known(self._sockets(), self._settings.control):
                self._settings.ready()
                # The first question for a name needs what takes long to load; nobody shall wait for that.
                loading = asyncio.create_task(asyncio.to_thread(_load_names))
                await self._stopping.wait()
                await loading
        finally:
            for listener in self._listeners:
                self._leave(listener)
            if self.containers is not None:
                await self.containers.close()
            await self.backend.stop(self._reason or "the backend stopped")
            if self._keeper is not None:
                self._keeper.close()
            self._store.close()
            await asyncio.to_thread(self._strict.close, LAST_BYTES_S)
            if self._networks is not None:
                await asyncio.to_thread(self._networks.close, LAST_BYTES_S)
            if control is not None:
                await control.close()
            for number in self._signals:
                loop.remove_signal_handler(number)
            if watch is not None:
                loop.remove_reader(watch.fileno())
                watch.close()

    def _follow(self) -> FileWatch | None:
        """Have the policy's file followed, if there is one."""
        source, loop = self._settings.source, asyncio.get_running_loop()
        if source is None:
            return None
        from xensock.backend.reloading import FileWatch, Reloader

        self._reloader = Reloader(self.current, source.load, self._refresh, log.info)
        watch = FileWatch(source.path)
        loop.add_reader(watch.fileno(), lambda: watch.read() and self.reload())
        if self._signals:
            loop.add_signal_handler(signal.SIGHUP, self.reload)
        return watch

    def reload(self) -> str:
        """Load the policy's file anew; why that failed, "" where it did not."""
        if self._reloader is None:
            return "the backend has no policy file"
        return self._reloader.reload()

    def not_replaced(self) -> str:
        """Why no new backend can take this one's place, "" where one can."""
        if not self.held:
            return "it has no holder: it was started without --hold"
        return ""

    def _refresh(self) -> None:
        from xensock.pvcalls.serving.refreshing import refresh

        for session in list(self.backend.sessions.values()):
            if session.guest is not None:
                refresh(session.guest)
        if self.containers is not None:
            self.containers.refresh()

    async def _serve_containers(self, path: str) -> Containers:
        from xensock.backend.containers import Containers  # with all that a supervisor needs

        settings = self._settings
        assert settings.judge is not None
        made = Containers(settings.judge, settings.record, settings.users)
        await made.listen(path)
        return made

    def _sockets(self) -> list[str]:
        urls = [url.parse(each) for each in self._settings.listen]
        paths = [each.path for each in urls if each.scheme == "local"]
        also = (self._settings.control, self._settings.containers)
        return [*paths, *(path for path in also if path is not None)]

    def _signalled(self, number: signal.Signals) -> None:
        """The first one ends the daemon in order, another one at once: what is left then, the next start replaces."""
        if self._stopping.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.stop(f"the backend got {number.name}")

    def stop(self, reason: str) -> None:
        """End the daemon in order."""
        self._reason = self._reason or reason
        self._stopping.set()

    def _accept(self, listener: Listener) -> None:
        try:
            transport = listener.accept()
        except PermissionError as error:
            log.warning("%s", error)
            return
        except OSError as error:
            # Out of descriptors or memory: leave newcomers waiting for a moment, the others go on.
            log.warning("cannot take a frontend: %s", error.strerror or error)
            self._pause(listener)
            return
        if transport is not None:
            self.backend.serve(transport)

    def _pause(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        fd = listener.fileno()
        loop.remove_reader(fd)
        self._paused.add(fd)

        def again() -> None:
            self._paused.discard(fd)
            if listener.fileno() == fd:
                loop.add_reader(fd, self._accept, listener)

        loop.call_later(0.5, again)


def _load_names() -> None:
    import xensock.supervisor.questions  # noqa: F401 - to have it


def raise_descriptors() -> int:
    """Allow this process as many descriptors as it may have; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


def serve(settings: Settings) -> None:
    """Run a daemon until it is stopped. Raises UrlError, OSError."""

    async def run() -> None:
        await Daemon(settings).run()

    asyncio.run(run())
