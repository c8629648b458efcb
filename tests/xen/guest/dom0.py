"""In dom0: backends, domains and what they say. `with Scenario(NAME) as scenario:` ends everything at its end."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ADDRESS = "198.51.100.1"
MODULES = {"linux": "pvcalls-back", "mended": "pvcalls-back-mended"}
CONSOLES = Path("/var/log/xen/console")
ENVIRONMENT = {**os.environ, "PYTHONPATH": "/payload/lib", "PYTHONDONTWRITEBYTECODE": "1"}
XENSOCK = ["python3", "-m", "xensock"]
# Of a busy machine: how many times everything may take as long.
SLOWNESS = float(os.environ.get("SLOWNESS", "1"))


class Failed(Exception):
    """Something did not come about."""


def say(*words):
    print("+", *words, flush=True)


def run(*command, check=True, seconds=120):
    """What a command said, on either of its outputs."""
    seconds *= SLOWNESS
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{command}: nothing within {seconds:g} s") from late
    if check and done.returncode:
        raise Failed(f"{command}: {done.returncode}: {done.stdout}")
    return done.stdout


def until(what, found, seconds):
    """Wait for something that is looked at now and then: looking takes time of the only processor."""
    seconds *= SLOWNESS
    end = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds:g} s")
        time.sleep(0.5)
    return value


def listed(said):
    """Names and numbers in what `xl list` says. A domain that is gone but for pages that others map has no name there,
    but (null)."""
    row = r"^(\S+) +(\d+) +\d+ +\d+ +[-rbpscd]{6} +[\d.]+$"
    return [(name, int(number)) for name, number in re.findall(row, said, re.MULTILINE)]


def domains():
    """As `listed`, now. Raises Failed where not even dom0 is among them."""
    said = run("xl", "list")
    found = listed(said)
    if ("Domain-0", 0) not in found:
        raise Failed(f"xl list: {said}")
    return found


def there(old):
    """Whether the hypervisor still has the domain of that number, be it only for pages that others map."""
    return old in [number for _, number in domains()]


class Domain:
    """A domU. Its script's lines are those of its console."""

    def __init__(self, name):
        self.name = name
        self.numbers = set()  # one for each of its lives
        self._console = CONSOLES / f"guest-{name}.log"
        self._told = 0

    def said(self):
        try:
            return self._console.read_bytes().decode(errors="replace").replace("\r", "")
        except FileNotFoundError:
            return ""

    def wait(self, pattern, seconds):
        """Until it said that. Raises Failed, also when the domain is gone."""
        looks = itertools.count(1)

        def found():
            self.tell()
            match = re.search(pattern, self.said(), re.MULTILINE)
            if match is None and next(looks) % 20 == 0 and not self.alive():
                raise Failed(f"{self.name} ended without {pattern!r}")
            return match

        return until(f"{self.name}: {pattern}", found, seconds)

    def tell(self, last=False):
        """Print the lines that it said since."""
        said = self.said()
        end = len(said) if last else said.rfind("\n") + 1
        sys.stdout.write(said[self._told : end])
        sys.stdout.flush()
        self._told = max(self._told, end)

    def alive(self):
        """Whether the hypervisor still has it, be it only for pages that others map."""
        now = domains()
        self.numbers |= {number for name, number in now if name == self.name}
        return not self.numbers.isdisjoint(number for _, number in now)

    def unpause(self):
        run("xl", "unpause", self.name)

    def destroy(self):
        self.alive()  # which notes its number
        run("xl", "destroy", self.name, check=False)


def whole(image):
    """The file system of a domU out of its two parts."""
    made = Path(f"/run/{image}.cpio")
    if not made.exists():
        with made.open("wb") as out:
            for part in ("base", image):
                with open(f"/payload/{part}.cpio", "rb") as file:
                    shutil.copyfileobj(file, out, 1 << 20)
    return made


def held(process):
    """Descriptors of a backend, its mappings of grants, and dom0's event channels with other domains."""
    own = Path(f"/proc/{process.pid}")
    grants = (own / "maps").read_text().count("/dev/xen/gntdev")
    channels = run("/usr/lib/xen-4.17/bin/lsevtchn", "0").count("Interdomain")
    return len(os.listdir(own / "fd")), grants, channels


