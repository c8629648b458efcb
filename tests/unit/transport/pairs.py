"""Both sides of a local session in one process, and a count of what the process holds."""

from __future__ import annotations

import gc
import os
import select
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xensock.transport.local_front import LocalSession, connect

if TYPE_CHECKING:
    from xensock.transport.local_back import LocalBackSession, LocalListener


class Pair:
    """A frontend and its session at the backend; `settle()` takes in what was sent so far."""

    def __init__(self, front: LocalSession, back: LocalBackSession) -> None:
        self.front = front
        self.back = back

    def settle(self) -> bool:
        return self.back.receive()

    def close(self) -> None:
        self.front.close()
        self.back.close()


def accepted(listener: LocalListener, deadline: float) -> LocalBackSession:
    while True:
        assert select.select([listener], [], [], max(0.0, deadline - time.monotonic()))[0]
        session = listener.accept()
        if session is not None:
            return session


def meet(listener: LocalListener, path: str, name: str = "guest") -> Pair:
    """Connect a frontend and serve its introduction."""
    fronts: list[LocalSession] = []
    thread = threading.Thread(target=lambda: fronts.append(connect(path, name=name, timeout=10)))
    thread.start()
    deadline = time.monotonic() + 10
    back = accepted(listener, deadline)
    while not back.guest:
        assert select.select([back], [], [], max(0.0, deadline - time.monotonic()))[0]
        assert back.receive()
    thread.join()
    return Pair(fronts[0], back)


def held() -> tuple[int, int]:
    """Descriptors, and mappings of memfds."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    return len(os.listdir("/proc/self/fd")), maps.count("/memfd:xensock")
