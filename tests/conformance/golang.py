"""Go's own tests of one package in guests, beside a native run: on loopback, and at addresses of the host's."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from conformance.guests import PATHS, Run, close
from world.namespaces import program
from world.runner import Guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from conformance.running import Outcome
    from world.internet import World

# Package → calls that each guest makes at least on the host's network, with the host's addresses.
PACKAGES = {"net": 300, "net/http": 700}
SECONDS = 120
WORDS = {"PASS": "passed", "FAIL": "failed", "SKIP": "skipped"}
RESULT = re.compile(r"--- (PASS|FAIL|SKIP): (\S+) \(\d")
# Where an address stands that is listened on or called; server.go is what the tests of net/http listen with.
SOURCES = (
    "net/*_test.go",
    "net/http/client_test.go",
    "net/http/fs_test.go",
    "net/http/serve_test.go",
    "net/http/transport*_test.go",
    "net/http/httptest/server.go",
)
# Files that are about what such addresses are.
ABOUT = {"addrselect", "cgo_unix", "conf", "example", "hosts", "ip", "lookup", "main"}
CERTIFICATE = "net/http/internal/testcert/testcert.go"
GENERATOR = "crypto/tls/generate_cert.go"


def missing() -> str:
    """Why these tests cannot run; nothing when they can."""
    if program("go") is None:
        return "no Go here: run tools/prepare"
    if not (root() / "net" / "net_test.go").exists():
        return "this Go came without its tests (Debian's golang-src)"
    return ""


def root() -> Path:
    """The sources of the standard library."""
    done = subprocess.run(["go", "env", "GOROOT"], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip()).resolve() / "src"


def moved(text: str, four: str, six: str) -> str:
    """A source file with other addresses in place of 127.0.0.1 and ::1."""
    for old, new in (
        ('"127.0.0.1', f'"{four}'),
        ("::ffff:127.0.0.1", f"::ffff:{four}"),
        ("IPv4(127, 0, 0, 1)", f"IPv4({four.replace('.', ', ')})"),
        ('"::1"', f'"{six}"'),
        ("[::1]", f"[{six}]"),
        ("IPv6loopback", f'ParseIP("{six}")'),
    ):
        text = text.replace(old, new)
    return text


@dataclass(slots=True)
class GoSuite:
    """Compiles the tests, each once for either place, and runs them."""

    world: World
    xensock: Callable[[], list[str]]
    directory: Path
    sources: Path
    _built: dict[tuple[str, str], Path] = field(default_factory=dict)

    @classmethod
    def create(cls, world: World, xensock: Callable[[], list[str]]) -> GoSuite:
        """With a directory of the world for what is compiled."""
        directory = world.directory / "go"
        directory.mkdir(exist_ok=True)
        return cls(world, xensock, directory, root())

    def binary(self, package: str, place: str) -> Path:
        """The program with a package's tests."""
        if (package, place) not in self._built:
            made = self.directory / f"{package.replace('/', '-')}-{place}.test"
            options = ["-overlay", str(self._overlay())] if place == "host" else []
            self._go("test", "-c", *options, "-o", str(made), package)
            self._built[package, place] = made
        return self._built[package, place]

    def _go(self, *words: str) -> None:
        env = {
            **os.environ,
            "GOCACHE": str(self.directory / "cache"),
            "GOPATH": str(self.directory / "path"),
            "GO111MODULE": "off",
            "GOFLAGS": "",
            "GOTOOLCHAIN": "local",
        }
        argv = ["go", *words]
        done = subprocess.run(argv, capture_output=True, text=True, env=env, cwd=self.directory)
        assert done.returncode == 0, done.stderr[-3000:]

    def _overlay(self) -> Path:
        """The sources at the host's addresses (`go help build`, -overlay)."""
        listed = self.directory / "overlay.json"
        if not listed.exists():
            new = {}
            for path in (path for pattern in SOURCES for path in self.sources.glob(pattern)):
                if path.name.removesuffix("_test.go") not in ABOUT:
                    new[path] = moved(
                        path.read_text(), self.world.host.addr4, self.world.host.addr6
                    )
            new[self.sources / CERTIFICATE] = self._certificate()
            replaced = {}
            for path, text in new.items():
                ours = self.directory / str(path.relative_to(self.sources)).replace("/", "-")
                ours.write_text(text)
                replaced[str(path)] = str(ours)
            listed.write_text(json.dumps({"Replace": replaced}))
        return listed

    def _certificate(self) -> str:
        """The tests' own certificate, made as theirs was (see its comment), for the host's addresses too."""
        host = self.world.host
        names = f"127.0.0.1,::1,example.com,{host.addr4},{host.addr6}"
        options = ["--ca", "--host", names, "--start-date", "Jan 1 00:00:00 1970"]
        options += ["--duration=1000000h"]
        self._go("run", str(self.sources / GENERATOR), *options)
        text = (self.sources / CERTIFICATE).read_text()
        for kind, name in ("CERTIFICATE", "cert.pem"), ("RSA TESTING KEY", "key.pem"):
            whole = f"-----BEGIN {kind}-----.*?-----END {kind}-----\n?"
            pem = (self.directory / name).read_text().strip()
            text = re.sub(whole, lambda _, pem=pem: pem, text, flags=re.DOTALL)
        return text

    def run(self, package: str, only: Iterable[str] = ()) -> list[Run]:
        """All six runs, at once. The caller closes the guests."""
        # With GO_GCFLAGS set, those tests skip that would run the compiler themselves (internal/testenv).
        argv = ["-test.short", "-test.v", f"-test.timeout={SECONDS}s"]
        if only:
            names = "|".join(sorted({name.partition("/")[0] for name in only}))
            argv.append(f"-test.run=^({names})$")
        binaries = {place: self.binary(package, place) for place in ("loopback", "host")}
        runs = []
        for path in PATHS:
            command = self.xensock() if path != "native" else []
            runs += [Run(Guest.create(self.world, path, command), place) for place in binaries]
        try:
            for run in runs:
                words = ["env", "GO_GCFLAGS=-e", str(binaries[run.place]), *argv]
                run.running = run.guest.popen(words, cwd=self.sources / package)
            for run in runs:
                assert run.running is not None
                run.running.wait(SECONDS + 30)
                run.found = outcomes(run.running.stdout)
                assert run.found, run.running.stderr[-3000:]
        except BaseException:
            close(runs)
            raise
        return runs


def outcomes(said: str) -> dict[str, Outcome]:
    """What became of each test, by what the program said (`go doc cmd/test2json`)."""
    return {name: (WORDS[word], "") for word, name in RESULT.findall(said)}
