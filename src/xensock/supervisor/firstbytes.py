"""Which host the first bytes of a connection name: the server name of a TLS ClientHello, the Host of an HTTP/1 request.

Sources: RFC 8446, 4.1.2 and 5.1; RFC 6066, 3; RFC 9112, 2 to 3 and 5.

Rules
- The bytes are a hostile guest's. What the server behind could read in another way than we do is refused: a second
  server name or Host, folded or malformed lines, a request line with another host than the Host.
- Stateless: a parser gets all that has come so far, at most LONGEST bytes, and says how many it needs at least.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Parser = Callable[[bytes], "str | int"]

LONGEST = 32768

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _HOST_NAME = 0, 0
_RECORD = 5  # bytes of a record's header
_LARGEST_RECORD = 1 << 14

_LINE = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.[01]"
)  # method, target; RFC 9112, 3
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([ -~\t\x80-\xff]*?)[ \t]*")
_BEGINNING = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?: [!-~]*(?: [HTP/1.0]*\r?)?)?")
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)[!-~]*")
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]+)(?::[0-9]*)?")
_NAME = re.compile(rb"[0-9A-Za-z_-]+(?:\.[0-9A-Za-z_-]+)*\.?")


class UnnamedError(ValueError):
    """The bytes name no host that could be relied on; the message says why."""


def tls(data: bytes) -> str | int:
    """The server name of a ClientHello (lower case, no final dot), or how many bytes are needed at least.

    Raises UnnamedError.
    """
    message, at = b"", 0
    while True:
        if len(data) > at and data[at] != _HANDSHAKE:
            raise UnnamedError("they are not TLS" if not at else "the ClientHello is interrupted")
        if len(data) < at + _RECORD:
            return at + _RECORD
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if data[at + 1] != 3 or not 0 < length <= _LARGEST_RECORD:
            raise UnnamedError("they are not TLS")
        message += data[at + _RECORD : at + _RECORD + length]
        if message and message[0] != _CLIENT_HELLO:
            raise UnnamedError("they are no ClientHello")
        whole = 4 + int.from_bytes(message[1:4], "big") if len(message) >= 4 else 0
        if whole > LONGEST:
            raise UnnamedError("the ClientHello is too long")
        if len(data) < at + _RECORD + length:
            return at + _RECORD + length
        if whole and len(message) > whole:
            raise UnnamedError("the ClientHello does not end with its record")
        if whole and len(message) == whole:
            return _server_name(_Reader(message[4:]))
        at += _RECORD + length


class _Reader:
    """Takes a structure of TLS apart. Raises UnnamedError where it ends early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left():
            raise UnnamedError("the ClientHello is malformed")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """Bytes behind their length, which has `size` bytes."""
        return self.take(self.number(size))

    def end(self) -> None:
        if self.left():
            raise UnnamedError("the ClientHello is malformed")


def _server_name(hello: _Reader) -> str:
    hello.take(2 + 32)  # version, random
    hello.vector(1)  # session
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression methods
    extensions = _Reader(hello.vector(2) if hello.left() else b"")
    hello.end()
    found: list[bytes] = []
    while extensions.left():
        kind, body = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            found.append(body)
    if not found:
        raise UnnamedError("the ClientHello names no server")
    if len(found) > 1:
        raise UnnamedError("the ClientHello names two servers")
    body_reader = _Reader(found[0])
    names = _Reader(body_reader.vector(2))
    body_reader.end()
    kind, name = names.number(1), names.vector(2)
    names.end()  # one name and no more
    if kind != _HOST_NAME or not _NAME.fullmatch(name):
        raise UnnamedError("the ClientHello names no host")
    return name.decode("ascii").lower().removesuffix(".")


def http(data: bytes) -> str | int:
    """The host of an HTTP/1 request's Host (lower case, no port, no final dot), or how many bytes are needed at least.

    Raises UnnamedError.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        line = data.partition(b"\n")[0]
        if data and not _BEGINNING.fullmatch(line):
            raise UnnamedError("they are no HTTP/1 request")
        if len(data) >= LONGEST:
            raise UnnamedError("the request's head is too long")
        return len(data) + 1
    line, *fields = data[:end].split(b"\r\n")
    request = _LINE.fullmatch(line)
    if request is None:
        raise UnnamedError("they are no HTTP/1 request")
    hosts = []
    for text in fields:
        field = _FIELD.fullmatch(text)
        if field is None:
            raise UnnamedError("the request's head is malformed")
        if field[1].lower() == b"host":
            hosts.append(field[2])
    if len(hosts) != 1:
        raise UnnamedError("the request names two hosts" if hosts else "the request names no host")
    host = _host(hosts[0])
    method, target = request[1], request[2]
    absolute = _ABSOLUTE.fullmatch(target)
    if method == b"CONNECT":
        named = _host(target)
    elif absolute is not None:
        named = _host(absolute[1])
    elif target.startswith(b"/") or target == b"*":
        named = host
    else:
        raise UnnamedError("the request's target is malformed")
    if named != host:
        raise UnnamedError("the request's target and its Host name two hosts")
    return host


def _host(authority: bytes) -> str:
    """The host in HOST[:PORT]. Raises UnnamedError."""
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        raise UnnamedError("the request names no host")
    host = found[1].decode("ascii").lower()
    if host.startswith("["):
        return host[1:-1]
    if not _NAME.fullmatch(found[1]):
        raise UnnamedError("the request names no host")
    return host.removesuffix(".")


PARSERS: dict[str, Parser] = {"sni": tls, "host": http}
