"""The checks of `xensock doctor`, also used by `xensock run` to explain why it cannot start."""

from __future__ import annotations

import errno
import os
import platform
import re
import resource
from importlib import import_module
from pathlib import Path

from xensock.doctor import probe, surroundings
from xensock.doctor.check import Check
from xensock.doctor.remedies import Explanation, Machine, explain_failure

__all__ = ["Check", "Explanation", "data_paths", "explain_failure", "healthy", "run_checks"]

# A connection costs the backend a descriptor for a moment and the guest one for its lifetime.
FEW_DESCRIPTORS = 4096

BUILD = "sudo apt-get install -y gcc make python3-dev python3-venv && make build"


def run_checks() -> list[Check]:
    """Try everything; takes some tens of milliseconds and leaves nothing behind."""
    return [
        _kernel(),
        *_built(),
        *_namespaces(),
        *_supervision(),
        _landlock(),
        _cookie(),
        _sock_diag(),
        _proc(),
        _descriptors(),
        *surroundings.rows(Machine()),
    ]


def healthy(checks: list[Check]) -> bool:
    """Whether `xensock run` can work here."""
    return all(check.state != "fail" for check in checks)


def data_paths(checks: list[Check]) -> list[str]:
    """The data paths that work here: direct needs Landlock's TCP rules, relay does not."""
    if not healthy(checks):
        return []
    landlock = next(check for check in checks if check.name == "landlock")
    return ["direct", "relay"] if landlock.state == "ok" else ["relay"]


def _kernel() -> Check:
    release = platform.release()
    number = re.match(r"(\d+)\.(\d+)", release)
    if number and (int(number[1]), int(number[2])) < (5, 14):
        return Check("kernel", "fail", f"Linux {release} is too old", "boot Linux 5.14 or later")
    return Check("kernel", "ok", f"Linux {release}")


def _built() -> list[Check]:
    try:
        core = import_module("xensock._core")
    except ImportError as problem:
        detail = f"xensock._core was not built here (no compiler?): {problem}"
        return [
            Check("C core", "fail", detail, BUILD),
            Check("launcher", "fail", "not tried: it is built with the C core", BUILD),
        ]
    rows = [Check("C core", "ok", "xensock._core")]
    launcher = Path(str(core.__file__)).parent / "xensock-init"
    if not launcher.is_file():
        rows.append(Check("launcher", "fail", f"{launcher} is missing", BUILD))
    elif not os.access(launcher, os.X_OK):
        rows.append(Check("launcher", "fail", *_why("exec", errno.EACCES)))
    else:
        rows.append(Check("launcher", "ok", "xensock-init"))
    return rows


def _why(stage: str, error: int) -> tuple[str, str]:
    """Detail and remedy of a stage that failed."""
    what, cause, hint = explain_failure(stage, error)
    return f"{what}: {cause}", hint


def _row(name: str, fine: str, outcome: probe.Outcome, *stages: str) -> Check:
    """One row for stages that belong together; all must have worked."""
    for stage in stages:
        if outcome.get(stage):
            return Check(name, "fail", *_why(stage, outcome[stage]))
    if any(stage not in outcome for stage in stages):
        if "timeout" in outcome:
            return Check(name, "fail", "the check hung", "see `sudo dmesg | tail`")
        return Check(name, "fail", "not tried: a check above failed", "solve that one first")
    return Check(name, "ok", fine)


def _namespaces() -> list[Check]:
    user, guest = probe.user_namespace(), probe.guest()
    users = _row("user namespaces", "usable by this user", user, "userns", "uidmap")
    if os.geteuid() == 0 and users.state == "fail":
        users = users._replace(state="warn", detail=f"{users.detail} (root needs none)")
    return [
        users,
        _row("network namespace", "usable", guest, "netns"),
        _row("mount namespace", "usable", guest, "mountns", "private"),
        _row("PID namespace", "usable", guest, "pidns"),
        _row("guest /proc", "a fresh one can be mounted", guest, "proc"),
        _row("guest /sys", "a fresh one can be mounted", guest, "sysfs"),
        _row("guest interface", "veth or dummy", guest, "veth"),
        _row("guest routes", "every address can be made local", guest, "route"),
    ]


def _supervision() -> list[Check]:
    found = probe.supervision()
    scope = Machine().sysctl("kernel.yama.ptrace_scope")
    yama = "no Yama" if scope is None else f"kernel.yama.ptrace_scope is {scope}"
    return [
        _row("seccomp notification", "a guest's calls can be received", found, "seccomp", "notify"),
        _row("seccomp addfd", "answered with a socket in one step", found, "addfd"),
        _row("pidfd_getfd", f"a guest's sockets can be used ({yama})", found, "getfd"),
        _row("process_vm_readv", "a guest's arguments can be read", found, "memory"),
    ]


def _landlock() -> Check:
    abi, error = probe.landlock()
    if error:
        return Check("landlock", "warn", *_why("landlock", error))
    if abi < 4:
        detail, hint = _why("landlock", errno.EINVAL)
        return Check("landlock", "warn", f"{detail}; this kernel has ABI {abi}", hint)
    return Check("landlock", "ok", f"ABI {abi}: TCP rules take effect")


def _cookie() -> Check:
    error = probe.netns_cookie()
    if error:
        return Check(
            "SO_NETNS_COOKIE",
            "warn",
            f"{os.strerror(error)}: a socket's namespace is found in a slower way",
            "boot Linux 5.14 or later",
        )
    return Check("SO_NETNS_COOKIE", "ok", "a socket's namespace can be told")


def _sock_diag() -> Check:
    error = probe.sock_diag()
    if error:
        return Check(
            "sock_diag",
            "warn",
            f"{os.strerror(error)}: what guests have closed or given up is noticed late or never",
            "sudo modprobe -a tcp_diag udp_diag unix_diag",
        )
    return Check("sock_diag", "ok", "the kernel tells of sockets")


def _proc() -> Check:
    missing = [
        name for name in ("ns/net", "fdinfo", "status") if not Path("/proc/self", name).exists()
    ]
    if missing:
        return Check(
            "/proc",
            "fail",
            f"/proc/self/{missing[0]} is not visible",
            "sudo mount -t proc proc /proc",
        )
    return Check("/proc", "ok", "visible")


def _descriptors() -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FEW_DESCRIPTORS:
        return Check(
            "open files",
            "warn",
            f"at most {hard} per process: fewer connections at once",
            f"ulimit -Hn {FEW_DESCRIPTORS * 16}  # as root, or nofile in limits.conf",
        )
    limit = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    return Check("open files", "ok", f"up to {limit} per process")
