"""Datagrams that another backend carries: what is asked, what is heard, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import errno
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from world.namespaces import eventually
from xensock.calls.address import Endpoint
from xensock.calls.hops import MOST
from xensock.pvcalls.serving.afar import QUOTED, Afar
from xensock.wire.frames import Frame, Icmp, decode_frame
from xensock.wire.packet_info import PacketInfo

TO = Endpoint(ip_address("192.0.2.1"), 7)
STRANGER = Endpoint(ip_address("192.0.2.9"), 7)


class Other:
    """A datagram socket of a backend; what comes is written to `far`."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sent: list[tuple[bytes, object]] = []
        self.told: list[Any] = []
        self.looked: list[Endpoint] = []
        self.closed = False
        self.fileno = self.near.fileno
        self.setblocking = self.near.setblocking

    def setsockopt(self, level: int, option: int, value: int) -> None:
        raise AssertionError("the guest wants no reports")

    def look(self, end: Endpoint) -> Any:
        self.looked.append(end)
        return SimpleNamespace(error=0, own=None, decision=None)

    def sendmsg(self, parts: list[bytes], control: Any, flags: int, address: object) -> int:
        self.sent.append((*parts, address))
        self.told.append(control)
        return len(parts[0])

    def frame(self, flags: int) -> Frame | None:
        packet = self.near.recv(65536, flags)
        return decode_frame(packet, True)[0] if packet else None

    def close(self) -> None:
        self.closed = True
        self.near.close()


class Backend:
    name = "lab"
    informed = True

    def __init__(self, error: int = 0) -> None:
        self.made: list[Other] = []
        self.error = error
        self.pool = ThreadPoolExecutor(1)

    def threads(self, hops: int) -> ThreadPoolExecutor:
        return self.pool

    def make_datagrams(self, family: int, protocol: int, hops: int) -> Other:
        if self.error:
            raise OSError(self.error, "no")
        self.made.append(Other())
        return self.made[-1]

    def left(self) -> bool:
        return all(each.closed for each in self.made)

    def close(self) -> None:
        self.pool.shutdown()
        for each in self.made:
            each.near.close()
            each.far.close()


class Frames:
    longest = 1000
    informed = True

    def __init__(self) -> None:
        self.got: list[Frame] = []
        self.both = asyncio.Event()

    def put(self, frame: Frame) -> bool:
        self.got.append(frame)
        if len(self.got) == 2:
            self.both.set()
        return True


def afar(by: Backend, host: socket.socket, frames: Frames, hops: int = 0) -> Afar:
    """The loop's; one address is heard."""
    loop = asyncio.get_running_loop()
    guest = SimpleNamespace(
        backend=SimpleNamespace(loop=loop), counters=SimpleNamespace(sent=0, received=0)
    )
    held: Any = SimpleNamespace(
        guest=guest, family=socket.AF_INET, protocol=0, hops=hops, host=host
    )
    return Afar(held, by, frames, TO.__eq__)  # type: ignore[arg-type]


@pytest.mark.parametrize("there", [True, False], ids=["informed", "not"])
def test_what_comes_and_goes(there: bool) -> None:
    by, frames = Backend(), Frames()
    by.informed = there
    ttl = (socket.IPPROTO_IP, socket.IP_TTL, bytes(4))

    async def run() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
            made = afar(by, host, frames)
            assert made.send(b"x", TO, [ttl]) == errno.ENETUNREACH  # nobody looked
            assert made.look(TO).error == 0
            looker, sock = by.made
            assert made.send(b"x", TO, [ttl]) == 0
            assert (looker.looked, sock.sent) == ([TO], [(b"x", ("192.0.2.1", 7))])
            assert sock.told == [[ttl] if there else []]
            icmp = Icmp(3, 3, 0, bytes(16), bytes(QUOTED + 1))
            for frame in (
                Frame(b"no", STRANGER.sockaddr()),
                Frame(b"nobody"),
                Frame(b"y" * 1001, TO.sockaddr(), info=PacketInfo(hops=9)),
                Frame(b"", TO.sockaddr(), error=-errno.ECONNREFUSED, icmp=icmp),
            ):
                sock.far.send(frame.encode())
            await asyncio.wait_for(frames.both.wait(), 30)
            sock.far.close()  # the backend is gone
            await asyncio.wait_for(
                loop.run_in_executor(None, eventually, by.left, 20, "it is let go of"), 30
            )
            assert made.send(b"z", TO, []) == errno.ENETUNREACH

    asyncio.run(run())
    by.close()
    cut, told = frames.got
    assert (len(cut.payload), cut.truncated, cut.address) == (1000, True, TO.sockaddr())
    assert cut.info == PacketInfo(hops=9)
    assert told.icmp is not None
    assert (told.error, len(told.icmp.quote)) == (-errno.ECONNREFUSED, QUOTED)


def test_a_circle_ends() -> None:
    by = Backend()

    async def run() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
            seen = afar(by, host, Frames(), hops=MOST).look(TO)
            assert seen.error == errno.EACCES
            assert seen.decision is not None
            assert "in a circle" in seen.decision.rule

    asyncio.run(run())
    by.close()
    assert by.made == []


@pytest.mark.parametrize("number", [errno.ENETDOWN, errno.EPROTONOSUPPORT])
def test_a_backend_that_has_no_socket(number: int) -> None:
    by = Backend(number)

    async def run() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
            made = afar(by, host, Frames())
            assert made.look(TO).error == number
            made.close()
            assert made.look(TO).error == errno.ECANCELED

    asyncio.run(run())
    by.close()


def test_nothing_is_left() -> None:
    by = Backend()

    async def run() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
            made = afar(by, host, Frames())
            made.look(TO)
            made.close()
            made.close()
            eventually(by.left, 20, "both are closed")

    asyncio.run(run())
    by.close()
