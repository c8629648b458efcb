"""What a guest cannot reach, what rules change, and that nothing of the host's network shows."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from world.namespaces import eventually

from .conftest import GUESTS
from .observing import addresses, observe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from world.runner import Guest, Running

    from .conftest import Site

guests = pytest.mark.parametrize("guest", GUESTS, indirect=True)
one_guest = pytest.mark.parametrize("guest", GUESTS[:1], indirect=True)
LOOPS = ["127.0.0.1", "::1"]


def attempt(guest: Guest, site: Site, *words: str, options: tuple[str, ...] = ()) -> Any:
    """One attempt of probes/attempt.py in a guest; what came of it."""
    done = guest.run([*site.probe("attempt.py"), *words], options=options, timeout=25)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def attempts(guest: Guest, site: Site, *lines: str, options: tuple[str, ...] = ()) -> list[Any]:
    """Several attempts in one guest."""
    done = guest.run(
        [*site.probe("attempt.py"), "each"],
        options=options,
        input="".join(f"{line}\n" for line in lines),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()][: len(lines)]


@contextlib.contextmanager
def holding(
    guest: Guest, site: Site, *words: str, options: tuple[str, ...] = ()
) -> Iterator[tuple[Running, Any]]:
    """`listen` or `serve` in a guest for the length of the block, and its first word."""
    read_end, write_end = os.pipe()
    try:
        running = guest.popen([*site.probe("attempt.py"), *words], options=options, stdin=read_end)
        os.close(read_end)
        eventually(lambda: running.stdout or running.process.poll() is not None, 15, "a word")
        assert running.stdout, running.stderr
        yield running, json.loads(running.stdout.splitlines()[0])
    finally:
        os.close(write_end)
    running.wait(10)


class Service:
    """A listener of the test's own that counts its clients and sends each a word."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.clients: list[Any] = []
        listener.settimeout(None)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def _serve(self) -> None:
        while True:
            try:
                conn, address = self.listener.accept()
            except OSError:
                return
            with conn, contextlib.suppress(OSError):
                self.clients.append(address)
                conn.sendall(b"service")

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.listener.close()


# --- the host's loopback -----------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
def test_services_on_the_hosts_loopback(guest: Guest, site: Site, loop: str) -> None:
    """Natively reached; in a guest, loopback is its own, and nobody listens there."""
    with Service(guest.world.host.listen(loop)) as service:
        hosts = [loop, "0.0.0.0", "127.0.0.77"] if loop == "127.0.0.1" else [loop, "::"]
        lines = [f"connect {host} {service.port} read" for host in hosts]
        found = attempts(guest, site, *lines, f"connect {loop} {service.port} nonblocking")
        if guest.native:
            assert found[0] == "service"
        else:
            refused = ["EINPROGRESS", "IN|OUT|ERR|HUP|RDHUP", "ECONNREFUSED"]
            refused[1] = found[-1][1]  # how much of it poll was asked for
            assert found == ["ECONNREFUSED"] * len(hosts) + [refused]
            assert service.clients == []


@guests
def test_mapped_loopback_is_loopback(guest: Guest, site: Site) -> None:
    with Service(guest.world.host.listen("127.0.0.1")) as service:
        assert attempt(guest, site, "connect", "::ffff:127.0.0.1", str(service.port)) in (
            "ECONNREFUSED",
            "EACCES",
        )
        assert service.clients == []


@guests
@pytest.mark.parametrize("loop", LOOPS)
def test_a_rule_opens_one_port_of_the_hosts_loopback(guest: Guest, site: Site, loop: str) -> None:
    with (
        Service(guest.world.host.listen(loop)) as opened,
        Service(guest.world.host.listen(loop)) as other,
    ):
        found = attempts(
            guest,
            site,
            f"connect {loop} {opened.port} read",
            f"connect {loop} {other.port} read",
            f"connect {site.world.web4} 80",
            options=("--allow", f"loopback:{opened.port}"),
        )
        assert found[0] == "service"
        assert found[1] in ("ECONNREFUSED", "EACCES")
        assert found[2] == "EACCES"
        assert other.clients == []


