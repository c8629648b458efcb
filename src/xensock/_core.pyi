"""The C core (native/ext). Descriptors are ints; errno results are 0 for success."""

from typing import Any, Literal, TypeAlias

from _typeshed import ReadableBuffer as Buffer

SYS: dict[str, int]
AUDIT_ARCH: int

Handle: TypeAlias = Any
Event: TypeAlias = tuple[
    int,
    int,
    int,
    int,
    tuple[int, int, int, int, int, int],
    int,
    int,
    int,
    int,
    bytes,
    int,
    int,
    int,
    int,
    bytes,
]

# Connects that the core finished, one after another: (handle, samples, tids). A sample is the first of those with the
# same address, verdict, errno and program; tids: of all the callers' threads.
Run: TypeAlias = tuple[Any, list[Event], list[int]]

def connect_start(fd: int, sockaddr: Buffer, wait_us: int, /) -> int: ...
def epoll_carry(epfd: int, op: int, sock: int, number: int, events: int, data: int, /) -> int: ...
def epoll_watches(pid: int, efd: int, tfd: int, /) -> int: ...
def landlock_abi() -> int: ...
def notify(eventfd: int, /) -> None: ...  # adds 1; never blocks, whoever else holds it
def read_memory(pid: int, address: int, length: int, /) -> bytes: ...
def open_within(dirfd: int, path: bytes, in_root: bool, /) -> int: ...
def act_as(uid: int, gid: int, groups: Buffer, /) -> None: ...  # this thread alone, which is root's
def write_memory(pid: int, address: int, data: Buffer, /) -> None: ...
def super_start(
    notify_fd: int, record: bool, killable: bool, journal_fd: int = -1, /
) -> Handle: ...
def super_limit(handle: Handle, sockets: int, connects: int, calls: int, /) -> None: ...
def super_room(handle: Handle, sockets: int, /) -> None: ...
def super_stop(handle: Handle, /) -> None: ...
def super_record(handle: Handle, on: bool, /) -> None: ...
def super_next(handle: Handle, timeout_ms: int, /) -> list[Event | Run] | None: ...
def run_events(run: Any, /) -> list[Event]: ...
def super_answer(handle: Handle, id: int, value: int, error: int, go_on: bool, /) -> int: ...
def super_valid(handle: Handle, id: int, /) -> bool: ...
def super_addfd(handle: Handle, id: int, srcfd: int, number: int, flags: int, /) -> int: ...
def super_connect(
    handle: Handle,
    id: int,
    tid: int,
    fd: int,
    sockaddr: Buffer,
    verdict: int,
    start_ns: int,
    cache: bool,
    begun: bool,
    /,
) -> None: ...
def super_await(
    handle: Handle,
    id: int,
    tid: int,
    fd: int,
    sockaddr: Buffer,
    verdict: int,
    start_ns: int,
    /,
) -> None: ...
def super_refuse(handle: Handle, sockaddr: Buffer, verdict: int, error: int, /) -> None: ...
def super_flush(handle: Handle, /) -> None: ...
def super_getfd(handle: Handle, tid: int, fd: int, /) -> int: ...
def super_born(handle: Handle, cookie: int, /) -> tuple[int, int] | None: ...
def super_interrupt(handle: Handle, id: int, tid: int, /) -> int: ...
def super_keep(handle: Handle, cookie: int, nr: int, error: int, /) -> None: ...

# Lines of the audit log, and connections under way (native/core/ledger.h). A beginning: (kind, cookie, ns of unix time,
# tid, user), kind None where somebody else knows it; counts: (sent, received, errno, when in ns of unix time), see
# Endings.ended(); when 0: not known.
Ledger: TypeAlias = Any
Begun: TypeAlias = tuple[int | None, int, int, int, int]
Counts: TypeAlias = tuple[int | None, int | None, int, int]
Heard: TypeAlias = tuple[bool, bool, bytes, int, list[tuple[Begun, Counts]], list[bytes]]

def ledger() -> Ledger: ...

# The parts are those of a call's line, then those of an end's.
def ledger_kind(ledger: Ledger, parts: list[bytes], /) -> int: ...
def ledger_drop(ledger: Ledger, kind: int, /) -> None: ...
def ledger_done(ledger: Ledger, kind: int, /) -> None: ...

# `kinds` of the samples, `users` of the tids. (lines, how many, events without a kind). The connections are under way
# from then on, up to `most`, or their ends are among the lines.
def ledger_calls(
    ledger: Ledger,
    run: Any,
    kinds: list[int | None],
    users: list[int],
    epoch_ns: int,
    now_ns: int,
    most: int,
    /,
) -> tuple[bytes, int, list[Event]]: ...

