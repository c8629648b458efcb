"""Where this process is among control groups (cgroups(7)) of version 2."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def own_cgroup(proc: Path = Path("/proc/self")) -> Path:
    """The directory of this process's group. Raises FileNotFoundError where none is mounted that it is in."""
    lines = (proc / "cgroup").read_text(errors="surrogateescape").splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), None)
    for line in (proc / "mountinfo").read_text(errors="surrogateescape").splitlines():
        # Of proc_pid_mountinfo(5): what of the file system is mounted, and where; behind the dash its type.
        before, _, after = line.partition(" - ")
        # A group outside what this cgroup namespace shows begins with /.. (cgroup_namespaces(7)).
        if own is None or own.startswith("/../") or not after.startswith("cgroup2 "):
            continue
        root, where = (_unescaped(each) for each in before.split()[3:5])
        inside = os.path.relpath(own, root)
        if inside.split("/")[0] != "..":
            return Path(where, inside)
    raise FileNotFoundError(
        errno.ENOENT, "no cgroup of version 2 that this process is in is mounted"
    )


def _unescaped(path: str) -> str:
    """Blanks, tabs, line ends and backslashes are in octal there."""
    for character in " \t\n\\":
        path = path.replace(f"\\{ord(character):03o}", character)
    return path
