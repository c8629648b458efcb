"""The bytes of own sockets: send and recv in all their forms.

A stream's go through the socket pair as they are, so the kernel's waiting, time limits and flags are its own. Datagrams
go as frames with their address.
"""

from __future__ import annotations

import errno
import operator
import socket as standard
from typing import TYPE_CHECKING, Any

from xensock.calls.address import Endpoint
from xensock.client import names
from xensock.client.address import endpoint_of, failure, python_of
from xensock.client.arguments import bytes_of, control_of, room_of, writable
from xensock.client.datagrams import Datagrams
from xensock.client.held import State
from xensock.client.stream import Stream
from xensock.wire.extensions import Extension
from xensock.wire.frames import HEADER, Frame, decode_frame
from xensock.wire.packet_info import SIZE as INFO_SIZE
from xensock.wire.packet_info import PacketInfo, fitting

if TYPE_CHECKING:
    from xensock.client.held import Held

LONGEST = 65535  # bytes of a datagram
_WAITING = standard.MSG_PEEK | standard.MSG_DONTWAIT


class Transfer(standard.socket):
    """What moves bytes. `_held` is None for sockets of the guest's own kernel."""

    _held: Held | None = None

    def _named(self, address: Any) -> Any:
        """An address as the family below has it."""
        return address

    def _own(self) -> Held | None:
        """The socket at the backend; None for one of the guest's kernel. Raises OSError (EBADF) once it is closed."""
        if self._held is not None and self.fileno() < 0:
            raise failure(errno.EBADF)
        return self._held

    # --- what the state of a stream allows

    def _may_send(self, flags: int) -> None:
        held = self._own()
        if not isinstance(held, Stream):
            return
        if flags & standard.MSG_OOB and not held.link.has(Extension.URGENT):
            raise failure(errno.EOPNOTSUPP)
        if held.state is State.CONNECTING:
            self._await_connect(held)
        if held.state in (State.NEW, State.LISTENING):
            raise failure(errno.EPIPE)
        if held.error:
            raise failure(held.take_error())

    def _may_receive(self, flags: int) -> None:
        held = self._own()
        if not isinstance(held, Stream):
            return
        if flags & standard.MSG_ERRQUEUE:
            raise self._no_report()
        if held.state is State.LISTENING:
            raise failure(errno.ENOTCONN)
        if flags & standard.MSG_OOB:
            if held.state is State.CONNECTED:
                return
            raise failure(errno.EINVAL)  # as tcp(7) says when there is none
        if held.state is State.CONNECTING:
            self._await_connect(held)
        if held.state is State.NEW:
            raise failure(errno.ENOTCONN)

    @staticmethod
    def _urgent(flags: int, *parts: Any) -> int:
        """The flags of sending these: with no byte there is no urgent one, which unix(7) takes for an error."""
        if flags & standard.MSG_OOB and not any(memoryview(part).nbytes for part in parts):
            return flags & ~standard.MSG_OOB
        return flags

    def _await_connect(self, stream: Stream) -> None:
        limit = self.gettimeout()
        if limit == 0:
            raise failure(errno.EAGAIN)
        if not stream.settled.wait(limit):
            raise TimeoutError("timed out")

    def _ended(self) -> None:
        """The stream ended: in order, or by an error that is told now."""
        number = self._held.why_ended() if self._held is not None else 0
        if number:
            raise failure(number)

    # --- datagrams

    def _send_frame(
        self,
        held: Datagrams,
        payload: bytes,
        to: Endpoint | None,
        flags: int,
        info: PacketInfo | None = None,
    ) -> int:
        if flags & standard.MSG_OOB and not held.ignores_urgent(to):
            raise failure(errno.EOPNOTSUPP)
        if to is None and held.state is not State.CONNECTED:
            raise failure(errno.EDESTADDRREQ)
        if len(payload) > LONGEST:
            raise failure(errno.EMSGSIZE)
        where = b"" if to is None else to.sockaddr()
        packet = Frame(payload, where, info=info).encode()
        super().send(packet, flags & standard.MSG_DONTWAIT)
        return len(payload)

    def _next_frame(self, held: Datagrams, flags: int) -> Frame | None:
        """As it came; None once the backend is gone."""
        packet = super().recv(HEADER + INFO_SIZE + LONGEST + 8, flags & _WAITING)
        return decode_frame(packet, held.informed)[0] if packet else None

    def _frame(self, flags: int) -> Frame | None:
        """The next one of a datagram socket, as `_next_frame`."""
        held = self._own()
        assert isinstance(held, Datagrams)
        return self._next_frame(held, flags)

    def _receive_frame(self, held: Datagrams, flags: int) -> Frame:
        if flags & standard.MSG_OOB and held.pings:
            raise failure(errno.EOPNOTSUPP)
        frame = self._next_frame(held, flags)
        if frame is None:
            raise failure(errno.ENETDOWN)
        if frame.error:
            if not flags & standard.MSG_PEEK:
                held.reports.keep(frame)
            raise failure(-frame.error)
        return frame

    def _receive_report(
        self, held: Datagrams, bufsize: int, room: int
    ) -> tuple[bytes, list[Any], int, Any]:
        """As recvmsg(2) with MSG_ERRQUEUE, which never waits."""
        frame = held.reports.take() or self._next_report(held)
        if frame is None:
            raise self._no_report()
        assert frame.icmp is not None
        control, less = fitting(held.reports.control(frame), room)
        seen = standard.MSG_ERRQUEUE | (standard.MSG_CTRUNC if less else 0)
        seen |= standard.MSG_TRUNC if len(frame.icmp.quote) > bufsize else 0
        return frame.icmp.quote[:bufsize], control, seen, python_of(held.family, frame.address)

    def _next_report(self, held: Datagrams) -> Frame | None:
        """What came next, if that is a report. Whoever reads it here is not told by recv() any more."""
        waits = standard.MSG_DONTWAIT if not self.gettimeout() else 0
        try:
            frame = self._next_frame(held, standard.MSG_PEEK | waits)
        except BlockingIOError:
            return None
        if frame is None or frame.icmp is None:
            return None
        return self._next_frame(held, standard.MSG_DONTWAIT)

    def _no_report(self) -> OSError:
        """With a time limit Python waits for one as for data, and says so."""
        return TimeoutError("timed out") if self.gettimeout() else failure(errno.EAGAIN)

    def _receive_datagram(
        self, held: Datagrams, bufsize: int, flags: int, room: int = 0
    ) -> tuple[bytes, list[Any], int, Any]:
        """As recvmsg(2): data, control messages in so many bytes, flags, address."""
        if bufsize < 0:
            raise ValueError("negative buffersize in recvfrom")
        if flags & standard.MSG_ERRQUEUE:
            return self._receive_report(held, bufsize, room)
        frame = self._receive_frame(held, flags)
        cut = frame.truncated or len(frame.payload) > bufsize
        seen = standard.MSG_TRUNC if cut else 0
        sender = frame.address or held.peer
        control: list[Any] = []
        if frame.info is not None and held.wanted:
            four = Endpoint.from_sockaddr(sender).unmapped().host.version == 4
            control, less = fitting(frame.info.as_received(held.wanted, four), room)
            seen |= standard.MSG_CTRUNC if less else 0
        return frame.payload[:bufsize], control, seen, python_of(held.family, sender)

    # --- sending

    def send(self, data: Any, flags: int = 0) -> int:
        """send(2)."""
        held = self._own()
        if isinstance(held, Datagrams):
            return self._send_frame(held, bytes_of(data), None, flags)
        self._may_send(flags)
        try:
            return super().send(data, self._urgent(flags, data))
        except BrokenPipeError:
            self._ended()
            raise

    def sendall(self, data: Any, flags: int = 0) -> None:
        """send(2) until everything is sent."""
        if isinstance(self._own(), Datagrams):
            self.send(data, flags)
            return
        self._may_send(flags)
        try:
            super().sendall(data, self._urgent(flags, data))
        except BrokenPipeError:
            self._ended()
            raise

    def sendto(self, data: Any, *args: Any) -> int:
        """sendto(2): a stream's address is ignored, as tcp(7) does."""
        held = self._own()
        if held is None or len(args) not in (1, 2):
            return super().sendto(data, *args[:-1], *map(self._named, args[-1:]))
        flags = operator.index(args[0]) if len(args) == 2 else 0
        data = bytes_of(data)
        where = endpoint_of(held.family, self._named(args[-1]), names.first)
        if isinstance(held, Datagrams):
            return self._send_frame(held, data, where, flags)
        return self.send(data, flags)

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None) -> int:
        """sendmsg(2). Control messages are those of PacketInfo; others are EINVAL, as those that the kernel does not
        know."""
        held = self._own()
        if held is None:
            return super().sendmsg(buffers, ancdata, flags, address)
        flags, given = operator.index(flags), list(buffers)
        parts = list(map(bytes_of, given)) if isinstance(held, Datagrams) else []
        control, info = control_of(ancdata), None
        if control:
            if not isinstance(held, Datagrams) or not held.informed:
                raise failure(errno.EINVAL)
            info = PacketInfo.given(control)
        to = (
            None if address is None else endpoint_of(held.family, self._named(address), names.first)
        )
        self._may_send(flags)
        if isinstance(held, Datagrams):
            return self._send_frame(held, b"".join(parts), to, flags, info)
        try:
            return super().sendmsg(given, (), self._urgent(flags, *given))
        except BrokenPipeError:
            self._ended()
            raise

    # --- receiving

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """recv(2)."""
        held = self._own()
        if isinstance(held, Datagrams):
            return self._receive_datagram(held, bufsize, flags)[0]
        self._may_receive(flags)
        data = super().recv(bufsize, flags)
        if not data and bufsize:
            self._ended()
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """recv(2) into a buffer."""
        if isinstance(self._own(), Datagrams):
            return self.recvfrom_into(buffer, nbytes, flags)[0]
        self._may_receive(flags)
        got = super().recv_into(buffer, nbytes, flags)
        if not got:
            self._ended()
        return got

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, Any]:
        """recvfrom(2): a stream names no sender."""
        held = self._own()
        if held is None:
            return super().recvfrom(bufsize, flags)
        if isinstance(held, Datagrams):
            data, _, _, address = self._receive_datagram(held, bufsize, flags)
            return data, address
        return self.recv(bufsize, flags), None

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """recvfrom(2) into a buffer."""
        held = self._own()
        if held is None:
            return super().recvfrom_into(buffer, nbytes, flags)
        if not isinstance(held, Datagrams):
            return self.recv_into(buffer, nbytes, flags), None
        view = writable(buffer)
        if nbytes < 0:
            raise ValueError("negative buffersize in recvfrom_into")
        if nbytes > len(view):
            raise ValueError("nbytes is greater than the length of the buffer")
        data, _, _, address = self._receive_datagram(held, nbytes or len(view), flags)
        view[: len(data)] = data
        return len(data), address

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, list[Any], int, Any]:
        """recvmsg(2)."""
        held = self._own()
        if isinstance(held, Datagrams):
            bufsize, flags = room_of("recvmsg", bufsize, ancbufsize), operator.index(flags)
            return self._receive_datagram(held, bufsize, flags, operator.index(ancbufsize))
        self._may_receive(flags)
        data, control, seen, address = super().recvmsg(bufsize, ancbufsize, flags)
        if not data and bufsize:
            self._ended()
        return data, control, seen, address if held is None else None

    def recvmsg_into(
        self, buffers: Any, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[int, list[Any], int, Any]:
        """recvmsg(2) into buffers."""
        held = self._own()
        if isinstance(held, Datagrams):
            if isinstance(buffers, (bytes, bytearray)):
                raise TypeError("a bytes-like object is required, not 'int'")
            views = [writable(each) for each in buffers]
            size = room_of("recvmsg_into", sum(map(len, views)), ancbufsize)
            flags, room = operator.index(flags), operator.index(ancbufsize)
            data, control, seen, address = self._receive_datagram(held, size, flags, room)
            at = 0
            for view in views:
                part = data[at : at + len(view)]
                view[: len(part)] = part
                at += len(part)
            return len(data), control, seen, address
        self._may_receive(flags)
        got, control, seen, address = super().recvmsg_into(buffers, ancbufsize, flags)
        if not got:
            self._ended()
        return got, control, seen, address if held is None else None
