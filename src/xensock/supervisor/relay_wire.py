"""The relay's own sockets in the guest's namespace: they catch SYNs, send packets, and ask for sockets' states."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Callable, Iterator

from xensock.calls.address import Endpoint
from xensock.supervisor.synreplay import Syn, capture_filter

MakeSocket = Callable[[int, int, int], socket.socket]

SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_MARK, SO_COOKIE = 26, 27, 36, 57
IPV6_HDRINCL = 36
IPPROTO_RAW = 255
TCP_SYN_SENT = 2
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLMSG_ERROR = 4, 20, 2


def attach_filter(sock: socket.socket, program: bytes) -> None:
    """Set a classic BPF socket filter. Raises OSError, e.g. ENOMEM when the socket's option memory is used up."""
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)


def cookie_of(sock: socket.socket) -> int:
    """SO_COOKIE: a number that no other socket since boot has."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0])


class Wire:
    """Not for several threads at once. Sockets are made when they are first needed: a host may lack IPv6."""

    def __init__(self, make_socket: MakeSocket, mark: int) -> None:
        self._make = make_socket
        self._mark = mark
        self._captures: dict[int, socket.socket] = {}
        self._raws: dict[int, socket.socket] = {}
        self._diag: socket.socket | None = None
        self.blind = False  # this kernel looks up no sockets, as the first look has shown

    def close(self) -> None:
        for sock in (*self._captures.values(), *self._raws.values()):
            sock.close()
        if self._diag is not None:
            self._diag.close()

    def captured(self, version: int) -> Iterator[Syn]:
        """The SYNs of this IP version that were sent since the last call, oldest first.

        The first call starts the capture. Raises OSError when the kernel refuses that.
        """
        capture = self._captures.get(version) or self._open_capture(version)
        while True:
            try:
                packet = capture.recv(0xFFFF)
            except BlockingIOError:
                return
            syn = Syn.parse(packet)
            if syn is not None:
                yield syn

    def _open_capture(self, version: int) -> socket.socket:
        capture = self._make(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        try:
            capture.setblocking(False)
            capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            attach_filter(capture, capture_filter(version, self._mark))
            # Bound to one protocol it is asked for incoming packets only, which on loopback are all.
            capture.bind(("lo", _ETH_P_IP if version == 4 else _ETH_P_IPV6))
        except OSError:
            capture.close()
            raise
        self._captures[version] = capture
        return capture

    def send(self, packet: bytes, target: Endpoint) -> None:
        """Send a whole IP packet with the secret mark. Raises OSError."""
        version = target.host.version
        raw = self._raws.get(version)
        if raw is None:
            raw = self._make(target.family, socket.SOCK_RAW, IPPROTO_RAW)
            raw.setblocking(False)
            raw.setsockopt(socket.SOL_SOCKET, SO_MARK, self._mark)
            if version == 6:
                raw.setsockopt(socket.IPPROTO_IPV6, IPV6_HDRINCL, 1)
            with contextlib.suppress(
                OSError
            ):  # a raw socket receives as well; nothing here reads it
                raw.shutdown(socket.SHUT_RD)
            self._raws[version] = raw
        raw.sendto(packet, (str(target.host), 0))

    def state(self, own: Endpoint, peer: Endpoint, cookie: int) -> int | None:
        """TCP state (1 established, 2 SYN_SENT, …) of the guest's socket with these names; None when it is gone.

        As long as it may be there, SYN_SENT on a kernel that cannot tell: one without the module tcp_diag.
        """
        if self._diag is None:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            diag = self._make(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
            try:
                self.blind = not self._sees(diag)
            except OSError:
                diag.close()
                raise
            self._diag = diag
        if self.blind:
            return TCP_SYN_SENT
        found = self._look(self._diag, own, peer)
        return found[0] if found is not None and found[1] == cookie else None

    def _sees(self, diag: socket.socket) -> bool:
        """Whether a socket that is there is found: the kernel says ENOENT of both, a socket and the module. Raises
        OSError."""
        with self._make(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0) as known:
            known.bind(("127.0.0.1", 0))
            known.listen()
            own = Endpoint.from_python(known.getsockname())
            return self._look(diag, own, Endpoint(own.host, 0)) is not None

    @staticmethod
    def _look(diag: socket.socket, own: Endpoint, peer: Endpoint) -> tuple[int, int] | None:
        """State and cookie of the socket with these names. Raises OSError."""
        # struct inet_diag_req_v2 with struct inet_diag_sockid (linux/inet_diag.h)
        body = struct.pack("=BBBBI", own.family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
        body += struct.pack("!HH", own.port, peer.port)
        body += own.host.packed.ljust(16, b"\0") + peer.host.packed.ljust(16, b"\0")
        body += struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
        head = struct.pack("=IHHII", 16 + len(body), _SOCK_DIAG_BY_FAMILY, 1, 1, 0)
        diag.send(head + body)
        answer = diag.recv(0xFFFF)
        (kind,) = struct.unpack_from("=H", answer, 4)
        if kind == _NLMSG_ERROR:
            (number,) = struct.unpack_from("=i", answer, 16)
            if -number in (errno.ENOENT, errno.ESTALE):
                return None
            raise OSError(-number, "sock_diag refuses to look up a socket")
        (found,) = struct.unpack_from("=Q", answer, 16 + 4 + 4 + 32 + 4)
        return answer[17], found


def connect_local(sock: socket.socket, path: str) -> int:
    """Connect a unix socket, which does not wait (unix(7)); 0 or the errno that a stream of TCP would show."""
    error = sock.connect_ex(path)
    # What a path says about itself means that nobody is there.
    known = (0, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)
    return error if error in known else errno.ECONNREFUSED
