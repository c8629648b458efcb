"""What is recorded over rings is what is recorded over the relay: the same programs, rules, calls, decisions.

Over the relay `xensock run` decides itself. Over rings a backend does, and its reasons travel with its answers.
"""

import contextlib
import difflib
from dataclasses import dataclass

import pytest
from languages import bring

from world.namespaces import needs
from world.runner import KEPT, Guest

pytestmark = pytest.mark.ring

PATHS = ("relay", "ring")


@dataclass(frozen=True)
class Seen:
    """What programs did over a data path."""

    output: str
    status: int
    calls: list[dict]

    def records(self):
        """A line each, as the calls arrived, without what differs from run to run; names are asked in any order."""
        calls = sorted(self.calls, key=lambda call: call["time"])
        plain = [_kept(call) for call in calls if call["verb"] != "resolve"]
        return plain + sorted(_kept(call) for call in calls if call["verb"] == "resolve")


def _kept(call):
    path = {"ring": "relay"}.get(call["datapath"], call["datapath"])
    return " | ".join(str(call[name]) for name in KEPT) + f" | {path}"


@pytest.fixture
def both(world, xensock):
    """Run a command over both data paths, which are to show the same."""

    def run(argv, *options):
        found = {}
        for path in PATHS:
            with contextlib.closing(Guest.create(world, path, xensock)) as guest:
                done = guest.run(argv, options=options)
                found[path] = Seen(done.stdout + done.stderr, done.returncode, guest.calls)
        relay, ring = (found[path] for path in PATHS)
        differ = list(
            difflib.unified_diff(relay.records(), ring.records(), *PATHS, n=1, lineterm="")
        )
        assert not differ, "\n".join(differ)
        assert (ring.output, ring.status) == (relay.output, relay.status)
        carried = {call["datapath"] for call in ring.calls}
        assert "relay" not in carried
        assert "direct" not in carried
        return ring

    return run


def kinds(seen):
    """What the records are about, so that no test passes with an empty trace."""
    return {(call["verb"], call["decision"]) for call in seen.calls}


@needs("curl")
@pytest.mark.parametrize(
    ("options", "decision"),
    [((), "allow"), (("--deny", "v4only.test:80"), "deny"), (("--allow", "*.test:80"), "allow")],
    ids=["default", "denied", "by name"],
)
def test_curl(both, options, decision):
    argv = ["curl", "-s", "--max-time", "20", "-o", "/dev/null", "http://v4only.test/"]
    seen = both(argv, *options)
    assert ("resolve", "allow") in kinds(seen)
    assert ("connect", decision) in kinds(seen)
    assert (seen.status == 0) == (decision == "allow")


@needs("curl")
def test_curl_of_a_name_that_is_refused(both):
    # Its search domain's name comes after.
    seen = both(["curl", "-s", "http://web.test/"], "--deny", "web.test")
    refused = [call for call in seen.calls if call["target"] == "web.test"]
    assert refused
    assert {(call["rule"], call["hint"]) for call in refused} == {
        ("web.test", "remove --deny web.test")
    }


@needs("wget")
def test_wget_of_a_redirected_page(both, world):
    argv = ["wget", "-q", "-T", "20", "-t", "1", "-O", "/dev/null", f"http://{world.web4}/large"]
    assert ("connect", "allow") in kinds(both(argv))