@guests
def test_the_guests_own_loopback_comes_first(guest: Guest, site: Site) -> None:
    """With the host's port allowed, a listener of the guest on the same port is the one reached."""
    with Service(guest.world.host.listen("127.0.0.1")) as service:
        script = f"""
import socket
listener = socket.create_server(("127.0.0.1", {service.port}))
client = socket.create_connection(("127.0.0.1", {service.port}))
conn, _ = listener.accept()
conn.sendall(b"own")
print(client.recv(10).decode())
"""
        argv = [guest.world.python, "-c", script]
        done = guest.run(argv, options=("--allow", f"loopback:{service.port}"))
        assert done.stdout == "own\n", done.stderr
        assert service.clients == []


def test_host_services_by_the_hosts_address(guest: Guest, site: Site) -> None:
    """A service the host offers to the world is offered to its guests."""
    with Service(guest.world.host.listen("0.0.0.0")) as service:
        words = ("connect", guest.world.host.addr4, str(service.port), "read")
        assert attempt(guest, site, *words) == "service"


# --- rules -------------------------------------------------------------------------------------------


@guests
def test_defaults(guest: Guest, site: Site) -> None:
    """Public and private are allowed, metadata and link-local are not."""
    world = site.world
    found = attempts(
        guest,
        site,
        f"connect {world.web4} 80",
        f"connect {world.private4} 80",
        f"connect {world.metadata4} 80",
        f"connect {world.metadata4} 80 nonblocking",
        f"connect ::ffff:{world.metadata4} 80",
        "connect 169.254.1.1 80",
        "connect fe80::1 80",
        "connect fd00:ec2::254 80",
    )
    assert found == ["ok", "ok"] + ["EACCES"] * 6


def test_metadata_is_there_natively(guest: Guest, site: Site) -> None:
    """The refusal above is ours: natively and with a rule the service answers."""
    options = () if guest.native else ("--allow", f"{site.world.metadata4}:80")
    assert attempt(guest, site, "connect", site.world.metadata4, "80", options=options) == "ok"


@guests
def test_deny(guest: Guest, site: Site) -> None:
    world = site.world
    found = attempts(
        guest,
        site,
        f"connect {world.web4} 80",
        f"connect {world.web4} 80 nonblocking",
        f"connect ::ffff:{world.web4} 80",
        f"connect {world.web4} {world.echo_port}",
        f"connect {world.private4} 80",
        f"connect {world.private4} 81",
        options=("--deny", f"{world.web4}:80", "--deny", "10.0.0.0/8:1-80"),
    )
    assert found == ["EACCES"] * 3 + ["ok", "EACCES", "ECONNREFUSED"]


@guests
def test_deny_wins_over_allow(guest: Guest, site: Site) -> None:
    world = site.world
    options = ("--deny", f"{world.web4}:80", "--allow", "public")
    lines = (f"connect {world.web4} 80", f"connect {world.web4} {world.echo_port}")
    assert attempts(guest, site, *lines, options=options) == ["EACCES", "ok"]


@guests
def test_deny_ipv6(guest: Guest, site: Site) -> None:
    if not site.world.has_ipv6:
        pytest.skip("this host has no IPv6")
    lines = (f"connect {site.world.web6} 80", f"connect {site.world.web4} 80")
    options = ("--deny", f"[{site.world.web6}]:80")
    assert attempts(guest, site, *lines, options=options) == ["EACCES", "ok"]


@guests
def test_allow_refuses_the_rest(guest: Guest, site: Site) -> None:
    world = site.world
    found = attempts(
        guest,
        site,
        f"connect {world.web4} 80",
        f"connect {world.web4} {world.echo_port}",
        f"connect {world.private4} 80",
        options=("--allow", f"{world.web4}:80"),
    )
    assert found == ["ok", "EACCES", "EACCES"]


@guests
def test_rules_by_name(guest: Guest, site: Site) -> None:
    """The name and the addresses it was resolved to; other names do not exist, at once."""
    world = site.world
    found = attempts(
        guest,
        site,
        "connect v4only.test 80",
        "connect v4only.test 7",
        "resolve web.test",
        "resolve no-such-name.test",
        f"connect {world.web4} 80",
        options=("--allow", "v4only.test:80"),
    )
    assert found == ["ok", "EACCES", "NONAME", "NONAME", "EACCES"]


@guests
def test_denied_name(guest: Guest, site: Site) -> None:
    lines = ("resolve web.test", "resolve v4only.test")
    found = attempts(guest, site, *lines, options=("--deny", "web.test"))
    assert found == ["NONAME", ["198.51.100.11"]]


