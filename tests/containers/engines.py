"""Container engines in the test world: a private dockerd, Podman as root and as the ordinary user; their backends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from world.processes import eventually, program, stop
from xensock import _core

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from world.internet import World

RUNTIME = Path(str(_core.__file__)).with_name("xensock-runtime")
_APPLETS = (
    "sh cat cp grep httpd id kill ls nc nslookup ps readlink sleep su test touch true wget whoami"
)
APPLETS = _APPLETS.split(" ")
OWN = [sys.executable, "-m", "xensock"]
CONF = """
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime_supports_nocgroup = ["crun", "xensock", "xensock-runtime"]
"""


def missing(engine: str) -> str:
    """Why an engine cannot run here, "" where it can."""
    wanted = {
        "docker": ("docker", "dockerd", "containerd", "runc"),
        "podman": ("podman", "conmon", "runc"),
        "crun": ("podman", "conmon", "crun"),
        "rootless": ("podman", "conmon", "runc", "newuidmap"),
    }[engine]
    absent = [name for name in ("busybox", *wanted) if program(name) is None]
    return f"needs {', '.join(absent)}: run tools/prepare" if absent else ""


@dataclass
class Engine:
    """`command` and the arguments after it are what a person types; they run on the world's host."""

    kind: str
    world: World
    directory: Path
    command: list[str]
    runtime: list[str]
    user: str | None = None
    env: dict[str, str] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    def __call__(
        self, *argv: str, check: bool = True, timeout: float = 60, **kw: Any
    ) -> subprocess.CompletedProcess[str]:
        done = self.world.host.run(
            [*self.command, *argv],
            env=self.world.host.environment(self.user, self.env),
            timeout=timeout,
            **kw,
        )
        assert not check or done.returncode == 0, (argv, done.stdout, done.stderr, self.said())
        return done

    def labelled(self, labels: dict[str, str]) -> list[str]:
        """Docker has labels; what Podman hands to its runtime are annotations."""
        option = "--label" if self.kind == "docker" else "--annotation"
        return [f"{option}={key}={value}" for key, value in labels.items()]

    def run(
        self, *argv: str, labels: dict[str, str] | None = None, check: bool = True, **kw: Any
    ) -> subprocess.CompletedProcess[str]:
        """A container under XenSock, removed at its end: options, image, program."""
        return self(*self._run(labels or {}), *argv, check=check, **kw)

    def popen(
        self, *argv: str, labels: dict[str, str] | None = None, **kw: Any
    ) -> subprocess.Popen[Any]:
        """As `run`, without waiting for it. `kw` goes to Popen."""
        command = [*self.command, *self._run(labels or {}), *argv]
        env = self.world.host.environment(self.user, self.env)
        return self.world.host.popen(command, env=env, **kw)

    def _run(self, labels: dict[str, str]) -> list[str]:
        before = [*self.runtime_options(), "run", *self.run_options()]
        return [*before, "--rm", "--network=none", *self.labelled(labels)]

    def start(self, name: str, *argv: str, labels: dict[str, str] | None = None) -> str:
        """A container under XenSock in the background; `remove` ends it."""
        said = self.labelled(labels or {})
        before = (*self.runtime_options(), "run", *self.run_options())
        self(*before, "-d", f"--name={name}", "--network=none", *said, *argv)
        self.made.append(name)
        return name

    def exec(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self(*self.runtime_options(), "exec", *argv, check=check)

    def pid(self, name: str) -> int:
        """Of a container's first process, as this machine sees it."""
        ask = (*self.runtime_options(), "inspect", "--format", "{{.State.Pid}}", name)
        told = self(*ask).stdout.strip()
        if self.kind != "docker":
            return int(told)
        for path in Path("/proc").glob("[0-9]*/status"):  # dockerd is in a PID namespace of its own
            with contextlib.suppress(OSError):
                lines = path.read_text().splitlines()
                own = next(line.split()[1:] for line in lines if line.startswith("NSpid:"))
                if len(own) == 3 and own[1] == told:
                    return int(path.parent.name)
        raise LookupError(f"no process {told} of {name}")

    def remove(self, *names: str) -> None:
        """End what `start` started, or some of it."""
        if gone := names or (*self.made,):
            at_once = [] if self.kind == "docker" else ["--time=0"]  # else it waits for 10 s
            self(*self.runtime_options(), "rm", "-f", *at_once, *gone, check=False)
            self.made[:] = [name for name in self.made if name not in gone]

    def forget_pods(self, *ids: str) -> None:
        """Remove the control groups of pods that are removed, which Podman leaves."""
        for each in ids:
            for group in Path("/sys/fs/cgroup").glob(f"*/libpod_parent/{each}"):
                group.rmdir()

    def runtime_options(self) -> list[str]:
        return [] if self.kind == "docker" else self.runtime

    def run_options(self) -> list[str]:
        if self.kind == "docker":
            return self.runtime
        return [] if self.has_cgroups else ["--cgroups=disabled"]

    @property
    def oci(self) -> str:
        """The runtime that ours is in front of."""
        return "crun" if any(option.endswith("=crun") for option in self.runtime) else "runc"

    @property
    def has_cgroups(self) -> bool:
        """Whether its containers are in control groups of their own; see podman()."""
        return self.oci != "crun"

    @property
    def plain(self) -> Engine:
        """The same under the engine's own runtime; `remove` of either ends what was started."""
        return replace(self, runtime=[f"--runtime={self.oci}"])

    def records(self) -> list[dict[str, Any]]:
        """The backend's trace."""
        return [json.loads(line) for line in (self.directory / "trace").read_text().splitlines()]

    def records_of(self, verb: str, target: str) -> list[dict[str, Any]]:
        return [r for r in self.records() if (r["verb"], r["target"]) == (verb, target)]

    def recorded(self, verb: str, target: str, more_than: int = 0) -> dict[str, Any]:
        """The last record of such a call, waited for."""

        def last() -> dict[str, Any] | None:
            found = self.records_of(verb, target)
            return found[-1] if len(found) > more_than else None

        return eventually(last, 20, f"{verb} {target} in {self.directory}/trace")

    def said(self) -> str:
        """What backend and engine said."""
        logs = [self.directory / "backend.log", self.directory / "engine.log"]
        return "\n".join(log.read_text()[-3000:] for log in logs if log.exists())

    @property
    def socket(self) -> Path:
        return self.directory / "containers.sock"


def backend(world: World, directory: Path, user: str | None, command: list[str], *rules: str):
    """A backend for containers on the world's host. Ends it after the yield."""
    argv = [*command, "backend", f"--containers={directory}/containers.sock", "--trace=json"]
    argv += [f"--trace-file={directory}/trace", f"--control={directory}/control", *rules]
    (directory / "policies").mkdir(exist_ok=True)
    (directory / "policies" / "limited.toml").write_text('[[rule]]\nallow = "web.test:80"\n')
    argv += [f"--policies={directory}/policies", "--image=*/limited:*=limited"]
    log = directory / "backend.log"
    with log.open("ab") as out:
        process = world.host.popen(
            argv, user=user, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        return "listening" in log.read_text()

    eventually(ready, 30, "the backend")
    return process


def docker(world: World, directory: Path) -> Iterator[Engine]:
    """A private dockerd without any network of its own."""
    served = backend(world, directory, None, OWN)
    places = {"xensock": directory, "mortal": directory / "mortal"}  # the second's may be killed
    settings = {
        "runtimes": {
            name: {
                "path": str(RUNTIME),
                "runtimeArgs": [f"--xensock-backend={place}/containers.sock"],
            }
            for name, place in places.items()
        },
        "iptables": False,
        "ip6tables": False,
        "bridge": "none",
    }
    (directory / "daemon.json").write_text(json.dumps(settings))
    # /sys of the world's host shows its own devices; below it is the machine's, with control groups.
    argv = ["dockerd", f"--config-file={directory}/daemon.json", f"--data-root={directory}/data"]
    argv += [
        f"--exec-root={directory}/exec",
        f"--host=unix://{directory}/s",
        f"--pidfile={directory}/pid",
    ]
    log = directory / "engine.log"
    service = world.host.service(["sh", "-c", 'umount /sys; exec "$@"', "sh", *argv], log)
    engine = Engine(
        "docker", world, directory, ["docker", "-H", f"unix://{directory}/s"], ["--runtime=xensock"]
    )
    try:

        def ready() -> bool:
            assert service.poll() is None, log.read_text()[-3000:]
            return engine("version", check=False).returncode == 0

        eventually(ready, 60, "dockerd", 0.2)
        yield engine
    finally:
        engine.remove()
        service.kill()  # what it runs in waits for its end, and ends nothing in order (unshare(1))
        stop(service)
        stop(served)


def podman(
    world: World, directory: Path, user: str | None, command: list[str], oci: str
) -> Iterator[Engine]:
    """Podman, which has no daemon; `oci` is the runtime that ours is in front of."""
    served = backend(world, directory, user, command)
    (directory / "containers.conf").write_text(CONF)
    argv = [
        "podman",
        f"--root={directory}/data",
        f"--runroot={directory}/run",
        "--storage-driver=vfs",
    ]
    runtime = [
        f"--runtime={RUNTIME}",
        f"--runtime-flag=xensock-backend={directory}/containers.sock",
    ]
    runtime.append(f"--runtime-flag=xensock-runtime={oci}")
    # /sys of the world's host shows its own devices; below it is the machine's, with control groups.
    # crun runs nothing where both versions of control groups are mounted.
    only = "mount -t cgroup2 none /sys/fs/cgroup; " if oci == "crun" else ""
    wrap = ["unshare", "--mount", "sh", "-c", f'umount /sys; {only}exec "$@"', "sh"]
    wrap += [] if user is None else world.user.become()
    env = {"CONTAINERS_CONF": f"{directory}/containers.conf"}
    engine = Engine("podman", world, directory, [*wrap, *argv], runtime, user, env)
    try:
        yield engine
    finally:
        engine.remove()
        stop(served)


def rootless(world: World, directory: Path, command: list[str]) -> Iterator[Engine]:
    """Podman of the ordinary user, who has subordinate ids, and a backend of the same user."""
    user = world.user
    for file in ("/etc/subuid", "/etc/subgid"):
        world.write(file, f"{user.name}:200000:65536\n")
    yield from podman(world, directory, user.name, command, "runc")
    pause = user.runtime / "libpod" / "tmp" / "pause.pid"
    if pause.exists():
        os.kill(int(pause.read_text()), signal.SIGKILL)


def image(
    directory: Path,
    name: str,
    programs: Iterable[str] = (),
    files: dict[str, str] | None = None,
    links: dict[str, str] | None = None,
) -> Path:
    """A tar of a root file system: a static busybox, programs of this machine with their libraries, files, and symbolic
    links."""
    root = directory / f"{name}.root"
    for folder in ("bin", "etc", "proc", "sys", "dev", "tmp", "run", "var/log", "var/lib", "www"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    texts = {
        "www/page": f"from {name}\n",
        "etc/passwd": "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
        "etc/group": "root:x:0:\nnogroup:x:65534:\n",
        "etc/nsswitch.conf": "passwd: files\nhosts: files dns\n",
        **(files or {}),
    }
    for path, text in texts.items():
        (root / path).write_text(text)
    shutil.copy(program("busybox") or "", root / "bin" / "busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    for path, to in (links or {}).items():
        (root / path).symlink_to(to)
    for each in programs:
        shutil.copy(each, root / "bin")
        for path in libraries(each):
            to = root / path.lstrip("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
    tar = directory / f"{name}.tar"
    with tarfile.open(tar, "w") as out:
        out.add(root, ".", filter=owned_by_root)
    shutil.rmtree(root)
    return tar


def owned_by_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    return info


@cache
def libraries(path: str) -> tuple[str, ...]:
    """What ldd(1) finds, and glibc's module that asks for names."""
    loaders = [str(loader) for loader in Path("/lib").glob("ld-musl-*") if loader.exists()]
    if loaders and loaders[0].encode() in Path(path).read_bytes():
        return tuple(loaders)
    done = subprocess.run(["ldd", path], capture_output=True, text=True)
    found = [word for line in done.stdout.splitlines() for word in line.split() if word[0] == "/"]
    folder = next((Path(lib).parent for lib in found if "libc.so" in lib), None)
    extra = (
        [str(folder / lib) for lib in ("libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2")]
        if folder
        else []
    )
    return (*found, *(lib for lib in extra if Path(lib).exists()))
