"""Programs in containers: servers, proxies, C libraries of every kind; several containers."""

from __future__ import annotations

import subprocess
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from engines import image
from languages import musl_dynamic

from world.internet import LARGE
from world.processes import eventually, needs

if TYPE_CHECKING:
    from pathlib import Path

    from engines import Engine

pytestmark = pytest.mark.parametrize("engine", ["docker", "podman", "rootless"], indirect=True)
PATHS = pytest.mark.parametrize("datapath", ["direct", "relay"])


def get(engine: Engine, port: int, path: str, *more: str) -> str:
    """What a client elsewhere on the network gets from the world's host."""
    url = f"http://{engine.world.host.addr4}:{port}{path}"
    return engine.world.peer.run(["curl", "-sS", "--max-time", "20", *more, url]).stdout


@needs("nginx")
@PATHS
def test_nginx_as_a_server_and_a_proxy(engine: Engine, datapath: str) -> None:
    world, port = engine.world, engine.world.host.free_port()
    labels = {"xensock.publish": f"{port}:8080", "xensock.datapath": datapath}
    engine.start("proxy", "tools", "nginx", "-e", "stderr", "-c", "/etc/nginx.conf", labels=labels)
    eventually(lambda: get(engine, port, "/page") == "from tools\n", 20, "nginx")
    assert get(engine, port, "/client") == f"{world.peer.addr4}\n"
    assert get(engine, port, "/world/address") == f"{world.host.addr4}\n"
    size = get(engine, port, "/world/large", "-o", "/dev/null", "-w", "%{size_download}")
    assert int(size) == LARGE


@needs("redis-server", "redis-cli")
@PATHS
def test_two_containers(engine: Engine, datapath: str) -> None:
    host, port = engine.world.host.addr4, str(engine.world.host.free_port())
    label = {"xensock.datapath": datapath}
    server = ["redis-server", "--port", port, "--save", "", "--protected-mode", "no"]
    engine.start("store", "tools", *server, labels=label)
    client = ["tools", "redis-cli", "-h", host, "-p", port]

    def answers() -> bool:
        return engine.run(*client, "ping", labels=label, check=False).stdout == "PONG\n"

    eventually(answers, 30, "redis")
    assert engine.run(*client, "set", "key", "value", labels=label).stdout == "OK\n"
    assert engine.exec("store", "redis-cli", "-p", port, "get", "key").stdout == "value\n"


@needs("musl-gcc", "go")
@PATHS
@pytest.mark.parametrize("program", ["net-musl", "net-musl-dynamic", "net-go", "curl"])
def test_every_c_library_and_none(engine: Engine, program: str, datapath: str) -> None:
    argv = [program, "get", "v4only.test", "80", "/address"]
    if program == "net-go":
        argv = [program, "get", "http://v4only.test/address"]
    elif program == "curl":
        argv = [program, "-sS", "http://v4only.test/address"]
    label = {"xensock.datapath": datapath}
    for options in ((), ("--read-only", "--user=65534")):
        done = engine.run(*options, "tools", *argv, labels=label)
        page = f"{engine.world.host.addr4}\n"
        if program == "net-go":  # it prints status, length and digest
            assert sha256(page.encode()).hexdigest() in done.stdout
        else:
            assert done.stdout == page


@needs("go")
@PATHS
def test_a_static_server_in_go(engine: Engine, datapath: str) -> None:
    port = engine.world.host.free_port()
    server = ["tools", "net-go", "serve", f"0.0.0.0:{port}"]
    engine.start("goes", *server, labels={"xensock.datapath": datapath})
    eventually(lambda: get(engine, port, "/") == f"{engine.world.peer.addr4}\n", 20, "the server")
    size = get(engine, port, "/large", "-o", "/dev/null", "-w", "%{size_download}")
    assert int(size) == LARGE


@needs("musl-gcc")
def test_an_image_with_musl_alone(engine: Engine, images: dict[str, Path]) -> None:
    """No other C library, and no resolver but musl's."""
    tar = image(images["box"].parent, "musl", [musl_dynamic(engine.world)])
    engine("import", str(tar), "musl")
    try:
        libraries = engine.run("musl", "ls", "/lib").stdout.split()
        assert [name.rsplit("-", 1)[0] for name in libraries] == ["ld-musl"]
        done = engine.run("musl", "net-musl-dynamic", "get", "v4only.test", "80", "/address")
        assert done.stdout == f"{engine.world.host.addr4}\n"
    finally:
        engine("rmi", "musl")


def test_udp_and_a_name_server_of_its_own_choice(engine: Engine) -> None:
    chosen = "198.51.100.77"
    done = engine.run("box", "nslookup", "v4only.test", chosen)
    assert f"{chosen}:53" in done.stdout
    assert "198.51.100.11" in done.stdout
    if engine.kind == "docker":  # Podman has no such option beside --network none
        done = engine.run(f"--dns={chosen}", "box", "nslookup", "v4only.test")
        assert "198.51.100.11" in done.stdout


def test_a_container_starts_while_others_run(engine: Engine) -> None:
    """Twenty at once, each with its own rules."""
    running = []
    for number in range(20):
        label = {"xensock.allow": "web.test:80" if number % 2 else "v4only.test:80"}
        get = ("box", "wget", "-q", "-O", "-", "http://web.test/")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append(engine.popen(*get, labels=label, text=True, **pipes))
    for number, each in enumerate(running):
        out, err = each.communicate(timeout=120)
        assert (out == "hello from the world\n") == bool(number % 2), err
