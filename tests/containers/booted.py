"""systemd as the first process of a machine of its own: a root of mounts, in namespaces, of which nothing is left.

What systemd does to a machine at its start (it empties /tmp, among others) it does to that root: /usr is this
machine's, read-only, and everything else is new.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines import CONF

import xensock
from world.processes import eventually, program, stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from world.internet import World

SYSTEMD = "/usr/lib/systemd/systemd"
GROUPS = Path("/sys/fs/cgroup")
PLACES = (Path(xensock.__file__).parents[1], Path(sys.prefix), Path(sys.base_prefix))
# Units that Debian has for every machine are covered; those that are needed are started by what needs them.
SCRIPT = r"""
set -e
root=$1; shift
mount --make-rprivate /
umount /sys # the world's
groups=/sys/fs/cgroup
[ -d $groups/unified ] && groups=$groups/unified
mkdir "$groups/$(basename "$root")"
echo $$ >"$groups/$(basename "$root")/cgroup.procs"
exec unshare --pid --fork --kill-child=KILL --mount --uts --ipc --cgroup sh -c "$INNER" sh "$root" "$@"
"""
INNER = r"""
set -e
root=$1; shift
mount -t tmpfs -o mode=755 systemd "$root"
cd "$root"
mkdir usr etc var run tmp dev proc procs sys root old dev/pts dev/shm
mkdir -p var/lib var/log var/tmp etc/systemd/system
chmod 1777 tmp var/tmp
for link in bin sbin lib lib64; do [ -e /usr/$link ] && ln -s usr/$link $link; done
mount --rbind /usr usr
mount -o remount,bind,ro usr
for wants in sysinit local-fs sockets multi-user timers graphical basic; do
    if [ -d usr/lib/systemd/system/$wants.target.wants ]; then
        mount -t tmpfs empty usr/lib/systemd/system/$wants.target.wants
    fi
done
for place; do
    mkdir -p "./$place"
    mount --bind "$place" "./$place"
done
for node in null zero full random urandom tty; do
    : >dev/$node
    mount --bind /dev/$node dev/$node
done
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
cp -a /etc/alternatives /etc/passwd /etc/group /etc/nsswitch.conf etc/
cp /etc/resolv.conf /etc/hosts etc/
mkdir -p etc/containers
printf %s "$CONF" >etc/containers/containers.conf
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >etc/containers/policy.json
cat /proc/sys/kernel/random/uuid | tr -d - >etc/machine-id
mount -t proc proc proc
mount -t proc proc procs # nothing of it is covered: else nobody but root may mount another (user_namespaces(7))
mount --bind proc/sys proc/sys # what systemd sets there is the machine's
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup sys/fs/cgroup
pivot_root . old
umount -l /old
rmdir /old
export container=xensock-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
unset CONF INNER
exec /usr/lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=no
"""


def missing() -> str:
    """Why no systemd can be booted here, "" where one can."""
    if not os.access(SYSTEMD, os.X_OK) or program("systemctl") is None:
        return "needs systemd: run tools/prepare"
    trial = ("unshare", "--mount", "--cgroup", "mount", "-t", "cgroup2", "none", "/mnt")
    done = subprocess.run(trial, capture_output=True, text=True)
    return f"no control groups of version 2: {done.stderr.strip()}" if done.returncode else ""


@dataclass(frozen=True)
class Machine:
    """A machine that systemd has started.

    pid      systemd, as this machine sees it
    user     who types: "" is root
    """

    world: World
    pid: int
    user: str = ""

    def __call__(
        self, *argv: str, check: bool = True, user: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in there."""
        who = self.user or user
        kinds = [f"--{kind}" for kind in ("mount", "pid", "uts", "ipc", "cgroup")]
        enter = ["nsenter", f"--target={self.pid}", *kinds, "--"]
        enter += [*(self.world.user.become() if who else []), "env", "-C", "/", "--"]
        env = {"XDG_RUNTIME_DIR": f"/run/user/{self.world.user.uid}"} if who else {}
        host = self.world.host
        done = host.run([*enter, *argv], env=host.environment(who or None, env), timeout=60)
        assert not check or done.returncode == 0, (argv, done.stdout, done.stderr)
        return done

    @property
    def users(self) -> Machine:
        """The same for the world's ordinary user."""
        return replace(self, user=self.world.user.name)

    def systemctl(self, *words: str, check: bool = True) -> str:
        """The system's manager, or the user's own."""
        whose = ["--user"] if self.user else []
        return self("systemctl", *whose, *words, check=check).stdout.strip()

    def shown(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit)

    def files(self, *places: str) -> str:
        """What is in folders: every name, whither links lead, and digests of files."""
        script = (
            'find "$@" -printf "%p %y %l\\n" | sort; find "$@" -type f -exec sha256sum {} + | sort'
        )
        return self("sh", "-c", script, "sh", *places).stdout


def first(pid: int) -> int:
    """The first process in the PID namespace that a process made for its children; 0 where that is not systemd yet."""
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if Path(f"/proc/{task}/comm").read_text() == "systemd\n":
                return int(task)
            if found := first(int(task)):
                return found
    return 0


@contextmanager
def booted(world: World, directory: Path) -> Iterator[Machine]:
    """A machine on the network of the world's host, whose root is mounted at `directory`."""
    log = directory.with_suffix(".log")
    places = sorted({str(place) for place in (*PLACES, world.directory) if place.parts[1] != "usr"})
    argv = ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", str(directory), *places]
    directory.mkdir()
    with log.open("wb") as out:
        process = world.host.popen(argv, env={"INNER": INNER, "CONF": CONF}, stdout=out, stderr=out)
    try:

        def up() -> Machine | None:
            assert process.poll() is None, log.read_text()
            if not (pid := first(process.pid)):
                return None
            made = Machine(world, pid)
            return made if made.systemctl("is-system-running", check=False) == "running" else None

        yield eventually(up, 60, f"systemd, {log}", 0.1)
    finally:
        process.kill()  # its child goes with it, and with that everything
        stop(process)
        for group in sorted(GROUPS.glob(f"**/{directory.name}/**/"), reverse=True):
            eventually(lambda group=group: removed(group), 10, f"the end of {group}")
        directory.rmdir()


def removed(group: Path) -> bool:
    """Take a control group away, once its processes have ended."""
    try:
        group.rmdir()
    except OSError:
        return not group.exists()
    return True
