"""Names of the host in a guest, for every kind of resolver: glibc, musl, Go, Node.js, Java, bare DNS.

What the host says about names — hosts file, search domain, servers, its stub on 127.0.0.53 — holds
in a guest too, at once when it changes, whatever server a program asks.
"""

import contextlib
import ipaddress
import subprocess
import time

import pytest
from languages import bring, go_program, java_program, musl_program

from world.fixtures import only
from world.namespaces import describe, eventually, needs

GUESTS = pytest.mark.parametrize("guest", only("direct", "relay", "ring"), indirect=True)
NOWHERE = "192.0.2.99"  # no name server there
PROGRAMS = [
    pytest.param("glibc"),
    pytest.param("musl", marks=needs("musl-gcc")),
    pytest.param("go", marks=needs("go")),
]
programs = pytest.mark.parametrize("program", PROGRAMS)
RUNTIMES = [
    pytest.param("node", marks=[needs("node"), pytest.mark.slow]),
    pytest.param("java", marks=[needs("java", "javac"), pytest.mark.slow]),
]
all_programs = pytest.mark.parametrize("program", [*PROGRAMS, *RUNTIMES])


def resolver(world, program):
    """The command that prints a line of addresses for each name given, or read after `-`."""
    if program == "musl":
        return [musl_program(world), "lookup"]
    if program == "go":
        return [go_program(world), "lookup"]
    if program == "node":
        return ["node", str(bring(world, "names.mjs"))]
    if program == "java":
        fresh = ["-Dsun.net.inetaddr.ttl=0"]  # it would remember addresses for 30 seconds
        small = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx128m"]
        return ["java", *fresh, *small, java_program(world), "names"]
    return [world.python, str(bring(world, "names.py"))]


def look(guest, program, *names, **kw):
    argv = [*resolver(guest.world, program), *names]
    said = guest.run(argv, check=True, timeout=60, **kw).stdout.splitlines()
    return [" ".join(map(short, line.split())) for line in said]


def short(word):
    """An address as everybody but Java writes it; other words as they are."""
    try:
        return str(ipaddress.ip_address(word))
    except ValueError:
        return word


def question(guest, *words, **kw):
    argv = [guest.world.python, str(bring(guest.world, "question.py")), *map(str, words)]
    return guest.run(argv, check=True, **kw).stdout.strip()


@pytest.fixture
def files(world):
    """`files(path, text)` replaces a file of the host for the length of a test."""
    before: dict[str, str] = {}

    def write(path: str, text: str, append: bool = False) -> None:
        before.setdefault(path, world.read(path))
        world.write(path, before[path] + text if append else text)

    yield write
    for path, text in before.items():
        world.write(path, text)


@contextlib.contextmanager
def name_server(world, namespace, address, *records):
    """dnsmasq with these records, and nothing else, on port 53 of an address."""
    argv = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]
    argv += ["--pid-file", "--bind-interfaces", "--local=/test/"]
    argv += [f"--listen-address={address}", "--local-ttl=1", "--log-queries", "--log-facility=-"]
    argv += [f"--host-record={record}" for record in records]
    log = world.directory / f"names-{time.monotonic_ns():x}.log"
    process = namespace.service(argv, log)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            namespace.connect(address, 53, timeout=1).close()
        except ConnectionRefusedError:
            return False
        return True

    try:
        eventually(ready, 10, f"dnsmasq on {address}")
        yield log
    finally:
        process.kill()
        process.wait(10)

        def gone() -> bool:
            """Its end follows that of the process waited for."""
            return not any(f"--listen-address={address}" in describe(p) for p in namespace.pids())

        eventually(gone, 5, f"dnsmasq on {address} ended")


@all_programs
def test_the_hosts_file(guest, files, program):
    more = "198.51.100.11 byfile.test other.byfile.test\n2001:db8:20::11 six.byfile.test\n"
    files("/etc/hosts", more, append=True)
    names = ["myself.test", "byfile.test", "other.byfile.test", "six.byfile.test", "v4only.test"]
    assert look(guest, program, *names) == [
        *("203.0.113.10", "198.51.100.11", "198.51.100.11", "2001:db8:20::11", "198.51.100.11")
    ]


@GUESTS
def test_the_hosts_file_by_dns(guest, files):
    """A program that reads no hosts file and asks a server finds those names as well."""
    files("/etc/hosts", "198.51.100.11 byfile.test\n", append=True)
    for protocol in ("udp", "tcp"):
        assert question(guest, protocol, NOWHERE, "byfile.test") == "0 whole 198.51.100.11"
    guest.mediated(2, "resolve", "byfile.test")


def test_a_hosts_file_that_changes_is_followed(guest, files):
    program = [*resolver(guest.world, "glibc"), "-"]
    with guest.popen(program, stdin=subprocess.PIPE) as running:
        assert ask(running, "later.test") == "no such name"
        files("/etc/hosts", "198.51.100.12 later.test\n", append=True)
        assert ask(running, "later.test") == "198.51.100.12"


