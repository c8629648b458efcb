"""One guest, several backends: its ordered table says which one carries what.

    host    the world's own host, with a backend; the guest runs here
    island  a network namespace that no cable reaches, with another backend: its own addresses and names

Only the island's backend reaches 10.77.0.5. It has a web server at the address of web.test as well, so that what a
guest sees there tells who carried it.
"""

import contextlib
import errno
import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from languages import bring

from world.fixtures import only
from world.internet import ECHO, NGINX
from world.namespaces import Namespace, eventually, needs, stop
from world.processes import served_by
from world.runner import Running

pytestmark = [needs("curl"), pytest.mark.parametrize("guest", only("ring"), indirect=True)]

ALONE, GREETING = "10.77.0.5", "hello from the island"
HOSTS = f"127.0.0.1 localhost\n{ALONE} files.island.test web.test\n"
# The island's backend sees names of its own; who runs it is who runs the guest.
OWN_NAMES = (
    'mount --bind "$1" /etc/hosts; mount --bind /dev/null /etc/resolv.conf; shift; exec "$@"'
)


@dataclass
class Island:
    world: object
    space: Namespace
    directory: Path

    @classmethod
    def create(cls, world):
        with contextlib.ExitStack() as undo:
            space = Namespace.create("island", world.user)
            undo.callback(space.close)
            directory = world.directory / "island"
            (directory / "www").mkdir(parents=True)
            (directory / "www" / "index.html").write_text(f"{GREETING}\n")
            (directory / "hosts").write_text(HOSTS)
            space.ip(f"addr add {ALONE}/32 dev lo", f"addr add {world.web4}/32 dev lo")
            conf = directory / "nginx.conf"
            conf.write_text(NGINX.format(dir=directory, six=""))
            log = directory / "servers.log"
            space.service(["nginx", "-c", str(conf), "-e", f"{directory}/nginx.log"], log)
            echo = Path(__file__).parents[1] / "world" / "echo.py"
            space.service([world.python, str(echo), str(ECHO)], log)
            eventually(lambda: {80, ECHO} <= space.listening(), 20, f"the island's servers: {log}")
            space.mount = world.host.mount
            undo.pop_all()
        return cls(world, space, directory)


@pytest.fixture(scope="module")
def island(world):
    made = Island.create(world)
    try:
        yield made
    finally:
        made.space.close()


class Backend:
    """A backend on the island, for as long as the test lets it live."""

    def __init__(self, island, guest, *rules):
        self.path = guest.directory / f"island-{len(list(guest.directory.glob('island-*.err')))}"
        out, err = self.path.with_suffix(".out"), self.path.with_suffix(".err")
        user, serve = guest.world.user, [*guest.xensock, "backend", "--listen", self.url, *rules]
        argv = ["unshare", "--mount", "sh", "-ec", OWN_NAMES, "sh", str(island.directory / "hosts")]
        argv += [*user.become(), *serve]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = island.space.popen(
                argv, env=island.space.environment(user.name), stdout=stdout, stderr=stderr
            )
        self.running = Running(process, out, err)
        try:
            eventually(self._ready, 20, "the island's backend listens")
        except BaseException:
            self.stop()
            raise

    @property
    def url(self):
        return f"local:{self.path}"

    def _ready(self):
        assert self.running.process.poll() is None, self.running.stderr
        return "listening at" in self.running.stderr

    def stop(self):
        stop(self.running.process)

    def die(self):
        """As kill -9 does it: nobody is told."""
        self.running.process.kill()
        self.running.process.wait(10)


@pytest.fixture
def far(island, guest):
    made = Backend(island, guest)
    yield made
    made.stop()


def both(far, *routes):
    """Options for a guest of the host's backend, which the runner names first, and of the island's."""
    options = ["--backend", f"island={far.url}"]
    for route in routes:
        options += ["--route", route]
    return tuple(options)


def curl(guest, url, options=(), *, fails=False):
    done = guest.run(["curl", "-sS", "--max-time", "10", url], options=options)
    assert (done.returncode != 0) is fails, f"{done.stdout}{done.stderr}{guest.tail()}"
    return done.stdout if not fails else done.stderr


