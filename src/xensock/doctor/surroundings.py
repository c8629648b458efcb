"""What surrounds this process: its capabilities, its C library, its control group, Xen.

Rows of `xensock doctor` that are read, not tried; whatever they lack, guests run.
"""

from __future__ import annotations

import ctypes
import platform
from typing import TYPE_CHECKING

from xensock.doctor.check import Check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from xensock.doctor.remedies import Machine

# capabilities(7): what a backend of root uses, beside CAP_SYS_ADMIN, whose lack the tried checks show.
USED = {"CAP_NET_BIND_SERVICE": 10, "CAP_NET_ADMIN": 12, "CAP_SYS_PTRACE": 19}
FEW_PROCESSES = 64
XEN_FILES = {"xenbus": "xenfs", "evtchn": "xen-evtchn", "gntdev": "xen-gntdev"}
XEN_LIBRARIES = ("libxenstore.so.4", "libxengnttab.so.1", "libxenevtchn.so.1")


def rows(machine: Machine) -> list[Check]:
    """All of them."""
    return [_capabilities(machine), _libc(), _group(machine), xen(machine.root)]


def _capabilities(machine: Machine) -> Check:
    name = "capabilities"
    first = machine.sysctl("net.ipv4.ip_unprivileged_port_start")
    first = 1024 if first is None else first
    lacking = machine.lacks(USED)
    if machine.uid != 0 and "CAP_NET_BIND_SERVICE" in lacking:
        return Check(
            name, "ok", f"none, and none is needed; guests may listen from port {first} on"
        )
    if machine.uid == 0 and lacking:
        return Check(
            name,
            "warn",
            f"root without {', '.join(lacking)}: no ports below {first}, or guests of other users not served",
            "start it with all of root's capabilities (in a container: --cap-add)",
        )
    return Check(
        name, "ok", "root's" if machine.uid == 0 else "ports of any number can be listened on"
    )


def _libc() -> Check:
    library, version = platform.libc_ver()
    return Check(
        "libc", "ok", f"{f'{library} {version}'.strip() or 'not glibc'} here; a guest may have any"
    )


def _group(machine: Machine) -> Check:
    """cgroups(7), version 2: the smallest pids.max of the groups that this process is in."""
    name = "cgroup"
    try:
        lines = (machine.proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return Check(name, "ok", "not visible")
    path = next((line[3:] for line in lines if line.startswith("0::")), "").strip("/")
    limits = []
    parts = path.split("/") if path else []
    for depth in range(len(parts) + 1):
        try:
            text = (machine.root / "sys/fs/cgroup").joinpath(*parts[:depth], "pids.max").read_text()
            limits.append(int(text))
        except (OSError, ValueError):  # the root group has none; "max"
            continue
    if not limits:
        return Check(name, "ok", "no limit on processes")
    if min(limits) < FEW_PROCESSES:
        return Check(
            name,
            "warn",
            f"at most {min(limits)} processes and threads, of which a backend takes about a dozen",
            "systemctl set-property UNIT TasksMax=512, or --pids-limit of the container",
        )
    return Check(name, "ok", f"up to {min(limits)} processes")


def xen(root: Path, load: Callable[[str], object] = ctypes.CDLL) -> Check:
    """Whether `xen:` backends and frontends could run here. `load` raises OSError for a library that is missing."""
    try:
        here = (root / "sys/hypervisor/type").read_text().strip() == "xen"
    except OSError:
        here = False
    if not here:
        return Check("Xen", "ok", "not a Xen domain: no xen: URLs")
    missing = [file for file in XEN_FILES if not (root / "dev/xen" / file).exists()]
    if missing:
        return Check(
            "Xen",
            "warn",
            f"/dev/xen/{missing[0]} is missing: no xen: URLs",
            f"sudo modprobe {XEN_FILES[missing[0]]}",
        )
    for library in XEN_LIBRARIES:
        try:
            load(library)
        except OSError:
            return Check(
                "Xen",
                "warn",
                f"{library} is missing: no xen: URLs",
                "sudo apt-get install -y libxenstore4 libxenmisc4.17",
            )
    return Check("Xen", "ok", "a Xen domain, with what xen: URLs need")