def test_a_rule_by_a_name_of_the_hosts_file(guest, files):
    files("/etc/hosts", "198.51.100.11 byfile.test\n", append=True)
    argv = ["curl", "-sS", "--max-time", "5"]
    options = ("--allow", "byfile.test:80")
    done = guest.run([*argv, "http://byfile.test/"], options=options, check=True)
    assert done.stdout == "hello from the world\n"
    if not guest.native:
        refused = guest.run([*argv, "http://198.51.100.10/"], options=options)
        assert refused.returncode == 7, refused.stderr
    guest.mediated(1, "connect", "198.51.100.11:80")


@all_programs
def test_the_search_domain(guest, program):
    assert look(guest, program, "intra", "intra.example.test") == ["198.51.100.12"] * 2
    guest.mediated(1, "resolve", "intra.example.test")


def test_getent(guest):
    for database, name, expected in [
        ("ahostsv4", "intra", "198.51.100.12"),
        ("ahostsv6", "v6only.test", "2001:db8:20::11"),
        ("hosts", "myself.test", "203.0.113.10"),
        ("ahostsv4", "alias.test", "198.51.100.10"),
    ]:
        done = guest.run(["getent", database, name], check=True)
        assert done.stdout.split()[0] == expected, done.stdout
    done = guest.run(["getent", "hosts", "nothing.test"])
    assert (done.returncode, done.stdout) == (2, "")
    # An answer too long for a datagram.
    done = guest.run(["getent", "ahostsv4", "many.test"], check=True)
    assert len({line.split()[0] for line in done.stdout.splitlines()}) == 60
    guest.mediated(4, "resolve")


CONFIGURED = """
import socket, sys
for name in sys.argv[1:]:
    for flags in (socket.AI_ADDRCONFIG, socket.AI_ADDRCONFIG | socket.AI_V4MAPPED):
        for family in (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6):
            try:
                found = socket.getaddrinfo(name, 80, family, socket.SOCK_STREAM, 0, flags)
                print(name, *sorted({each[4][0] for each in found}))
            except socket.gaierror as error:
                print(name, error.errno)
"""


def test_addresses_of_families_that_the_host_has(guest):
    """AI_ADDRCONFIG (getaddrinfo(3)): a guest looks like a host that is connected by both."""
    argv = ["-c", CONFIGURED, "web.test", "v4only.test", "v6only.test", "198.51.100.7"]
    here = guest.world.host.run([guest.world.python, *argv], user="xstest", check=True).stdout
    assert "web.test 198.51.100.10" in here
    assert ("web.test 198.51.100.10 2001:db8:20::10" in here) == guest.world.has_ipv6
    assert guest.run([guest.world.python, *argv], check=True).stdout == here


def ask(running, name, timeout=15):
    """One more name to a program that reads them; its next line."""
    seen = running.stdout.count("\n")
    running.process.stdin.write(f"{name}\n".encode())
    running.process.stdin.flush()
    eventually(lambda: running.stdout.count("\n") > seen, timeout, f"an answer for {name}")
    return running.stdout.splitlines()[seen]


@needs("dnsmasq")
@all_programs
def test_a_resolv_conf_that_changes_is_followed(guest, files, program):
    """Rewritten while a program runs, as by a VPN or another wireless network."""
    world = guest.world
    argv = [*resolver(world, program), "-"]
    records = ("moved.test,198.51.100.12", "v4only.test,198.51.100.42")
    with (
        name_server(world, world.peer, world.private4, *records),
        guest.popen(argv, stdin=subprocess.PIPE) as running,
    ):
        if program != "java":  # it remembers for ten seconds what does not exist
            assert ask(running, "moved.test") == "no such name"
        assert ask(running, "v4only.test") == "198.51.100.11"
        files("/etc/resolv.conf", f"nameserver {world.private4}\nsearch test\n")
        # Go itself looks at the file every five seconds.
        eventually(lambda: ask(running, "v4only.test") == "198.51.100.42", 12, "the new server")
        assert ask(running, "moved.test") == "198.51.100.12"
        assert ask(running, "moved") == "198.51.100.12"
        assert ask(running, "web.test") == "no such name"
    guest.mediated(4, "resolve")


@needs("dnsmasq")
@all_programs
def test_the_hosts_stub_on_its_loopback(guest, files, program):
    """As systemd-resolved has it; in a guest, 127.0.0.53 is the guest's own and yet answers."""
    world = guest.world
    with name_server(world, world.host, "127.0.0.53", "stub.test,198.51.100.11") as log:
        files("/etc/resolv.conf", "nameserver 127.0.0.53\noptions edns0 trust-ad\n")
        assert look(guest, program, "stub.test", "web.test") == ["198.51.100.11", "no such name"]
        if not guest.native:
            assert question(guest, "udp", "127.0.0.53", "stub.test") == "0 whole 198.51.100.11"
            assert question(guest, "tcp", "127.0.0.53", "stub.test") == "0 whole 198.51.100.11"
            done = guest.run(["curl", "-sS", "--max-time", "5", "http://stub.test/"], check=True)
            assert done.stdout == "hello from the world\n"
        assert "query[A] stub.test" in log.read_text()
    guest.mediated(2, "resolve", "stub.test")


