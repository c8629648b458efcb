"""Containers of real engines whose socket calls the backend carries out: as root, and without any privilege."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from filters import installed

from world.internet import HERE
from world.namespaces import Namespace
from world.processes import eventually
from xensock.supervisor import filter as guest_filter

if TYPE_CHECKING:
    from engines import Engine

STATUS = ["grep", "-E", "^(Cap|NoNewPrivs|Seccomp)", "/proc/self/status"]


def fields(text: str) -> dict[str, str]:
    return dict(line.split(None, 1) for line in text.splitlines())


def get(engine: Engine, url: str) -> list[str]:
    return ["wget", "-q", "-O", "-", url]


def fetched(engine: Engine, port: int, path: str = "/page") -> str:
    """What a client elsewhere on the network gets from the world's host."""
    url = f"http://{engine.world.host.addr4}:{port}{path}"
    done = engine.world.peer.run(["curl", "-sS", "--max-time", "5", url])
    return done.stdout


def serve(engine: Engine, name: str, port: int, labels: dict[str, str] | None = None) -> str:
    """A web server in a container; it is there when this returns."""
    call = ("listen", f"[::]:{port}")
    before = len(engine.records_of(*call))
    engine.start(name, "box", "httpd", "-f", "-p", str(port), "-h", "/www", labels=labels)
    engine.recorded(*call, more_than=before)
    return name


def test_what_is_in_force(engine: Engine) -> None:
    """One more filter than the engine's own; the rest is as the engine wants it, for root and others."""
    for user in ((), ("--user=65534",), ("--read-only",)):
        plain = fields(engine.plain.run(*user, "box", *STATUS).stdout)
        ours = fields(engine.run(*user, "box", *STATUS).stdout)
        filters = "Seccomp_filters:"
        assert int(ours.pop(filters)) == int(plain.pop(filters)) + 1
        assert ours == plain


def test_the_filter_that_is_in_force(engine: Engine) -> None:
    """Ours, instruction for instruction, on top of what the engine's own runtime installs."""
    for path in ("direct", "relay"):
        name = f"read-{path}"
        engine.start(name, "box", "sleep", "1000", labels={"xensock.datapath": path})
        *others, last = installed(engine.pid(name))
        assert last == guest_filter.build(path == "direct")
        assert others
        # What is executed later is under the same ones.
        engine.exec(name, "true")
        assert installed(engine.pid(name)) == [*others, last]


def test_a_policy_without_unix_datagrams(engine: Engine) -> None:
    policy = engine.directory / "policies" / "quiet.toml"
    policy.write_text('unix_datagrams = "refuse"\n')
    try:
        labels = {"xensock.policy": "quiet", "xensock.datapath": "relay"}
        engine.start("quiet", "box", "sleep", "1000", labels=labels)
    finally:
        policy.unlink()
    wanted = guest_filter.build(False, unix_datagrams=False)
    assert installed(engine.pid("quiet"))[-1] == wanted != guest_filter.build(False)


def test_the_world_by_name(engine: Engine) -> None:
    done = engine.run("box", *get(engine, "http://v4only.test/address"))
    assert done.stdout == engine.world.host.addr4 + "\n"  # no translation: the host's own address
    assert engine.recorded("connect", "198.51.100.11:80")["name"] == "v4only.test"


def test_who_it_is(engine: Engine) -> None:
    """Named as the engine names it; rules can ask for its labels."""
    policy = engine.directory / "policies" / "tier.toml"
    policy.write_text('[[rule]]\nallow = "v4only.test:80"\nlabels = {"com.example.tier" = "web"}\n')
    try:
        for tier, call, made in (
            ("web", ("connect", "198.51.100.11:80"), "allow"),
            ("base", ("resolve", "v4only.test"), "deny"),
        ):
            labels = {"xensock.policy": "tier", "com.example.tier": tier}
            before = len(engine.records_of(*call))
            asks = ("--name=called", "box", *get(engine, "http://v4only.test/"))
            done = engine.run(*asks, labels=labels, check=False)
            assert (done.returncode == 0) is (tier == "web"), done.stderr
            record = engine.recorded(*call, more_than=before)
            assert (record["guest"], record["decision"]) == ("called", made), record
    finally:
        policy.unlink()


def test_refused_and_explained(engine: Engine) -> None:
    label = {"xensock.allow": "web.test:80"}
    script = "wget -q -O - http://web.test/; wget -O - http://198.51.100.12/"
    done = engine.run("box", "sh", "-c", script, labels=label, check=False)
    assert done.stdout == "hello from the world\n"
    assert "Permission denied" in done.stderr
    assert engine.recorded("connect", "198.51.100.12:80")["decision"] == "deny"
    metadata = f"http://{engine.world.metadata4}/"
    done = engine.run("box", "wget", "-O", "-", metadata, check=False)
    assert "Permission denied" in done.stderr  # by default