# Every line is a call and its errno. {name}: what the test fills in.
CALLS = """
import errno, socket, sys
ok = {{}}
def say(what, call):
    try:
        call()
        print(what, "ok")
    except socket.gaierror as error:
        print(what, error.errno)
    except OSError as error:
        print(what, errno.errorcode[error.errno])
def dial(host, port, family=socket.AF_INET, nonblocking=False):
    with socket.socket(family) as sock:
        sock.settimeout(20)
        if nonblocking:
            sock.setblocking(False)
        sock.connect((host, port))
def serve(host, port, listen=True, family=socket.AF_INET):
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if port is not None:
            sock.bind((host, port))
        if listen:
            sock.listen()
{lines}
"""
LINES = """
say("web", lambda: dial("{web4}", 80))
say("web again", lambda: dial("{web4}", 80))
say("private", lambda: dial("{private4}", 80))
say("nobody listens", lambda: dial("{web4}", 9))
say("unreachable", lambda: dial("{unreachable4}", 80))
say("metadata", lambda: dial("{metadata4}", 80))
say("metadata, not waiting", lambda: dial("{metadata4}", 80, nonblocking=True))
say("link-local", lambda: dial("169.254.1.1", 80))
say("loopback", lambda: dial("127.0.0.1", {port}))
say("unspecified", lambda: dial("0.0.0.0", {port}))
say("mapped", lambda: dial("::ffff:{web4}", 80, socket.AF_INET6))
say("mapped metadata", lambda: dial("::ffff:{metadata4}", 80, socket.AF_INET6))
say("multicast", lambda: dial("224.0.0.1", 80))
say("port 0", lambda: dial("{web4}", 0))
say("bind", lambda: serve("0.0.0.0", {port}, listen=False))
say("listen", lambda: serve("0.0.0.0", {port}))
say("listen, IPv6", lambda: serve("::", {port}, family=socket.AF_INET6))
say("listen at one address", lambda: serve("{host4}", {port}))
say("listen on loopback", lambda: serve("127.0.0.1", {port}))
say("privileged", lambda: serve("0.0.0.0", 80))
say("no such address", lambda: serve("203.0.113.77", {port}))
say("name", lambda: socket.gethostbyname("v4only.test"))
say("dial by name", lambda: dial("v4only.test", 80))
say("no such name", lambda: socket.gethostbyname("absent.test"))
say("host file", lambda: socket.gethostbyname("localhost"))
say("many", lambda: socket.gethostbyname("many.test"))
"""
RULES = {
    "default": (),
    "deny": ("--deny", "{web4}:80", "--deny", "listen:any:{port}", "--deny", "many.test"),
    "allow": ("--allow", "{web4}:80", "--allow", "listen:{host4}:{port}"),
    "names": ("--allow", "v4only.test:80"),
    "open": ("--allow", "any", "--allow", "metadata", "--allow", "listen:any"),
    "loopback": ("--allow", "loopback:{port}", "--allow", "public"),
}


@pytest.mark.parametrize("rules", RULES)
def test_calls_of_every_kind(both, world, rules):
    words = {
        "web4": world.web4,
        "private4": world.private4,
        "unreachable4": world.unreachable4,
        "metadata4": world.metadata4,
        "host4": world.host.addr4,
        "port": world.host.free_port(),
    }
    script = CALLS.format(lines=LINES.format(**words))
    options = [option.format(**words) for option in RULES[rules]]
    seen = both([world.python, "-c", script], *options)
    assert seen.status == 0, seen.output
    assert len(seen.calls) >= 25
    verbs = {verb for verb, _ in kinds(seen)}
    assert verbs - {"count"} == {"connect", "bind", "listen", "resolve"}
    assert ("count" in verbs) == bool({("resolve", "deny")} & kinds(seen))


def test_the_hosts_loopback_by_rule(both, world):
    with world.host.listen("127.0.0.1") as service:
        port = service.getsockname()[1]
        line = f'say("service", lambda: dial("127.0.0.1", {port}))'
        argv = [world.python, "-c", CALLS.format(lines=line)]
        seen = both(argv, "--allow", f"loopback:{port}")
        assert seen.output == "service ok\n"
        assert [call["rule"] for call in seen.calls] == [f"loopback:{port}"]


def test_published_ports(both, world):
    port = world.host.free_port()
    line = f'say("published", lambda: serve("127.0.0.1", {port}))'
    argv = [world.python, "-c", CALLS.format(lines=line)]
    seen = both(argv, "--publish", str(port))
    assert seen.calls[-1]["rule"] == f"--publish {port}"


def test_names_of_every_kind(both, world):
    script = str(bring(world, "names.py"))
    names = ("web.test", "v4only.test", "v6only.test", "many.test", "absent.test", "localhost")
    seen = both([world.python, script, *names])
    assert {call["verb"] for call in seen.calls} >= {"resolve"}
    assert len(seen.calls) >= len(names)
