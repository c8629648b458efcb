"""`xensock.socket`: the methods and exceptions of Python's `socket.socket`, carried out by a backend.

Families other than AF_INET and AF_INET6 are the guest's own and go to its kernel.
"""

from __future__ import annotations

import errno
import os
import socket as standard
import struct
from _socket import socket as plain
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from xensock.calls.family import AF_XENSOCK
from xensock.client import attachment, kernel, names
from xensock.client.address import endpoint_of, failure, mapped, python_of
from xensock.client.datagrams import Datagrams
from xensock.client.held import State
from xensock.client.link import held_by
from xensock.client.listener import Door
from xensock.client.stream import Stream
from xensock.client.transfer import Transfer
from xensock.wire.commands import How, Which
from xensock.wire.extensions import Extension

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.client.held import Held
    from xensock.client.link import Link

_TYPE_BITS = 0xF
_INT = struct.Struct("@i")
_FILLING = bytes(
    64 << 10
)  # more than a quarter of a send buffer: not writable (net/unix/af_unix.c)
_CARRIED = (standard.AF_INET, standard.AF_INET6)
_MAYBE_OURS = (-1, AF_XENSOCK, *_CARRIED)
_PAIRS: dict[int, int] = {
    standard.SOCK_STREAM: standard.SOCK_STREAM,
    standard.SOCK_DGRAM: standard.SOCK_SEQPACKET,
}
_ICMPV6 = 58
_PROTOCOLS: dict[int, tuple[int, ...]] = {
    standard.SOCK_STREAM: (0, standard.IPPROTO_TCP),
    standard.SOCK_DGRAM: (
        0,
        standard.IPPROTO_UDP,
        standard.IPPROTO_UDPLITE,
        standard.IPPROTO_ICMP,
        _ICMPV6,
    ),
}
_INLINE = (standard.SOL_SOCKET, standard.SO_OOBINLINE)
# Answered here: they are about the descriptor that the program holds.
_OWN_OPTIONS = (standard.SO_RCVTIMEO, standard.SO_SNDTIMEO)


