"""Why a kernel feature is refused here, and the exact command that gives it back.

The same errno has different causes on different machines: EPERM for a user namespace may be
Ubuntu's AppArmor, a sysctl, a container's seccomp profile. This file looks at the machine to tell.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTAINER = "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
UNMASKED = f"{CONTAINER} --security-opt systempaths=unconfined"
APPARMOR = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"

# The first field of user_namespaces(7)'s limits; Debian's and Ubuntu's own switch; Ubuntu's other.
MAXIMUM = "user.max_user_namespaces"
SWITCH = "kernel.unprivileged_userns_clone"
RESTRICTION = "kernel.apparmor_restrict_unprivileged_userns"
# capabilities(7): without these root can make no guest.
ROOTS = {"SYS_ADMIN": 21, "NET_ADMIN": 12}


# What `xensock doctor --fix` offers to run: a setting that the next boot forgets, nothing that installs or builds.
COMMAND = re.compile(r"sudo (sysctl -w [\w.]+=\d+|modprobe \w+|mount -t proc proc /proc)(?![^,; ])")


def command(remedy: str) -> str | None:
    """The command that a remedy begins with, if it is one that can be run as it stands; for root without sudo."""
    found = COMMAND.match(remedy)
    if found is None:
        return None
    return found[1] if os.geteuid() == 0 else found[0]


class Explanation(NamedTuple):
    """What failed, why, and what to do: the first three fields of a `UserError`."""

    what: str
    cause: str
    hint: str


class Machine:
    """The facts that tell causes apart, read from /proc when asked."""

    def __init__(self, proc: str = "/proc", root: str = "/", uid: int | None = None) -> None:
        self.proc = Path(proc)
        self.root = Path(root)
        self.uid = os.geteuid() if uid is None else uid

    def sysctl(self, name: str) -> int | None:
        """The number in a sysctl, None where the kernel has no such one."""
        try:
            return int((self.proc / "sys" / name.replace(".", "/")).read_text())
        except (OSError, ValueError):
            return None

    def status(self, field: str) -> str:
        """A line of /proc/self/status."""
        try:
            lines = (self.proc / "self" / "status").read_text().splitlines()
        except OSError:
            return ""
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")

    @property
    def seccomp(self) -> bool:
        """Whether a seccomp filter already confines this process (a container's, a sandbox's)."""
        return self.status("Seccomp:") == "2"

    @property
    def lacking(self) -> list[str]:
        """What root needs here and lacks, as in a container; no capability is needed by others."""
        return self.lacks(ROOTS) if self.uid == 0 else []

    def lacks(self, capabilities: Mapping[str, int]) -> list[str]:
        """Which of these, by their bits (capabilities(7)), this process does not have in effect."""
        held = int(self.status("CapEff:") or "0", 16)
        return [name for name, bit in capabilities.items() if not held >> bit & 1]

    @property
    def container(self) -> bool:
        """Whether this looks like a container of Docker, Podman or Kubernetes."""
        return any(
            (self.root / name).exists() for name in (".dockerenv", "run/.containerenv")
        ) or bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def explain_failure(stage: str, error: int, machine: Machine | None = None) -> Explanation:
    """What to tell a person when the launcher failed at `stage` with errno `error`.

    Stages: those of the launcher (`xensock.supervisor.launch.STAGES`, launcher, veth, exec), and
    those of the checks (getfd memory notify addfd route private).
    """
    here = Machine() if machine is None else machine
    what = f"{_WHAT.get(stage, f'stage {stage} failed')} ({_name(error)})"
    cause, hint = _why(stage, error, here)
    return Explanation(what, cause, hint)


_WHAT = {
    "userns": "cannot create a user namespace",
    "uidmap": "cannot map the user into a user namespace",
    "netns": "cannot create a network namespace",
    "mountns": "cannot create a mount namespace",
    "pidns": "cannot create a PID namespace",
    "private": "cannot make the guest's mounts private",
    "proc": "cannot mount the guest's /proc",
    "sysfs": "cannot mount the guest's /sys",
    "veth": "cannot create the guest's network interface",
    "route": "cannot set up the guest's routes",
    "landlock": "cannot refuse TCP calls by Landlock",
    "seccomp": "cannot install the seccomp filter",
    "getfd": "cannot take over a guest's socket",
    "memory": "cannot read a guest's memory",
    "notify": "cannot receive a guest's calls",
    "addfd": "cannot answer a guest's call with a socket",
    "launcher": "cannot start the guest's launcher",
    "exec": "cannot start the guest's launcher",
    "config": "the guest's launcher did not understand its orders",
    "pidfd": "cannot hold on to the guest's processes",
    "hide": "cannot hide a control socket of the host",
    "caps": "cannot drop the guest's capabilities",
    "fork": "cannot create a process",
}


def _name(error: int) -> str:
    return errno.errorcode.get(error, str(error))


def _why(stage: str, error: int, here: Machine) -> tuple[str, str]:
    if stage in ("fork", "userns") and error in (errno.EAGAIN, errno.ENOMEM):
        return _no_processes(error)
    if stage in ("userns", "uidmap"):
        return _no_user_namespace(error, here)
    if stage in ("netns", "mountns", "pidns", "private", "hide"):
        return _no_namespace(stage, error, here)
    if stage in ("proc", "sysfs"):
        return _no_fresh_mount(stage, error, here)
    if stage in ("veth", "route"):
        return _no_network(stage, error, here)
    if stage == "landlock":
        return _no_landlock(error)
    if stage in ("launcher", "exec", "config"):
        return _no_launcher(error)
    return _no_supervision(stage, error, here)


def _no_user_namespace(error: int, here: Machine) -> tuple[str, str]:
    if error == errno.ENOSPC or here.sysctl(MAXIMUM) == 0:
        if here.sysctl(MAXIMUM) == 0:
            return f"{MAXIMUM} is 0", f"sudo sysctl -w {MAXIMUM}=28633"
        return f"all {MAXIMUM} are in use", f"sudo sysctl -w {MAXIMUM}=100000"
    if error == errno.EUSERS:
        return "32 user namespaces are nested already", "run xensock outside the innermost one"
    if error in (errno.ENOSYS, errno.EINVAL):
        return (
            "this kernel is built without user namespaces (CONFIG_USER_NS)",
            "sudo xensock run …: root needs none; or boot a kernel that has them",
        )
    if here.sysctl(SWITCH) == 0:
        return f"{SWITCH} is 0", f"sudo sysctl -w {SWITCH}=1"
    if here.sysctl(RESTRICTION) == 1:
        return (
            "AppArmor refuses them to ordinary users (Ubuntu 23.10 and later)",
            f"{APPARMOR}, or install the profile of docs/howto/user-namespaces.md",
        )
    if here.seccomp:
        return (
            "a seccomp filter confines this process (Docker's default profile refuses them)",
            f"start the container with: {UNMASKED} …",
        )
    return (
        "the kernel or a security module refuses them to this process (a chroot does, too)",
        f"leave the chroot, or see `sudo dmesg | tail`; in a container: {UNMASKED} …",
    )


def _no_namespace(stage: str, error: int, here: Machine) -> tuple[str, str]:
    limit = {"netns": "net", "mountns": "mnt", "private": "mnt", "hide": "mnt", "pidns": "pid"}[
        stage
    ]
    if error == errno.ENOSPC:
        name = f"user.max_{limit}_namespaces"
        return f"{name} is {here.sysctl(name)}", f"sudo sysctl -w {name}=28633"
    if error in (errno.EINVAL, errno.ENOSYS):
        option = {"net": "CONFIG_NET_NS", "mnt": "CONFIG_NAMESPACES", "pid": "CONFIG_PID_NS"}[limit]
        return f"this kernel is built without {option}", f"boot a kernel that has {option}"
    if here.sysctl(RESTRICTION) == 1 and here.uid != 0:
        return (
            "AppArmor gave the user namespace no capabilities (Ubuntu 23.10 and later)",
            f"{APPARMOR}, or install the profile of docs/howto/user-namespaces.md",
        )
    if here.lacking:
        return _less_than_root(here)
    if here.seccomp:
        return (
            "a seccomp filter confines this process (a container's profile)",
            f"start the container with: {UNMASKED} …",
        )
    return (
        "the kernel or a security module refused it",
        "see `sudo dmesg | tail` for the module's message, and `xensock doctor` for the rest",
    )


def _less_than_root(here: Machine) -> tuple[str, str]:
    names = ", ".join(f"CAP_{name}" for name in here.lacking)
    options = " ".join(f"--cap-add {name}" for name in here.lacking)
    return (
        f"root here lacks {names}, as in a container",
        f"start the container with: {UNMASKED} {options} …",
    )


def _no_fresh_mount(stage: str, error: int, here: Machine) -> tuple[str, str]:
    if error in (errno.EPERM, errno.EACCES):
        if here.sysctl(RESTRICTION) == 1 and here.uid != 0:
            return (
                "AppArmor gave the user namespace no capabilities (Ubuntu 23.10 and later)",
                f"{APPARMOR}, or install the profile of docs/howto/user-namespaces.md",
            )
        return (
            f"parts of /{'proc' if stage == 'proc' else 'sys'} are masked here, as in a container, "
            "and the kernel then allows no fresh one",
            f"start the container with: {UNMASKED} … "
            "(podman: --security-opt unmask=ALL; Kubernetes: procMount: Unmasked)",
        )
    return f"mount(2) said {os.strerror(error)}", "see `sudo dmesg | tail`, then `xensock doctor`"


def _no_network(stage: str, error: int, here: Machine) -> tuple[str, str]:
    if stage == "veth" and error in (errno.EOPNOTSUPP, errno.ENODEV):
        return "this kernel has neither veth nor dummy interfaces", "sudo modprobe veth"
    if error in (errno.EPERM, errno.EACCES):
        if here.lacking:
            return _less_than_root(here)
        return (
            "the guest's namespace gives no CAP_NET_ADMIN (AppArmor or a container's profile)",
            f"{APPARMOR}; in a container: {CONTAINER} …",
        )
    return f"rtnetlink said {os.strerror(error)}", "xensock doctor  # shows which request fails"


def _no_landlock(error: int) -> tuple[str, str]:
    relay = "use `xensock run --datapath relay …`"
    if error == errno.EOPNOTSUPP:
        return (
            "Landlock is built in but not enabled at boot",
            f"{relay}, or add landlock to the kernel's lsm= list (cat /sys/kernel/security/lsm)",
        )
    if error in (errno.EINVAL, errno.E2BIG, errno.ENOMSG):
        return "TCP rules need Linux 6.7 (Landlock ABI 4)", f"{relay}, or boot Linux 6.7 or later"
    if error in (errno.EPERM, errno.EACCES):
        return "a seccomp filter refuses it (a container's profile)", f"{relay}, or {CONTAINER} …"
    return "this kernel has no Landlock", f"{relay}, or boot a kernel with CONFIG_SECURITY_LANDLOCK"


def _no_launcher(error: int) -> tuple[str, str]:
    if error in (errno.EACCES, errno.EPERM):
        return (
            "xensock-init may not be executed: its file system is mounted noexec, or mode bits",
            "install XenSock on a file system without noexec, then: make build",
        )
    if error == errno.ENOEXEC:
        return "xensock-init was built for another machine", "make clean build"
    return "xensock-init is missing or incomplete: XenSock was not built here", "make build"


def _no_processes(error: int) -> tuple[str, str]:
    if error == errno.ENOMEM:
        return "the kernel is out of memory", "free some memory (free -m; ps aux --sort=-rss)"
    return (
        "the limit on processes is reached",
        "raise it: ulimit -u unlimited, or the pids.max of this control group",
    )


def _no_supervision(stage: str, error: int, here: Machine) -> tuple[str, str]:
    if stage == "seccomp" and error == errno.EBUSY:
        return (
            "this process already has a supervisor, and the kernel allows one per process tree",
            "run xensock outside of that sandbox (another xensock run, rootless engine, …)",
        )
    if stage == "seccomp" and error in (errno.EINVAL, errno.ENOSYS):
        return (
            "this kernel lacks seccomp user notification (CONFIG_SECCOMP_FILTER, Linux 5.0)",
            "boot Linux 5.14 or later",
        )
    if stage == "addfd" and error == errno.EINVAL:
        return "answering with a socket needs Linux 5.14", "boot Linux 5.14 or later"
    if error == errno.ENOSYS:
        return "this kernel is too old", "boot Linux 5.14 or later"
    if stage in ("getfd", "memory") and here.sysctl("kernel.yama.ptrace_scope") == 3:
        return (
            "kernel.yama.ptrace_scope is 3: nobody may look into another process",
            "set kernel.yama.ptrace_scope=1 in /etc/sysctl.d and reboot (3 cannot be lowered)",
        )
    if here.seccomp and error in (errno.EPERM, errno.EACCES):
        return (
            "a seccomp filter refuses it (a container's profile)",
            f"start the container with: {CONTAINER} …",
        )
    return (
        f"the kernel said {os.strerror(error)}",
        "see `sudo dmesg | tail` for a security module's message, then `xensock doctor`",
    )
