"""`xensock upgrade`: another version takes a backend's place under load, or fails to (docs/explanation/restart.md)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from engines import OWN
from mortal import mortal
from test_scale import Guest, ended, opened

from world.processes import eventually, served_by

if TYPE_CHECKING:
    import subprocess

    from engines import Engine

RELAYED = 5
VERSIONED = """
import pathlib, sys, xensock
xensock.__version__ = pathlib.Path(__file__).with_name("version").read_text()
if xensock.__version__ == "broken":
    sys.exit(3)
from xensock.cli.main import main
main()
"""


@pytest.mark.parametrize("engine", ["docker", "podman", "rootless"], indirect=True)
def test_upgrades_under_load(engine: Engine) -> None:
    directory = engine.directory / "versions"
    directory.mkdir()
    program, version = directory / "xensock.py", directory / "version"
    program.write_text(VERSIONED)
    version.write_text("1.0")
    rules = ("--allow=any", "--allow=listen:any")
    with mortal(engine, [sys.executable, str(program)], "--hold", *rules) as (ours, holder):
        many = Guest(ours, "many", 10)
        relay = Guest(ours, "relay", 1, {"xensock.datapath": "relay"})

        def upgrade(to: str) -> subprocess.CompletedProcess[str]:
            version.write_text(to)
            argv = [*OWN, "upgrade", f"--control={ours.directory}/control"]
            return ours.world.host.run(argv, user=ours.user)

        def go_on() -> None:
            """Calls are answered, and bytes flow."""
            before = many("progress")["done"]

            def on() -> bool:
                now = many("progress")["done"]
                return all(a >= b + 2 for a, b in zip(now, before, strict=True))

            eventually(on, 60, "answers", 0.02)
            for line in lines:
                line.send(b"more")
                line.receive(4)

        try:
            with opened(ours, many.ports, 1000) as lines:
                many("call")
                relay("open", RELAYED)
                done = upgrade("2.0")
                assert done.returncode == 0, (done.stderr, ours.said())
                before, after = done.stdout.splitlines()
                assert before.startswith("before: xensock 1.0, ")
                assert after.startswith("after: xensock 2.0, ")
                # The holder stays what it was.
                assert after.endswith(f"process {served_by(holder)}")
                assert holder.poll() is None
                assert {how for _, how in ended(relay, RELAYED)} == {"ConnectionResetError"}
                go_on()
                # Nothing happens to what is there by one that does not come so far.
                relay("open", RELAYED)
                done = upgrade("broken")
                assert done.returncode == 1
                assert "the new one ended with status 3" in done.stderr
                go_on()
                assert relay("ends") == []
                done = upgrade("3.0")
                assert done.stdout.startswith(after.replace("after", "before"))
                go_on()
                assert many("progress")["wrong"] == []
                for line in lines:
                    assert line.sent.digest() == line.got.digest()
            done = ours.run("box", "wget", "-q", "-O", "-", "http://198.51.100.11/address")
            assert done.stdout == f"{ours.world.host.addr4}\n"
        finally:
            many.close()
            relay.close()
