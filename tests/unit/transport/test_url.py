"""URLs of backends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from xensock.transport.url import LONGEST_PATH, Url, UrlError, listen, parse

if TYPE_CHECKING:
    from pathlib import Path


def test_local() -> None:
    assert parse("local:/run/xensock") == Url("local", "/run/xensock")
    assert parse("local:relative:with:colons").path == "relative:with:colons"
    assert str(parse("local:/a")) == "local:/a"
    parse("local:" + "x" * LONGEST_PATH)


@pytest.mark.parametrize(
    "text",
    ["", "local", "/run/xensock", "local:", "other:/x", "local:a\0b", "local:" + "é" * 54],
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
