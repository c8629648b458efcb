"""Node.js: fetch, http, cluster, names by getaddrinfo and by c-ares; npm with a registry of ours."""

import hashlib
import json
import threading

import pytest
from languages import bring

from world.internet import LARGE
from world.namespaces import eventually, needs

pytestmark = needs("node")

HELLO = b"hello from the world\n"
LARGE_PAGE = bytes(range(256)) * (LARGE // 256)
REGISTRY = 4873


def node(guest, source, *words, **kw):
    argv = ["node", str(bring(guest.world, source)), *map(str, words)]
    return guest.run(argv, check=True, **kw).stdout


def serve(guest, port, *words, address=None):
    address = guest.world.host.addr4 if address is None else address
    script = str(bring(guest.world, "server.mjs"))
    argv = ["node", script, address, str(port), *map(str, words)]
    return guest.popen(argv, listens=port)


def ask(guest, port, *more, address=None):
    """What the guest's server answered the peer."""
    url = f"http://{address or guest.world.host.addr4}:{port}/"
    argv = ["curl", "-sS", "--fail", "--max-time", "20", *more, url]
    return json.loads(guest.world.peer.run(argv, check=True).stdout)


def got(page):
    return {"status": 200, "length": len(page), "sha": hashlib.sha256(page).hexdigest()}


def test_fetch(guest):
    urls = ["http://v4only.test/", "http://web.test/large", f"http://{guest.world.web4}/address"]
    urls += ["http://v4only.test:9/x", "http://nothing.test/"]
    pages = [json.loads(line) for line in node(guest, "client.mjs", "get", *urls).splitlines()]
    address = guest.world.host.addr4.encode() + b"\n"
    assert pages[:3] == [got(HELLO), got(LARGE_PAGE), got(address)]
    # Port 9 is on the list that fetch itself refuses; see the classic client below.
    assert pages[4] == {"error": "ENOTFOUND"}
    guest.mediated(3, "connect", ":80")
    guest.mediated(1, "resolve", "web.test")


def test_fetch_many_at_once(guest):
    url = f"http://{guest.world.web4}/large"
    assert node(guest, "client.mjs", "many", url, 30) == "30\n"
    guest.mediated(10, "connect", f"{guest.world.web4}:80")


def test_http_client_keeps_its_connection(guest):
    answer = json.loads(node(guest, "client.mjs", "kept", "http://v4only.test/address", 10))
    assert answer == {"statuses": [200] * 10, "connections": 1}
    guest.mediated(1, "connect", "198.51.100.11:80")


def test_names_by_getaddrinfo_and_by_c_ares(guest):
    names = ["web.test", "v4only.test", "alias.test", "intra.example.test", "nothing.test"]
    lines = node(guest, "client.mjs", "names", "", *names).splitlines()
    answers = dict(zip(names, map(json.loads, lines), strict=True))
    web4, web6 = ["198.51.100.10"], ["2001:db8:20::10"]
    assert answers["web.test"] == {"lookup": web4 + web6, "four": web4, "six": web6}
    assert answers["alias.test"] == answers["web.test"]
    no_data = {"error": "ENODATA"}
    assert answers["v4only.test"] == {
        "lookup": ["198.51.100.11"],
        "four": ["198.51.100.11"],
        "six": no_data,
    }
    assert answers["intra.example.test"]["lookup"] == ["198.51.100.12"]
    gone = {"error": "ENOTFOUND"}
    assert answers["nothing.test"] == {"lookup": gone, "four": gone, "six": gone}
    guest.mediated(10, "resolve")


@pytest.mark.parametrize("address", ["specific", "wildcard"])
def test_http_server(guest, address):
    world, port = guest.world, guest.port()
    listen = world.host.addr4 if address == "specific" else ""
    with serve(guest, port, address=listen):
        answer = ask(guest, port)
        # Without an address Node.js listens on ::, and clients have addresses mapped into IPv6.
        client = world.peer.addr4
        assert answer["remoteAddress"] in (client, f"::ffff:{client}")
        assert (answer["localPort"], answer["length"]) == (port, 0)
        (guest.directory / "body").write_bytes(bytes(2_000_000))
        body = ("--data-binary", f"@{guest.directory}/body")
        assert ask(guest, port, *body)["length"] == 2_000_000
        if address == "wildcard" and world.has_ipv6:
            answer = ask(guest, port, address=f"[{world.host.addr6}]")
            assert answer["remoteAddress"] == world.peer.addr6
    guest.mediated(1, "listen", f":{port}")


@pytest.mark.parametrize("policy", ["rr", "none"])
def test_cluster_shares_a_port(guest, policy):
    port, workers = guest.port(), 3
    with serve(guest, port, workers, policy) as server:
        eventually(lambda: "ready" in server.stdout, 20, "all workers listen")
        answers: list[dict] = []
        threads = [
            threading.Thread(target=lambda: answers.extend(ask(guest, port) for _ in range(4)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [one["remoteAddress"] for one in answers] == [guest.world.peer.addr4] * 24
        served = {one["pid"] for one in answers}
        # Round robin reaches every worker; sharing the listener leaves the choice to the kernel.
        assert len(served) == workers if policy == "rr" else 1 <= len(served) <= workers
        assert server.stdout == "ready\n"
    guest.mediated(1, "listen", f":{port}")


def test_a_port_in_use_is_reported(guest):
    port = guest.port()
    with guest.world.host.listen(guest.world.host.addr4, port):
        script = str(bring(guest.world, "server.mjs"))
        done = guest.run(["node", script, guest.world.host.addr4, str(port)])
    assert (done.returncode, done.stdout) == (3, "EADDRINUSE\n")
    guest.mediated(1, "bind", f":{port}")


@pytest.fixture(scope="module")
def registry(world):
    log = world.directory / "registry.log"
    script = str(bring(world, "registry.py"))
    process = world.peer.service(
        [world.python, script, "0.0.0.0", str(REGISTRY)], log, user="xstest"
    )
    eventually(lambda: REGISTRY in world.peer.listening(), 20, "the registry on the peer")
    yield f"http://v4only.test:{REGISTRY}/"
    process.kill()
    process.wait()


@needs("npm")
def test_npm_installs_a_package_and_what_it_needs(guest, registry):
    directory = guest.directory
    (directory / "package.json").write_text('{"name": "tried", "version": "1.0.0"}')
    directory.joinpath("package.json").chmod(0o666)
    # Nothing of the user's or the machine's: one registry, and nothing else is asked.
    (directory / ".npmrc").write_text(
        f"registry={registry}\ncache={directory}/cache\naudit=false\nfund=false\n"
        "update-notifier=false\nfetch-retries=0\n"
    )
    argv = ["npm", "install", "--no-progress", "greeting@^1.0.0"]
    done = guest.run(argv, check=True, timeout=60)
    assert "added 2 packages" in done.stdout, done.stdout
    said = guest.run(["node", "-p", "require('greeting')"], check=True).stdout
    assert said == "hello world ...\n"
    shown = guest.run(["npm", "view", "subject", "version"], check=True, timeout=60).stdout
    assert shown == "2.1.0\n"
    absent = guest.run(["npm", "install", "absent"], timeout=60)
    assert absent.returncode == 1
    assert "E404" in absent.stderr
    guest.mediated(3, "connect", f":{REGISTRY}")
    guest.mediated(1, "resolve", "v4only.test")


def test_interfaces(guest):
    """What programs that look for an address "of this machine" find: one, but none of the host's cards."""
    argv = ["node", "-p", "JSON.stringify(require('os').networkInterfaces())"]
    found = json.loads(guest.run(argv, check=True).stdout)
    assert "127.0.0.1" in [each["address"] for each in found.pop("lo")]
    addresses = [each["address"] for cards in found.values() for each in cards]
    assert any("." in address for address in addresses)
    assert (guest.world.host.addr4 in addresses) == guest.native
    assert all(not each["internal"] for cards in found.values() for each in cards)