# None: it is under way; False: it is not, since another one of that socket is, or too many are.
def ledger_begin(
    ledger: Ledger, cookie: int, time_ns: int, most: int, /
) -> Counts | Literal[False] | None: ...

# Fetches what the kernel tells: (whether there may be more, whether messages were dropped, lines of ends, how many,
# ends instead of lines, messages that somebody else is to look at).
def ledger_hear(ledger: Ledger, fd: int, now_ns: int, as_lines: bool, /) -> Heard: ...

# The same, of messages that lie one behind the other.
def ledger_hear_of(
    ledger: Ledger, messages: bytes, epoch_ns: int, now_ns: int, as_lines: bool, /
) -> Heard: ...
def ledger_stranger(ledger: Ledger, message: bytes, epoch_ns: int, /) -> None: ...
def ledger_take(ledger: Ledger, cookie: int, /) -> Begun | None: ...
def ledger_cookies(ledger: Ledger, /) -> list[int]: ...
def ledger_live(ledger: Ledger, /) -> int: ...
def ledger_heed(ledger: Ledger, port: int, on: bool, /) -> None: ...
def ledger_clear(ledger: Ledger, /) -> None: ...
def lines_number(lines: bytes, head: bytes, first: int, /) -> bytes: ...

# A BPF ring buffer (native/core/endring.h). What is read lies one message behind the other; b"": there is none now.
Endring: TypeAlias = Any

def endring_open(fd: int, size: int, /) -> Endring: ...
def endring_read(ring: Endring, /) -> bytes: ...

Mover: TypeAlias = Any

def mover_open(threads: int, /) -> Mover: ...
def mover_add(
    mover: Mover, guest_fd: int, far_fd: int, report: bool, bucket: Bucket | None = None, /
) -> int: ...

# What connections may move together, each way: `rate` bytes per second, 1 to 10^12 (else ValueError), and a quarter of
# a second's worth at once after a pause. Any mover may use it.
Bucket: TypeAlias = Any

def bucket(rate: int, /) -> Bucket: ...
def mover_fd(mover: Mover, /) -> int: ...
def mover_ended(mover: Mover, /) -> list[tuple[int, int, int, int, int]]: ...
def mover_bytes(mover: Mover, token: int, /) -> tuple[int, int] | None: ...
def mover_live(mover: Mover, /) -> int: ...

# One end of a connection that lives in shared memory: (indexes page, data: both halves, notify_fd, event_fd,
# events, urgent). The mover writes notify_fd to wake the other domain and waits for event_fd; both are duplicated, the
# caller's stay the caller's. `events`, `urgent`: the extensions data-events and urgent are in use. The buffers are held
# until the end was fetched by mover_ended(), or until mover_release() returns.
RingEnd: TypeAlias = tuple[Buffer, Buffer, int, int, bool, bool]

# Takes fd, also when it fails: a stream (TCP, AF_UNIX) or, with the extension datagrams, an AF_UNIX SOCK_SEQPACKET
# (role "front": each packet is a frame). In mover_ended() and mover_bytes() the first count is from
# the ring to the socket, the second from the socket to the ring; side 0 is the ring, 1 the socket.
# `start`, role "back" and TCP: goes on where another process stopped: the ring's out_cons and in_prod, whether the end
# of `out` was sent, the index of that end or -1, and the errno of a socket that has died and told so, or 0.
# Role "back": lives until mover_release(). Role "front": ends by itself when both directions have ended and `out` is
# empty, or when the socket failed and `out` is empty; then it is the owner's turn to send CLOSE or RELEASE.
def mover_add_ring(
    mover: Mover,
    fd: int,
    indexes: Buffer,
    data: Buffer,
    role: str,
    notify_fd: int,
    event_fd: int,
    events: bool,
    report: bool,
    urgent: bool = False,
    start: tuple[int, int, bool, int, int] | None = None,
    /,
) -> int: ...

# Two rings of role "back", joined in memory; side 0 is a, side 1 is b. With b None the connection waits for
# mover_join_other() (as in an accept queue): a may write, shut down and be released meanwhile.
def mover_join(mover: Mover, a: RingEnd, b: RingEnd | None, report: bool, /) -> int: ...
def mover_join_other(mover: Mover, token: int, b: RingEnd, /) -> None: ...

# The command SHUTDOWN (how: 0 RD, 1 WR, 2 RDWR), for a ring of role "back". WR takes effect after everything
# that is in `out` now. ProcessLookupError: it has ended.
def mover_shutdown(mover: Mover, token: int, how: int, side: int, /) -> None: ...

