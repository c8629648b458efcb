"""The units that `xensock install --systemd` writes, under a systemd that runs: the system's, and a user's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import booted
import pytest
from engines import OWN
from mortal import shell, told

from world.processes import eventually, needs
from xensock.backend.installing import CAPABILITIES
from xensock.backend.oci import CAPABILITIES as NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from booted import Machine

    from world.internet import World

DOCS = Path(__file__).parents[2] / "docs" / "containers.md"
PODMAN = ("podman", "--storage-driver=vfs", "--runtime=xensock")
# crun, which needs no other control groups than those of version 2.
CRUN = "--runtime-flag=xensock-runtime=crun"
RUN = (*PODMAN, CRUN, "run", "--cgroups=disabled", "--network=none")
GET = "wget -q -O - http://v4only.test/address"
SOCKET, SERVICE = "xensock.socket", "xensock.service"


@pytest.fixture(scope="module")
def machine(world: World) -> Iterator[Machine]:
    if reason := booted.missing():
        pytest.skip(reason)
    with booted.booted(world, world.directory / "booted") as made:
        ids = f"{world.user.name}:200000:65536"
        made("sh", "-c", f"echo {ids} >/etc/subuid; echo {ids} >/etc/subgid")
        yield made


@pytest.fixture(scope="module")
def before(machine: Machine, images: dict[str, Path]) -> str:
    """What is in the machine without us: Podman, and an image."""
    machine("podman", "--storage-driver=vfs", "import", str(images["box"]), "box")
    return left(machine)


@pytest.fixture(scope="module")
def installed(machine: Machine, before: str) -> Machine:
    """As the documents say."""
    del before
    machine(*OWN, "install", "--systemd", "--podman")
    machine.systemctl("daemon-reload")
    machine.systemctl("enable", "--now", SOCKET)
    return machine


def left(machine: Machine) -> str:
    """What could be ours."""
    others = ("/run/user", "/run/containers", "/var/lib/containers")
    skip = [word for place in others for word in ("-path", place, "-prune", "-o")]
    named = machine("find", "/run", "/var", *skip, "-name", "*xensock*", "-print")
    return machine.files("/etc") + named.stdout


def state(machine: Machine) -> tuple[str, str]:
    return machine.shown(SOCKET, "ActiveState"), machine.shown(SERVICE, "ActiveState")


def status(machine: Machine, pid: str) -> dict[str, str]:
    """Of a process: /proc/PID/status."""
    text = machine("cat", f"/proc/{pid}/status").stdout
    return {
        name: value.strip()
        for name, _, value in (line.partition(":") for line in text.splitlines())
    }


@needs("podman", "crun")
def test_the_first_container_starts_it(installed: Machine) -> None:
    doctor = json.loads(installed(*OWN, "doctor", "--json", check=False).stdout)
    (row,) = [each for each in doctor["checks"] if each["name"] == "containers"]
    assert row["state"] == "ok", row
    assert "installed for podman, systemd; a backend at /run/xensock/" in row["detail"]
    assert state(installed) == ("active", "inactive")
    done = installed(*RUN, "--rm", "box", *GET.split())
    assert done.stdout == f"{installed.world.host.addr4}\n"
    for path in ("direct", "relay"):
        label = f"--annotation=xensock.datapath={path}"
        asks = f"{GET}; nslookup v4only.test 198.51.100.77; {GET}"
        done = installed(*RUN, "--rm", label, "box", "sh", "-c", asks)
        assert done.stdout.count(f"{installed.world.host.addr4}\n") == 2, path
        assert "198.51.100.77:53" in done.stdout
    # A service of this type is active once it has said so itself.
    assert installed.shown(SERVICE, "Type") == "notify"
    assert state(installed) == ("active", "active")


@needs("podman", "crun")
def test_its_hardening_is_in_force(installed: Machine) -> None:
    installed.systemctl("start", SERVICE)
    pid = installed.shown(SERVICE, "MainPID")
    found = status(installed, pid)
    named = {name for name in re.findall(r"CAP_\w+", CAPABILITIES)}
    had = {name for bit, name in enumerate(NAMES) if int(found["CapEff"], 16) >> bit & 1}
    assert had == named
    assert found["CapBnd"] == found["CapEff"]
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    # Its mounts: it writes to /run, and to nothing else.
    inside = ("nsenter", f"--target={pid}", "--mount", "--", "touch")
    for place, writes in (("/etc", False), ("/var/lib", False), ("/root", False), ("/run", True)):
        done = installed(*inside, f"{place}/touched", check=False)
        assert (done.returncode == 0) is writes, (place, done.stderr)
        assert writes or "Read-only file system" in done.stderr
    installed("rm", "/run/touched")


@needs("podman", "crun")
def test_its_score(installed: Machine) -> None:
    said = installed("systemd-analyze", "security", "--no-pager", SERVICE).stdout
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    written = re.search(
        r"of systemd (\d+) gives it an exposure level of ([\d.]+)", DOCS.read_text()
    )
    assert score is not None, said
    assert written is not None
    if f"systemd {written[1]} " not in installed.systemctl("--version"):
        pytest.skip("another version of systemd has other weights")
    assert score[1] == written[2], said


@needs("podman", "crun")
def test_killed_and_restarted_it_goes_on(installed: Machine) -> None:
    """The manager keeps what a container needs, however the service ends."""
    address, port = installed.world.host.addr4, installed.world.host.free_port()
    installed(*RUN, "-d", "--name=sh", "box", "nc", "-ll", "-p", str(port), "-e", "/bin/sh")
    try:
        with shell(installed, port) as client:
            for words, counted in ((("kill", "--signal=KILL"), "1"), (("restart",), "0")):
                pid = installed.shown(SERVICE, "MainPID")
                installed.systemctl(*words, SERVICE)
                assert told(client, f"{GET} 2>&1").decode() == f"{address}\n", words
                assert installed.shown(SERVICE, "MainPID") not in (pid, "0")
                assert installed.shown(SERVICE, "NRestarts") == counted
    finally:
        installed(*PODMAN, CRUN, "rm", "-f", "--time=0", "sh")


@needs("podman", "crun", "newuidmap")
def test_a_users_own(machine: Machine, images: dict[str, Path], xensock: list[str]) -> None:
    """Without any privilege: their manager, their backend, and rootless Podman."""
    user, their = machine.world.user, machine.users
    runtime, files = f"/run/user/{user.uid}", ("find", f"{user.home}/.config", "-name", "*xensock*")
    machine("install", "-d", "-m", "700", "-o", str(user.uid), "-g", str(user.gid), runtime)
    unit = ["--unit=their", f"--property=User={user.uid}", "--property=Delegate=yes"]
    env = [f"--setenv=XDG_RUNTIME_DIR={runtime}", f"--setenv=HOME={user.home}"]
    machine("systemd-run", "--quiet", *unit, *env, booted.SYSTEMD, "--user")
    try:
        eventually(
            lambda: their.systemctl("is-system-running", check=False) == "running", 30, "a manager"
        )
        their("mkdir", "-p", files[1])
        before = their(*files).stdout
        their(*xensock, "install", "--systemd", "--podman")
        their.systemctl("daemon-reload")
        their.systemctl("enable", "--now", SOCKET)
        their(*PODMAN, "import", str(images["box"]), "box")
        assert state(their) == ("active", "inactive")
        done = their(*RUN, "--rm", "box", *GET.split())
        assert done.stdout == f"{machine.world.host.addr4}\n"
        assert state(their) == ("active", "active")
        found = status(machine, their.shown(SERVICE, "MainPID"))
        assert (found["CapEff"], found["Uid"].split()[0]) == (f"{0:016x}", str(user.uid))
        their(*xensock, "uninstall", "--systemd", "--podman")
        their.systemctl("stop", SOCKET, SERVICE)
        their.systemctl("daemon-reload")
        assert state(their) == ("inactive", "inactive")
        assert their(*files).stdout == before
    finally:
        machine.systemctl("stop", "their.service")


@needs("podman", "crun")
def test_uninstalled_nothing_is_left(installed: Machine, before: str) -> None:
    said = installed(*OWN, "uninstall", "--systemd", "--podman").stdout
    assert f"next: systemctl stop {SOCKET} {SERVICE}; systemctl daemon-reload" in said
    installed.systemctl("stop", SOCKET, SERVICE)
    assert "code=exited ; status=0" in installed.shown(SERVICE, "ExecStopPost")
    installed.systemctl("daemon-reload")
    assert installed.shown(SERVICE, "LoadState") == "not-found"
    # A folder of its own, empty, until the next boot.
    assert installed("ls", "-A", "/run/xensock").stdout == ""
    installed("rmdir", "/run/xensock")
    assert left(installed) == before