def test_a_destination_that_one_backend_reaches(guest, far):
    """Without the route the default backend is asked, whose network has no such host."""
    assert curl(guest, f"http://{guest.world.web4}/", both(far)) == "hello from the world\n"
    curl(guest, f"http://{ALONE}/", both(far), fails=True)
    routed = both(far, "10.77.0.0/16=island")
    assert curl(guest, f"http://{ALONE}/", routed) == f"{GREETING}\n"
    assert curl(guest, f"http://{ALONE}/address", routed) == f"{ALONE}\n"
    # The table is of this guest: what it says nothing about goes where it went.
    assert curl(guest, f"http://{guest.world.web4}/", routed) == "hello from the world\n"
    guest.mediated(3, "connect", ALONE)
    guest.mediated(2, "connect", guest.world.web4)


def test_both_in_one_program(guest, far):
    urls = [f"http://{ALONE}/", f"http://{guest.world.web4}/", f"http://{ALONE}/"]
    argv = ["curl", "-sS", "--max-time", "10", *urls]
    done = guest.run(argv, options=both(far, "10.0.0.0/8=island"), check=True)
    assert done.stdout == f"{GREETING}\nhello from the world\n{GREETING}\n"
    guest.mediated(2, "connect")


def test_a_port_chooses(guest, far):
    web = guest.world.web4
    routed = both(far, f"{web}:80=island")
    assert curl(guest, f"http://{web}/", routed) == f"{GREETING}\n"
    assert (
        curl(guest, f"http://{web}/", both(far, f"{web}:{ECHO}=island")) == "hello from the world\n"
    )
    guest.mediated(2, "connect", f"{web}:80")


def test_the_routed_backend_resolves(guest, far):
    """A name that only the island knows; and one that both know, each with an address of its own."""
    url = "http://files.island.test/"
    assert "resolve" in curl(guest, url, both(far), fails=True)
    assert curl(guest, url, both(far, "*.island.test=island")) == f"{GREETING}\n"
    guest.mediated(1, "resolve", "files.island.test")
    guest.mediated(1, "connect", f"{ALONE}:80")
    assert curl(guest, "http://web.test/", both(far)) == "hello from the world\n"
    assert curl(guest, "http://web.test/", both(far, "web.test=island")) == f"{GREETING}\n"
    guest.mediated(2, "connect", f"{ALONE}:80")


def test_a_name_is_resolved_there_though_its_port_goes_elsewhere(guest, far):
    """A route with a port chooses the resolver of the name as well; other ports are the default's."""
    routed = both(far, "web.test:81=island")
    assert "port 80" in curl(guest, "http://web.test/", routed, fails=True)
    guest.mediated(1, "connect", f"{ALONE}:80")


def test_the_first_route_that_matches_wins(guest, far):
    web = guest.world.web4
    narrow, wide = f"{web}/32=island", "198.51.100.0/24=backend"
    assert curl(guest, f"http://{web}/", both(far, narrow, wide)) == f"{GREETING}\n"
    assert curl(guest, f"http://{web}/", both(far, wide, narrow)) == "hello from the world\n"
    guest.mediated(2, "connect", web)


def test_host_is_this_machine_without_a_backend(guest, far):
    """The island is the default, and what is routed to `host` is carried by the guest's own supervisor."""
    web = guest.world.web4
    argv = ["curl", "-sS", "--max-time", "10", f"http://{web}/", f"http://{ALONE}/"]
    options = alone(guest, far, argv, "--route", f"{web}=host")
    done = guest.world.host.run(options, user="xstest", cwd=guest.directory)
    assert done.stdout == f"hello from the world\n{GREETING}\n", done.stderr
    carried = {call["target"]: call for call in calls(guest) if call["verb"] == "connect"}
    assert carried[f"{web}:80"]["datapath"] == "relay"
    assert carried[f"{ALONE}:80"]["datapath"] == "ring"


def test_what_goes_to_host_is_decided_by_the_defaults(guest, far):
    """The island's backend has no say there, and nobody else gave rules: the host's metadata service stays closed."""
    metadata = guest.world.metadata4
    argv = ["curl", "-sS", "--max-time", "10", f"http://{metadata}/"]
    options = alone(guest, far, argv, "--route", "any=host")
    done = guest.world.host.run(options, user="xstest", cwd=guest.directory)
    assert done.returncode == 7, done.stdout
    (call,) = [call for call in calls(guest) if call["verb"] == "connect"]
    assert (call["decision"], call["rule"]) == ("deny", "default: metadata service")


