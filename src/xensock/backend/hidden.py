"""Paths of the host whose owners would act for a guest: covered in the guest's mount namespace.

A connect to such a socket would be the host's network by proxy, or more than the network. Checking the path at
connect is not enough, because the path can change between check and use. Other unix sockets of the host are the
supervisor's matter (supervisor/unix_calls.py), but for datagrams, which need no connect.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# Container engines, the service manager, the bus, resolvers and network managers. Directories are covered whole.
SYSTEM = (
    "docker.sock", "docker", "containerd", "podman", "crio", "buildkit", "balena-engine.sock",
    "dbus/system_bus_socket", "nscd", "avahi-daemon", "mDNSResponder", "NetworkManager", "wpa_supplicant",
    "libvirt", "lxd.sock", "incus", "snapd.socket", "snapd-snap.socket", "cloud-init", "polkit", "xensock",
    "systemd/private", "systemd/notify", "systemd/journal", "systemd/userdb", "systemd/io.system.ManagedOOM",
    "systemd/io.systemd.ManagedOOM", "systemd/io.systemd.Manager", "systemd/io.systemd.Hostname",
    "systemd/resolve/io.systemd.Resolve", "systemd/resolve/io.systemd.Resolve.Monitor", "systemd/machine",
    "systemd/oom", "systemd/report", "systemd/io.systemd.Credentials", "systemd/io.systemd.BootControl",
    "systemd/io.systemd.sysext", "systemd/coredump", "systemd/fsck.progress", "initctl",
)  # fmt: skip
OF_USER = (
    "bus",
    "systemd",
    "podman",
    "docker.sock",
    "docker",
    "containerd-rootless",
    "dbus-1",
    "libvirt",
    "xensock",
)
ELSEWHERE = (
    "/var/lib/incus/unix.socket",
    "/var/lib/lxd/unix.socket",
    "/var/snap/lxd/common/lxd/unix.socket",
    # Sockets of virtual machines without socket(2): whoever plays a machine's part is connected with the host's.
    "/dev/vhost-vsock",
    "/dev/vsock",
    "/dev/xen",
)
ADDRESSES = (
    "DOCKER_HOST",
    "CONTAINER_HOST",
    "DBUS_SESSION_BUS_ADDRESS",
    "DBUS_SYSTEM_BUS_ADDRESS",
    "BUILDKIT_HOST",
)

DATAGRAMS = "0002"  # the type in /proc/net/unix


def _candidates(env: Mapping[str, str]) -> Iterator[str]:
    for base in ("/run", "/var/run"):
        yield from (f"{base}/{name}" for name in SYSTEM)
    users = {f"/run/user/{os.geteuid()}"}
    if env.get("XDG_RUNTIME_DIR"):
        users.add(env["XDG_RUNTIME_DIR"])
    for base in users:
        yield from (f"{base}/{name}" for name in OF_USER)
    yield from ELSEWHERE
    yield from _datagram_sockets()
    if env.get("HOME"):
        yield f"{env['HOME']}/.docker/run"
        yield f"{env['HOME']}/.docker/desktop"
    yield env.get("XENSOCK", "").removeprefix("local:")
    for name in ADDRESSES:
        for address in env.get(name, "").split(";"):
            kind, _, rest = address.partition(":")
            if kind == "unix":
                yield _path_of(rest)


def _datagram_sockets() -> Iterator[str]:
    """Paths of the datagram sockets there are (proc_pid_net(5), unix): who sends to one need not connect, so nobody is
    asked."""
    with suppress(OSError), open("/proc/net/unix", errors="surrogateescape") as lines:
        for line in lines:
            words = line.rstrip("\n").split(" ", 7)
            if len(words) == 8 and words[4] == DATAGRAMS:
                yield words[7].lstrip()


def _path_of(rest: str) -> str:
    """The path of ``unix://PATH``, ``unix:PATH``, or of a D-Bus address: keys in any order, values escaped."""
    if "=" not in rest:
        return rest.removeprefix("//")
    keys = dict(part.partition("=")[::2] for part in rest.split(","))
    return unquote(keys.get("path", ""))


def paths(env: Mapping[str, str], also: Iterable[str] = ()) -> list[str]:
    """Existing paths to cover, each once under its real name; `also`: those of backends."""
    found = {
        os.path.realpath(path)
        for path in (*_candidates(env), *also)
        if path.startswith("/") and os.path.exists(path)
    } - {"/"}
    # What lies below a covered directory needs no cover of its own.
    return sorted(p for p in found if not any(str(parent) in found for parent in Path(p).parents))
