"""The Xen bed takes minutes: `make xen` asks for it, and nothing else collects the tests that use it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machine import Machine

BED = Path(os.environ.get("XENSOCK_XEN_BED", "/nowhere"))
USUAL = 420
"""Seconds that a scenario has on a machine that does nothing else."""
if not BED.is_dir():
    collect_ignore = ["test_cells.py", "test_image.py"]


def said_to(words: str, seconds: float) -> str:
    """The command of a scenario that has so many seconds; what it waits for has more where they are more."""
    return f"SLOWNESS={max(1, seconds / USUAL):g} python3 /payload/{words}"


class Dom0:
    """One machine for all tests, until it does something wrong: then the next test has a new one."""

    def __init__(self, folder: Path) -> None:
        from payload import build

        self._folder = folder
        self.payload = folder / "payload"
        self.payload.mkdir()
        build(BED, self.payload)
        self._machine: Machine | None = None

    def scenario(self, words: str, seconds: float) -> str:
        """Everything that a scenario of guest/ said. What the machine itself fails at is tried once more: emulation
        has its moods."""
        from machine import Failed

        for attempt in (1, 2):
            try:
                return self._booted().run(said_to(words, seconds), seconds)[1]
            except Failed:
                self.end()
                if attempt == 2:
                    raise
        raise AssertionError

    def lost(self, words: str, seconds: float) -> str:
        """Everything that was said by a scenario which is to take the machine along: it is switched off."""
        from machine import Failed

        try:
            return self._booted().run(said_to(words, seconds), seconds)[1]
        except Failed as failed:
            return str(failed)
        finally:
            self.end()

    def _booted(self) -> Machine:
        from machine import Machine

        if self._machine is None:
            self._machine = Machine(BED, self.payload, self._folder, cpus=1)
            self._machine.__enter__()
        return self._machine

    def end(self) -> None:
        """Switch the machine off."""
        machine, self._machine = self._machine, None
        if machine is not None:
            machine.__exit__()


@pytest.fixture(scope="session")
def dom0(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dom0]:
    """Dom0 of the emulated machine."""
    made = Dom0(tmp_path_factory.mktemp("xen"))
    yield made
    made.end()