def test_names_resolve_alike(guest: Guest, site: Site) -> None:
    lines = [f"resolve {name}.test" for name in ("web", "v4only", "v6only", "many", "absent")]
    native = site.world.host.run(
        [*site.probe("attempt.py"), "each"], user="xstest", input="".join(f"{x}\n" for x in lines)
    )
    expected = [json.loads(line) for line in native.stdout.splitlines()]
    assert expected[0] == ["198.51.100.10", "2001:db8:20::10"]
    assert attempts(guest, site, *lines) == expected[: len(lines)]


@guests
def test_listening_by_rule(guest: Guest, site: Site) -> None:
    first, second = guest.port(), guest.port()
    lines = (f"listen 0.0.0.0 {second}", f"listen :: {second}", f"listen 0.0.0.0 {first}")
    found = attempts(guest, site, *lines, options=("--allow", f"listen:any:{first}"))
    assert found == ["EACCES", "EACCES", "ok"]
    found = attempts(guest, site, lines[0], lines[2], options=("--deny", f"listen:any:{second}"))
    assert found == ["EACCES", "ok"]


@guests
def test_listening_without_bind_by_rule(guest: Guest, site: Site) -> None:
    """listen on an unbound socket binds by itself: judged all the same."""
    script = """
import errno, socket
for family in (socket.AF_INET, socket.AF_INET6):
    with socket.socket(family) as sock:
        try:
            sock.listen()
            print("listening", sock.getsockname()[1])
        except OSError as error:
            print(errno.errorcode[error.errno])
"""
    done = guest.run([guest.world.python, "-c", script], options=("--deny", "listen:any"))
    assert done.stdout == "EACCES\nEACCES\n", done.stderr


# --- ports, between guests ---------------------------------------------------------------------------


@guests
@pytest.mark.parametrize("how", ["", "reuseport"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "203.0.113.10"])
def test_two_guests_cannot_share_a_port(guest: Guest, site: Site, host: str, how: str) -> None:
    port = guest.port()
    words = ("listen", host, str(port), how)
    with holding(guest, site, *words) as (_, first):
        assert first == "ok"
        assert attempt(guest, site, *words) == "EADDRINUSE"
    with holding(guest, site, *words) as (_, first):
        assert first == "ok"


@guests
@pytest.mark.parametrize("how", ["", "reuseport"])
def test_a_port_of_the_host_is_taken(guest: Guest, site: Site, how: str) -> None:
    with Service(guest.world.host.listen("0.0.0.0")) as service:
        assert attempt(guest, site, "listen", "0.0.0.0", str(service.port), how) == "EADDRINUSE"


@guests
def test_each_guest_has_its_own_loopback_ports(guest: Guest, site: Site) -> None:
    port = str(guest.port())
    words = ("serve", "127.0.0.1", port)
    with (
        holding(guest, site, *words, "one") as (_, first),
        holding(guest, site, *words, "two") as (_, second),
    ):
        assert (first, second) == ("ok", "ok")
        assert attempt(guest, site, "connect", "127.0.0.1", port) == "ECONNREFUSED"


def test_a_guests_listener_is_the_hosts(guest: Guest, site: Site) -> None:
    """The world, the host, and another guest reach it by the host's address."""
    port = guest.port()
    with holding(guest, site, "serve", "0.0.0.0", str(port), "guest") as (_, first):
        assert first == "ok"
        for space in (site.world.peer, site.world.host):
            with space.connect(site.world.host.addr4, port) as sock:
                assert sock.recv(100) == b"guest"
        words = ("connect", site.world.host.addr4, str(port), "read")
        assert attempt(guest, site, *words) == "guest"


# --- publish -----------------------------------------------------------------------------------------


@guests
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("loop", LOOPS)
def test_publish_exposes_the_guests_loopback(
    guest: Guest, site: Site, loop: str, version: int
) -> None:
    """By every address of the host: a client that tries IPv6 first is no worse off."""
    addresses(site, version)
    host, port = site.world.host, guest.port()
    words = ("serve", loop, str(port), "published")
    address = host.addr4 if version == 4 else host.addr6
    with (
        holding(guest, site, *words, options=("--publish", str(port))),
        site.world.peer.connect(address, port) as sock,
    ):
        assert sock.recv(100) == b"published"


