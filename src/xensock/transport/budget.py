"""What all frontends together may take of this process: descriptors and memory mappings are its, not theirs.

Whoever asks for more gets it while that leaves as much again for those who have little: one
frontend has at most half of what the others left. So greedy ones shrink each other's share, and a
newcomer still finds its own.
"""

from __future__ import annotations

import resource
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MAPPINGS = Path("/proc/sys/vm/max_map_count")
_USUAL_MAPPINGS = 65530
_OWN_MAPPINGS = 4096
"""Mappings that the process needs besides: libraries, threads, allocators."""


class Budget:
    """A resource of the process. For any thread."""

    def __init__(self, total: Callable[[], int]) -> None:
        self._total = total
        self.used = 0
        self._lock = threading.Lock()

    def take(self, own: int, more: int) -> bool:
        """Take `more` for one who has `own`; False when that would be too much."""
        total = self._total()
        # Nothing is allocated with the lock held: what ends on its own meanwhile gives back.
        with self._lock:
            others = self.used - own
            if own + more > (total - others) // 2:
                return False
            self.used += more
            return True

    def give(self, count: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self.used -= count


def _descriptors() -> int:
    # The other half is for sockets, and for what the process has besides.
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft // 2


def _mappings() -> int:
    global _most_mappings
    if _most_mappings == 0:
        try:
            _most_mappings = int(_MAPPINGS.read_text()) - _OWN_MAPPINGS
        except (OSError, ValueError):
            _most_mappings = _USUAL_MAPPINGS - _OWN_MAPPINGS
    return _most_mappings


_most_mappings = 0

DESCRIPTORS = Budget(_descriptors)
"""Of regions and event channels (RLIMIT_NOFILE)."""
MAPPINGS = Budget(_mappings)
"""Of granted pages (vm.max_map_count)."""