def test_a_server_listens_on_the_host(engine: Engine) -> None:
    port = engine.world.host.free_port()
    serve(engine, "web", port)
    assert fetched(engine, port) == "from box\n"
    # The guest's own loopback, also for what is executed in it.
    done = engine.exec("web", *get(engine, f"http://127.0.0.1:{port}/page"))
    assert done.stdout == "from box\n"
    # A second container finds the port taken.
    other = engine.run("box", "httpd", "-f", "-p", str(port), check=False)
    assert "Address already in use" in other.stderr


def test_ports_below_1024_and_others_by_label(engine: Engine) -> None:
    done = engine.run("box", "httpd", "-f", "-p", "81", check=False)
    assert "Permission denied" in done.stderr
    if engine.user is None:  # for others the host's kernel says no
        serve(engine, "low", 81, {"xensock.allow": "listen:any:81"})
        assert fetched(engine, 81) == "from box\n"
    for guest_port in (8000, 80):  # the latter is nobody's on the host
        port, name = engine.world.host.free_port(), f"mapped{guest_port}"
        serve(engine, name, guest_port, {"xensock.publish": f"{port}:{guest_port}"})
        assert fetched(engine, port) == "from box\n"
    port = engine.world.host.free_port()
    label = {"xensock.publish": f"{port}:80/udp"}
    engine.start("datagrams", "box", "socat", "UDP4-RECVFROM:80,fork", "PIPE", labels=label)
    there = f"UDP4:{engine.world.host.addr4}:{port}"
    ask = ["sh", "-c", f"echo back | socat -T1 - {there}"]
    eventually(lambda: engine.world.peer.run(ask).stdout == "back\n", 20, "the server")


def test_exec_is_mediated(engine: Engine) -> None:
    engine.start("idle", "box", "sleep", "1000", labels={"xensock.allow": "web.test:80"})
    done = engine.exec("idle", *get(engine, "http://web.test/"))
    assert done.stdout == "hello from the world\n"
    for user in ((), ("--user=65534",)):
        done = engine.exec(*user, "idle", *get(engine, "http://198.51.100.12/"), check=False)
        assert "Permission denied" in done.stderr
        ours = fields(engine.exec(*user, "idle", *STATUS).stdout)
        first = fields(engine.exec(*user, "idle", "grep", "^Seccomp", "/proc/1/status").stdout)
        assert ours["Seccomp_filters:"] == first["Seccomp_filters:"]


def test_the_landlock_domains_that_are_in_force(engine: Engine) -> None:
    """Neither process is inside the other's domain, so none may look into the other (landlock(7), ptrace): as
    they do under the engine's own runtime."""
    look = ("readlink", "/proc/1/exe")
    for made, label, looks in (
        (engine, {}, False),
        (engine, {"xensock.datapath": "relay"}, False),
        (engine.plain, {}, True),
    ):
        made.start("looked", "box", "sleep", "1000", labels=label)
        done = made.exec("looked", *look, check=False)
        assert (done.stdout == "/bin/busybox\n") is looks, (label, done.stderr)
        assert made.exec("looked", "readlink", "/proc/self/exe").stdout == "/bin/busybox\n"
        made.remove()


def paused(engine: Engine, name: str, port: int) -> None:
    """A client of a paused server waits and is answered after that; other containers go on meanwhile."""
    engine(*engine.runtime_options(), "pause", name)
    try:
        with engine.world.peer.connect(engine.world.host.addr4, port) as client:
            client.sendall(b"GET /page HTTP/1.0\r\n\r\n")
            done = engine.run("box", *get(engine, "http://v4only.test/address"))
            assert done.stdout == f"{engine.world.host.addr4}\n"
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
            engine(*engine.runtime_options(), "unpause", name)
            client.settimeout(30)
            answer = b""
            while more := client.recv(65536):
                answer += more
        assert answer.endswith(b"from box\n")
    finally:
        engine(*engine.runtime_options(), "unpause", name, check=False)


def test_restart_pause_and_removal(engine: Engine) -> None:
    port = engine.world.host.free_port()
    serve(engine, "again", port)
    before = len(engine.records())
    if (
        engine.oci == "runc"
    ):  # with crun, Podman now and then meets its own clean-up: "container … already exists"
        engine(*engine.runtime_options(), "restart", "-t", "1", "again")
    else:
        engine.remove()
        serve(engine, "again", port)
    eventually(lambda: fetched(engine, port) == "from box\n", 20, "the server after its restart")
    assert len(engine.records()) > before
    if engine.user is None and engine.has_cgroups:
        paused(engine, "again", port)
    assert fetched(engine, port) == "from box\n"
    engine.remove()
    assert fetched(engine, port) == ""
    serve(engine, "next", port)  # the port is free
    assert fetched(engine, port) == "from box\n"


