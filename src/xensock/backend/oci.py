"""Descriptions of containers as the OCI runtime specification has them (config.md): read, and put a step in front.

What is changed: `process.args` is preceded by xensock-init, which is bind-mounted on the container's own /dev so that
nothing is left in its file system; CAP_SYS_ADMIN and CAP_SETPCAP are lent to that step, which gives them back; the
engine's seccomp profile allows the calls that confine the caller further. Namespaces, mounts, user stay as they are.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xensock.backend.kept import look

if TYPE_CHECKING:
    from collections.abc import Mapping

INIT = "/dev/xensock-init"
NETWORK = "xensock.network"  # a label
# Annotations of what is in a pod: containerd's; CRI-O's, and that of Podman, whose pod's first container has none.
PODS = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")
CAP_SETPCAP, CAP_SYS_ADMIN = 8, 21
CONFINING = ("seccomp", "landlock_create_ruleset", "landlock_restrict_self")
SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
# linux/capability.h, in the order of their numbers
_NAMES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
CAPABILITIES = tuple(f"CAP_{name}" for name in _NAMES.split())


class RefusedError(Exception):
    """Such a container is not started; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Container:
    """Who a container is.

    images       what else its image is known by (backend/kept.py)
    labels       the engine's labels and the description's annotations, whose word is the last
    interface    path of the network namespace that the engine gives it, "" if it is to make one, or gives one later
    resolv_conf  path of the file that the engine mounts for names, "" if none
    """

    id: str
    name: str
    image: str = ""
    network: str = ""  # the engine's, "" or "none" if it made none
    labels: Mapping[str, str] = field(default_factory=dict)
    interface: str = ""
    resolv_conf: str = ""
    images: tuple[str, ...] = ()


def read(text: bytes) -> dict[str, Any]:
    """Raises RefusedError for what is no description."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the container's description is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RefusedError("the container's description is no JSON object")
    return found


def identify(ident: str, bundle: str, config: Mapping[str, Any]) -> Container:
    """Who it is, from the description and from what Docker, Podman and containerd keep beside it."""
    notes = {str(k): str(v) for k, v in (config.get("annotations") or {}).items()}
    kept = look(ident, bundle, config)
    return Container(
        ident,
        kept.name
        or notes.get("io.kubernetes.cri.container-name")
        or notes.get("nerdctl/name")
        or ident[:12],
        kept.image or notes.get("io.kubernetes.cri.image-name") or "",
        kept.network,
        {**kept.labels, **notes},
        next((str(each.get("path") or "") for each in _networks(config)), ""),
        _resolv_conf(config),
        kept.images,
    )


def _networks(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The network namespaces that it names: one, or none for the host's."""
    spaces = (config.get("linux") or {}).get("namespaces") or ()
    return [each for each in spaces if each.get("type") == "network"]


def _resolv_conf(config: Mapping[str, Any]) -> str:
    for mount in config.get("mounts") or ():
        if mount.get("destination") == "/etc/resolv.conf":
            return str(mount.get("source", ""))
    return ""


def apart(container: Container) -> bool:
    """Whether it is to take no part in the network that it was given, but have a namespace of its own instead.

    A pod's containers always: theirs has an interface, and is shared.
    """
    return container.labels.get(NETWORK) in ("none", "guest") or any(
        note in container.labels for note in PODS
    )


def check_network(config: Mapping[str, Any], container: Container) -> None:
    """Raises RefusedError for a container that shares the host's network or has one of the engine's."""
    if not _networks(config):
        raise RefusedError("it would share the host's network; start it with --network none")
    if container.network not in ("", "none"):
        raise RefusedError(
            f"the engine gives it the network {container.network!r}; start it with --network none "
            "(in Compose: network_mode: none)"
        )
    if container.labels.get(NETWORK) == "guest" and not container.interface:
        raise RefusedError(
            f"label {NETWORK}=guest: the engine says no path of a network for it, as Podman and containerd do; "
            "leave the label out"
        )


def wrap_config(config: dict[str, Any], init: str, fd: int, apart: bool = False) -> None:
    """Put the step in front of a container's program; `fd` is the connection to the backend in there.

    `apart`: give it a network namespace of its own in the place of one that somebody else made.
    Raises RefusedError where there is nothing to run.
    """
    wrap_process(config.get("process"), fd)
    if apart:
        for each in _networks(config):
            each.pop("path", None)
    mounts = config.setdefault("mounts", [])
    mounts[:] = [each for each in mounts if each.get("destination") != INIT]
    options = ["bind", "ro", "nosuid", "nodev"]
    mounts.append({"destination": INIT, "type": "bind", "source": init, "options": options})
    profile = (config.get("linux") or {}).get("seccomp")
    if profile and profile.get("defaultAction") != "SCMP_ACT_ALLOW":
        allowed = {"names": list(CONFINING), "action": "SCMP_ACT_ALLOW"}
        rules = profile.get("syscalls") or []
        profile["syscalls"] = rules if allowed in rules else [*rules, allowed]


def wrap_process(process: Any, fd: int) -> None:
    """Put the step in front of a process, in the container or to come into it. Raises RefusedError as `wrap_config`."""
    args = process.get("args") if isinstance(process, dict) else None
    if not isinstance(args, list) or not args:
        raise RefusedError("its description has no process.args")
    if args[:2] == [INIT, "container"]:  # an engine that used a description again
        given, args = [int(bits, 16) for bits in args[3:8]], args[9:]
    else:
        had = process.get("capabilities") or {}
        given = [_bits(had.get(name)) for name in SETS]
    lent = 1 << CAP_SETPCAP | 1 << CAP_SYS_ADMIN
    process["args"] = [INIT, "container", str(fd), *(f"{bits:x}" for bits in given), "--", *args]
    process["capabilities"] = {
        name: _names(bits | lent) for name, bits in zip(SETS, given, strict=True)
    }


def _bits(names: Any) -> int:
    return sum(1 << CAPABILITIES.index(name) for name in set(names or ()) if name in CAPABILITIES)


def _names(bits: int) -> list[str]:
    return [name for number, name in enumerate(CAPABILITIES) if bits >> number & 1]


def init_path() -> str:
    """The launcher as a container's mount can name it. Raises LaunchError where it was not built."""
    from xensock.supervisor.launch import launcher_path

    return os.path.realpath(launcher_path())
