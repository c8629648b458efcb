"""A small internet: a host, a network with servers and names, and what does not answer.

    host  203.0.113.10 ──────── 203.0.113.1  net   198.51.100.10  web.test, www, alias.test
          2001:db8:10::10       2001:db8:10::1     198.51.100.11  v4only.test
          (guests run here)                        198.51.100.12  intra.example.test
                                                   10.20.0.5      private.test
                                                   192.0.2.53     the resolver
                                                   169.254.169.254  metadata, as clouds have it
                                                   198.51.100.99  swallows everything
                                                   198.51.100.98  unreachable (ICMP)

Addresses are from the documentation ranges (RFC 5737, RFC 3849). Every server address of `net` has
HTTP on 80 and echo on 7; any other port is refused.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .namespaces import Namespace, User, eventually, program, sweep
from .processes import ORDINARY, has_id

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
ECHO = 7
LARGE = 1 << 20
RECORDS = {
    "web.test": ["198.51.100.10", "2001:db8:20::10"],
    "v4only.test": ["198.51.100.11"],
    "v6only.test": ["2001:db8:20::11"],
    "intra.example.test": ["198.51.100.12"],
    "private.test": ["10.20.0.5"],
    "metadata.test": ["169.254.169.254"],
    "silent.test": ["198.51.100.99"],
    # Too many for 512 bytes: the answer is truncated and asked again over TCP.
    "many.test": [f"198.51.100.{n}" for n in range(100, 160)],
}
NGINX = """
daemon off; master_process off; user root; pid {dir}/nginx.pid; error_log {dir}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log {dir}/access.log; client_max_body_size 64m; keepalive_requests 1000000;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
  server {{
    listen 80 backlog=1024; {six}
    root {dir}/www; default_type text/plain;
    location = /address {{ return 200 "$remote_addr\\n"; }}
    location = /host {{ return 200 "$host\\n"; }}
  }}
}}
"""
# RFC 9460, as hexadecimal digits: "1 . alpn=h2 ech=AAT+DQAA", the shortest list of keys for encrypted hellos.
HTTPS = "00010000010003026832000500060004fe0d0000"


def missing() -> str:
    """Why no world can be made here, "" when one can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "the test world needs root, or a user namespace: tools/world COMMAND"
    wanted = ("ip", "nsenter", "unshare", "setpriv", "nginx", "dnsmasq", "curl")
    absent = [name for name in wanted if program(name) is None]
    if absent:
        return f"the test world needs {', '.join(absent)}: run tools/prepare"
    trial = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True)
    if trial.returncode:
        return f"no namespaces here: {trial.stderr.strip()}"
    return ""