def test_what_does_not_start_says_why(engine: Engine) -> None:
    wrong = {
        "xensock.policy": ("web", "unknown policy 'web'"),
        "xensock.polcy": ("web", "did you mean xensock.policy?"),
        "xensock.allow": ("web.test:http", "xensock.allow"),
        "xensock.publish": ("x", "is no port"),
        "xensock.network": ("guest", "says no path of a network"),
    }
    for label, (value, said) in wrong.items():
        done = engine.run("box", "true", labels={label: value}, check=False)
        assert done.returncode != 0
        assert said in done.stderr
    before, after = engine.runtime_options(), engine.run_options()
    done = engine(*before, "run", *after, "--rm", "--network=host", "box", "true", check=False)
    assert done.returncode != 0
    assert "--network none" in done.stderr


@pytest.mark.parametrize("engine", ["docker"], indirect=True)
def test_a_network_of_dockers_own(engine: Engine) -> None:
    engine("network", "create", "shop")
    try:
        argv = ("run", *engine.run_options(), "--rm", "--network=shop", "box", "true")
        done = engine(*argv, check=False)
        assert done.returncode != 0
        assert "the engine gives it the network 'shop'" in done.stderr
        assert "(in Compose: network_mode: none)" in done.stderr
    finally:
        engine("network", "rm", "shop")


def test_a_rule_sends_calls_by_another_network(engine: Engine) -> None:
    """Connections, datagrams and names, by a namespace that only root's backends may enter; the container of another's
    does not start."""
    server, dns, port = "10.77.9.5", "10.77.9.53", 7079
    policy = engine.directory / "policies" / "office.toml"
    space = Namespace.create("boxoffice", engine.world.user)
    try:
        space.ip(*(f"addr add {address}/32 dev lo" for address in (server, dns)))
        conf = engine.world.directory / "boxoffice.conf"
        conf.write_text(f"nameserver {dns}\n")
        log = engine.world.directory / "boxoffice.log"
        echo = space.service([sys.executable, str(HERE / "echo.py"), str(port)], log)
        argv = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]
        argv += ["--pid-file", "--bind-interfaces", f"--listen-address={dns}", "--local=/test/"]
        space.service([*argv, f"--address=/srv.boxoffice.test/{server}"], log)
        eventually(lambda: {port, 53} <= space.listening(), 20, f"the servers, {log}")
        way = f'netns = "/proc/{echo.pid}/ns/net", resolv_conf = "{conf}"'
        policy.write_text(
            f"[networks]\noffice = {{ {way} }}\n"
            f'[[rule]]\nallow = ["{server}:{port}", "*.boxoffice.test:{port}"]\nvia = "office"\n'
            '[[rule]]\nallow = "web.test:80"\n'
        )
        asks = (
            f"echo hello | nc -w 10 {server} {port}; wget -q -O- http://web.test/host;"
            f"echo name | nc -w 10 srv.boxoffice.test {port};"
            f"socat UDP4:srv.boxoffice.test:{port} 'SYSTEM:echo datagram; read x; echo $x >&2' 2>&1"
        )
        done = engine.run(
            "box", "sh", "-c", asks, labels={"xensock.policy": "office"}, check=engine.user is None
        )
    finally:
        policy.unlink(missing_ok=True)
        space.close()
    if engine.user is None:
        assert done.stdout == "hello\nweb.test\nname\ndatagram\n", done.stderr
    else:
        assert done.returncode != 0
        assert "ermission denied" in done.stderr or "not permitted" in done.stderr, done.stderr


@pytest.mark.parametrize("engine", ["podman", "crun"], indirect=True)
def test_an_interface_of_its_own_by_rule(engine: Engine) -> None:
    """The engine's network is there for what a rule says, and for nothing else; the rest is the host's."""
    server, port = "10.77.9.6", 7079
    space = Namespace.create("boxnet", engine.world.user)
    policy = engine.directory / "policies" / "own.toml"
    policy.write_text(
        f'[[rule]]\nallow = "{server}:{port}"\nvia = "guest"\n[[rule]]\nallow = "web.test:80"\n'
    )
    label = {"xensock.policy": "own", "xensock.network": "guest"}
    try:
        space.ip("link set lo up", f"addr add {server}/32 dev lo", "link add a0 type veth peer b0")
        log = engine.world.directory / "boxnet.log"
        echo = space.service([sys.executable, str(HERE / "echo.py"), str(port)], log)
        eventually(lambda: port in space.listening(), 20, f"the server, {log}")
        before = (*engine.runtime_options(), "run", *engine.run_options(), "--rm")
        given = f"--network=ns:/proc/{echo.pid}/ns/net"
        asks = f"echo hello | nc -w 10 {server} {port}; wget -q -O- http://web.test/host; ls /sys/class/net"
        done = engine(*before, given, *engine.labelled(label), "box", "sh", "-c", asks, check=False)
        assert done.stdout.startswith("hello\nweb.test\n"), (done.stderr, engine.said())
        assert "a0" not in done.stdout.split()
        done = engine(*before, given, "box", "true", check=False)
        assert "a network of the engine's" in done.stderr
    finally:
        policy.unlink(missing_ok=True)
        space.close()


def test_a_program_that_is_not_there(engine: Engine) -> None:
    done = engine.run("box", "absent", check=False)
    assert done.returncode == 127
    assert "absent: No such file or directory" in done.stderr