def test_guests_listen_at_the_default_backend(guest, island, far):
    world, port = guest.world, guest.port()
    serve = [world.python, "-m", "http.server", "--directory", "/etc", str(port)]
    with guest.popen(serve, listens=port, options=both(far, "any=island")):
        assert port not in island.space.listening()
        world.peer.connect(world.host.addr4, port).close()
    options = alone(guest, far, serve, "--route", "any=host")
    with started(guest, options):
        eventually(lambda: port in island.space.listening(), 20, "the island listens")
        assert port not in world.host.listening()
        island.space.connect(ALONE, port).close()


def test_each_backend_has_its_own_rules(guest, island):
    """A refusal is EACCES, by the backend that was asked, and names its rule; the other one is not concerned."""
    far = Backend(island, guest, "--deny", f"{ALONE}:80")
    try:
        routed = both(far, "10.77.0.0/16=island")
        curl(guest, f"http://{ALONE}/", routed, fails=True)
        assert curl(guest, f"http://{guest.world.web4}/", routed) == "hello from the world\n"
        (call,) = [
            c for c in guest.calls if c["target"] == f"{ALONE}:80" and c["verb"] == "connect"
        ]
        assert (call["decision"], call["rule"], call["error"]) == (
            "deny",
            f"{ALONE}:80",
            errno.EACCES,
        )
    finally:
        far.stop()


@pytest.mark.parametrize("died", ["island", "default"])
def test_a_backend_that_dies(guest, far, died):
    """What it carried ends with an error at once, not after a time-out; what the other one carries goes on."""
    world = guest.world
    places = {"island": ALONE, "default": world.web4}
    lost, kept = places.pop(died), next(iter(places.values()))
    script = str(bring(world, "changes.py"))
    names = {"island": "files.island.test", "default": "v4only.test"}
    options = both(far, "10.77.0.0/16=island", "*.island.test=island")
    with guest.popen([world.python, script], stdin=subprocess.PIPE, options=options) as program:
        say = Lines(program)
        for name, place in (("lost", lost), ("kept", kept)):
            assert say(f"open {name} {place} {ECHO}") == "open"
            assert say(f"say {name} before 5") == "before"
        if died == "island":
            far.die()
        else:
            near = next(r for r in guest._running if "backend-0" in str(r.err))
            near.process.kill()
            near.process.wait(10)
        assert say("say lost after 5") == "ECONNRESET"
        assert say(f"open again {lost} {ECHO}") == "ENETDOWN"
        assert say(f"get {lost}") == "ENETDOWN"
        assert "Temporary failure" in say(f"get {names[died]}")
        assert say("say kept after 5") == "after"
        assert say(f"open more {kept} {ECHO}") == "open"
        assert say("say more words 5") == "words"
        program.process.stdin.close()
        assert program.wait() == 0, program.stderr


@pytest.mark.slow
def test_a_held_backend_that_is_killed(guest, island):
    """Whoever runs `xensock run --backend` does not notice: connections, listeners, datagrams and names go on."""
    far, world = Backend(island, guest, "--hold"), guest.world
    options = both(far, "10.77.0.0/16=island", "*.island.test=island")
    script = str(bring(world, "changes.py"))
    udp = [world.python, "-c", ONE_PEER, ECHO, ALONE]
    try:
        with (
            guest.popen([world.python, script], stdin=subprocess.PIPE, options=options) as program,
            guest.popen(udp, options=options, stdin=subprocess.PIPE) as datagrams,
        ):
            say, send = Lines(program), Lines(datagrams)
            assert say(f"open first {ALONE} {ECHO}") == "open"
            assert say("say first before 5") == "before"
            eventually(lambda: send("before") == "before", 20, "an answer to a datagram")
            for number in range(3):
                os.kill(served_by(far.running.process), signal.SIGKILL)
                assert say(f"say first word{number} 20") == f"word{number}"
                assert say(f"open new{number} files.island.test {ECHO}") == "open"
                assert say(f"say new{number} more 20") == "more"
                eventually(lambda: send("again") == "again", 20, "an answer to a datagram")
            program.process.stdin.close()
            datagrams.process.stdin.close()
            assert program.wait() == 0, program.stderr
    finally:
        far.stop()


