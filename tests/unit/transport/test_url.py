"""URLs of backends."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from xensock.transport.url import LONGEST_PATH, Url, UrlError, connect, listen, parse

if TYPE_CHECKING:
    from pathlib import Path


def test_local() -> None:
    assert parse("local:/run/xensock") == Url("local", "/run/xensock")
    assert parse("local:relative:with:colons").path == "relative:with:colons"
    assert str(parse("local:/a")) == "local:/a"
    parse("local:" + "x" * LONGEST_PATH)


def test_xen() -> None:
    assert parse("xen:") == Url("xen", "")
    assert parse("xen:1").path == "1"
    assert str(parse("xen:12")) == "xen:12"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "local",
        "/run/xensock",
        "local:",
        "other:/x",
        "local:a\0b",
        "local:" + "é" * 54,
        "xen",
        "xen:a",
        "xen:-1",
    ],
)
def test_what_is_no_url_says_how_one_looks(text: str) -> None:
    with pytest.raises(UrlError) as raised:
        parse(text)
    assert raised.value.hint


def test_listen(tmp_path: Path) -> None:
    listener = listen(f"local:{tmp_path / 'b'}")
    assert listener.url == f"local:{tmp_path / 'b'}"
    assert listener.accept() is None
    listener.close()


@pytest.mark.skipif(os.path.exists("/proc/xen"), reason="this is a Xen domain")
def test_outside_xen_it_says_so() -> None:
    """Either the libraries are missing, or there is no xenstore to be reached with them."""
    with pytest.raises(OSError, match="xenstore") as raised:
        connect("xen:")
    assert raised.value.errno
    with pytest.raises(OSError, match="xenstore"):
        listen("xen:")
    with pytest.raises(UrlError, match="every device"):
        listen("xen:3")
