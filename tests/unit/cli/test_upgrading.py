"""`xensock upgrade` where it cannot be: each way is one clear error, and the backend goes on."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from daemonkit import daemon

if TYPE_CHECKING:
    from pathlib import Path


def upgrade(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xensock", "upgrade", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_backend_without_a_holder_goes_on(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        done = upgrade(f"--control={served.control}")
        assert (done.returncode, done.stdout) == (1, "")
        assert "error: the backend was not replaced" in done.stderr
        assert "without --hold" in done.stderr
        assert "hint: " in done.stderr
        assert served.ask("version")["pid"] == served.process.pid


def test_no_backend_there(tmp_path: Path) -> None:
    done = upgrade(f"--control={tmp_path}/nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: cannot ask the backend" in done.stderr
