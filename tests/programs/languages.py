"""Programs of several language runtimes: sources brought into the world, built once per session."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from world.namespaces import PATH

SOURCES = Path(__file__).with_name("sources")


def bring(world, name: str) -> Path:
    """A source where the world's ordinary user may read it: the checkout may be closed to them."""
    target = world.directory / "sources" / name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        target.write_text((SOURCES / name).read_text())
    return target


def go_program(world) -> str:
    """`sources/net.go`, static and without libc (CGO_ENABLED=0)."""
    return str(_build_go(world.directory, bring(world, "net.go")))


def musl_program(world) -> str:
    """`sources/net.c`, static with musl."""
    return str(_build_musl(bring(world, "net.c")))


def java_program(world) -> str:
    """`sources/Net.java`, which may not lie beside other sources (JEP 458)."""
    source = bring(world, "Net.java")
    alone = source.parent / "java" / source.name
    alone.parent.mkdir(exist_ok=True)
    alone.write_text(source.read_text())
    return str(alone)


def musl_dynamic(world) -> str:
    """The same, with musl's loader."""
    source = bring(world, "net.c")
    program = source.with_name("net-musl-dynamic")
    _build(["musl-gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, source])
    return str(program)


@cache
def _build_go(directory: Path, source: Path) -> Path:
    program = source.with_name("net-go")
    places = {"GOCACHE": f"{directory}/go-cache", "GOPATH": f"{directory}/go"}
    settings = {"CGO_ENABLED": "0", "GO111MODULE": "off", "GOFLAGS": "", "GOTOOLCHAIN": "local"}
    _build(["go", "build", "-o", program, source], **places, **settings)
    return program


@cache
def _build_musl(source: Path) -> Path:
    program = source.with_name("net-musl")
    _build(["musl-gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, source])
    return program


def _build(argv, **settings: str) -> None:
    env = {"PATH": PATH, "HOME": os.environ.get("HOME", "/"), **settings}
    done = subprocess.run(list(map(str, argv)), env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv} gave {done.returncode}\n{done.stdout}{done.stderr}"