# CLOSE and RELEASE: when it returns the ring's memory and events are not touched any more. What was left in the ring
# is delivered in the background, then the far side is closed, with reset=True by a reset. Nothing happens
# when it has ended.
# `keep`: what is left for a socket is in a memfd, so that another process could go on: (memfd, which is the caller's,
# the number of the socket's descriptor, bytes, index of the first one); None where nothing is left.
def mover_release(
    mover: Mover, token: int, reset: bool, side: int, keep: bool = False, /
) -> tuple[int, int, int, int] | None: ...

# Whether the program at the socket of role "front" has gone, whatever the mover's threads know of it: 0 it stays; 1 its
# TCP stream has ended, which a program that closed looks like, too; 2 it has gone, or the connection has ended.
def mover_leaving(mover: Mover, token: int, /) -> int: ...

# (token, "eof" | "reset" | "error", errno, side). "eof" and "reset": what the socket did (role "front": the owner
# sends SHUTDOWN, or CLOSE with reset). "error": the other domain broke the rules of the ring (EPROTO), or the socket
# failed otherwise. Role "front" only; each at most once. mover_fd() is readable for notices too.
def mover_notices(mover: Mover, /) -> list[tuple[int, str, int, int]]: ...
def mover_close(mover: Mover, linger_ms: int, /) -> None: ...

# A process that has this one's descriptors and outlives it (native/core/keeper.h): it answers at `sock`, which stays
# open; `first` is the number that -1 stands for. Its process number; its end is waited for with __WALL. Raises OSError.
def keeper_start(sock: int, first: int, /) -> int: ...

# Rings in shared memory (native/ext/ring.c); xensock.ring.twin has the same classes in Python, as their oracle.
#
# Buffers are writable, 4-byte aligned, and exported until close() or the object's end; afterwards every method raises
# ValueError. One thread at a time uses an object (the GIL sees to it). Words of the other side are read once and
# judged; own indices are kept in private memory, starting from what the buffer holds when the object is made. A result
# `notify` that is True says: now send the other side an event. Before waiting for an event: clear it, call arm() (which
# asks for the event), and wait only when that returns False.

class RingError(ValueError):
    """The other side broke the rules of the ring. The twin raises this very class."""

class FrontRing:
    """The frontend's end of a command ring of 1 to 16 contiguous pages; ValueError for other lengths.

    initialise=True clears the pages first (indices 0, events 1)."""

    def __init__(self, page: Buffer, initialise: bool = False) -> None: ...
    @property
    def slots(self) -> int: ...
    @property
    def free(self) -> int:
        """Requests that can be pushed before a response is popped."""
    def push(self, slot: Buffer, /) -> bool:
        """Put and show one request of 64 bytes (else ValueError); notify. BlockingIOError when free is 0."""
    def pop(self) -> bytes | None:
        """A copy of the next response, 64 bytes. RingError when the back claims more than was asked."""
    def arm(self) -> bool: ...
    def close(self) -> None: ...

class BackRing:
    """The backend's end. It starts where rsp_prod is: what nobody answered is taken (again)."""

    def __init__(self, page: Buffer, taken: int | None = None, answered: int = 0) -> None:
        """`taken` and `answered`: where another process stopped, instead."""
    @property
    def slots(self) -> int: ...
    @property
    def taken(self) -> int:
        """The index behind the last request that was taken."""
    @property
    def answered(self) -> int:
        """The index behind the last response that was put."""
    @property
    def shown(self) -> int:
        """The same, as the page has it: the other side may have written that."""
    @property
    def owed(self) -> int:
        """Requests taken and not answered."""
    def take(self, limit: int = ...) -> list[bytes]:
        """Copies of up to `limit` (default: all) requests. RingError when req_prod is impossible."""
    def answer(self, slot: Buffer, /) -> bool:
        """Put and show one response of at most 64 bytes, padded with zeroes; notify. ValueError when none is owed."""
    def arm(self) -> bool: ...
    def close(self) -> None: ...

