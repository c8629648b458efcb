"""The backend's side of the local transport. Whatever a frontend sends is bounded and checked here.

Nothing blocks. A frontend that holds all that `Limits` gives it is refused more by the command that
names what it has no room for; one that breaks the rules gets a ProtocolError, and is closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import stat
import struct
import weakref
from bisect import bisect_right, insort
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from xensock import _core
from xensock.transport import budget, local_events, local_packets
from xensock.transport.base import GrantError, Limits, Nodes, ProtocolError
from xensock.transport.url import LONGEST_PATH
from xensock.wire import local
from xensock.wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from xensock.wire.extensions import Extension

Said: TypeAlias = "list[tuple[bytes, list[int]]]"

TURN = 64
"""Messages taken from one frontend before others have their turn."""
BACKLOG = 128

_KEY = re.compile(r"[A-Za-z0-9_/.@:-]{1,256}", re.ASCII)
_VALUE = re.compile(r"[ -~]{0,4096}", re.ASCII)


class _Channel:
    """An event channel's descriptors: the session's, and the bound event's while there is one."""

    def __init__(self, fds: list[int]) -> None:
        self.fds = fds
        self.bound = False
        self.withdrawn = False

    def drop(self) -> None:
        """Close the descriptors unless somebody still needs them."""
        if self.withdrawn and not self.bound:
            fds, self.fds = self.fds, []
            local_packets.close_all(fds)
            budget.DESCRIPTORS.give(len(fds))


