"""Files that make engines and the service manager know XenSock: what to write, and how to undo exactly that.

Nothing is written but by `apply`; what a file held before lies beside it, as NAME.before-xensock, until that is undone.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xensock.supervisor.launch import launcher_path

SUFFIX = ".before-xensock"
NAME = "xensock"
HARDENING = """\
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=net user
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM
UMask=0077
"""
# To enter network namespaces, look into processes, lay out networks, bind low ports, read what engines keep.
CAPABILITIES = """\
CapabilityBoundingSet=CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_DAC_READ_SEARCH CAP_KILL
ReadWritePaths=/run
"""


class InstallError(Exception):
    """A file that cannot be changed; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Change:
    """A file as it is (None: absent) and as it is to be (None: removed)."""

    path: Path
    before: bytes | None
    after: bytes | None

    @property
    def needed(self) -> bool:
        return self.before != self.after


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are: the system's, or a user's own."""

    docker: Path
    podman: Path
    units: Path
    socket: str
    user: bool

    @classmethod
    def here(cls, root: Path = Path("/")) -> Places:
        """Those of whoever runs this; `root` stands for / in tests."""
        if os.geteuid() == 0:
            etc = root / "etc"
            return cls(
                etc / "docker" / "daemon.json",
                etc / "containers" / "containers.conf.d" / "xensock.conf",
                etc / "systemd" / "system",
                "/run/xensock/containers.sock",
                False,
            )
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return cls(
            config / "docker" / "daemon.json",
            config / "containers" / "containers.conf.d" / "xensock.conf",
            config / "systemd" / "user",
            "%t/xensock/containers.sock",
            True,
        )


def runtime() -> str:
    """The runtime's path. Raises LaunchError where it was not built."""
    return str(launcher_path().with_name("xensock-runtime"))


def docker(places: Places) -> Change:
    """The runtime among those of daemon.json. Raises InstallError for a file that is no such thing."""
    before = _read(places.docker)
    settings = _settings(before, places.docker)
    known = settings.setdefault("runtimes", {})
    if not isinstance(known, dict):
        raise InstallError(f"{places.docker}: `runtimes` is no object", "correct the file by hand")
    if known.get(NAME) == {"path": runtime()}:
        return Change(places.docker, before, before)
    known[NAME] = {"path": runtime()}
    return Change(places.docker, before, json.dumps(settings, indent=4).encode() + b"\n")


def without_docker(places: Places) -> Change:
    """daemon.json without the runtime."""
    before = _read(places.docker)
    if before is None:
        return Change(places.docker, None, None)
    settings = _settings(before, places.docker)
    known = settings.get("runtimes")
    if not isinstance(known, dict) or NAME not in known:
        return Change(places.docker, before, before)
    del known[NAME]
    if not known:
        del settings["runtimes"]
    left = json.dumps(settings, indent=4).encode() + b"\n" if settings else None
    kept = _read(_aside(places.docker))
    if kept is not None and _settings(kept, places.docker) == settings:
        left = kept  # with the spaces and the order that its owner gave it
    return Change(places.docker, before, left)


def podman(places: Places) -> Change:
    """A file of settings beside those of others (containers.conf(5))."""
    text = f"[engine.runtimes]\n{NAME} = [{json.dumps(runtime())}]\n"
    return Change(places.podman, _read(places.podman), text.encode())


def units(places: Places, options: tuple[str, ...] = ()) -> list[Change]:
    """The service and its socket. `options`: further ones of `xensock backend`."""
    return [
        Change(places.units / name, _read(places.units / name), text.encode())
        for name, text in (
            (f"{NAME}.socket", socket_unit(places)),
            (f"{NAME}.service", service_unit(places, options)),
        )
    ]


def removed(*paths: Path) -> list[Change]:
    """Files that were ours as a whole."""
    return [Change(path, _read(path), _read(_aside(path))) for path in paths]


def without_units(places: Places) -> list[Change]:
    """The units, and the links by which `systemctl enable` has them started."""
    names = (f"{NAME}.socket", f"{NAME}.service")
    links = [wants / name for wants in sorted(places.units.glob("*.wants")) for name in names]
    gone = [
        Change(link, os.fsencode(os.readlink(link)), None) for link in links if link.is_symlink()
    ]
    return [*gone, *removed(*(places.units / name for name in names))]


def socket_unit(places: Places) -> str:
    """systemd.socket(5): containers may start before the backend does."""
    return f"""\
[Unit]
Description=Where OCI runtimes come to XenSock
Documentation=man:systemd.socket(5)

[Socket]
ListenSequentialPacket={places.socket}
SocketMode=0600
DirectoryMode=0700
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


def service_unit(places: Places, options: tuple[str, ...]) -> str:
    """systemd.service(5)."""
    command = [sys.executable, "-m", "xensock", "backend", "--containers", places.socket]
    command += [option.replace("%", "%%") for option in options]
    line = " ".join(map(_quoted, command))
    more = "" if places.user else HARDENING + CAPABILITIES
    wanted = "default.target" if places.user else "multi-user.target"
    return f"""\
[Unit]
Description=XenSock backend for containers
Requires={NAME}.socket
After={NAME}.socket network.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={line}
ExecStopPost={line} --cleanup
Restart=on-failure
FileDescriptorStoreMax=65536
KillMode=mixed
LimitNOFILE=524288
{more}
[Install]
WantedBy={wanted}
"""


def apply(changes: list[Change]) -> list[Path]:
    """Make the changes that are needed; which files they were in. Raises OSError."""
    made = []
    for change in changes:
        if not change.needed:
            continue
        aside = _aside(change.path)
        if change.after is None:
            change.path.unlink(missing_ok=True)
            aside.unlink(missing_ok=True)
            folder = change.path.parent
            if folder.suffix in (".wants", ".d"):  # made for what is in them
                with suppress(OSError):
                    folder.rmdir()
        else:
            change.path.parent.mkdir(parents=True, exist_ok=True)
            if change.after == _read(aside):
                aside.unlink()
            elif change.before is not None and not aside.exists():
                _write(aside, change.before)
            _write(change.path, change.after)
        made.append(change.path)
    return made


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    beside.write_bytes(data)
    beside.chmod(mode)
    beside.replace(path)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _aside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _settings(data: bytes | None, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(data) if data and data.strip() else {}
    except ValueError as error:
        raise InstallError(f"{path} is not JSON: {error}", "correct the file by hand") from error
    if not isinstance(found, dict):
        raise InstallError(f"{path} is no JSON object", "correct the file by hand")
    return found


def _quoted(word: str) -> str:
    """As systemd.service(5) reads it."""
    return json.dumps(word) if set(word) & set(" \t\"'\\;$") else word
