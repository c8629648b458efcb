"""The host that first bytes name: as real clients write them, in pieces, damaged, and made to deceive."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xensock.supervisor.firstbytes import LONGEST, UnnamedError, http, tls


def hello(name: str | None = "web.test", **options: int) -> bytes:
    """What Python's TLS sends first."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    if name is None:
        context.verify_mode = ssl.CERT_NONE
    for option, value in options.items():
        setattr(context, option, value)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


HELLO = hello()
MESSAGE = HELLO[5:]


def record(payload: bytes, kind: int = 22, version: int = 0x0301) -> bytes:
    return bytes([kind]) + version.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload


def records(message: bytes, size: int) -> bytes:
    return b"".join(record(message[at : at + size]) for at in range(0, len(message), size))


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def made(*extensions: tuple[int, bytes], tail: bytes = b"") -> bytes:
    """A ClientHello with these extensions."""
    body = b"\3\3" + bytes(32) + vector(1, b"") + vector(2, b"\x13\1") + vector(1, b"\0")
    body += vector(2, b"".join(k.to_bytes(2, "big") + vector(2, data) for k, data in extensions))
    return record(b"\1" + vector(3, body + tail))


def sni(*names: bytes, kind: int = 0) -> tuple[int, bytes]:
    return 0, vector(2, b"".join(bytes([kind]) + vector(2, name) for name in names))


def refused(parser, data: bytes) -> str:
    with pytest.raises(UnnamedError) as caught:
        parser(data)
    return str(caught.value)


def test_a_real_clienthello_in_whatever_records() -> None:
    assert tls(HELLO) == "web.test"
    assert tls(hello("Web.TEST")) == "web.test"
    assert tls(hello(maximum_version=ssl.TLSVersion.TLSv1_2)) == "web.test"
    for size in (1, 2, 3, 7, 100, len(MESSAGE) - 1):
        assert tls(records(MESSAGE, size)) == "web.test"
    assert tls(HELLO + record(b"early data", kind=23)) == "web.test"


@pytest.mark.parametrize("data", [HELLO, records(MESSAGE, 9)])
def test_a_beginning_says_how_much_is_needed_at_least(data: bytes) -> None:
    for cut in range(len(data)):
        needed = tls(data[:cut])
        assert isinstance(needed, int)
        assert cut < needed <= len(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "not TLS"),
        (record(MESSAGE, version=0x0201), "not TLS"),
        (record(b""), "not TLS"),
        (b"\x16\x03\x01\xff\xff", "not TLS"),
        (record(b"\2" + MESSAGE[1:]), "no ClientHello"),
        (records(MESSAGE, 100)[:105] + record(b"\1\0", kind=21), "interrupted"),
        (record(b"\1\xff\xff\xff"), "too long"),
        (record(MESSAGE + b"\0"), "does not end"),
        (made(tail=b"x"), "malformed"),
        (made(), "names no server"),
        (hello(None), "names no server"),
        (made(sni(b"a.test"), sni(b"b.test")), "two servers"),
        (made(sni(b"a.test", b"b.test")), "malformed"),
        (made(sni()), "malformed"),
        (made((0, sni(b"a.test")[1] + b"x")), "malformed"),
        (made(sni(b"a.test", kind=1)), "no host"),
        (made(sni(b"")), "no host"),
        (made(sni(b"a.test\0.evil.test")), "no host"),
        (made(sni(b"a..test")), "no host"),
        (made(sni("ä.test".encode())), "no host"),
    ],
)
def test_what_could_deceive_is_refused(data: bytes, why: str) -> None:
    assert why in refused(tls, data)


def test_names_are_compared_without_case_and_final_dot() -> None:
    assert tls(made((10, b"x"), sni(b"A_b-1.TEST."))) == "a_b-1.test"
    assert http(b"GET / HTTP/1.1\r\nhOST:\tWeb.Test.:8080 \r\n\r\n") == "web.test"


@given(st.binary(max_size=200), st.integers(0, 400))
@example(b"", 0)
def test_hostile_clienthellos(garbage: bytes, at: int) -> None:
    for data in (garbage, HELLO[:at] + garbage, HELLO[:at] + garbage + HELLO[at + len(garbage) :]):
        with contextlib.suppress(UnnamedError):
            found = tls(data)
            assert found > len(data) if isinstance(found, int) else found == found.lower()


