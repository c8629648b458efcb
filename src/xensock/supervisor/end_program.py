"""The kernel's program that tells of TCP sockets that end: a message of each, as sock_diag(7) would send it.

Theory of operation: it is called for what sockets of a cgroup do (BPF_PROG_TYPE_SOCK_OPS). Those that are about to
connect or to listen are marked, so that it is called for their changes of state, too; connections that a listener
accepts have its marks. One that becomes closed has its message put into a ring buffer. Of `struct tcp_info` only the
counters are filled in that tcpinfo.counted() reads, and one of those is not to be had here: what was sent is all that
was acknowledged and all that is out, less the connection's SYN and its FIN. Where something was out, but not yet the
FIN (closed while the other end took nothing more, and reset then), that is one byte too few. Whether the other end's
FIN is among what was received is known from the state that it left, but for FIN_WAIT2: the kernel keeps sockets that
nobody holds no longer than to there. So from FIN_WAIT1 on the program is called for packets that come, until one has a
FIN. A further attribute has the moment, and the network
namespace.
"""

from __future__ import annotations

import socket
import struct
import sys

from xensock.supervisor import ebpf
from xensock.supervisor.ebpf import FP, R0, R1, R2, R3, R4, R6, R7, R8, R9
from xensock.supervisor.tcpinfo import ENDED, INET_DIAG_INFO, SOCK_DIAG_BY_FAMILY

SOCK_OPS, CGROUP_SOCK_OPS = 13, 3  # enum bpf_prog_type, enum bpf_attach_type
# bpf-helpers(7)
KTIME_GET_NS, GET_SOCKET_COOKIE, CB_FLAGS_SET, GET_NETNS_COOKIE, RINGBUF_OUTPUT = (
    5,
    46,
    59,
    122,
    130,
)
# struct bpf_sock_ops (include/uapi/linux/bpf.h), and what its `op` may be
OP, OLD_STATE, NEW_STATE, FAMILY, REMOTE4, LOCAL4, REMOTE6, LOCAL6 = 0, 4, 8, 20, 24, 28, 32, 48
REMOTE_PORT, LOCAL_PORT, FLAGS, NEXT, UNACKED, RECEIVED, ACKED = 64, 68, 84, 104, 108, 168, 176
TCP_FLAGS = 212
CONNECT_CB, STATE_CB, LISTEN_CB, PARSE_CB = 3, 10, 11, 13
STATE_FLAG = 1 << 2
PARSE_FLAG = 1 << 4  # to be told of packets that come
# Nothing is done with being told of time-outs: it marks listeners, so what they accept, whose bytes begin without SYN.
ACCEPTED_FLAG = 1 << 0
FIN = 1 << 0  # of a packet's flags
FIN_WAIT1, FIN_WAIT2, CLOSED, CLOSE_WAIT, LAST_ACK, CLOSING = 4, 5, 7, 8, 9, 11  # tcp_states.h
FIN_ACKED = (FIN_WAIT2, LAST_ACK, CLOSING)  # the latter two become closed by that

# The message: struct nlmsghdr, inet_diag_msg, and attributes.
BODY, INFO, MOMENT = 16, 16 + 72, 16 + 72 + 4 + 216
SIZE = MOMENT + 4 + 16
_ACKED, _RECEIVED, _SENT = (INFO + 4 + at for at in (120, 128, 200))  # within struct tcp_info
_PORTS, _ADDRESSES, _COOKIE = BODY + 4, BODY + 8, BODY + 44
_AT = -SIZE - 4  # in the program's frame: so that the counters lie where 8 bytes may


def load(ring: int, lost: int) -> int:
    """The program's descriptor. Raises OSError."""
    return ebpf.load(SOCK_OPS, CGROUP_SOCK_OPS, "xensock_ends", code(ring, lost))


def code(ring: int, lost: int) -> bytes:
    """The program: messages go to the ring buffer; `lost` is a map that counts those for which it had no room."""
    c = ebpf.Code()
    c.copy(R6, R1)
    c.load(4, R2, R6, OP)
    c.load(4, R7, R6, FLAGS)
    c.if_equal(R2, STATE_CB, "state")
    c.if_equal(R2, CONNECT_CB, "connects")
    c.if_equal(R2, LISTEN_CB, "listens")
    c.if_equal(R2, PARSE_CB, "packet")
    c.label("out")
    c.set(R0, 1)
    c.end()
    c.label("connects")
    c.both(R7, ~ACCEPTED_FLAG)
    c.jump("mark")
    c.label("listens")
    c.either(R7, ACCEPTED_FLAG)
    c.label("mark")
    c.either(R7, STATE_FLAG)
    c.copy(R1, R6)
    c.copy(R2, R7)
    c.call(CB_FLAGS_SET)
    c.jump("out")
    c.label("packet")
    c.load(4, R1, R6, TCP_FLAGS)
    c.both(R1, FIN)
    c.if_equal(R1, 0, "out")
    c.both(R7, ~PARSE_FLAG)
    c.jump("mark")
    c.label("closes")
    c.either(R7, PARSE_FLAG)
    c.jump("mark")
    c.label("state")
    c.load(4, R2, R6, NEW_STATE)
    c.if_equal(R2, FIN_WAIT1, "closes")
    c.if_other(R2, CLOSED, "out")
    _message(c)
    c.map(R1, ring)
    c.copy(R2, FP)
    c.add(R2, _AT)
    c.set(R3, SIZE)
    c.set(R4, 0)
    c.call(RINGBUF_OUTPUT)
    c.if_equal(R0, 0, "out")
    c.map(R1, lost, ebpf.PSEUDO_MAP_VALUE)
    c.set(R2, 1)
    c.add_at(R1, R2)
    c.jump("out")
    return c.bytes()


