"""The backend inside `xensock run`: one guest, from its launch to the end of its last process."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xensock import _core
from xensock.backend import hidden, places
from xensock.backend.serving import LAST_BYTES_S, Carriers, Serving, Terms, serve
from xensock.observe.tap import Tap
from xensock.policy.point import in_force
from xensock.policy.routes import Routes
from xensock.stack.kernel import Kernel
from xensock.stack.networks import NetworkResolver
from xensock.stack.resolver import Resolver
from xensock.stack.stacks import SplitResolver, Stacks
from xensock.streams import let_go, warn
from xensock.supervisor import echoing, launch
from xensock.supervisor import filter as guest_filter
from xensock.supervisor.launch import ExecError, Launch, Launched, LaunchError
from xensock.supervisor.limits import Limits
from xensock.supervisor.rtnetlink import FAR_END

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import BinaryIO

    from xensock.backend.reloading import Source
    from xensock.calls.record import Record
    from xensock.policy.asking import Asker
    from xensock.policy.gate import Gate
    from xensock.policy.point import Current
    from xensock.policy.policy import Policy
    from xensock.policy.routes import Route
    from xensock.stack.networks import Networks
    from xensock.stack.stacks import Stack
    from xensock.supervisor.dns import MessageResolver
    from xensock.supervisor.publication import Publication

# How long the end of the program waits for the end of the guest, which usually follows at once.
LAST_BREATH_MS = 200
LANDLOCK_TCP = 4  # first ABI with TCP rules (landlock(7)), Linux 6.7


@dataclass(frozen=True, slots=True)
class Order:
    """What to run and how."""

    argv: Sequence[str]
    policy: Policy | Current
    name: str
    datapath: str = "auto"
    publications: tuple[Publication, ...] = ()
    backends: tuple[
        tuple[str, str], ...
    ] = ()  # (name, URL) of those that carry calls, the default first
    routes: tuple[Route, ...] = ()
    group: int = 0  # the job's process group
    record: Callable[[Record], None] | None = None
    detach: Callable[[int], None] = lambda code: (
        None
    )  # the program ended with this status, others still run
    own_family: bool = False  # AF_XENSOCK alone leaves the guest
    unix_datagrams: bool | None = None  # None: as the policy says
    labels: Mapping[str, str] = field(default_factory=dict)
    gate: Gate | None = None  # see Point
    source: Source | None = None  # of the policy, which is followed
    limits: Limits = field(default_factory=Limits)
    warn: Callable[[str], None] = lambda text: None
    asker: Asker | None = None  # see Point
    pcap: BinaryIO | None = None  # a file for the guest's packets
    mirror: Callable[[int], None] = lambda status: (
        None
    )  # the program stopped, goes on, ended: waitpid(2)


def forced_failure() -> tuple[str, int] | None:
    """XENSOCK_TEST_FAIL=STAGE:ERRNO makes that stage fail, so that what a poor machine shows can be tested."""
    stage, _, name = os.environ.get("XENSOCK_TEST_FAIL", "").partition(":")
    return (stage, getattr(errno, name)) if stage and hasattr(errno, name) else None


def choose_path(wanted: str, forced: tuple[str, int] | None) -> tuple[bool, bool]:
    """(direct, Landlock) for --datapath. Without Landlock's TCP rules a guest must not hold host sockets: relay only.

    Raises LaunchError("landlock") where direct is asked for and cannot be had.
    """
    abi = 0 if forced and forced[0] == "landlock" else _core.landlock_abi()
    if abi >= LANDLOCK_TCP:
        return wanted != "relay", True
    if wanted == "direct":
        raise LaunchError("landlock", forced[1] if forced else errno.EOPNOTSUPP)
    return False, False


class Embedded:
    """One guest and its backend. `run` returns the exit status that the front is to end with."""

    def __init__(self, order: Order, complain: Callable[[str], None]) -> None:
        self._order = order
        self._complain = complain
        self._detached = False
        self._pings = False  # somebody who carries the guest's calls may ping

    def run(self, front: socket.socket) -> int:
        """Serve until the guest is gone. `front`: signal numbers come in, its end means the front died.

        Raises LaunchError, ExecError, UnreachableError.
        """
        order = self._order
        forced = forced_failure()
        direct, landlock = choose_path("relay" if order.backends else order.datapath, forced)
        with ExitStack() as stack:
            # First: without those who carry its calls, no program begins.
            carriers = self._carriers(stack.enter_context(ExitStack()))
            datagrams = self._unix_datagrams()
            spec = Launch(
                argv=order.argv,
                filter=guest_filter.build(direct, order.own_family, datagrams),
                hide=hidden.paths(os.environ, self._backends()),
                group=order.group,
                landlock=landlock,
                ping=self._pings,
                unix_datagrams=datagrams,
                forced_failure=forced,
            )
            guest = launch.start(spec)
            stack.callback(guest.close)
            if order.pcap is not None:
                self._capture(order.pcap, guest, stack)
            watching = stack.enter_context(ExitStack())  # ends after what is to be seen
            _let_go_of_stdio()
            terms = Terms(
                order.name,
                order.policy,
                direct,
                order.publications,
                order.record,
                self._complain,
                order.own_family,
                order.labels,
                order.gate,
                limits=order.limits,
                warn=order.warn,
                asker=order.asker,
            )
            served = serve(guest, terms, carriers, stack)
            self._follow(served, stack)
            self._let_watch(served, watching)
            code = self._wait(guest, front)
            if served.live():
                # What the guest sent before it ended is still on its way; its caller need not wait for that.
                self._detach(code)
                served.relay.close(LAST_BYTES_S)
        self._detach(code)  # nor for the end of this process, which the kernel does not hurry
        return code

    def _unix_datagrams(self) -> bool:
        wanted = self._order.unix_datagrams
        return in_force(self._order.policy).unix_datagrams if wanted is None else wanted

    def _capture(self, file: BinaryIO, guest: Launched, stack: ExitStack) -> None:
        """Write the packets of the guest's network. Raises OSError."""
        from xensock.observe.capture import ANY_PROTOCOL, Capture

        sock = guest.socket(socket.AF_PACKET, socket.SOCK_RAW, ANY_PROTOCOL)
        stack.callback(Capture(sock, file, FAR_END, self._order.warn).close)

    def _follow(self, served: Serving, stack: ExitStack) -> None:
        """Have the policy's file followed, if there is one."""
        source, current = self._order.source, served.first.point.current
        if source is None:
            return
        from xensock.backend.reloading import Reloader, Watcher
        from xensock.supervisor.refreshing import refresh

        reloader = Reloader(current, source.load, lambda: refresh(served.first), warn)
        stack.callback(Watcher(source.path, reloader.reload).close)

    def _let_watch(self, served: Serving, stack: ExitStack) -> None:
        """Offer the control socket; a machine that has no place for one does without."""
        from xensock.backend.watching import Watch

        tap = self._order.record if isinstance(self._order.record, Tap) else None
        with suppress(OSError):
            stack.callback(Watch(self._order.name, served, tap).close)

    def _detach(self, code: int) -> None:
        if not self._detached:
            self._detached = True
            self._order.detach(code)

    def _backends(self) -> list[str]:
        """Sockets of backends, where a guest would find other rules than its own."""
        own = [where.removeprefix("local:") for _, where in self._order.backends]
        private = places.directory()
        return [*own, *places.sockets(), *([private] if private is not None else [])]

    def _carriers(self, undo: ExitStack) -> Carriers:
        """Who carries calls, and who answers questions for names. Raises UnreachableError, UrlError."""
        order, resolver = self._order, Resolver()
        made: list[Stack] = [Kernel()]
        networks = self._networks(made[0], resolver, undo)
        if not order.backends:
            answering: MessageResolver = resolver
            if networks is not None:
                answering = NetworkResolver(resolver, resolver, networks)
            self._pings = echoing.permitted()
            return Carriers(Stacks(Routes((), "host"), made, networks), answering, resolver, undo)
        # Loaded for those guests only.
        from xensock.backend.networks import follow
        from xensock.stack.resolver_wire import read_question
        from xensock.stack.upstream import Upstream, guest_name

        resolvers: dict[str, MessageResolver] = {"host": resolver}
        used = {order.backends[0][0], *(route.stack for route in order.routes)}
        self._pings = "host" in used and echoing.permitted()
        for name, url in order.backends:
            upstream = Upstream(name, url, guest_name(order.name), order.record is not None)
            undo.callback(upstream.close)
            if isinstance(order.record, Tap):
                follow(order.record, upstream)
            made.append(upstream)
            resolvers[name] = upstream
            self._pings = self._pings or (name in used and upstream.may_ping())
        stacks = Stacks(Routes(order.routes, order.backends[0][0]), made, networks)
        split: MessageResolver = SplitResolver(
            stacks, resolvers, lambda message: read_question(message).name
        )
        if networks is not None:
            split = NetworkResolver(split, resolver, networks)
        return Carriers(stacks, split, resolver, undo)

    def _networks(self, host: Stack, resolver: Resolver, undo: ExitStack) -> Networks | None:
        """Those to which the policy sends calls. Raises RightsError."""
        order = self._order
        policy = in_force(order.policy)
        if not policy.networks_needed:
            return None
        from xensock.backend.networks import reach

        beside = bool(order.backends)
        made = reach(policy.networks, host, resolver, order.name, order.record, order.warn, beside)
        undo.callback(made.close)
        return made

    def _wait(self, guest: Launched, front: socket.socket) -> int:
        code = 0
        poll = select.poll()
        poll.register(guest.control_fileno(), select.POLLIN)
        poll.register(front.fileno(), select.POLLIN)
        patience: float | None = None
        while True:
            ready = {fd for fd, _ in poll.poll(patience)}
            if not ready:
                # The program ended and left others behind: its caller goes on, the backend stays with them.
                poll.unregister(front.fileno())
                patience = None
                self._detach(code)
            if front.fileno() in ready:
                data = front.recv(64)
                if not data:
                    return launch_lost(guest)
                for number in data:
                    guest.signal(number)
            if guest.control_fileno() not in ready:
                continue
            event = guest.next_event()
            if event is None:
                self._complain("the launcher is gone; the guest was ended\n")
                return 125
            kind, a, b, _ = event
            if kind == "X":
                raise ExecError(self._order.argv[0], a)
            if kind == "F":
                raise LaunchError(launch.STAGES[a], b)
            if kind in ("T", "E"):
                self._order.mirror(a)
            if kind == "E":
                code = os.waitstatus_to_exitcode(a)
                code = 128 - code if code < 0 else code
                patience = LAST_BREATH_MS
            if kind == "D":
                return code


def launch_lost(guest: Launched) -> int:
    """The front was killed: what it stood for ends too."""
    guest.close()
    return 125


def _let_go_of_stdio() -> None:
    """Whoever reads the program's output must see its end when the program ends, not when the backend does."""
    sys.stdout.flush()
    let_go(0, 1)
