"""How many bytes the kernel has taken for a connection of TCP and how many it has given, to the byte.

A process that is killed between a system call and the note of its outcome leaves that to be found out: the kernel
counts what was acknowledged and what came (tcp(7), TCP_INFO), and knows what is still in its queues (SIOCOUTQ,
SIOCINQ). Both counts include the end of a stream, once it was sent or came, as one byte.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import termios
from dataclasses import dataclass
from enum import IntEnum

# struct tcp_info of linux/tcp.h: tcpi_state, and tcpi_bytes_acked with tcpi_bytes_received behind it.
_COUNTS = struct.Struct("=QQ")
_COUNTS_AT = 120
_INT = struct.Struct("=i")
SO_COOKIE = 57
TRIES = 100_000


class State(IntEnum):
    """tcpi_state."""

    ESTABLISHED = 1
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    CLOSING = 11


SENT_END = {State.FIN_WAIT1, State.FIN_WAIT2, State.TIME_WAIT, State.LAST_ACK, State.CLOSING}
HAS_END = {State.TIME_WAIT, State.CLOSE_WAIT, State.LAST_ACK, State.CLOSING}


@dataclass(frozen=True, slots=True)
class Counts:
    """Bytes with the ends of the streams: `taken` to be sent, `given` to be read. `state`: tcpi_state. `any`: whether
    the kernel has counted anything, which it forgets when a socket is disconnected (connect(2), AF_UNSPEC)."""

    taken: int
    given: int
    state: int
    any: bool


def counts(sock: socket.socket) -> Counts:
    """What the kernel says of a socket that nobody uses meanwhile. Raises OSError."""
    inline = socket.SOL_SOCKET, socket.SO_OOBINLINE
    if sock.getsockopt(*inline):
        return _counts(sock)
    sock.setsockopt(*inline, 1)  # else what waits ends at an urgent byte (tcp(7), SIOCINQ)
    try:
        return _counts(sock)
    finally:
        sock.setsockopt(*inline, 0)


def _counts(sock: socket.socket) -> Counts:
    before = _info(sock)
    for _ in range(TRIES):
        out = _queue(sock, termios.TIOCOUTQ)
        waiting = _queue(sock, termios.FIONREAD)
        after = _info(sock)
        if after == before:
            state, acknowledged, came = after
            counted = bool(acknowledged or came)
            return Counts(acknowledged + out, came - waiting, state, counted)
        before = after  # something was acknowledged or came in between
    raise OSError(errno.EAGAIN, "the connection does not come to rest")


def _info(sock: socket.socket) -> tuple[int, int, int]:
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTS_AT + _COUNTS.size)
    if len(raw) < _COUNTS_AT + _COUNTS.size:
        raise OSError(errno.EOPNOTSUPP, "the kernel does not count bytes")  # before Linux 4.1
    return (raw[0], *_COUNTS.unpack_from(raw, _COUNTS_AT))


def _queue(sock: socket.socket, what: int) -> int:
    return int(_INT.unpack(fcntl.ioctl(sock.fileno(), what, bytes(_INT.size)))[0])


@dataclass(frozen=True, slots=True)
class Start:
    """Where the mover goes on: the ring's out_cons and in_prod, whether the end of `out` was sent, and the errno of a
    connection that has died."""

    rx: int
    tx: int
    shut: bool
    error: int


def resumed(
    sock: socket.socket,
    begun: tuple[int, int, int, int],
    shown: int,
    stop: int,
    told: tuple[int, int] = (0, 0),
) -> Start | None:
    """Where another process stopped. `begun`: both counts and both indexes when it began; `shown`: in_prod as the ring
    has it; `stop`: the index at which `out` ends, or one before that, -1 where it has no end; `told`: the errno of `in`
    and of `out` as the ring has them. None: the socket was disconnected, or reset before anything came. Raises
    OSError."""
    taken, given, out, into = begun
    now = counts(sock)
    sent, read = now.taken - taken, now.given - given
    if sent < 0 or read < 0 or (now.state == State.CLOSE and not now.any):
        return None
    shut = now.state in SENT_END
    ended, end, error = now.state in HAS_END, shut, 0
    if now.state == State.CLOSE:
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        shut = stop >= 0
        end = shut and 0 < (out + sent - stop) & 0xFFFFFFFF < 1 << 31
        ended = _came(error, end, told, shown == (into + read - 1) & 0xFFFFFFFF and read > 0)
        if not error and not shut:
            error = errno.ECONNRESET  # it was told to the other process
    sent -= end
    read -= ended
    return Start((out + sent) & 0xFFFFFFFF, (into + read) & 0xFFFFFFFF, shut, error)


def _came(error: int, end: bool, told: tuple[int, int], shown: bool) -> bool:
    """Whether a connection that is over had its peer's end, which is in the count then. `end`: ours was sent; `shown`:
    whether the ring shows one byte less than the count has."""
    error = error or told[1]
    if told[0] == errno.ENOTCONN or error == errno.EPIPE or (end and not error):
        return True  # it was read; a reset after it (tcp_reset); there is no other way to end without an error
    if error == errno.ECONNRESET and not end:
        return False  # after the peer's end it would have been EPIPE
    return shown


def cookie(sock: socket.socket) -> int:
    """What tells a socket of the host from all others (SO_COOKIE)."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")