@given(st.binary(max_size=200), st.integers(0, 120))
def test_hostile_requests(garbage: bytes, at: int) -> None:
    whole = b"GET http://web.test/ HTTP/1.1\r\nAccept: */*\r\nHost: web.test\r\nCookie: a=b\r\n\r\n"
    for data in (garbage, whole[:at] + garbage, whole[:at] + garbage + whole[at + len(garbage) :]):
        with contextlib.suppress(UnnamedError):
            found = http(data)
            assert found > len(data) if isinstance(found, int) else found == found.lower()


@pytest.mark.parametrize(
    ("head", "host"),
    [
        ("GET / HTTP/1.1\r\nHost: web.test", "web.test"),
        ("GET / HTTP/1.0\r\nAccept: x\r\nHost: web.test:80", "web.test"),
        ("OPTIONS * HTTP/1.1\r\nHost: web.test", "web.test"),
        ("GET http://web.test:80/a?b HTTP/1.1\r\nHost: web.test", "web.test"),
        ("CONNECT web.test:443 HTTP/1.1\r\nHost: web.test:443", "web.test"),
        ("GET / HTTP/1.1\r\nHost: [2001:db8::1]:80", "2001:db8::1"),
        ("GET / HTTP/1.1\r\nX: \xe4\r\nHost: 192.0.2.1", "192.0.2.1"),
    ],
)
def test_requests(head: str, host: str) -> None:
    data = head.encode("latin1") + b"\r\n\r\n"
    assert http(data) == host
    assert http(data + b"body") == host
    for cut in range(len(data)):
        assert http(data[:cut]) == cut + 1


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ("GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test", "two hosts"),
        ("GET / HTTP/1.1\r\nHost: a.test\r\nhost: a.test", "two hosts"),
        ("GET / HTTP/1.1\r\nAccept: x", "names no host"),
        ("GET http://b.test/ HTTP/1.1\r\nHost: a.test", "two hosts"),
        ("GET http://a.test@b.test/ HTTP/1.1\r\nHost: a.test", "no host"),
        ("CONNECT b.test:443 HTTP/1.1\r\nHost: a.test", "two hosts"),
        ("GET a.test HTTP/1.1\r\nHost: a.test", "target"),
        ("GET / HTTP/1.1\r\nHost : a.test", "malformed"),
        ("GET / HTTP/1.1\r\nX: y\r\n Host: b.test\r\nHost: a.test", "malformed"),
        ("GET / HTTP/1.1\r\nX: y\nHost: b.test\r\nHost: a.test", "malformed"),
        ("GET / HTTP/1.1\r\nX: y\rHost: b.test\r\nHost: a.test", "malformed"),
        ("GET / HTTP/1.1\r\nX: \0\r\nHost: a.test", "malformed"),
        ("GET / HTTP/1.1\r\nHost: a.test, b.test", "no host"),
        ("GET / HTTP/1.1\r\nHost: user@a.test", "no host"),
        ("GET / HTTP/1.1\r\nHost:", "no host"),
        ("GET  / HTTP/1.1\r\nHost: a.test", "no HTTP/1"),
        ("GET / HTTP/2.0\r\nHost: a.test", "no HTTP/1"),
        ("GET /\r\nHost: a.test", "no HTTP/1"),
        ("PRI * HTTP/2.0\r\n", "no HTTP/1"),
        ("\r\nGET / HTTP/1.1\r\nHost: a.test", "no HTTP/1"),
    ],
)
def test_requests_that_could_deceive(head: str, why: str) -> None:
    assert why in refused(http, head.encode("latin1") + b"\r\n\r\n")


def test_what_is_no_http_is_known_at_once() -> None:
    for data in (HELLO[:1], b"\0", b"PRI * HTTP/2", b"GET / HTTP/1.1 x", b"\r\n", b"(x"):
        assert "no HTTP/1" in refused(http, data)
    assert "too long" in refused(http, b"GET / HTTP/1.1\r\nX: ".ljust(LONGEST, b"x"))
