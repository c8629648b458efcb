"""What the tests of the backend share: one in this process, and a server of the host's."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from servingkit import serving

__all__ = ["serving"]

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(10)
        yield made