class BoundEvent:
    """Our side of an event channel (`transport.base.Event`)."""

    def __init__(self, port: int, channel: _Channel) -> None:
        self.port = port
        self._channel: _Channel | None = channel
        channel.bound = True

    @property
    def notify_fd(self) -> int:
        """The eventfd that wakes the frontend; -1 after `close()`."""
        return -1 if self._channel is None else self._channel.fds[1]

    @property
    def wait_fd(self) -> int:
        """The eventfd that the frontend wakes us by; -1 after `close()`."""
        return -1 if self._channel is None else self._channel.fds[0]

    def notify(self) -> None:
        """Wake the frontend."""
        if self._channel is not None:
            local_events.notify(self._channel.fds[1])

    def clear(self) -> bool:
        """Forget its events."""
        return self._channel is not None and local_events.clear(self._channel.fds[0])

    def close(self) -> None:
        """The port may be bound again, if the frontend still has it."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.bound = False
            channel.drop()


class LocalBackSession:
    """One frontend (`transport.base.BackSession`)."""

    lacks: frozenset[Extension] = frozenset()
    waits = False
    labels: Mapping[str, str] = MappingProxyType({})

    def __init__(self, sock: socket.socket, pid: int, uid: int, limits: Limits) -> None:
        self._sock = sock
        self._limits = limits
        self._pid, self._uid = pid, uid
        self._guest = ""
        self._nodes: dict[str, str] = {}
        self._pending: dict[str, str] = {}
        self._regions: dict[int, tuple[int, int]] = {}
        self._firsts: list[int] = []
        self._granted = 0
        self._channels: dict[int, _Channel] = {}
        self._mapped: dict[weakref.ref[_core.PageMap], tuple[int, int]] = {}
        self._pages = 0
        self._shared = 0
        self._mappings = 0
        self._short_of_regions = self._short_of_channels = False
        # Hears of each message, with the descriptors that are held from then on, before it is gone from the socket.
        self.told: Callable[[bytes, list[int]], None] | None = None
        self._doubtful = False
        self.last = b""

    @classmethod
    def go_on(
        cls, sock: socket.socket, pid: int, uid: int, said: Said, last: bytes, limits: Limits
    ) -> LocalBackSession:
        """A session that another process had. `said`: what the frontend did, with its descriptors, which are taken;
        `last`: its last message, which is perhaps still to be received. Raises ProtocolError, WireError: then all that
        was taken is closed."""
        session = cls(sock, pid, uid, limits)
        session.last, session._doubtful = last, True
        try:
            for packet, fds in said:
                message = local.decode_front(packet)
                if isinstance(message, local.Hello):
                    session._guest = _shown(message.name)
                else:
                    session._take(message, fds)
        except BaseException:
            session.close()
            raise
        finally:
            for _, fds in said:  # what it has no room for
                local_packets.close_all(fds)
        return session

    def said(self) -> Said:
        """What would lead to where the session is, with the numbers of its descriptors."""
        if not self._guest:
            return []
        found: Said = [(local.encode(local.Hello(self._guest)), [])]
        found += [
            (local.encode(local.Write({key: value})), []) for key, value in self._nodes.items()
        ]
        for first, (fd, pages) in self._regions.items():
            found.append((local.encode(local.Memory(first, pages)), [fd]))
        for port, channel in self._channels.items():
            found.append((local.encode(local.Event(port)), channel.fds))
        return found

    @property
    def guest(self) -> str:
        """What the frontend calls itself."""
        return self._guest

    @property
    def uid(self) -> int:
        """Its user."""
        return self._uid

    @property
    def pid(self) -> int:
        """Its process."""
        return self._pid

    @property
    def nodes(self) -> Nodes:
        """Its nodes."""
        return self._nodes

    def fileno(self) -> int:
        """The socket; -1 after `close()`."""
        return self._sock.fileno()

    def receive(self) -> bool:
        """Take in some messages."""
        look = socket.MSG_PEEK if self.told is not None else 0
        for _ in range(TURN):
            try:
                packet, fds = local_packets.receive(self._sock, socket.MSG_DONTWAIT | look)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not packet:
                local_packets.close_all(fds)
                return False
            try:
                message = local.decode_front(packet)
                if not self._doubtful or packet != self.last:
                    self._hear(message, packet, fds)
                elif isinstance(message, local.Hello):
                    self._welcome()  # perhaps for the second time
            except WireError as error:
                raise ProtocolError(str(error)) from None
            finally:
                local_packets.close_all(fds)
            self._doubtful = False
            if look:
                self._sock.recv(1, socket.MSG_DONTWAIT)
        return True

    def _hear(self, message: local.FrontMessage, packet: bytes, fds: list[int]) -> None:
        if self.told is None:
            self._take(message, fds)
            return
        brought = list(fds)
        if not fds:
            self.told(packet, [])
        self._take(message, fds)
        self.last = packet
        if brought and not fds:  # else there was no room for it
            self.told(packet, brought)

    def write(self, nodes: Nodes) -> None:
        """Change nodes of ours."""
        self._pending.update(nodes)
        self._flush()

    def share(self, memory: int, pages: int) -> int:
        """Give it pages of ours."""
        self._shared += 1
        self._hand(local.Shared(self._shared, pages), memory)
        return self._shared

    def introduce(self, number: int, event: int) -> None:
        """Tell it how to wake the other guest of them."""
        self._hand(local.Peer(number), event)

    def _hand(self, message: local.Shared | local.Peer, fd: int) -> None:
        local_packets.send(self._sock, message, (fd,), flags=socket.MSG_DONTWAIT)

    def map(self, refs: Sequence[int]) -> memoryview:
        """Map pages."""
        runs = self._runs(refs)
        limits = self._limits
        if self._pages + len(refs) > limits.pages:
            raise GrantError("the frontend has too many pages mapped", errno.ENOMEM)
        if self._mappings + len(runs) > limits.mappings or not budget.MAPPINGS.take(
            self._mappings, len(runs)
        ):
            raise GrantError("the frontend's pages lie in too many places", errno.ENOMEM)
        try:
            mapped = _core.map_pages(runs)
            if self.told is not None:  # a process that keeps descriptors may be made any time
                mapped.own()
        except OSError as error:
            budget.MAPPINGS.give(len(runs))
            raise GrantError(f"pages cannot be mapped: {error.strerror}", errno.ENOMEM) from None
        self._mapped[weakref.ref(mapped, self._unmapped)] = len(refs), len(runs)
        self._pages += len(refs)
        self._mappings += len(runs)
        return memoryview(mapped)

    def bind(self, port: int) -> BoundEvent:
        """Bind an event channel."""
        channel = self._channels.get(port)
        if channel is None and self._short_of_channels:
            raise GrantError(f"there was no room for event channel {port}", errno.ENFILE)
        if channel is None:
            raise GrantError(f"event channel {port} was not made")
        if channel.bound:
            raise GrantError(f"event channel {port} is bound already", errno.EBUSY)
        return BoundEvent(port, channel)

    def close(self, reason: str = "") -> None:
        """Let go of the frontend."""
        if self._sock.fileno() < 0:
            return
        if reason:
            words = reason.encode(errors="backslashreplace")[:4096].decode(errors="ignore")
            with contextlib.suppress(OSError, WireError):
                local_packets.send(self._sock, local.Goodbye(words), flags=socket.MSG_DONTWAIT)
        self._sock.close()
        regions, self._regions = self._regions, {}
        self._firsts.clear()
        local_packets.close_all(fd for fd, _ in regions.values())
        budget.DESCRIPTORS.give(len(regions))
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.withdrawn = True
            channel.drop()

    # --- what a frontend sends

    def _take(self, message: local.FrontMessage, fds: list[int]) -> None:
        """Descriptors that are kept leave the list; the caller closes the rest."""
        if len(fds) != local.descriptors(message):
            raise ProtocolError(f"{len(fds)} descriptors with {type(message).__name__}")
        if isinstance(message, local.Hello) == bool(self._guest):
            raise ProtocolError("a frontend introduces itself first, and once")
        match message:
            case local.Hello(name, version):
                self._hello(name, version)
            case local.Memory(first, pages):
                self._memory(first, pages, fds)
            case local.Event(port):
                self._event(port, fds)
            case local.Unevent(port):
                channel = self._channels.pop(port, None)
                if channel is not None:
                    channel.withdrawn = True
                    channel.drop()
            case local.Write(nodes):
                self._write(nodes)
            case local.Unmap(first):
                region = self._regions.pop(first, None)
                if region is not None:
                    self._firsts.remove(first)
                    self._granted -= region[1]
                    os.close(region[0])
                    budget.DESCRIPTORS.give(1)

    def _hello(self, name: str, version: int) -> None:
        if version < local.VERSION:
            raise ProtocolError(f"version {version} of the local transport")
        self._guest = _shown(name)
        self._welcome()
        self._flush()

    def _welcome(self) -> None:
        try:
            local_packets.send(self._sock, local.Welcome(), flags=socket.MSG_DONTWAIT)
        except OSError:
            raise ProtocolError("it does not read") from None

    def _flush(self) -> None:
        # Before they are introduced there is nobody to tell.
        if not self._pending or not self._guest or self._sock.fileno() < 0:
            return
        nodes, self._pending = self._pending, {}
        try:
            local_packets.send(self._sock, local.Nodes(nodes), flags=socket.MSG_DONTWAIT)
        except (BrokenPipeError, ConnectionResetError):
            pass  # receive() says so
        except OSError as error:
            raise ProtocolError(f"it does not read ({error.strerror})") from None

    def _memory(self, first: int, pages: int, fds: list[int]) -> None:
        index = bisect_right(self._firsts, first)
        before = self._firsts[index - 1] if index else 0
        if index and before + self._regions[before][1] > first:
            raise ProtocolError(f"reference {first} was granted already")
        if index < len(self._firsts) and first + pages > self._firsts[index]:
            raise ProtocolError(f"reference {self._firsts[index]} was granted already")
        fault = _core.region_fault(fds[0], pages)
        if fault:
            raise ProtocolError(f"memory of {pages} pages: {fault}")
        limits = self._limits
        if (
            len(self._firsts) < limits.regions
            and self._granted + pages <= limits.pages
            and budget.DESCRIPTORS.take(self._descriptors(), 1)
        ):
            self._regions[first] = (fds.pop(), pages)
            insort(self._firsts, first)
            self._granted += pages
        else:
            self._short_of_regions = True

    def _event(self, port: int, fds: list[int]) -> None:
        if port in self._channels:
            raise ProtocolError(f"event channel {port} was made already")
        if not all(local_events.is_eventfd(fd) for fd in fds):
            raise ProtocolError(f"event channel {port}: its descriptors are no eventfds")
        if len(self._channels) < self._limits.ports and budget.DESCRIPTORS.take(
            self._descriptors(), len(fds)
        ):
            for fd in fds:
                os.set_blocking(fd, False)
            self._channels[port] = _Channel([*fds])
            fds.clear()
        else:
            self._short_of_channels = True

    def _descriptors(self) -> int:
        return len(self._firsts) + 2 * len(self._channels)

    def _write(self, nodes: dict[str, str]) -> None:
        for key, value in nodes.items():
            if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
                raise ProtocolError(f"node {key[:64]!a} is none that a store has")
        new = {**self._nodes, **nodes}
        if sum(map(len, new)) + sum(map(len, new.values())) > self._limits.store_bytes:
            raise ProtocolError("its nodes are too large")
        self._nodes = new

    # --- memory

    def _runs(self, refs: Sequence[int]) -> list[tuple[int, int, int]]:
        """References as (fd, first page of it, pages), adjacent ones together."""
        if not refs:
            raise GrantError("no pages")
        runs: list[tuple[int, int, int]] = []
        start, limit, last = 0, -1, -1
        for ref in refs:
            if ref == last + 1 and ref < limit:
                last = ref
                continue
            if limit > 0:
                runs.append(self._run(start, last + 1 - start))
            start = last = ref
            limit = self._end_of(ref)
        runs.append(self._run(start, last + 1 - start))
        return runs

    def _end_of(self, ref: int) -> int:
        """The first reference behind the region that has this one."""
        index = bisect_right(self._firsts, ref) - 1
        if index >= 0:
            first = self._firsts[index]
            if ref < first + self._regions[first][1]:
                return first + self._regions[first][1]
        if self._short_of_regions:
            raise GrantError(f"there was no room for reference {ref}", errno.ENOMEM)
        raise GrantError(f"reference {ref} was not granted")

    def _run(self, start: int, pages: int) -> tuple[int, int, int]:
        first = self._firsts[bisect_right(self._firsts, start) - 1]
        return self._regions[first][0], start - first, pages

    def _unmapped(self, ref: weakref.ref[_core.PageMap]) -> None:
        pages, runs = self._mapped.pop(ref)
        self._pages -= pages
        self._mappings -= runs
        budget.MAPPINGS.give(runs)


def _shown(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)


class LocalListener:
    """A unix socket in the file system (`transport.base.Listener`). `stays`: another process still has it."""

    def __init__(
        self, sock: socket.socket, path: str, uids: Collection[int], limits: Limits | None
    ) -> None:
        self._sock = sock
        self._path = path
        self._uids = {0, os.geteuid(), *uids}
        self._limits = Limits() if limits is None else limits
        self._file = _identity(path)
        self.stays = False

    @property
    def url(self) -> str:
        """Where it is."""
        return f"local:{self._path}"

    def fileno(self) -> int:
        """The socket; -1 after `close()`."""
        return self._sock.fileno()

    def accept(self) -> LocalBackSession | None:
        """The next frontend."""
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, ConnectionError):
            return None
        return self.admit(sock)

    def took(self, sock: socket.socket) -> bool:
        """Whether a socket was accepted here, by whichever process, and the frontend's first message still waits."""
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            return False
        if sock.getsockname() != self._sock.getsockname():
            return False
        try:
            packet, fds = local_packets.receive(sock, socket.MSG_DONTWAIT | socket.MSG_PEEK)
            local_packets.close_all(fds)
            return isinstance(local.decode_front(packet), local.Hello)
        except (OSError, ProtocolError, WireError):
            return False

    def admit(self, sock: socket.socket) -> LocalBackSession:
        """The frontend that was accepted. Raises PermissionError."""
        try:
            size = struct.calcsize("=iII")
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            pid, uid, _ = struct.unpack("=iII", raw)
            sock.setblocking(False)
            if uid not in self._uids:
                reason = f"user {uid} is not admitted"
                with contextlib.suppress(OSError):
                    local_packets.send(sock, local.Goodbye(reason), flags=socket.MSG_DONTWAIT)
                raise PermissionError(errno.EACCES, f"{reason} (process {pid})")
        except BaseException:
            sock.close()
            raise
        return LocalBackSession(sock, pid, uid, self._limits)

    def close(self) -> None:
        """Stop listening and remove the file, if it is still ours."""
        if self._sock.fileno() >= 0:
            if not self.stays and _identity(self._path) == self._file:
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
            self._sock.close()