@all_programs
def test_a_refused_name_does_not_exist_at_once(guest, program):
    """Refused by rule; natively, where there are no rules, another name that does not exist."""
    refused = "nothing.test" if guest.native else "v4only.test"
    options = ("--deny", "v4only.test")
    resolver(guest.world, program)  # built before the clock starts
    started = time.monotonic()
    said = look(guest, program, refused, "web.test", options=options)
    assert said[0] == "no such name"
    assert "198.51.100.10" in said[1].split()
    if program not in ("node", "java"):  # whose own start is most of it
        assert time.monotonic() - started < 5
    if not guest.native:
        asked = [call for call in guest.calls if call["target"] == "v4only.test"]
        assert {(call["decision"], call["rule"]) for call in asked} == {("deny", "v4only.test")}


@GUESTS
@programs
def test_with_names_allowed_all_others_do_not_exist_though_the_servers_are_silent(
    guest, files, program
):
    """The refusal needs no server: those of the host do not answer at all."""
    files("/etc/resolv.conf", f"nameserver {guest.world.silent4}\noptions timeout:5 attempts:3\n")
    resolver(guest.world, program)  # built before the clock starts
    started = time.monotonic()
    said = look(guest, program, "v4only.test", options=("--allow", "other.test:80"))
    assert said == ["no such name"]
    assert time.monotonic() - started < 4


@GUESTS
def test_a_refused_name_is_nxdomain_in_the_message(guest):
    options = ("--deny", "v4only.test")
    for protocol in ("udp", "tcp"):
        assert question(guest, protocol, NOWHERE, "v4only.test", options=options) == "3 whole"
        allowed = question(guest, protocol, NOWHERE, "web.test", options=options)
        assert allowed == "0 whole 198.51.100.10"


@GUESTS
@pytest.mark.parametrize("server", [NOWHERE, "8.8.8.8", "127.0.0.53", "2001:db8:99::53", "::1"])
def test_whatever_server_is_asked(guest, server):
    if ":" in server and not guest.world.has_ipv6:
        pytest.skip("this host has no IPv6")
    for protocol in ("udp", "tcp"):
        assert question(guest, protocol, server, "web.test") == "0 whole 198.51.100.10"
    assert question(guest, "udp", server, "many.test").startswith("0 truncated")
    assert len(question(guest, "tcp", server, "many.test").split()) == 62
    assert question(guest, "udp", server, "web.test", 16) == "0 whole 0b68656c6c6f20776f726c64"
    guest.mediated(5, "resolve")


def test_dns_over_tcp(guest):
    """With the host's real server, so that the native run says the same."""
    server = guest.world.dns4
    assert question(guest, "tcp", server, "web.test") == "0 whole 198.51.100.10"
    assert len(question(guest, "tcp", server, "many.test").split()) == 62
    assert question(guest, "tcp", server, "nothing.test") == "3 whole"
    guest.mediated(3, "resolve")


@needs("go")
@GUESTS
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_go_with_a_server_that_does_not_exist(guest, protocol):
    options = ["-t"] if protocol == "tcp" else []
    argv = [go_program(guest.world), "lookup", *options, "-s", NOWHERE]
    done = guest.run([*argv, "v4only.test", "nothing.test", "many.test"], check=True)
    found, nothing, many = done.stdout.splitlines()
    assert (found, nothing) == ("198.51.100.11", "no such name")
    assert len(many.split()) == 60
    guest.mediated(3, "resolve")


@needs("node")
@GUESTS
def test_c_ares_with_a_server_that_does_not_exist(guest):
    script = str(bring(guest.world, "client.mjs"))
    done = guest.run(["node", script, "names", NOWHERE, "web.test", "nothing.test"], check=True)
    assert '"four":["198.51.100.10"],"six":["2001:db8:20::10"]' in done.stdout
    assert '"four":{"error":"ENOTFOUND"}' in done.stdout
    guest.mediated(4, "resolve")


IMAGE = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'


@GUESTS
@programs
def test_a_guest_with_its_own_resolv_conf(guest, program):
    """As in a container image: its servers do not exist here, and names resolve."""
    own = guest.directory / "resolv.conf"
    own.write_text(f"nameserver {NOWHERE}\nnameserver 192.0.2.98\noptions timeout:2 attempts:2\n")
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", IMAGE, "sh", str(own)]
    if guest.run([*inside, "true"]).returncode:
        pytest.skip("no user namespaces inside a guest on this machine")
    resolver(guest.world, program)  # built before the clock starts
    started = time.monotonic()
    argv = [*inside, *resolver(guest.world, program), "v4only.test", "nothing.test"]
    done = guest.run(argv, check=True)
    assert done.stdout.splitlines() == ["198.51.100.11", "no such name"]
    assert time.monotonic() - started < 5
    guest.mediated(2, "resolve")
