"""A `xensock backend` in a process of its own, and its control socket."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backkit import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class Daemon:
    process: subprocess.Popen[str]
    directory: Path
    log: list[str]

    @property
    def url(self) -> str:
        return f"local:{self.directory}/s"

    @property
    def control(self) -> str:
        return f"{self.directory}/c"

    @property
    def trace(self) -> Path:
        return self.directory / "trace"

    def ask(self, command: str, **more: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(self.control)
            client.sendall(json.dumps({"id": 7, "command": command, **more}).encode() + b"\n")
            with client.makefile() as lines:
                answer = json.loads(lines.readline())
        assert isinstance(answer, dict)
        return answer

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.trace.read_text().splitlines()]

    def stop(self) -> str:
        """End it with SIGTERM; what it had said on stderr."""
        self.process.terminate()
        _, said = self.process.communicate(timeout=20)
        return "".join(self.log) + said


@contextlib.contextmanager
def daemon(directory: Path, *options: str) -> Iterator[Daemon]:
    """Runs it with sockets in `directory` until the end of the block."""
    command = [sys.executable, "-m", "xensock", "backend", f"--listen=local:{directory}/s"]
    command += [f"--control={directory}/c", "--trace=json", f"--trace-file={directory}/trace"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    made = Daemon(process, directory, [])
    try:
        assert process.stderr is not None
        made.log.append(process.stderr.readline())
        assert "listening" in made.log[0], made.stop()
        yield made
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def gone(daemon: Daemon) -> bool:
    """Whether no guest is left."""
    return bool(until(lambda: daemon.ask("guests")["guests"] == []))