@dataclass(slots=True)
class World:
    """The whole; made by `World.create`, removed by `close`."""

    directory: Path
    user: User
    host: Namespace
    peer: Namespace
    python: str
    has_ipv6: bool = True
    web4: str = "198.51.100.10"
    web6: str = "2001:db8:20::10"
    private4: str = "10.20.0.5"
    metadata4: str = "169.254.169.254"
    dns4: str = "192.0.2.53"
    silent4: str = "198.51.100.99"  # connections are never answered
    silent6: str = "2001:db8:20::99"
    unreachable4: str = "198.51.100.98"  # ICMP host unreachable: EHOSTUNREACH
    refused_port: int = 9
    echo_port: int = ECHO
    _holder: subprocess.Popen[bytes] | None = None

    @classmethod
    def create(cls) -> World:
        """Build everything and wait until it answers."""
        base = Path(tempfile.gettempdir())
        sweep(base)
        directory = base / f"xensock-{os.getpid()}-world"
        directory.mkdir(mode=0o755)
        directory.chmod(0o755)
        user = ordinary_user(directory)
        for path in (user.home, user.runtime):
            path.mkdir(mode=0o700)
            user.own(path)
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, directory)
            host = Namespace.create("host", user)
            undo.callback(host.close)
            net = Namespace.create("net", user)
            undo.callback(net.close)
            world = cls(directory, user, host, net, sys.executable)
            undo.callback(world._stop_holder)
            world.has_ipv6 = socket.has_ipv6 and Path("/proc/sys/net/ipv6").exists()
            world._join()
            world._serve()
            world._give_host_its_files()
            world.python = python_for_all(world)
            undo.pop_all()
        return world

    def _join(self) -> None:
        host, net = self.host, self.peer
        host.addr4, net.addr4 = "203.0.113.10", "203.0.113.1"
        host.ip(
            f"link add up0 type veth peer name down0 netns {net.name}",
            "addr add 203.0.113.10/24 dev up0",
            "link set up0 up",
        )
        net.ip("addr add 203.0.113.1/24 dev down0", "link set down0 up")
        host.ip("route add default via 203.0.113.1")
        # Servers live on the loopback of `net`: every address of it answers on the link as well.
        four = {a for list in RECORDS.values() for a in list if ":" not in a} | {self.dns4}
        four.discard(self.silent4)
        net.ip(*(f"addr add {address}/32 dev lo" for address in sorted(four)))
        net.ip(
            f"route add blackhole {self.silent4}/32",
            f"route add unreachable {self.unreachable4}/32",
        )
        net.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        if self.has_ipv6:
            host.addr6, net.addr6 = "2001:db8:10::10", "2001:db8:10::1"
            host.ip("addr add 2001:db8:10::10/64 dev up0 nodad")
            net.ip("addr add 2001:db8:10::1/64 dev down0 nodad")
            host.ip("route add default via 2001:db8:10::1")
            six = {a for list in RECORDS.values() for a in list if ":" in a}
            net.ip(*(f"addr add {address}/128 dev lo nodad" for address in sorted(six)))
            net.ip(f"route add blackhole {self.silent6}/128")

    def _serve(self) -> None:
        www = self.directory / "www"
        www.mkdir()
        (www / "index.html").write_text("hello from the world\n")
        (www / "large").write_bytes(bytes(range(256)) * (LARGE // 256))
        six = "listen [::]:80 ipv6only=on backlog=1024;" if self.has_ipv6 else ""
        conf = self.directory / "nginx.conf"
        conf.write_text(NGINX.format(dir=self.directory, six=six))
        log = self.directory / "servers.log"
        self.peer.service(["nginx", "-c", str(conf), "-e", f"{self.directory}/nginx.log"], log)
        echo = HERE / "echo.py"
        self.peer.service([sys.executable, str(echo), str(ECHO)], log)
        self.peer.service(self._dnsmasq(), log)
        ready = eventually(
            lambda: {80, ECHO, 53} <= self.peer.listening() or self._died(), 20, "the servers"
        )
        assert ready is True, f"a server of the world ended:\n{log.read_text()}"

    def _dnsmasq(self) -> list[str]:
        hosts = self.directory / "names"
        hosts.write_text("".join(f"{a} {name}\n" for name, all in RECORDS.items() for a in all))
        argv = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv"]
        argv += ["--no-hosts", f"--addn-hosts={hosts}", "--pid-file"]
        argv += ["--bind-interfaces", f"--listen-address={self.dns4}", "--local=/test/"]
        argv += ["--local-ttl=60", "--cname=alias.test,web.test", "--log-queries"]
        argv += [f"--log-facility={self.directory}/dns.log", "--txt-record=web.test,hello world"]
        argv += [f"--dns-rr={name},65,{HTTPS}" for name in ("ech.test", "key.test")]
        return [*argv, "--srv-host=_http._tcp.test,web.test,80", "--mx-host=test,web.test,10"]

    def _died(self) -> str:
        return "ended" if any(s.poll() is not None for s in self.peer._services) else ""

    def _give_host_its_files(self) -> None:
        """A mount namespace with an /etc of its own, a plain directory that may be edited freely.

        A copy, not bind mounts: resolv.conf is replaced by rename in real life.
        """
        script = """
            set -e
            new=$1; shift
            mount -t tmpfs -o mode=755 tmpfs "$new"
            cp -a /etc/. "$new/" 2>/dev/null || true
            rm -f "$new/resolv.conf" "$new/hosts" "$new/nsswitch.conf"
            printf 'nameserver %s\\nsearch example.test\\noptions timeout:2 attempts:2\\n' "$1" \
                >"$new/resolv.conf"
            printf '127.0.0.1 localhost\\n::1 localhost\\n203.0.113.10 myself.test\\n' \
                >"$new/hosts"
            printf 'passwd: files\\ngroup: files\\nshadow: files\\nhosts: files dns\\n' \
                >"$new/nsswitch.conf"
            printf '%s\\n' "$2" >>"$new/passwd"
            printf '%s\\n' "$3" >>"$new/group"
            mount --move "$new" /etc
            mount -t sysfs sysfs /sys
            exec sleep infinity
        """
        (self.directory / "etc").mkdir()
        user = self.user
        entry = f"{user.name}:x:{user.uid}:{user.gid}::{user.home}:/bin/sh"
        argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "sh", "-c", script, "sh"]
        argv += [str(self.directory / "etc"), self.dns4, entry, f"{user.name}:x:{user.gid}:"]
        log = self.directory / "holder.log"
        with log.open("wb") as out:
            self._holder = self.host.popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        holder = self._holder

        def ready() -> bool:
            assert holder.poll() is None, f"no mount namespace for the host: {log.read_text()}"
            return Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n"

        eventually(ready, 10, "the host's own /etc")
        # The peer shares them: names and the ordinary user mean the same on both sides.
        self.host.mount = self.peer.mount = f"/proc/{holder.pid}/ns/mnt"

    def write(self, path: str, text: str) -> None:
        """Replace a file as the host sees it (/etc/resolv.conf and the like), by rename."""
        script = 'cat >"$1.new" && mv "$1.new" "$1"'
        self.host.run(["sh", "-c", script, "sh", path], input=text, check=True)

    def read(self, path: str) -> str:
        """A file as the host sees it."""
        return self.host.run(["cat", path], check=True).stdout

    def _stop_holder(self) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait(10)

    def close(self) -> None:
        """Remove everything; an error in one step does not stop the others."""
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, self.directory)
            undo.callback(self.peer.close)
            undo.callback(self.host.close)
            undo.callback(self._stop_holder)


def ordinary_user(directory: Path) -> User:
    """A user id nobody has; it gets a name only in the host's own copy of /etc."""
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    uid = next(uid for uid in range(ORDINARY, 60000) if uid not in taken)
    seen = uid if has_id(uid) else os.geteuid()
    return User("xstest", uid, uid, directory / "home", directory / "runtime", seen)


def python_for_all(world: World) -> str:
    """A Python the ordinary user may run: that of our virtual environment, or the system's."""
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        if world.host.run([path, "-c", ""], user=world.user.name).returncode == 0:
            return path
    raise AssertionError("no Python that an ordinary user may run (looked at /usr/bin/python3)")
