"""The row of `xensock doctor` about engines: whether what `xensock install` wrote still leads somewhere."""

from __future__ import annotations

import json
import os
import shlex
import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from xensock.backend.installing import NAME
from xensock.doctor.check import Check

if TYPE_CHECKING:
    from xensock.backend.installing import Places


def row(places: Places) -> Check:
    """A warning where a container under XenSock could not start; its remedy is the command that mends it."""
    programs = {
        "--docker": _docker(places.docker),
        "--podman": _podman(places.podman),
        "--systemd": _service(places.units / f"{NAME}.service"),
    }
    there = {option: path for option, path in programs.items() if path is not None}
    if not there:
        return Check("containers", "ok", "nothing is installed for engines (xensock install)")
    for option, path in there.items():
        if not os.access(path, os.X_OK):
            what = f"what is installed for {option[2:]} names {path or 'no program'}, which cannot be run"
            return Check("containers", "warn", what, f"xensock install {option}")
    names = ", ".join(option[2:] for option in there)
    socket = _socket(places)
    if not _listens(socket):
        remedy = f"xensock install --systemd, or: xensock backend --containers {socket} --hold"
        if "--systemd" in there:
            remedy = f"systemctl {'--user ' if places.user else ''}enable --now {NAME}.socket"
        what = f"installed for {names}; there is no backend at {socket}: containers will not start"
        return Check("containers", "warn", what, remedy)
    return Check("containers", "ok", f"installed for {names}; a backend at {socket}")


def _docker(path: Path) -> str | None:
    """The runtime's program; None where none is installed, "" where that cannot be read."""
    try:
        runtimes = json.loads(path.read_bytes())["runtimes"]
        return str(runtimes[NAME]["path"]) if NAME in runtimes else None
    except FileNotFoundError:
        return None
    except KeyError as error:
        return None if error.args == ("runtimes",) else ""
    except (OSError, ValueError, TypeError):
        return ""


def _podman(path: Path) -> str | None:
    try:
        return str(tomllib.loads(path.read_text())["engine"]["runtimes"][NAME][0])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _service(path: Path) -> str | None:
    try:
        text = path.read_text()
        return next(
            shlex.split(line.partition("=")[2])[0]
            for line in text.splitlines()
            if line.startswith("ExecStart=")
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, StopIteration):
        return ""


def _socket(places: Places) -> str:
    run = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    return places.socket.replace("%t", run)


def _listens(path: str) -> bool:
    try:
        return stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return False
