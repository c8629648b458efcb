"""Programs that ask other resolvers than the backend's: what they are told opens nothing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from policykit import GUESTS, written
from world.internet import HERE
from world.namespaces import eventually, program, stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from world.internet import World
    from world.runner import Guest

guests = pytest.mark.parametrize("guest", GUESTS, indirect=True)

NAME, ADDRESS = "v4only.test", "198.51.100.11"
UNREACHED = 7  # curl(1), exit codes: failed to connect


@dataclass(frozen=True)
class Doh:
    """A server of DNS over HTTPS, on the address of web.test."""

    host: str
    port: int
    log: Path

    @property
    def place(self) -> str:
        return f"{self.host}:{self.port}"

    def asked(self) -> list[str]:
        """The names and types that it was asked for."""
        return self.log.read_text().splitlines()


@pytest.fixture(scope="module")
def doh(world: World) -> Iterator[Doh]:
    if program("openssl") is None:
        pytest.skip("openssl is not installed")
    directory = world.directory / "doh"
    directory.mkdir()
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    argv += ["-nodes", "-days", "2", "-subj", "/CN=doh", "-keyout", "key", "-out", "cert"]
    world.peer.run(argv, cwd=directory, check=True)
    made = Doh(world.web4, world.peer.free_port(), directory / "asked")
    argv = [sys.executable, str(HERE / "doh.py"), made.host, str(made.port), "cert", "key", ADDRESS]
    with made.log.open("wb") as out, (directory / "errors").open("wb") as errors:
        server = world.peer.popen(
            argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=errors
        )
    try:
        eventually(lambda: made.port in world.peer.listening(), 20, "the server of DNS over HTTPS")
        yield made
    finally:
        stop(server)


def fetched(guest: Guest, doh: Doh | None, *rules: str) -> tuple[int, str]:
    """What came of fetching a page by name, whose address this resolver says: curl's exit code, and the page."""
    allow = ", ".join(f'"{rule}"' for rule in rules)
    options = written(guest, f"[[rule]]\nallow = [{allow}]\n")
    argv = ["curl", "-sS", "-4", "--noproxy", "*", "--max-time", "20"]
    if doh is not None:
        argv += ["--doh-insecure", "--doh-url", f"https://{doh.place}/dns-query"]
    done = guest.run([*argv, f"http://{NAME}/"], options=options, timeout=60)
    return done.returncode, done.stdout


@guests
def test_dns_over_https_needs_a_rule_and_teaches_no_names(guest: Guest, doh: Doh) -> None:
    before = doh.asked()
    # A rule by name lets nobody ask elsewhere.
    code, page = fetched(guest, doh, f"{NAME}:80")
    assert (code != 0, page) == (True, "")  # which one depends on the version of curl
    (refused,) = {call["target"] for call in guest.calls if call["decision"] == "deny"}
    assert refused == doh.place
    assert doh.asked() == before
    # It may be asked; what it says is not bound to the name, true as it is.
    assert fetched(guest, doh, f"{NAME}:80", doh.place) == (UNREACHED, "")
    assert f"{NAME}. A" in doh.asked()[len(before) :]
    refused, *_ = [call for call in guest.calls if call["target"] == f"{ADDRESS}:80"]
    assert (refused["verb"], refused["decision"], refused["name"]) == ("connect", "deny", None)
    # Rules by address do not ask how it became known; and the same rule by name holds for the backend's own answer.
    assert fetched(guest, doh, f"{ADDRESS}:80", doh.place) == (0, "hello from the world\n")
    assert fetched(guest, None, f"{NAME}:80") == (0, "hello from the world\n")


@guests
def test_dns_over_tcp_is_answered_and_judged_by_the_backend(guest: Guest) -> None:
    """Whatever server dig names, and be there none: the answer binds the address; other names are refused."""
    script = """
server=$1; shift
for name; do
  dig +tcp +tries=1 +time=20 +noall +comments +answer "@$server" "$name" A
done
curl -sS --noproxy '*' --max-time 20 "http://$LATER/"
"""
    argv = ["env", f"LATER={ADDRESS}", "sh", "-c", script, "sh", guest.world.silent4]
    options = written(guest, f'[[rule]]\nallow = "{NAME}:80"\n')
    done = guest.run([*argv, "intra.example.test", NAME], options=options, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = [line for line in done.stdout.splitlines() if "status: " in line]
    assert ["NXDOMAIN" in statuses[0], "NOERROR" in statuses[1], len(statuses)] == [True, True, 2]
    assert "198.51.100.12" not in done.stdout
    (answer,) = [line for line in done.stdout.splitlines() if line.startswith(f"{NAME}.")]
    assert answer.split()[-2:] == ["A", ADDRESS]
    assert done.stdout.endswith("hello from the world\n")
    asked = [(c["target"], c["decision"]) for c in guest.calls if c["verb"] == "resolve"]
    assert ("intra.example.test", "deny") in asked
    assert (NAME, "allow") in asked