@guests
def test_publish_under_another_port_and_address(guest: Guest, site: Site) -> None:
    outer, inner = guest.port(), guest.port()
    world = site.world
    words = ("serve", "127.0.0.1", str(inner), "published")
    option = ("--publish", f"{world.host.addr4}:{outer}:{inner}")
    with holding(guest, site, *words, options=option):
        with world.peer.connect(world.host.addr4, outer) as sock:
            assert sock.recv(100) == b"published"
        with pytest.raises(ConnectionRefusedError):
            world.host.connect("127.0.0.1", outer)
        with pytest.raises(ConnectionRefusedError):
            world.peer.connect(world.host.addr4, inner)


@guests
def test_publish_to_the_hosts_loopback_only(guest: Guest, site: Site) -> None:
    port = guest.port()
    words = ("serve", "127.0.0.1", str(port), "published")
    with holding(guest, site, *words, options=("--publish", f"127.0.0.1:{port}")):
        with site.world.host.connect("127.0.0.1", port) as sock:
            assert sock.recv(100) == b"published"
        with pytest.raises(ConnectionRefusedError):
            site.world.peer.connect(site.world.host.addr4, port)


@guests
def test_without_publish_the_guests_loopback_is_its_own(guest: Guest, site: Site) -> None:
    port = guest.port()
    with holding(guest, site, "serve", "127.0.0.1", str(port)):
        for address in (site.world.host.addr4, "127.0.0.1"):
            with pytest.raises(ConnectionRefusedError):
                site.world.host.connect(address, port)


# --- ways around -------------------------------------------------------------------------------------


@guests
@pytest.mark.parametrize("version", [4, 6])
def test_ways_around(guest: Guest, site: Site, compiled: Callable[..., Path], version: int) -> None:
    peer, _ = addresses(site, version)
    with Service(site.world.peer.listen(peer)) as service:
        rule = f"[{peer}]:{service.port}" if version == 6 else f"{peer}:{service.port}"
        argv = [str(compiled("ways")), str(version), peer, str(service.port)]
        done = dict(observe(guest, argv, options=("--deny", rule)))
        assert service.clients == []
    assert done.pop("deferred connect") in ("EACCES", "EOPNOTSUPP")
    assert done.pop("packet") in ("EPERM", "EAFNOSUPPORT")
    no_family = dict.fromkeys(("vsock", "xdp", "bluetooth", "smc"), "EAFNOSUPPORT")
    assert done == no_family | {
        "multipath": "EPROTONOSUPPORT",
        "raw": "EPERM",
        "sctp": "EPROTONOSUPPORT",
        "netfilter": "EPROTONOSUPPORT",
        "connect": "EACCES",
        "fast open": "EOPNOTSUPP",
        "fast open by sendmsg": "EOPNOTSUPP",
        "fast open by sendmmsg": "EOPNOTSUPP",
        "bind to a device": "EPERM",
        "mark": "EPERM",
        "repair": "EPERM",
        "interface flags": "EPERM",
        "io_uring": "ENOSYS",
        "parent's memory": "EPERM",
        "init's descriptors": "EPERM",
    }


@guests
def test_ways_around_as_root(guest: Guest, site: Site, compiled: Callable[..., Path]) -> None:
    """The same as root: the capabilities for it are gone."""
    peer, _ = addresses(site, 4)
    with Service(site.world.peer.listen(peer)) as service:
        argv = [str(compiled("ways")), "4", peer, str(service.port)]
        done = guest.run(argv, user=None, options=("--deny", f"{peer}:{service.port}"))
        assert service.clients == []
    seen = {x["say"]: x["got"] for x in map(json.loads, done.stdout.splitlines())}
    closed = ("raw", "packet", "bind to a device", "mark", "repair", "interface flags")
    assert {seen[what] for what in closed} <= {"EPERM", "EAFNOSUPPORT"}, seen
    assert (seen["connect"], seen["io_uring"]) == ("EACCES", "ENOSYS")


@guests
@pytest.mark.parametrize("version", [4, 6])
def test_address_changed_while_it_is_judged(
    guest: Guest, site: Site, compiled: Callable[..., Path], version: int
) -> None:
    """Two seconds of a thread rewriting the sockaddr: the refused port is never reached."""
    peer, _ = addresses(site, version)
    with Service(site.world.peer.listen(peer)) as refused:
        shown = f"[{peer}]" if version == 6 else peer
        ports = [str(site.ports["echo"]), str(refused.port)]
        argv = [str(compiled("flip")), str(version), peer, *ports, "2"]
        seen = observe(guest, argv, options=("--deny", f"{shown}:{refused.port}"))
        assert seen == [("both outcomes", "1"), ("other outcomes", "0")]
        assert refused.clients == []


