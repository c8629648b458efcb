"""Frontends that break every rule: one attack a round, each from a fresh connection.

An attack gets a connected `Front` and a random generator of its own, so that a round can be repeated
by its number. It may leave at any moment; the backend has to cope.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

from backkit import Front, sockaddr
from xensock._core import RingError
from xensock.transport import url
from xensock.wire.commands import encode_request
from xensock.wire.errors import WireError
from xensock.wire.extensions import ALL, Extension
from xensock.wire.frames import Frame
from xensock.wire.requests import (
    Accept,
    Attach,
    Bind,
    Close,
    Connect,
    Explain,
    GetName,
    GetOption,
    Listen,
    PageAddress,
    Poll,
    Release,
    SetOption,
    Shutdown,
    Socket,
)
from xensock.wire.states import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from xensock.wire import requests

EVERY = ALL - {Extension.SHARED_RINGS}
WORD = (0, 1, 2, 0x1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
OFFSETS = (
    0,
    4,
    8,
    16,
    20,
    28,
    32,
    64,
    68,
    72,
    80,
    84,
    88,
    104,
    108,
    128,
    132,
    4092,
)  # of an indexes page
# What a round may end with on our side: the backend threw us out, or stopped answering.
EXPECTED = (OSError, AssertionError, RingError, WireError, ValueError, BlockingIOError)


class Sink:
    """Servers that attacks connect to: one reads and echoes a little, one never reads."""

    def __init__(self) -> None:
        self.echo = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.deaf = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        live: dict[int, tuple[socket.socket, float]] = {}
        poll = select.poll()
        for fd in (self.echo.fileno(), self.deaf.fileno(), self._stop):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll(200):
                if fd == self._stop:
                    for sock, _ in live.values():
                        sock.close()
                    return
                if fd in (self.echo.fileno(), self.deaf.fileno()):
                    sock, _ = (self.echo if fd == self.echo.fileno() else self.deaf).accept()
                    live[sock.fileno()] = (sock, time.monotonic())
                    if fd == self.echo.fileno():
                        sock.setblocking(False)
                        poll.register(sock.fileno(), select.POLLIN)
                    continue
                sock, _ = live[fd]
                try:
                    data = sock.recv(65536)
                    with contextlib.suppress(BlockingIOError):
                        sock.send(data[:4096])
                except OSError:
                    data = b""
                if not data:
                    poll.unregister(fd)
                    del live[fd]
                    sock.close()
            for fd, (sock, since) in list(live.items()):
                if time.monotonic() - since > 3:
                    with contextlib.suppress(KeyError):
                        poll.unregister(fd)
                    del live[fd]
                    sock.close()

    def close(self) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join(10)
        os.close(self._stop)
        self.echo.close()
        self.deaf.close()


class Attack:
    """One round."""

    def __init__(self, where: str, sink: Sink, random: Random) -> None:
        self.random, self.sink = random, sink
        self.session = url.connect(where, name=f"hostile-{random.randrange(100)}", timeout=20)
        some = frozenset(e for e in EVERY if random.random() < 0.8)
        if Extension.DATAGRAMS not in some:
            some -= {Extension.ICMP_ECHO, Extension.RESOLVE, Extension.PACKET_INFO}
        self.front = Front(self.session, some, random.choice((0, 0, 1, 4)))

    def run(self) -> str:
        name, attack = self.random.choice(sorted(ATTACKS.items()))
        try:
            with contextlib.suppress(*EXPECTED):
                attack(self)
        finally:
            self.front.close()
        return name

    # --- what attacks are made of

    def word(self) -> int:
        return self.random.choice((*WORD, self.random.getrandbits(32)))

    def bytes(self, count: int) -> bytes:
        return self.random.randbytes(count)

    def soon(self, cookie: int) -> None:
        with contextlib.suppress(AssertionError):
            self.front.result(cookie, 0.05)

    def live(self, order: int = 1) -> tuple[int, object]:
        """A connected stream."""
        front, server = self.front, self.random.choice((self.sink.echo, self.sink.deaf))
        id, stream = front.socket(), front.stream(order)
        request = Connect(id, sockaddr(*server.getsockname()), 0, stream.ref, stream.port)
        front.command(request)
        return id, stream

    def address(self) -> bytes:
        pick = self.random.randrange(5)
        if pick == 0:
            return self.bytes(self.random.randrange(29))
        if pick == 1:
            return sockaddr("::1", self.random.randrange(65536))
        if pick == 2:
            return struct.pack("<H", self.random.randrange(40)) + self.bytes(14)
        port = self.random.choice((0, 53, 80, *[s.getsockname()[1] for s in self.servers()]))
        return sockaddr(self.random.choice(("127.0.0.1", "0.0.0.0", "255.255.255.255")), port)

    def servers(self) -> tuple[socket.socket, ...]:
        return (self.sink.echo, self.sink.deaf)

    def request(self) -> requests.Request:
        """A request that could be one, to sockets that could be there."""
        rnd, front = self.random, self.front
        id = rnd.choice((*range(1, 6), rnd.getrandbits(64)))
        fresh = rnd.choice((*range(1, 6), rnd.getrandbits(64)))
        if rnd.random() < 0.7:
            stream = front.stream(1)
            ref, port = stream.ref, stream.port
        else:
            ref, port = self.word(), self.word()
        makers: list[Callable[[], requests.Request]] = [
            lambda: Socket(id, rnd.choice((0, 1, 2, 10, 17)), rnd.choice((1, 2, 3)), rnd.choice(
                (0, 0, 1, 6, 17, 53, 58, 255))),
            lambda: Socket(id, 2, 1, 0),
            lambda: Connect(id, self.address(), rnd.choice((0, 1, 3, self.word())), ref, port),
            lambda: Connect(id, b"", 2, ref, port, PageAddress(rnd.choice((1, 2)), ref, rnd.choice(
                (0, 2, 110)))),
            lambda: Release(id, rnd.random() < 0.5),
            lambda: Bind(id, self.address()),
            lambda: Listen(id, self.word()),
            lambda: Accept(id, fresh, ref, port),
            lambda: Poll(id),
            lambda: Shutdown(id, rnd.choice((0, 1, 2, self.word()))),
            lambda: GetName(id, rnd.choice((0, 1, self.word()))),
            lambda: SetOption(id, rnd.choice((0, 1, 6, 41)), rnd.randrange(80), self.bytes(
                rnd.choice((0, 1, 4, 8, 36)))),
            lambda: GetOption(id, rnd.choice((0, 1, 6, 41)), rnd.randrange(80), rnd.choice(
                (0, 4, 36, 4096)), rnd.choice((0, ref))),
            lambda: Close(id, rnd.choice((0, 1, self.word()))),
            lambda: Attach(id, ref, port),
            lambda: Explain(id, ref),
        ]  # fmt: skip
        return rnd.choice(makers)()

    def steps(self, count: int) -> None:
        """Random calls, of which some are answered before the next."""
        for _ in range(count):
            if self.front.ring.free == 0:
                self.front.collect()
                if self.front.ring.free == 0:
                    return
            cookie = self.front.submit(self.request())
            if self.random.random() < 0.5:
                self.soon(cookie)


# --- attacks


def lies_in_the_handshake(attack: Attack) -> None:
    front, rnd = attack.front, attack.random
    front.offer()
    front.prepare()
    nodes = {"version": "1", "ring-ref": str(front.pages.refs[0]), "port": str(front.event.port)}
    for _ in range(rnd.randrange(1, 4)):
        name = rnd.choice(
            ("version", "ring-ref", "port", "ring-page-order", "ring-ref0", "request-x", "state",
             "request-shutdown", "request-resolve", "x" * 100)
        )  # fmt: skip
        text = rnd.choice(("", "0", "1", "-1", "99999999999", "x", " 1", "1\n", str(attack.word())))
        nodes[name] = text
    nodes.setdefault("state", "3")
    front.session.write(nodes)
    front.session.wait_for(lambda nodes: nodes.get("state") in ("4", "5", "6"), 0.1)


def states_in_no_order(attack: Attack) -> None:
    front = attack.front
    for _ in range(attack.random.randrange(1, 6)):
        front.session.write({"state": str(attack.random.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 99)))})
    front.session.wait_for(lambda nodes: nodes.get("state") in ("5", "6"), 0.1)


def leaves_at_some_step(attack: Attack) -> None:
    """Of an honest life."""
    left = attack.random.randrange(9)
    front = attack.front
    if left > 0:
        front.offer()
    if left > 1:
        front.publish()
    if left > 2:
        front.session.wait_for(lambda nodes: nodes.get("state") == "4", 5)
        front.state(State.CONNECTED)
        id = front.new_id()
        front.submit(Socket(id, 2, 1, 0))
    if left > 3:
        stream = front.stream()
        address = sockaddr(*attack.sink.echo.getsockname())
        cookie = front.submit(Connect(id, address, 0, stream.ref, stream.port))
    if left > 4:
        front.result(cookie)
        stream.ring.write(b"x" * 5000)
        stream.event.notify()
    if left > 5:
        listener = front.listener()
        front.accept(listener)
    if left > 6:
        front.submit(Release(id))
    if left > 7:
        front.state(State.CLOSING)


def leaves_closing_everything_else(attack: Attack) -> None:
    front = attack.front.handshake()
    attack.live()
    front.listener()
    front.state(State.CLOSING)
    front.session.wait_for(lambda nodes: nodes.get("state") == "5", 1)
    front.state(attack.random.choice((State.CLOSED, State.INITIALISED, State.CONNECTED)))


def random_slots(attack: Attack) -> None:
    front = attack.front.handshake()
    for _ in range(20):
        slot = attack.bytes(64)
        if attack.random.random() < 0.7:
            command = attack.random.choice((*range(8), *range(255, 263)))
            slot = slot[:4] + struct.pack("<I", command) + slot[8:]
        front.push(slot)
        if front.ring.free == 0:
            break
    attack.soon(1)


def random_calls(attack: Attack) -> None:
    attack.front.handshake()
    attack.steps(attack.random.randrange(1, 40))


def a_request_changed_after_it_was_sent(attack: Attack) -> None:
    front = attack.front.handshake()
    page = front.pages.memory
    for _ in range(20):
        front.push(encode_request(1, attack.request()))
        for _ in range(200):
            at = 64 + attack.random.randrange(32) * 64
            page[at : at + 64] = attack.bytes(64)
        front.responses.clear()
        front.collect()


def impossible_command_indices(attack: Attack) -> None:
    front = attack.front.handshake()
    front.socket()
    for _ in range(3):
        for at in (0, 4, 8, 12):
            if attack.random.random() < 0.5:
                front.pages.memory[at : at + 4] = struct.pack("<I", attack.word())
        front.event.notify()
    time.sleep(0.002)


def floods_without_reading(attack: Attack) -> None:
    """Requests as fast as they can be written, responses never looked at."""
    front = attack.front.handshake()
    slot = encode_request(1, attack.random.choice((Poll(9), Socket(1, 2, 1, 0), Release(1))))
    for _ in range(300):
        try:
            front.push(slot)
        except BlockingIOError:
            front.event.notify()
            front.ring.pop()


def parks_everything(attack: Attack) -> None:
    front = attack.front.handshake()
    listener = front.listener()
    while front.ring.free:
        if attack.random.random() < 0.5:
            front.submit(Poll(listener))
        else:
            front.accept(listener)
    if attack.random.random() < 0.5:
        with socket.socket() as caller:
            caller.setblocking(False)
            caller.connect_ex(attack.sink.echo.getsockname())


def lies_in_the_indexes_page(attack: Attack) -> None:
    front = attack.front.handshake()
    _, stream = attack.live(attack.random.choice((1, 2, 5)))
    page, event = stream.page, stream.event  # type: ignore[attr-defined]
    for _ in range(attack.random.randrange(1, 50)):
        at = attack.random.choice(OFFSETS)
        page[at : at + 4] = struct.pack("<I", attack.word())
        event.notify()
    if attack.random.random() < 0.5:
        page[:] = attack.bytes(len(page))
        event.notify()
    for id in (1, 2):
        attack.soon(front.submit(Close(id, attack.random.randrange(2))))


def scribbles_while_data_flows(attack: Attack) -> None:
    attack.front.handshake()
    _, stream = attack.live(2)
    page, event = stream.page, stream.event  # type: ignore[attr-defined]
    stream.ring.write(b"x" * 8000)  # type: ignore[attr-defined]
    end = time.monotonic() + 0.01
    while time.monotonic() < end:
        for at in (0, 68, 104, 108):  # out_urgent and its count are the last two
            page[at : at + 4] = struct.pack("<I", attack.word())
        event.notify()


def rings_of_false_order_and_references(attack: Attack) -> None:
    front = attack.front.handshake()
    for _ in range(10):
        id, stream = front.socket(), front.stream(attack.random.choice((1, 3)))
        order = attack.random.choice((0, 1, 5, 9, 10, 13, 14, attack.word()))
        stream.page[128:132] = struct.pack("<I", order)
        if attack.random.random() < 0.5:
            stream.page[132:4096] = attack.bytes(4096 - 132)
        address = sockaddr(*attack.sink.echo.getsockname())
        ref = attack.random.choice((stream.ref, stream.ref, attack.word()))
        port = attack.random.choice((stream.port, stream.port, attack.word()))
        attack.soon(front.submit(Connect(id, address, 0, ref, port)))


def one_ring_for_many(attack: Attack) -> None:
    """The same pages and the same channel for several sockets."""
    front = attack.front.handshake()
    stream = front.stream(1)
    for _ in range(5):
        id, event = front.socket(), front.session.event()
        port = attack.random.choice((stream.port, event.port))
        address = sockaddr(*attack.sink.echo.getsockname())
        attack.soon(front.submit(Connect(id, address, 0, stream.ref, port)))
        stream.ring.write(b"x" * 1000)
        stream.event.notify()
        event.close()


def events_that_block_and_are_full(attack: Attack) -> None:
    front = attack.front.handshake()
    _, stream = attack.live()
    for channel in (front.event, stream.event):  # type: ignore[attr-defined]
        for fd in (channel.notify_fd, channel.wait_fd):
            os.set_blocking(fd, True)
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(channel.wait_fd, False)
            os.eventfd_write(channel.wait_fd, 2**64 - 2)
        os.set_blocking(channel.wait_fd, True)
    stream.ring.write(b"x" * 4000)  # type: ignore[attr-defined]
    os.set_blocking(stream.event.notify_fd, False)  # type: ignore[attr-defined]
    stream.event.notify()  # type: ignore[attr-defined]
    for _ in range(5):
        front.ring.push(encode_request(1, Poll(7)))
    front.event.notify()
    time.sleep(0.005)


def a_storm_of_events(attack: Attack) -> None:
    front = attack.front.handshake()
    _, stream = attack.live()
    for _ in range(500):
        front.event.notify()
        stream.event.notify()  # type: ignore[attr-defined]


def nonsense_in_frames(attack: Attack) -> None:
    front = attack.front.handshake()
    id, stream = front.new_id(), front.stream(2)
    kind = attack.random.choice(((2, 0), (0, 53), (10, 0)))
    front.command(Socket(id, kind[0], 2, kind[1]))
    front.command(Attach(id, stream.ref, stream.port))
    for _ in range(10):
        frame = Frame(attack.bytes(attack.random.randrange(100)), attack.address()).encode()
        raw = bytearray(frame)
        if attack.random.random() < 0.5:
            at = attack.random.randrange(12)
            raw[at] ^= 1 << attack.random.randrange(8)
        stream.ring.write(bytes(raw))
        stream.event.notify()
    attack.soon(front.submit(Release(id)))


def leaves_bytes_for_a_deaf_peer(attack: Attack) -> None:
    front = attack.front.handshake()
    for _ in range(3):
        id, stream = front.socket(), front.stream(6)
        address = sockaddr(*attack.sink.deaf.getsockname())
        front.command(Connect(id, address, 0, stream.ref, stream.port))
        stream.ring.write(bytes(stream.ring.size))
        stream.event.notify()
        attack.soon(front.submit(Release(id)))


def joined_with_itself(attack: Attack) -> None:
    """A connection in memory between two of its own sockets, whose pages lie and whose ends go in any order."""
    front, rnd = attack.front.handshake(), attack.random
    port = rnd.randrange(20000, 30000)
    listener, client = front.socket(), front.socket()
    front.command(Bind(listener, sockaddr("127.0.0.1", port)))
    front.command(Listen(listener, rnd.choice((0, 1, 100))))
    near, far = front.stream(2), front.stream(rnd.choice((1, 3)))
    steps: list[Callable[[], object]] = [
        lambda: front.submit(Connect(client, sockaddr("127.0.0.1", port), 1, near.ref, near.port)),
        lambda: front.submit(Accept(listener, 77, far.ref, far.port)),
        lambda: near.ring.write(bytes(5000)),
        lambda: far.ring.write(bytes(5000)),
        lambda: front.submit(Shutdown(rnd.choice((client, 77)), rnd.randrange(3))),
        lambda: front.submit(Close(rnd.choice((client, 77, listener)), rnd.randrange(2))),
        lambda: front.submit(GetName(rnd.choice((client, 77)), rnd.randrange(2))),
    ]
    for _ in range(rnd.randrange(2, 25)):
        rnd.choice(steps)()
        for stream in (near, far):
            if rnd.random() < 0.2:
                at = rnd.choice((0, 4, 64, 68))
                stream.page[at : at + 4] = struct.pack("<I", attack.word())
            stream.event.notify()
        if rnd.random() < 0.4:
            time.sleep(0.001)
            front.responses.clear()
            front.collect()


def withdraws_what_is_in_use(attack: Attack) -> None:
    front = attack.front.handshake()
    _, stream = attack.live()
    stream.ring.write(b"x" * 1000)  # type: ignore[attr-defined]
    stream.pages.free()  # type: ignore[attr-defined]
    front.event.notify()


def raw_messages(attack: Attack) -> None:
    """Packets of the local transport that are none."""
    front = attack.front
    if attack.random.random() < 0.5:
        front.handshake()
    with socket.socket(fileno=os.dup(attack.session.fileno())) as wire:
        for _ in range(5):
            kind = attack.random.randrange(20)
            payload = attack.bytes(attack.random.choice((0, 0, 8, 100)))
            length = attack.random.choice((len(payload), len(payload), attack.word()))
            head = struct.pack("<IIII", kind, length, attack.word(), attack.word())
            fds = [wire.fileno()] * attack.random.choice((0, 0, 1, 2, 5))
            with contextlib.suppress(OSError):
                socket.send_fds(wire, [head + payload], fds)


ATTACKS: dict[str, Callable[[Attack], None]] = {
    each.__name__: each
    for each in (
        lies_in_the_handshake,
        states_in_no_order,
        leaves_at_some_step,
        leaves_closing_everything_else,
        random_slots,
        random_calls,
        a_request_changed_after_it_was_sent,
        impossible_command_indices,
        floods_without_reading,
        parks_everything,
        lies_in_the_indexes_page,
        scribbles_while_data_flows,
        rings_of_false_order_and_references,
        one_ring_for_many,
        events_that_block_and_are_full,
        a_storm_of_events,
        nonsense_in_frames,
        leaves_bytes_for_a_deaf_peer,
        joined_with_itself,
        withdraws_what_is_in_use,
        raw_messages,
    )
}
