"""A backend behind its holder that is killed, and guests that shall not notice."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from backkit import until
from daemonkit import Daemon, daemon
from world.processes import served_by

if TYPE_CHECKING:
    from collections.abc import Iterator

ANYTHING = ("--allow", "loopback", "--allow", "listen:any")


class Mortal:
    """A backend with a holder."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    @property
    def url(self) -> str:
        return self.daemon.url

    @property
    def holder(self) -> int:
        return self.daemon.process.pid

    def pid(self) -> int:
        """The backend's process."""
        return served_by(self.daemon.process)

    def keeper(self) -> int:
        """The process that keeps the backend's descriptors; 0 for the moment when there is none."""
        pid = self.pid()
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text() == "xs-keeper\n":
                    return int(child)
        return 0

    def kill(self) -> None:
        """Kill the backend; the next one answers when this returns."""
        before = self.pid()
        os.kill(before, signal.SIGKILL)
        until(lambda: self.pid() != before, 30)
        until(self._answers, 30)

    def _answers(self) -> bool:
        try:
            return bool(self.daemon.ask("version")["ok"])
        except (OSError, ValueError):
            return False


@contextlib.contextmanager
def mortal(directory: Path, *options: str) -> Iterator[Mortal]:
    """A backend with these options beside its sockets in `directory`."""
    with daemon(directory, "--hold", *(options or ANYTHING)) as made:
        try:
            yield Mortal(made)
        finally:
            print(made.stop())  # shown where a test fails