@guests
def test_system_calls_by_the_32_bit_entry_end_the_program(
    guest: Guest, compiled: Callable[..., Path]
) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("x86-64 has such an entry")
    assert guest.run([str(compiled("foreign"))]).returncode == 128 + signal.SIGSYS


@guests
def test_a_dead_backend_leaves_no_way_out(guest: Guest, site: Site) -> None:
    """Fail closed: what the guest tries after its backend was killed reaches nobody."""
    peer = site.world.peer
    before = site.world.host.pids()
    read_end, write_end = os.pipe()
    with Service(peer.listen(peer.addr4)) as service:
        running = guest.popen([*site.probe("attempt.py"), "each"], stdin=read_end)
        os.close(read_end)
        try:
            line = f"connect {peer.addr4} {service.port}\n".encode()
            os.write(write_end, line)
            eventually(lambda: running.stdout, 15, "the first connect")
            assert running.stdout == '"ok"\n'
            # All of ours but the command the shell waits for: the backend is among them.
            for pid in site.world.host.pids() - before - {running.pid}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(BrokenPipeError):
                os.write(write_end, line)
        finally:
            os.close(write_end)
        running.wait(15)
        assert running.stdout.count('"ok"') == 1
        assert len(service.clients) == 1


# --- unix sockets ------------------------------------------------------------------------------------


