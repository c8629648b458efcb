"""The site of the probes: the far end in the world, routes that lead nowhere, runs kept by file."""

from __future__ import annotations

import ast
import contextlib
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from world.fixtures import DATAPATHS
from world.namespaces import stop
from world.runner import Guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from world.internet import World

HERE = Path(__file__).parent
CFLAGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread"]
FILE_SECONDS = 110
"""A whole file of probes; longer means that the data path hangs."""

UNLIMITED = """
for limit in ipv4/icmp_ratelimit ipv6/icmp/ratelimit; do
    test ! -w /proc/sys/net/$limit || echo 0 >/proc/sys/net/$limit
done
"""

# Addresses of the host's own routing table: what connect says for a route of this kind (ip-route(8);
# `throw` means: as if there were no route).
NOWHERE = {
    "4": {
        "EHOSTUNREACH": ("unreachable", "198.51.100.200"),
        "EACCES": ("prohibit", "198.51.100.201"),
        "ENETUNREACH": ("throw", "198.51.100.202"),
    },
    "6": {
        "EHOSTUNREACH": ("unreachable", "2001:db8:20::200"),
        "EACCES": ("prohibit", "2001:db8:20::201"),
        "ENETUNREACH": ("throw", "2001:db8:20::202"),
    },
}


def titles(source: Path) -> list[str]:
    """The probes of a file, as kit.py calls them, without running it."""
    found = []
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            marks = {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
            if "both" in marks:
                found += [f"{node.name}.4", f"{node.name}.6"]
            elif "probe" in marks:
                found.append(node.name)
    return found


@dataclass(slots=True)
class Seen:
    """What one probe said over one data path."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    end: str = "never reached"

    def observations(self) -> list[tuple[str, Any]]:
        return [(line["say"], line["got"]) for line in self.lines]

    def wrong(self) -> list[str]:
        """Observations that are not what every kernel must answer."""
        return [
            f"{line['say']}: {line['got']!r}, not {line['want']!r}"
            for line in self.lines
            if "want" in line and line["got"] != line["want"]
        ]


@dataclass(slots=True)
class Site:
    """The far end and how to run a probe file over a data path; each file runs once per path."""

    world: World
    directory: Path
    ports: dict[str, int]
    xensock: Callable[[], list[str]]
    _runs: dict[tuple[str, str], dict[str, Seen]] = field(default_factory=dict)
    _calls: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        world = self.world
        site: dict[str, Any] = {
            "ports": self.ports,
            "peer4": world.peer.addr4,
            "host4": world.host.addr4,
            "unreachable4": world.unreachable4,
            "nowhere4": {name: route[1] for name, route in NOWHERE["4"].items()},
        }
        if world.has_ipv6:
            site |= {
                "peer6": world.peer.addr6,
                "host6": world.host.addr6,
                "nowhere6": {name: route[1] for name, route in NOWHERE["6"].items()},
            }
        return {"SITE": json.dumps(site), "PYTHONDONTWRITEBYTECODE": "1"}

    def probe(self, file: str) -> list[str]:
        """The command line of a probe file."""
        return [self.world.python, str(self.directory / "probes" / file)]

    def seen(self, path: str, file: str, wanted: list[str]) -> dict[str, Seen]:
        """Run the wanted probes of a file over a data path, the first time asked."""
        key = (path, file)
        if key not in self._runs:
            guest = Guest.create(self.world, path, [] if path == "native" else self.xensock())
            try:
                argv = [*self.probe(file), *wanted]
                running = guest.popen(argv, env=self.environment)
                status: int | str
                try:
                    status = running.wait(FILE_SECONDS)
                except subprocess.TimeoutExpired:
                    status = f"no end within {FILE_SECONDS} s"
                    running.stop()
                self._runs[key] = parse(running.stdout, f"exit {status}: {running.stderr[-1500:]}")
                self._calls[key] = guest.calls
            finally:
                guest.close()
        return self._runs[key]

    def calls(self, path: str, file: str) -> list[dict[str, Any]]:
        """The records of that run; natively none."""
        return self._calls[path, file]


def parse(output: str, otherwise: str) -> dict[str, Seen]:
    """kit.py's lines by probe; a probe without an end gets `otherwise` as its end."""
    found: dict[str, Seen] = defaultdict(lambda: Seen(end=f"never reached; {otherwise}"))
    for text in output.splitlines():
        line: dict[str, Any] = {}
        with contextlib.suppress(json.JSONDecodeError):
            line = json.loads(text)
        if not line:
            continue
        seen = found[line["probe"]]
        if "end" in line:
            seen.end = line["end"]
        else:
            seen.lines.append(line)
    return found


def routes(world: World, verb: str) -> None:
    for version in ("4", "6") if world.has_ipv6 else ("4",):
        bits = "32" if version == "4" else "128"
        for kind, address in NOWHERE[version].values():
            world.host.ip(f"route {verb} {kind} {address}/{bits}")


@pytest.fixture(scope="session")
def site(world: World, request: pytest.FixtureRequest) -> Iterator[Site]:
    """The world, made ready for probes."""
    directory = world.directory / "semantics"
    shutil.copytree(HERE / "probes", directory / "probes", ignore=shutil.ignore_patterns("__*"))
    far = world.peer.popen(
        [sys.executable, str(HERE / "far.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert far.stdout is not None
        ports = json.loads(far.stdout.readline())
        routes(world, "add")
        for place in (world.host, world.peer):
            # One ICMP error a second would be one probe a second.
            place.run(["sh", "-c", UNLIMITED])
        try:
            yield Site(world, directory, ports, lambda: request.getfixturevalue("xensock"))
        finally:
            routes(world, "del")
    finally:
        stop(far)


ANY_PATH = [pytest.param(path, marks=getattr(pytest.mark, path)) for path in DATAPATHS]
GUESTS = ANY_PATH[1:]


@pytest.fixture(params=ANY_PATH)
def datapath(request: pytest.FixtureRequest) -> str:
    """How a probe runs: natively, or in a guest over a data path."""
    return str(request.param)


@pytest.fixture(scope="session")
def compiled(site: Site) -> Callable[..., Path]:
    """Compile compiled/NAME.c where the world's ordinary user may run it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: install gcc")
    directory = site.directory / "compiled"
    directory.mkdir()

    def build(name: str, *flags: str) -> Path:
        out = directory / name
        if not out.exists():
            argv = [compiler, *CFLAGS, str(HERE / "compiled" / f"{name}.c"), "-o", str(out), *flags]
            done = subprocess.run(argv, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return out

    return build