def _message(c: ebpf.Code) -> None:
    c.put(4, FP, _AT, SIZE)
    for at in range(_AT + 4, 0, 8):
        c.put(8, FP, at, 0)
    c.put(2, FP, _AT + 4, SOCK_DIAG_BY_FAMILY)
    c.put(1, FP, _AT + BODY + 1, CLOSED)
    c.put(4, FP, _AT + INFO, _header(4 + 216, INET_DIAG_INFO))
    c.put(4, FP, _AT + MOMENT, _header(4 + 16, ENDED))
    c.load(4, R1, R6, LOCAL_PORT)
    c.network_order(R1, 16)
    c.store(2, FP, _AT + _PORTS, R1)
    c.load(4, R1, R6, REMOTE_PORT)  # as four bytes in the network's order
    if sys.byteorder == "little":
        c.shift_right(R1, 16)
    c.store(2, FP, _AT + _PORTS + 2, R1)
    c.load(4, R1, R6, FAMILY)
    c.store(1, FP, _AT + BODY, R1)
    c.if_equal(R1, socket.AF_INET6, "six")
    _copy(c, LOCAL4, _ADDRESSES, 1)
    _copy(c, REMOTE4, _ADDRESSES + 16, 1)
    c.jump("addressed")
    c.label("six")
    _copy(c, LOCAL6, _ADDRESSES, 4)
    _copy(c, REMOTE6, _ADDRESSES + 16, 4)
    c.label("addressed")
    c.copy(R1, R6)
    c.call(GET_SOCKET_COOKIE)
    _words(c, _COOKIE)
    c.load(8, R8, R6, ACKED)
    c.store(8, FP, _AT + _ACKED, R8)
    _sent(c)
    _received(c)
    c.call(KTIME_GET_NS)
    _words(c, MOMENT + 4)
    c.copy(R1, R6)
    c.call(GET_NETNS_COOKIE)
    _words(c, MOMENT + 12)


def _copy(c: ebpf.Code, of: int, to: int, words: int) -> None:
    for at in range(0, 4 * words, 4):
        c.load(4, R1, R6, of + at)
        c.store(4, FP, _AT + to + at, R1)


def _words(c: ebpf.Code, to: int) -> None:
    """R0, which goes: the lower half first."""
    c.store(4, FP, _AT + to, R0)
    c.shift_right(R0, 32)
    c.store(4, FP, _AT + to + 4, R0)


def _sent(c: ebpf.Code) -> None:
    """Of the bytes acknowledged (R8) and those that are out, what was the guest's; R7: flags."""
    c.load(4, R9, R6, NEXT)
    c.load(4, R1, R6, UNACKED)
    c.subtract32(R9, R1)
    c.add_from(R8, R9)
    c.if_equal(R8, 0, "sent")  # nor was there a SYN
    c.if_set(R7, ACCEPTED_FLAG, "no syn")
    c.add(R8, -1)
    c.label("no syn")
    c.load(4, R1, R6, OLD_STATE)
    for state in FIN_ACKED:
        c.if_equal(R1, state, "fin")
    c.if_other(R1, FIN_WAIT1, "sent")
    c.if_equal(R9, 0, "sent")  # it would be out
    c.label("fin")
    c.if_equal(R8, 0, "sent")  # nothing was ever taken
    c.add(R8, -1)
    c.label("sent")
    c.store(8, FP, _AT + _SENT, R8)


def _received(c: ebpf.Code) -> None:
    """With the other end's FIN after an orderly end, as tcpinfo.counted() has it, and without one else. R9: how much is
    out."""
    c.load(8, R8, R6, RECEIVED)
    c.load(4, R1, R6, OLD_STATE)
    c.if_equal(R1, FIN_WAIT2, "waited")
    c.if_equal(R1, CLOSE_WAIT, "reset")
    c.if_equal(R1, LAST_ACK, "both closed")
    c.if_other(R1, CLOSING, "received")
    c.label("both closed")
    c.if_equal(R9, 0, "received")
    c.label("reset")
    c.add(R8, -1)
    c.jump("received")
    c.label("waited")
    c.load(4, R7, R6, FLAGS)
    c.both(R7, PARSE_FLAG)
    c.if_equal(R7, 0, "received")
    c.add(R8, 1)
    c.label("received")
    c.store(8, FP, _AT + _RECEIVED, R8)


def _header(length: int, kind: int) -> int:
    """Of an attribute (netlink(7), struct nlattr), as a word."""
    return int.from_bytes(struct.pack("=HH", length, kind), sys.byteorder)
