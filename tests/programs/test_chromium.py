"""Headless Chromium with its own sandbox in a guest: many processes, descriptors passed between them, names, a page
whose script fetches more."""

from __future__ import annotations

import re
import threading
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from world.fixtures import only
from world.namespaces import eventually, needs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from world.internet import World
    from world.runner import Guest

pytestmark = [needs("chromium"), pytest.mark.slow]
PAGE = """<html><body><p id="all">nothing</p><img src="/held"><script>
Promise.all([1, 2, 3, 4, 5, 6].map((n) => fetch("/" + n).then((answer) => answer.text()))).then((texts) => {
  document.getElementById("all").textContent = "fetched " + texts.join(" ");
  return fetch("/done");
});
</script></body></html>"""
OPTIONS = [
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
]


class Site(ThreadingHTTPServer):
    """A page, what its script asks for, and an image that comes after `release`: before, the page is not loaded."""

    daemon_threads = True

    def __init__(self, world: World) -> None:
        super().__init__((world.web4, 0), Pages, bind_and_activate=False)
        self.socket.close()
        self.socket = world.peer.listen(world.web4)
        self.port = int(self.socket.getsockname()[1])
        self.done, self.release = threading.Event(), threading.Event()
        self.clients: set[str] = set()
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.release.set()
        self.shutdown()
        self.thread.join()
        self.server_close()


class Pages(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.clients.add(self.client_address[0])
        if self.path == "/held":
            self.server.release.wait()
        if self.path == "/done":
            self.server.done.set()
        body = PAGE if self.path == "/" else self.path.removeprefix("/") * 3
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(world: World) -> Iterator[Site]:
    with closing(Site(world)) as made:
        yield made


def renderers(world: World) -> list[str]:
    """What the kernel says of the processes that run scripts of pages; they are in networks of their own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if b"--type=renderer" in path.read_bytes():
                found.append((path.parent / "status").read_text())
    return [status for status in found if world.user.uid in number(status, "Uid")]


def number(status: str, field: str) -> list[int]:
    return [int(word) for word in re.findall(rf"^{field}:(.*)$", status, re.M)[0].split()]


@pytest.mark.parametrize("guest", only("native", "direct", "relay"), indirect=True)
def test_a_page_in_a_sandboxed_browser(guest: Guest, world: World, site: Site) -> None:
    profile = f"--user-data-dir={guest.directory}/profile"
    argv = ["chromium", *OPTIONS, profile, "--dump-dom", f"http://web.test:{site.port}/"]
    with guest.popen(argv, env={"HOME": str(guest.directory)}) as browser:
        assert site.done.wait(60), browser.stderr
        # No user has --no-sandbox here: a filter of its own beside ours, and namespaces within the guest's.
        inside = renderers(world)
        assert inside
        for status in inside:
            assert number(status, "Seccomp") == [2]
            assert number(status, "Seccomp_filters")[0] >= (1 if guest.native else 2)
            assert number(status, "CapEff") == [0]
            assert len(number(status, "NSpid")) > (0 if guest.native else 1) + depth()
        site.release.set()
        eventually(lambda: browser.process.poll() is not None, 60, "the browser's end")
        assert browser.process.returncode == 0, browser.stderr
        assert "fetched 111 222 333 444 555 666" in browser.stdout
    assert site.clients == {world.host.addr4}
    guest.mediated(2, "connect", f":{site.port}")


def depth() -> int:
    """How deep the world's host is in PID namespaces, as this process sees it."""
    return len(number(Path("/proc/self/status").read_text(), "NSpid"))
