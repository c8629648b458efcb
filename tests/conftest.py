"""What all tests share: the test world's fixtures and the marks of the data paths."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from world.fixtures import DATAPATHS, guest, vpn, world, xensock

__all__ = ["guest", "vpn", "world", "xensock"]


def pytest_configure(config) -> None:
    for path in DATAPATHS:
        config.addinivalue_line("markers", f"{path}: runs a program over the data path '{path}'")
