"""A real backend on this host's loopback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from daemonkit import daemon

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def backend_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """It may do anything with loopback, and connect to what is public, as the tests of time limits want to."""
    rules = ["--allow=loopback", "--allow=public", "--allow=listen:any"]
    with daemon(tmp_path_factory.mktemp("backend"), *rules) as backend:
        yield backend.url