def taken_over(
    sock: socket.socket, path: str, uids: Collection[int] = (), limits: Limits | None = None
) -> LocalListener:
    """A listener at `path` that another process has; it is ours once `stays` is False."""
    sock.setblocking(False)
    listener = LocalListener(sock, path, uids, limits)
    listener.stays = True
    return listener


def listen(
    path: str, *, uids: Collection[int] = (), mode: int = 0o600, limits: Limits | None = None
) -> LocalListener:
    """Listen at `path`, in place of a socket that a dead backend left there.

    Raises OSError: EADDRINUSE when a backend listens there, EEXIST when something else is there.
    """
    _check_free(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    # It gets its name when it has its mode and listens: nobody finds it before.
    temporary = os.path.join(os.path.dirname(path), f".{secrets.token_hex(4)}")
    try:
        _bind(sock, temporary)
        try:
            os.chmod(temporary, mode)
            sock.listen(BACKLOG)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return LocalListener(sock, path, uids, limits)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
    except BaseException:
        sock.close()
        raise


def _bind(sock: socket.socket, path: str) -> None:
    """Bind to a path that may be a little longer than a socket's may be."""
    if len(os.fsencode(path)) <= LONGEST_PATH:
        sock.bind(path)
        return
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    finally:
        os.close(folder)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _check_free(path: str) -> None:
    """Raise OSError unless there is nothing at `path`, or a socket that nobody listens at."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise FileExistsError(errno.EEXIST, "there is something that is no socket", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                raise
        raise OSError(errno.EADDRINUSE, "somebody listens there", path)