class DataRing:
    """Both halves of a data ring of 2^1 to 2^13 pages, as the "front" or the "back" sees them; else ValueError.

    `events`: data-events was negotiated; without it every move is notified (v1). initialise=True (front): index
    words 0, event words 1, first."""

    def __init__(
        self,
        indexes: Buffer,
        data: Buffer,
        role: str,
        events: bool = False,
        initialise: bool = False,
    ) -> None: ...
    @property
    def size(self) -> int:
        """S: bytes of one half."""
    @property
    def readable(self) -> int: ...
    @property
    def room(self) -> int: ...
    def peek(self, max: int, /) -> bytes:
        """A copy of the first up to `max` readable bytes, which stay."""
    def read(self, max: int, /) -> tuple[bytes, bool]:
        """(up to `max` bytes, notify); nothing there is (b"", False), then see read_error."""
    def write(self, data: Buffer, /) -> tuple[int, bool]:
        """(bytes written, notify); no room, or out_error at the front: (0, False)."""
    def arm_read(self) -> bool:
        """Ask for an event at the next byte. True: there are bytes or an error, do not wait."""
    def arm_write(self, wanted: int = 1) -> bool:
        """Ask for an event once `wanted` bytes (1 to size, else ValueError) are free. True: do not wait."""
    @property
    def read_error(self) -> int:
        """Front: in_error once everything sent before it has been read, else 0. Back: 0.

        Unlike in_error after an empty read(), it cannot hide bytes that came in between."""
    @property
    def in_error(self) -> int:
        """0 or a negated errno. Front: the word as it is. Back: what it set; setting it is the back's
        (AttributeError at the front), must be negative or 0 (ValueError), and calls for a notification."""
    @in_error.setter
    def in_error(self, value: int, /) -> None: ...
    @property
    def out_error(self) -> int: ...
    @out_error.setter
    def out_error(self, value: int, /) -> None: ...
    @property
    def status(self) -> int:
        """The word of async-connect: 1 once connected. Set by the back, read by both."""
    @status.setter
    def status(self, value: int, /) -> None: ...
    def close(self) -> None: ...

# A guest's memory (native/ext/pagemap.c), for transports.

class PageMap:
    """Contiguous mapped pages, a writable buffer; they are unmapped when the last view of it is gone. The memory is
    shared with whoever granted it."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def own(self) -> None:
        """Processes that are made from now on do not have these pages mapped. Raises OSError as madvise(2) does."""

def map_pages(runs: list[tuple[int, int, int]], /) -> PageMap:
    """Map runs (fd, first page, pages) side by side. Raises OSError as mmap(2) does."""

def region_fault(fd: int, pages: int, /) -> str:
    """Why a descriptor is no memfd of this many pages that stays what it is (sealed); "" when it is one."""

# The relay of datagrams (native/ext/udp.c). Addresses are 16 bytes, IPv4 ones mapped (::ffff:a.b.c.d); protocols are 17
# (UDP) and 1 (echo of ICMP and ICMPv6, whose "port" is the guest's identifier). Flags: see native/core/udp.h.

Udp: TypeAlias = Any

def udp_open(card_fd: int, mac: Buffer, plain: Buffer, record: bool, /) -> Udp: ...
def udp_close(handle: Udp, /) -> None: ...
def udp_fd(handle: Udp, /) -> int: ...
def udp_events(handle: Udp, /) -> list[tuple[int, int, bytes, int, bytes, int, int]]: ...
def udp_port(
    handle: Udp, proto: int, addr: Buffer, number: int, fd: int, flags: int, id: int, /
) -> None: ...
def udp_unport(
    handle: Udp, proto: int, addr: Buffer, number: int, via: int, automatic: bool = ..., /
) -> bool: ...
def udp_has(handle: Udp, proto: int, addr: Buffer, number: int, via: int, /) -> bool: ...
def udp_decide(
    handle: Udp,
    proto: int,
    number: int,
    remote: Buffer,
    port: int,
    error: int,
    pinned: bool,
    via: int,
    /,
) -> None: ...
def udp_pin(
    handle: Udp, proto: int, number: int, remote: Buffer, port: int, source: Buffer, /
) -> None: ...
def udp_doubt(handle: Udp, /) -> None: ...
def udp_count(handle: Udp, /) -> tuple[int, int]: ...
def udp_read_packets(
    packets: list[bytes], /
) -> list[tuple[int, bytes, int, bytes, int, int, int, bool, bytes]]: ...
def udp_error_packet(
    sender: Buffer,
    proto: int,
    src: Buffer,
    sport: int,
    dst: Buffer,
    dport: int,
    length: int,
    error: int,
    /,
) -> bytes: ...

# Event channels between Xen domains (native/ext/evbridge.c).

EvBridge: TypeAlias = Any

def evbridge_open(evtchn: int, /) -> EvBridge: ...
def evbridge_add(bridge: EvBridge, port: int, domain: int, notify_fd: int, wait_fd: int, /) -> None:
    """Carry events of a port, with that domain, between two eventfds and /dev/xen/evtchn. Raises OSError (EEXIST)."""

def evbridge_remove(bridge: EvBridge, port: int, /) -> None:
    """Nothing of the port is touched any more. Raises OSError (ENOENT)."""

def evbridge_close(bridge: EvBridge, /) -> None: ...
