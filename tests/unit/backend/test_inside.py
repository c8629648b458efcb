"""A backend inside a program."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

import pytest

from backkit import Front, until
from xensock.backend.daemon import Settings
from xensock.backend.inside import running
from xensock.policy.policy import Policy
from xensock.transport import url

if TYPE_CHECKING:
    from pathlib import Path


def test_it_serves_until_the_end_of_the_block(tmp_path: Path) -> None:
    where = f"local:{tmp_path}/s"
    records: list[object] = []
    with running(Settings([where], Policy.parse(), records.append)):
        session = url.connect(where, name="inner")
        front = Front(session).handshake()
        front.listener()
    until(lambda: session.error is not None)
    front.close()
    assert len(records) == 2
    assert not (tmp_path / "s").exists()
    assert "xensock-backend" not in {thread.name for thread in threading.enumerate()}


def test_what_keeps_it_from_starting_is_raised(tmp_path: Path) -> None:
    where = f"local:{tmp_path}/none/s"
    with (
        pytest.raises(OSError, match="No such file") as error,
        running(Settings([where], Policy.parse())),
    ):
        pass
    assert error.value.errno == errno.ENOENT
