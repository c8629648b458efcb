"""Containers that reach each other by name, and what of them the world reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from world.processes import eventually, needs

if TYPE_CHECKING:
    from engines import Engine

FIRST = "240.88.0.1"  # the address of a backend's first container in a group

pytestmark = pytest.mark.parametrize("engine", ["docker", "podman"], indirect=True)


def outside(engine: Engine, port: int) -> str:
    """What a client elsewhere on the network gets."""
    url = f"http://{engine.world.host.addr4}:{port}/page"
    return engine.world.peer.run(["curl", "-sS", "--max-time", "5", url]).stdout


def page(engine: Engine, url: str, **labels: str) -> tuple[str, str]:
    said = {f"xensock.{key}": text for key, text in labels.items()}
    done = engine.run("box", "wget", "-O", "-", url, labels=said, check=False)
    return done.stdout, done.stderr


@pytest.mark.parametrize("datapath", ["direct", "relay"])
@pytest.mark.parametrize("listen", ["all", "published"])
def test_by_name_within_a_group(engine: Engine, listen: str, datapath: str) -> None:
    port, shown = engine.world.host.free_port(), engine.world.host.free_port()
    labels = {"xensock.group": "shop", "xensock.listen": listen, "xensock.datapath": datapath}
    server = ["httpd", "-f", "-p", str(port), "-h", "/www"]
    engine.start("app", "box", *server, labels=labels)
    engine.recorded("listen", f"[::]:{port}")
    url = f"http://app:{port}/page"
    got = page(engine, url, group="shop", datapath=datapath)
    assert got[0] == "from box\n", got[1]
    record = engine.records_of("resolve", "app")[-1]
    assert record["decision"] == "allow"
    # Only its own listeners, whatever else the host has; and for nobody else.
    assert "refused" in page(engine, "http://app:1/", group="shop")[1]
    for strangers in ({}, {"group": "other"}):
        assert "bad address" in page(engine, url, **strangers)[1]
        assert "No route to host" in page(engine, f"http://{FIRST}:{port}/page", **strangers)[1]
    assert (
        engine.exec("app", "wget", "-q", "-O", "-", f"http://127.0.0.1:{port}/page").stdout
        == "from box\n"
    )
    # The world reaches what is published only, or everything.
    assert outside(engine, port) == ("from box\n" if listen == "all" else "")
    labels["xensock.publish"] = f"{shown}:8000"
    engine.start("front", "box", "httpd", "-f", "-p", "8000", "-h", "/www", labels=labels)
    eventually(lambda: outside(engine, shown) == "from box\n", 20, "the published port")
    assert page(engine, "http://front:8000/page", group="shop")[0] == ("from box\n")
    assert page(engine, f"http://front:{port}/page", group="shop")[0] == ""


@needs("redis-server", "nginx")
def test_two_of_one_port(engine: Engine) -> None:
    """Nobody publishes it, so nobody is in another's way."""
    labels = {"xensock.group": "twins", "xensock.listen": "published"}
    server = ["redis-server", "--port", "6379", "--save", "", "--protected-mode", "no"]
    for name in ("one", "two"):
        engine.start(name, "tools", *server, labels=labels)

    def told(name: str, *command: str) -> str:
        argv = ["tools", "redis-cli", "-h", name, *command]
        return engine.run(*argv, labels={"xensock.group": "twins"}, check=False).stdout

    for name in ("one", "two"):
        eventually(lambda name=name: told(name, "set", "key", name) == "OK\n", 30, name)
    assert (told("one", "get", "key"), told("two", "get", "key")) == ("one\n", "two\n")
    # Gone is gone, for those that knew the address, too.
    engine.remove("one")
    assert "PONG" not in told("one", "ping")