def let_go(process, before):
    """Wait until a backend has no more than it had then. Threads of its pool may have come, and stay."""
    until(
        f"what it had before: {before}",
        lambda: all(now <= then for now, then in zip(held(process), before, strict=True)),
        60,
    )


def number(name):
    """Of a domain, -1 where there is none."""
    said = run("xl", "domid", name, check=False).strip()
    return int(said) if said.isdigit() else -1


def nodes_left(old):
    """How many nodes of a domain's devices are left at dom0's backends."""
    said = run("xenstore-ls", "-f", "/local/domain/0/backend", check=False)
    return said.count(f"/pvcalls/{old}/")


class Scenario:
    """Owns what it starts, and prints at its end what the far end and the backends said."""

    def __init__(self, name, peer=True):
        """`peer`: whether the far end serves in dom0."""
        self.folder = Path("/tmp") / name
        self._peer = peer
        self._processes = []
        self._domains = []
        self._kind = ""
        self._backend = None

    def __enter__(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        run("ip", "address", "replace", f"{ADDRESS}/32", "dev", "lo")
        self.peer_log = self.folder / "peer.log"
        if self._peer:
            self.start("python3", "/payload/peer.py", ADDRESS, log=self.peer_log)
        return self

    def start(self, *command, log):
        """A process beside, appending to a log."""
        with open(log, "ab") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=ENVIRONMENT
            )
        self._processes.append(process)
        return process

    def backend(self, kind, *options):
        """Linux's (linux; mended: with its known fault mended) or XenSock's; it serves when this returns."""
        self._kind = kind
        if kind in MODULES:
            run("modprobe", MODULES[kind])
            return
        log = self.folder / "backend.log"
        before = log.read_text().count("listening") if log.exists() else 0
        words = [
            *XENSOCK,
            "backend",
            "--listen",
            "xen:",
            "--trace-file",
            str(self.folder / "trace"),
        ]
        self._backend = self.start(*words, *options, log=log)

        def listens():
            if self._backend.poll() is not None:
                raise Failed(f"the backend ended: {log.read_text()}")
            return log.read_text().count("listening") > before

        until("the backend", listens, 60)

    @property
    def process(self):
        """XenSock's backend."""
        return self._backend

    def kill_backend(self):
        """Without a word; a module can leave once no device is bound to it."""
        kind, self._kind = self._kind, ""
        if kind in MODULES:
            gone = MODULES[kind].replace("-", "_")
            until(gone, lambda: not run("rmmod", gone, check=False), 60)
        elif kind:
            self._backend.kill()
            self._backend.wait()

    def domain(self, name, kind, cpus, script, *lines, memory=340, image="domu", paused=False):
        """Start a domU that runs a script of /guest, or create it paused; image: see payload.py."""
        domain = Domain(name)
        self._domains.append(domain)
        with Path(CONSOLES / f"guest-{name}.log").open("wb"):
            pass
        # The emulated processor does not say that its time stamp counter is invariant, as real ones do. Xen would then
        # emulate each look at the clock: 0.4 ms in a PVH domU here, several times in each switch of threads.
        config = self.folder / f"{name}.cfg"
        text = f"""
name = "{name}"
type = "{kind}"
kernel = "/boot/vmlinux"
ramdisk = "{whole(image)}"
memory = {memory}
vcpus = {cpus}
tsc_mode = "native"
extra = "console=hvc0 quiet loglevel=4 panic=-1 rdinit=/init script={script}"
on_crash = "destroy"
on_poweroff = "destroy"
on_reboot = "restart"
"""
        config.write_text(text + "\n".join(lines) + "\n")
        run("xl", "create", *(["-p"] if paused else []), str(config))
        domain.alive()  # which notes its number
        return domain

    def __exit__(self, *_):
        for domain in self._domains:
            domain.destroy()
            domain.tell(last=True)
        self.kill_backend()
        for process in self._processes:
            process.kill()
            process.wait()
        for log in sorted(self.folder.iterdir()):
            if log.suffix != ".cfg":
                print(f"--- {log.name}\n{log.read_text(errors='replace')}")
        print("--- kernel")
        for line in run("dmesg", "-c").splitlines():
            if re.search(r"pvcalls|WARN|BUG|Oops|Call Trace", line):
                print(line)
        sys.stdout.flush()