@pytest.fixture
def control_socket(request: pytest.FixtureRequest, site: Site) -> Iterator[Path]:
    """A socket of the host where a container engine or the system bus has it; only if absent."""
    path = Path(request.param)
    if path.exists() or path.is_symlink():
        pytest.skip(f"this machine has a {path}")
    made = [parent for parent in [path.parent, *path.parent.parents] if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        yield path
    finally:
        listener.close()
        path.unlink(missing_ok=True)
        for directory in made:
            directory.rmdir()


@pytest.mark.parametrize(
    "control_socket",
    ["/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock"],
    indirect=True,
)
def test_control_sockets_of_the_host(guest: Guest, site: Site, control_socket: Path) -> None:
    """Natively reached, never from a guest, by whichever name."""
    link = guest.directory / "link"
    link.symlink_to(control_socket)
    names = [
        str(control_socket),
        str(link),
        f"/var{control_socket}",
        f"/proc/self/root{control_socket}",
    ]
    found = attempts(guest, site, *(f"unix {name}" for name in names))
    if guest.native:
        assert found == ["ok"] * len(names)
    else:
        assert set(found) <= {"ENOENT", "ECONNREFUSED", "EACCES", "ENOTDIR", "ENOTSOCK"}


def test_ordinary_unix_sockets_are_untouched(guest: Guest, site: Site) -> None:
    """A socket in the user's own directory, served outside the guest, is a file like any other."""
    path = guest.directory / "ordinary"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        assert attempt(guest, site, "unix", str(path)) == "ok"


def test_abstract_sockets_of_the_host(guest: Guest, site: Site) -> None:
    """They belong to a network namespace, so a guest has its own."""

    def bind() -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.bind("\0xensock-test-abstract")
        made.listen()
        return made

    with site.world.host.inside(bind):
        found = attempt(guest, site, "unix", "@xensock-test-abstract")
    assert found == ("ok" if guest.native else "ECONNREFUSED")


# --- what shows --------------------------------------------------------------------------------------


def test_the_hosts_network_does_not_show(guest: Guest, site: Site) -> None:
    """Interfaces, addresses, routes, neighbours and sockets in /proc, /sys and over netlink."""
    with Service(guest.world.host.listen("0.0.0.0")) as service:
        script = "cat /proc/net/dev /proc/net/tcp /proc/net/route; ls /sys/class/net"
        shown = guest.run(["sh", "-c", script]).stdout
        shown += guest.run(["ip", "address"]).stdout + guest.run(["ip", "route"]).stdout
        visible = {
            "interface": "up0" in shown,
            "listener": f"0:{service.port:04X}".lower() in shown.lower(),
            "address": site.world.host.addr4 in shown,
            "gateway": site.world.peer.addr4 in shown,
        }
        assert visible == dict.fromkeys(visible, guest.native), shown


@guests
def test_processes_of_the_host_do_not_show(guest: Guest) -> None:
    script = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; ls -d /proc/[0-9]* | wc -l"
    shown = guest.run(["sh", "-c", script]).stdout
    assert "dnsmasq" not in shown
    assert "nginx" not in shown
    assert "xensock run" not in shown
    assert int(shown.split()[-1]) < 10


@guests
def test_the_hosts_namespaces_cannot_be_entered(guest: Guest) -> None:
    script = (
        "nsenter --net=/proc/1/ns/net true 2>/dev/null && echo in; ls /run/netns 2>/dev/null; true"
    )
    shown = guest.run(["sh", "-c", f"{script}; nsenter --net=/run/netns/* true; echo $?"])
    assert shown.stdout.splitlines()[-1] != "0"
    assert "in" not in shown.stdout.splitlines()


def test_files_are_not_confined(guest: Guest) -> None:
    """XenSock confines the network, not files: reading and writing are as natively."""
    (guest.directory / "given").write_text("given\n")
    script = "cat given; echo written >written; id -u; touch /tmp/$$ && rm /tmp/$$ && echo tmp"
    done = guest.run(["sh", "-c", script])
    assert done.stdout == f"given\n{guest.world.user.uid}\ntmp\n", done.stderr
    written = guest.directory / "written"
    assert written.read_text() == "written\n"
    assert written.stat().st_uid == guest.world.user.uid


# --- bubblewrap --------------------------------------------------------------------------------------

bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bwrap is not installed")
FETCH = ["curl", "-sS", "--max-time", "10"]


@bwrap
def test_bwrap_inside_a_guest(guest: Guest, site: Site) -> None:
    """A sandbox for files within one for the network."""
    wrap = ["bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--tmpfs", str(guest.directory), "--"]
    (guest.directory / "hidden").write_text("x")
    hidden = f"ls {guest.directory} | wc -l"
    script = (
        f"{hidden}; touch /etc/x 2>/dev/null || echo read-only; curl -sS http://{site.world.web4}/"
    )
    done = guest.run([*wrap, "sh", "-c", script])
    assert done.stdout == "0\nread-only\nhello from the world\n", done.stderr
    guest.mediated(1, "connect")


@bwrap
def test_bwrap_around_a_guest(guest: Guest, site: Site) -> None:
    world, directory = site.world, guest.directory
    wrap = ["bwrap", "--dev-bind", "/", "/", "--bind", str(directory), str(directory)]
    wrap += ["--ro-bind", "/etc", "/etc", "--"]
    script = f"touch /etc/x 2>/dev/null || echo read-only; curl -sS http://{world.web4}/"
    command = guest.command(["sh", "-c", script])
    done = world.host.run([*wrap, *command], user="xstest", cwd=directory, timeout=30)
    assert done.stdout == "read-only\nhello from the world\n", done.stderr
    guest.mediated(1, "connect")


# --- as root -----------------------------------------------------------------------------------------


def test_root_runs_without_the_capabilities_of_networks(guest: Guest, site: Site) -> None:
    """Root in a guest stays root for files and users, and reaches the world."""
    script = f"""
id -u
setpriv --reuid=54000 --clear-groups id -u
curl -sS http://{site.world.web4}/
grep CapEff /proc/self/status
"""
    done = guest.run(["sh", "-c", script], user=None)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["0", "54000", "hello from the world"], done.stderr
    if not guest.native:
        held = int(lines[3].split()[1], 16)
        # capabilities(7): NET_ADMIN, NET_RAW, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, BPF
        for number in (12, 13, 16, 17, 19, 21, 39):
            assert not held >> number & 1, f"capability {number} is held"
        guest.mediated(1, "connect")


@guests
def test_root_listens_on_a_privileged_port_by_rule(guest: Guest, site: Site) -> None:
    port = next(p for p in range(700, 1000) if p not in site.world.host.listening())
    words = [*site.probe("attempt.py"), "serve", "0.0.0.0", str(port), "root"]
    done = guest.run(words, user=None, input="", timeout=20)
    assert "PermissionError" in done.stderr
    rule = ("--allow", f"listen:any:{port}")
    with (
        guest.popen(words, user=None, options=rule, listens=port, stdin=subprocess.PIPE),
        site.world.peer.connect(site.world.host.addr4, port) as sock,
    ):
        assert sock.recv(10) == b"root"