class socket(Transfer):
    """A socket of the backend's network. Raises what `socket.socket` raises; OSError (ENOPROTOOPT, EOPNOTSUPP) for
    options and flags that are not carried."""

    _stream: Stream | None
    _door: Door | None

    def __init__(
        self,
        family: int = -1,
        type: int = -1,
        proto: int = -1,
        fileno: int | None = None,
        *,
        link: Link | None = None,
        hops: int = 0,
    ) -> None:
        """`link`: the backend; `hops`: how many others pass the socket's calls on to it."""
        self._held, self._own_family = None, False
        if fileno is not None:
            self._take(family, type, proto, fileno)
            return
        family = standard.AF_INET if family == -1 else family
        if family == AF_XENSOCK:
            if link is None and not attachment.known():
                self._of_guest(type, proto)
                return
            family, self._own_family = standard.AF_INET6, True
        type = standard.SOCK_STREAM if type == -1 else type
        proto = 0 if proto == -1 else proto
        if family not in _CARRIED:
            super().__init__(family, type, proto)
            return
        kind = type & _TYPE_BITS
        pair = _PAIRS.get(kind)
        if pair is None:
            # As the kernel for raw sockets without CAP_NET_RAW (raw(7)), and for types it does not know.
            raise failure(errno.EPERM if kind == standard.SOCK_RAW else errno.ESOCKTNOSUPPORT)
        foreign = standard.IPPROTO_ICMP if family == standard.AF_INET6 else _ICMPV6
        if proto not in _PROTOCOLS[kind] or proto == foreign:
            raise failure(errno.EPROTONOSUPPORT)
        link = link or attachment.default()
        if family == standard.AF_INET6 and not link.has(Extension.IPV6):
            raise failure(errno.EAFNOSUPPORT)
        near, far = kernel.socketpair(pair)
        try:
            held = (
                Stream(link, family, far, proto, hops=hops)
                if kind == standard.SOCK_STREAM
                else Datagrams(link, family, proto, far, hops)
            )
            if self._own_family:
                held.shown = AF_XENSOCK
                held.set_option(standard.IPPROTO_IPV6, standard.IPV6_V6ONLY, bytes(4))
            self._hold(held)
            link.remember(held, near.fileno())
            Transfer.__init__(self, standard.AF_UNIX, pair, 0, near.detach())
        except BaseException:
            near.close()
            far.close()
            raise
        if type & standard.SOCK_NONBLOCK:
            self.setblocking(False)

    def _of_guest(self, type: int, proto: int) -> None:
        """AF_XENSOCK of a guest whose supervisor knows it: the kernel takes it for AF_INET6. Raises NotAttached."""
        kind = standard.SOCK_STREAM if type == -1 else type
        try:
            made = plain(AF_XENSOCK, kind, max(proto, 0))
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                attachment.default()
            raise
        self._own_family = True
        super().__init__(standard.AF_INET6, made.type, max(proto, 0), made.detach())

    def _named(self, address: Any) -> Any:
        """An address as the socket below takes it: AF_XENSOCK's is AF_INET6's, where IPv4 is mapped."""
        return mapped(address, self._held is not None) if self._own_family else address

    def _take(self, family: int, type: int, proto: int, fileno: int) -> None:
        """A descriptor that exists: ours, of an accepted connection of ours, or somebody else's."""
        held = held_by(fileno) if fileno >= 0 and family in _MAYBE_OURS else None
        if held is None:
            super().__init__(family, type, proto, fileno)
            return
        super().__init__(standard.AF_UNIX, _PAIRS[held.type], 0, fileno)
        self._own_family = held.shown == AF_XENSOCK
        self._hold(held)

    def _hold(self, held: Held) -> None:
        self._held = held
        held.holders += 1

    # --- what it is

    @property
    def family(self) -> standard.AddressFamily:
        """The address family."""
        if self._own_family:
            return AF_XENSOCK  # type: ignore[return-value]
        return standard.AddressFamily(self._held.family) if self._held else super().family

    @property
    def type(self) -> standard.SocketKind:
        """The socket's type."""
        return standard.SocketKind(self._held.type) if self._held else super().type

    @property
    def proto(self) -> int:
        """The protocol, 0 where none was named."""
        return self._held.protocol if self._held else super().proto

    def getsockname(self) -> Any:
        """getsockname(2)."""
        held = self._own()
        if held is None:
            return super().getsockname()
        return python_of(held.family, held.name(Which.OWN))

    def getpeername(self) -> Any:
        """getpeername(2)."""
        held = self._own()
        if held is None:
            return super().getpeername()
        return python_of(held.family, held.name(Which.PEER))

    def __repr__(self) -> str:
        """As the standard library's, with the names that are known already. It is called for a socket that is collected
        unclosed, on whatever thread that happens: nobody may be asked."""
        held = self._held
        if held is None:
            return super().__repr__()
        cls = type(self)
        closed = " [closed]" if getattr(self, "_closed", False) else ""
        text = (
            f"<{cls.__module__}.{cls.__qualname__}{closed} fd={self.fileno()}, family={held.family}"
        )
        text += f", type={held.type}, proto={held.protocol}"
        for word, name in (("laddr", held.own), ("raddr", held.peer)):
            if name and not closed:
                text += f", {word}={python_of(held.family, name)}"
        return text + ">"

    # --- connecting

    def connect(self, address: Any) -> None:
        """connect(2), with the time limit of settimeout()."""
        held = self._own()
        if held is None:
            super().connect(self._named(address))
            return
        number = self._connect(held, address)
        if number == errno.ETIME:
            raise TimeoutError("timed out")
        if number:
            raise failure(number)

    def connect_ex(self, address: Any) -> int:
        """connect(2), its errno returned."""
        if self._held is None:
            return super().connect_ex(self._named(address))
        if self.fileno() < 0:
            return errno.EBADF
        number = self._connect(self._held, address)
        return errno.EAGAIN if number == errno.ETIME else number

    def _connect(self, stream: Held, address: Any) -> int:
        """An errno; ETIME when the time limit passed."""
        sockaddr = endpoint_of(stream.family, self._named(address), names.first).sockaddr()
        if not isinstance(stream, Stream):
            return stream.connect(sockaddr) if isinstance(stream, Datagrams) else errno.EOPNOTSUPP
        limit = self.gettimeout()
        if limit == 0:
            if stream.state is State.NEW:
                self._look_full(stream)
            return stream.connect(sockaddr)
        number = stream.connect(sockaddr)
        if number != errno.EINPROGRESS:
            return number
        if not stream.settled.wait(limit):
            return errno.ETIME
        return 0 if stream.state is State.CONNECTED else stream.take_error() or errno.ECONNABORTED

    def _look_full(self, stream: Stream) -> None:
        """What is not connected yet is not writable."""
        with suppress(BlockingIOError):
            stream.filling += kernel.socket.send(self, _FILLING, standard.MSG_DONTWAIT)

    # --- serving

    def bind(self, address: Any) -> None:
        """bind(2)."""
        held = self._own()
        if held is None:
            super().bind(self._named(address))
            return
        held.bind(endpoint_of(held.family, self._named(address), names.first).sockaddr())

    def listen(self, backlog: int = 128) -> None:
        """listen(2)."""
        stream = self._own()
        if stream is None:
            super().listen(backlog)
            return
        if not isinstance(stream, Stream):
            raise failure(errno.EOPNOTSUPP)
        if stream.state not in (State.NEW, State.LISTENING):
            raise failure(errno.EINVAL)
        door = stream.door or Door(stream)
        outer = door.open(backlog)
        if outer is None:
            return
        with outer:
            stream.door = door
            outer.setblocking(self.gettimeout() is None)
            stream.hand_over_end()
            os.dup2(outer.fileno(), self.fileno(), self.get_inheritable())
        stream.link.remember(stream, self.fileno())
        door.wait()

    def accept(self) -> tuple[standard.socket, Any]:
        """accept(2)."""
        held = self._own()
        if held is None:
            return super().accept()
        if not isinstance(held, Stream):
            raise failure(errno.EOPNOTSUPP)
        if held.state is not State.LISTENING:
            raise failure(errno.ENETDOWN if held.state is State.ENDED else errno.EINVAL)
        while True:
            fd, _ = self._accept()  # type: ignore[attr-defined]
            found = socket(fileno=fd)
            if found._held is not None:
                break
            found.close()  # somebody in the guest knocked at the door itself
            if held.state is not State.LISTENING:
                if held.door is not None:
                    held.door.knock()  # for the next one who waits
                raise failure(errno.ENETDOWN)
        if held.inline:
            found._held.inline = True
            found._take_inline(found._held)
        send, _ = held.sizes
        if send:
            kernel.socket.setsockopt(found, standard.SOL_SOCKET, standard.SO_SNDBUF, send)
        if standard.getdefaulttimeout() is None and self.gettimeout():
            found.setblocking(True)
        return found, python_of(held.family, found._held.peer)

    # --- options

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> Any:
        """getsockopt(2)."""
        stream = self._own()
        if stream is None:
            return (
                super().getsockopt(level, option, buflen)
                if buflen
                else super().getsockopt(level, option)
            )
        if buflen < 0 or buflen > 1024:
            raise OSError("getsockopt buflen out of range")
        if level == standard.SOL_SOCKET and option in _OWN_OPTIONS:
            return (
                super().getsockopt(level, option, buflen)
                if buflen
                else super().getsockopt(level, option)
            )
        if (level, option) == _INLINE and stream.reads_urgent:
            return _INT.pack(stream.inline)[:buflen] if buflen else int(stream.inline)
        if level == standard.SOL_SOCKET and option in _KNOWN:
            number = _KNOWN[option](stream)
            return number if not buflen else _INT.pack(number)[:buflen]
        value = stream.get_option(level, option, buflen or _INT.size)
        return value if buflen else _INT.unpack(value.ljust(_INT.size, b"\0"))[0]

    def setsockopt(self, level: int, option: int, value: Any, optlen: int | None = None) -> None:
        """setsockopt(2)."""
        stream = self._own()
        own = level == standard.SOL_SOCKET and option in _OWN_OPTIONS
        if stream is None or own:
            if optlen is None:
                super().setsockopt(level, option, value)
            else:
                super().setsockopt(level, option, value, optlen)
            return
        if value is None:
            if optlen is None:
                raise TypeError(
                    "socket.setsockopt() requires 4 arguments when the third argument is None"
                )
            raw = bytes(optlen)
        else:
            raw = _INT.pack(value) if isinstance(value, int) else bytes(value)
        if (level, option) == _INLINE and stream.reads_urgent:
            if len(raw) < _INT.size:
                raise failure(errno.EINVAL)
            stream.inline = any(raw[: _INT.size])
            self._take_inline(stream)
            return
        stream.set_option(level, option, raw)
        if level == standard.SOL_SOCKET and option == standard.SO_SNDBUF:
            super().setsockopt(level, option, value)

    def _take_inline(self, stream: Held) -> None:
        """Read urgent bytes as the stream says: the kernel does so, at the program's end."""
        kernel.socket.setsockopt(self, *_INLINE, stream.inline)

    def splice(self, other: standard.socket, ended: Callable[[int, int, int], None]) -> None:
        """See Stream.splice. This socket is closed then."""
        stream = self._held
        if not isinstance(stream, Stream):
            raise failure(errno.EOPNOTSUPP)
        stream.splice(other, ended)
        self.close()

    # --- the end

    def shutdown(self, how: int) -> None:
        """shutdown(2). Raises OSError (EOPNOTSUPP): the backend speaks version 1, which can only close."""
        stream = self._own()
        if stream is None:
            super().shutdown(how)
            return
        if not -(1 << 31) <= how < 1 << 31:
            raise OverflowError("Python int too large to convert to C int")
        if how not in (standard.SHUT_RD, standard.SHUT_WR, standard.SHUT_RDWR):
            raise failure(errno.EINVAL)
        if isinstance(stream, Stream) and stream.state is State.LISTENING:
            stream.shut(How(how))
            super().shutdown(how)
            return
        if stream.state is not State.CONNECTED:
            raise failure(errno.ENOTCONN)
        if isinstance(stream, Stream):
            if how != standard.SHUT_RD and not stream.link.has(Extension.SHUTDOWN):
                raise failure(errno.EOPNOTSUPP)
            stream.shut_down = True
        super().shutdown(how)  # the mover sees it, behind what was sent

    def detach(self) -> int:
        """Give the descriptor away: it stays a socket of the backend's network until nobody holds it."""
        if self._held is not None and self.fileno() >= 0:
            self._held.holders -= 1
        return super().detach()

    def _real_close(self, *args: Any) -> None:
        held = self._held if self.fileno() >= 0 else None
        super()._real_close(*args)  # type: ignore[misc]
        if held is None:
            return
        held.holders -= 1
        if not held.holders:
            held.closed()


_USUAL: dict[int, int] = {
    standard.SOCK_STREAM: int(standard.IPPROTO_TCP),
    standard.SOCK_DGRAM: int(standard.IPPROTO_UDP),
}
_KNOWN: dict[int, Callable[[Held], int]] = {
    standard.SO_ERROR: lambda stream: stream.take_error(),
    standard.SO_TYPE: lambda stream: stream.type,
    standard.SO_DOMAIN: lambda stream: stream.family,
    standard.SO_PROTOCOL: lambda stream: stream.protocol or _USUAL[stream.type],
    standard.SO_ACCEPTCONN: lambda stream: int(stream.state is State.LISTENING),
}
