"""A backend inside another program, on a thread of its own: for tests, and programs that have guests."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from xensock.backend.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.backend.daemon import Settings

START_S = 30.0  # until it listens
STOP_S = 60.0  # until it has ended, deliveries included


@contextmanager
def running(settings: Settings) -> Iterator[Daemon]:
    """Serves `settings.listen` until the end of the block.

    Raises what the start of a daemon raises (UrlError, OSError). Nothing of the daemon may be called but
    through its loop.
    """
    ready = threading.Event()
    made: list[Daemon] = []
    failed: list[BaseException] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        made.append(Daemon(replace(settings, ready=listening), signals=False))
        await made[0].run()

    def listening() -> None:
        settings.ready()
        ready.set()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # the caller raises it
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="xensock-backend", daemon=True)
    thread.start()
    if not ready.wait(START_S):
        raise TimeoutError("the backend did not start")
    if not failed:
        try:
            yield made[0]
        finally:
            if thread.is_alive():
                loops[0].call_soon_threadsafe(
                    made[0].stop, "the program that had the backend ended it"
                )
    thread.join(STOP_S)
    if failed:
        raise failed[0]