UDP = """
import errno, socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.settimeout(10)
    for host in sys.argv[2:]:
        sock.sendto(host.encode(), (host, int(sys.argv[1])))
        data, sender = sock.recvfrom(100)
        print(data.decode(), sender[0])
"""
ONE_PEER = """
import errno, socket, sys
sock = socket.socket(type=socket.SOCK_DGRAM)
sock.settimeout(1)
sock.connect((sys.argv[2], int(sys.argv[1])))
for line in sys.stdin:
    try:
        sock.send(line.strip().encode())
        print(sock.recv(100).decode(), flush=True)
    except OSError as error:
        print(errno.errorcode.get(error.errno, error), flush=True)
"""


def test_datagrams_follow_the_routes(guest, far):
    """One socket, two destinations, each by the backend that carries it."""
    web = guest.world.web4
    argv = [guest.world.python, "-c", UDP, ECHO, ALONE, web, ALONE]
    done = guest.run(argv, options=both(far, f"{ALONE}:{ECHO}/udp=island"), check=True)
    assert done.stdout == f"{ALONE} {ALONE}\n{web} {web}\n{ALONE} {ALONE}\n"
    guest.mediated(1, "send", f"{ALONE}:{ECHO}/udp")
    guest.mediated(1, "send", f"{web}:{ECHO}/udp")


def test_datagrams_that_host_carries(guest, far):
    web = guest.world.web4
    argv = [guest.world.python, "-c", UDP, ECHO, web, ALONE]
    options = alone(guest, far, argv, "--route", f"{web}/udp=host")
    done = guest.world.host.run(options, user="xstest", cwd=guest.directory)
    assert done.stdout == f"{web} {web}\n{ALONE} {ALONE}\n", done.stderr
    carried = {call["target"]: call["datapath"] for call in calls(guest) if call["verb"] == "send"}
    assert carried == {f"{web}:{ECHO}/udp": "relay", f"{ALONE}:{ECHO}/udp": "ring"}


def test_datagrams_of_a_backend_that_dies(guest, far):
    """Those of the other one go on; its own are told that there is no network any more."""
    argv = [guest.world.python, "-c", ONE_PEER, ECHO]
    options = both(far, "10.0.0.0/8=island")
    with (
        guest.popen([*argv, ALONE], options=options, stdin=subprocess.PIPE) as one,
        guest.popen([*argv, guest.world.web4], options=options, stdin=subprocess.PIPE) as other,
    ):
        gone, kept = Lines(one), Lines(other)

        def soon(said, line, answer):
            eventually(lambda: said(line) == answer, 20, f"{answer} to {line!r}")

        soon(gone, "first", "first")
        soon(kept, "first", "first")
        far.die()  # what is sent before that was noticed is lost
        soon(gone, "second", "ENETUNREACH")
        soon(kept, "second", "second")


class Lines:
    """A program that answers each line with one."""

    def __init__(self, running):
        self.running = running
        self.answers = 0

    def __call__(self, line, timeout=20):
        self.running.process.stdin.write(f"{line}\n".encode())
        self.running.process.stdin.flush()
        self.answers += 1
        said = lambda: self.running.stdout.count("\n") >= self.answers  # noqa: E731
        eventually(said, timeout, f"an answer to {line!r}; {self.running.stderr}")
        return self.running.stdout.splitlines()[self.answers - 1]


def alone(guest, far, argv, *options):
    """The command of a guest that the island's backend alone carries."""
    trace = ["--trace=json", "--trace-file", str(guest.directory / "alone.json")]
    return [*guest.xensock, "run", *trace, "--backend", f"island={far.url}", *options, "--", *argv]


def calls(guest):
    text = (guest.directory / "alone.json").read_text()
    return [json.loads(line) for line in text.splitlines()]


@contextlib.contextmanager
def started(guest, argv):
    process = guest.world.host.popen(
        argv,
        user="xstest",
        cwd=guest.directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        stop(process)
