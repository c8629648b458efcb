"""--publish: what it may be, what it means, and how everything else is refused."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xensock.supervisor.publication import Publication, PublishError

ports = st.integers(1, 65535)
hosts = st.none() | st.ip_addresses()


@given(host=hosts, port=ports, guest=ports | st.none())
def test_what_is_written_is_read(
    host: IPv4Address | IPv6Address | None, port: int, guest: int | None
) -> None:
    text = str(port) if guest is None else f"{port}:{guest}"
    if host is not None:
        text = f"{host}:{text}" if host.version == 4 else f"[{host}]:{text}"
    assert Publication.parse(text) == Publication(host, port, guest or port)


@given(st.text() | st.text("0123456789:.[]a f%-+_", max_size=30))
@example("9" * 5000)
@example("²")
@example("١٢")
@example("1_0")
@example("+80")
@example(" 80")
def test_anything_else_is_refused_with_a_hint(text: str) -> None:
    error = None
    try:
        read = Publication.parse(text)
    except PublishError as caught:
        error = caught
    if error is not None:
        assert str(error)
        assert "8080:3000" in error.hint
    else:
        assert 1 <= read.port <= 65535
        assert 1 <= read.guest_port <= 65535
        assert text.isascii()
        assert str(read.port) in text


@pytest.mark.parametrize(
    ("text", "host", "port", "guest"),
    [
        ("3000", None, 3000, 3000),
        ("8080:3000", None, 8080, 3000),
        ("127.0.0.1:8080", "127.0.0.1", 8080, 8080),
        ("127.0.0.1:8080:3000", "127.0.0.1", 8080, 3000),
        ("0.0.0.0:80", "0.0.0.0", 80, 80),
        ("[::1]:8080:3000", "::1", 8080, 3000),
        ("[::]:8080", "::", 8080, 8080),
        ("[fe80::1%eth0]:8080", "fe80::1%eth0", 8080, 8080),
    ],
)
def test_examples(text: str, host: str | None, port: int, guest: int) -> None:
    expected = None if host is None else ip_address(host)
    assert Publication.parse(text) == Publication(expected, port, guest)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "''"),
        ("0", "'0'"),
        ("65536", "65536"),
        ("80:0", "'0'"),
        ("80:", "''"),
        (":80", "''"),
        ("1:2:3", "1:2:3"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1:", "''"),
        ("127.0.0.256:80", "127.0.0.256"),
        ("::1:80", "::1:80"),
        ("[::1]", "[::1]"),
        ("[::1]80", "[::1]80"),
        ("[::1:80", "[::1:80"),
        ("web.test:80", "web.test"),
        ("localhost:80", "localhost"),
        ("80/tpc", "80/tpc"),
        ("-80", "-80"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(PublishError) as caught:
        Publication.parse(text)
    assert said in str(caught.value)
    assert isinstance(caught.value, ValueError)
