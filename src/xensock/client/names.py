"""Names, asked of the backend (extension resolve): `getaddrinfo` and what is made of it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

from xensock.client import attachment, kernel
from xensock.client.address import failure
from xensock.client.datagrams import Datagrams
from xensock.loop import IN
from xensock.wire.errors import WireError
from xensock.wire.explanations import Explanation
from xensock.wire.extensions import Extension
from xensock.wire.frames import Frame, decode_frame

if TYPE_CHECKING:
    from xensock.client.link import Link

DNS = 53  # the name service's number as protocol of the family AF_UNSPEC
ANSWER_S = 30.0
LONGEST = 70_000
Answer = tuple[bytes, Explanation | None]
NXDOMAIN = 3


class NameService:
    """Sends DNS messages to the backend and gives each its answer. Any thread may ask."""

    def __init__(self, link: Link, hops: int = 0) -> None:
        """`hops`: how many backends pass the questions on. Raises OSError where the backend does not resolve."""
        if not link.has(Extension.RESOLVE):
            raise failure(errno.EOPNOTSUPP)
        self._near, far = kernel.socketpair(socket.SOCK_SEQPACKET)
        self._waiting: dict[int, Future[Answer]] = {}
        self._explains = link.has(Extension.EXPLAIN)
        self._ids = itertools.count(int.from_bytes(os.urandom(2), "big"))
        self._lock = threading.Lock()
        try:
            self._held = Datagrams(link, socket.AF_UNSPEC, DNS, far, hops)
        except OSError:
            self._near.close()
            far.close()
            raise
        self._near.setblocking(False)
        link.loop.add(self._near.fileno(), IN, lambda _: self._read())
        self._link = link

    def ask(self, message: bytes) -> Future[Answer]:
        """The answer to a DNS message, whose id may be any, and what was decided, None where the backend does not say.
        Raises OSError when too many are under way."""
        future: Future[Answer] = Future()
        with self._lock:
            number = next(n for n in map(lambda n: n & 0xFFFF, self._ids) if n not in self._waiting)
            self._waiting[number] = future
        own = message[:2]
        try:
            self._near.send(Frame(number.to_bytes(2, "big") + message[2:]).encode())
        except OSError:
            self._waiting.pop(number, None)
            raise
        answered: Future[Answer] = Future()

        def pass_on(done: Future[Answer]) -> None:
            error = done.exception()
            if error is not None:
                answered.set_exception(error)
            else:
                answer, why = done.result()
                answered.set_result((own + answer[2:], why))

        future.add_done_callback(pass_on)
        return answered

    def close(self) -> None:
        """Leave; questions that wait get no answer."""
        self._link.loop.remove(self._near.fileno())
        self._near.close()

    def _read(self) -> None:
        while True:
            try:
                packet = self._near.recv(LONGEST)
            except BlockingIOError:
                return
            if not packet:
                self._link.loop.remove(self._near.fileno())
                for future in list(self._waiting.values()):
                    future.set_exception(failure(errno.ENETDOWN))
                self._waiting.clear()
                return
            message, why = decode_frame(packet)[0].payload, None
            if self._explains:
                try:
                    why, message = Explanation.decode(message)
                except WireError:
                    continue  # whose answer it is cannot be told
            future_ = self._waiting.pop(int.from_bytes(message[:2], "big"), None)
            if future_ is not None:
                future_.set_result((message, why))


def getaddrinfo(
    host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> list[tuple[Any, ...]]:
    """As `socket.getaddrinfo`: names are resolved by the backend. Raises socket.gaierror."""
    numeric = flags & ~(socket.AI_ADDRCONFIG | socket.AI_CANONNAME) | socket.AI_NUMERICHOST
    if host is None or host in ("", b"") or _is_address(host) or flags & socket.AI_NUMERICHOST:
        plain = (
            numeric if host is not None and host not in ("", b"") else flags & ~socket.AI_ADDRCONFIG
        )
        return list(kernel.getaddrinfo(host, port, family, type, proto, plain))
    name = host.decode("ascii") if isinstance(host, (bytes, bytearray)) else host
    if not isinstance(name, str):
        raise TypeError("getaddrinfo() argument 1 must be string or None")
    if "\0" in name:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    found: list[tuple[Any, ...]] = []
    for address in resolve(name, family):
        found += kernel.getaddrinfo(address, port, 0, type, proto, numeric)
    if flags & socket.AI_CANONNAME and found:
        found[0] = (*found[0][:3], name, found[0][4])
    return found


def resolve(name: str, family: int = 0) -> list[str]:
    """The addresses of a name, IPv6 before IPv4. Raises socket.gaierror; OSError without a backend."""
    import dns.message
    import dns.rdatatype

    link = attachment.default()
    wanted = [
        kind
        for each, kind in ((socket.AF_INET6, dns.rdatatype.AAAA), (socket.AF_INET, dns.rdatatype.A))
        if family in (0, each) and (each == socket.AF_INET or link.has(Extension.IPV6))
    ]
    if not wanted:
        raise socket.gaierror(socket.EAI_FAMILY, "ai_family not supported")
    try:
        ascii_name = name.encode("idna").decode() if not name.isascii() else name
        questions = [dns.message.make_query(ascii_name, kind) for kind in wanted]
    except (UnicodeError, ValueError, dns.exception.DNSException):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
    service = link.name_service()
    futures = [service.ask(question.to_wire()) for question in questions]
    addresses: list[str] = []
    codes = []
    for future in futures:
        with contextlib.suppress(FutureTimeout, OSError):
            answer = dns.message.from_wire(future.result(ANSWER_S)[0], ignore_trailing=True)
            codes.append(int(answer.rcode()))
            for rrset in answer.answer:
                if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
                    addresses += [record.address for record in rrset]
    if addresses:
        return addresses
    if codes and all(code == NXDOMAIN for code in codes):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    if codes and all(code in (0, NXDOMAIN) for code in codes):
        raise socket.gaierror(socket.EAI_NODATA, "No address associated with hostname")
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def first(name: str, family: int) -> str:
    """The first address of a name in a family. Raises socket.gaierror."""
    return resolve(name, family)[0]


def _is_address(host: Any) -> bool:
    text = host.decode("ascii", "replace") if isinstance(host, (bytes, bytearray)) else host
    if not isinstance(text, str) or "\0" in text:
        return False
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, UnicodeError):
            socket.inet_pton(family, text.partition("%")[0])
            return True
    with contextlib.suppress(OSError, UnicodeError):
        socket.inet_aton(text)  # 127.1 and its like
        return True
    return False
