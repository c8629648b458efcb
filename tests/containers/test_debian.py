"""A whole distribution in a container: Debian by mmdebstrap(1), whose apt installs from a server of the world."""

from __future__ import annotations

import subprocess
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from world.processes import needs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines import Engine

    from world.internet import World

IMAGE = Path(__file__).parents[2] / "build" / "debian.tar"
CONTROL = """Package: xs-hello
Version: 1
Architecture: all
Maintainer: nobody <nobody@web.test>
Description: says hello
"""
INSTALL = """
set -e
echo 'deb [trusted=yes] http://web.test/debian ./' >/etc/apt/sources.list
apt-get -q update
apt-get -q -y install xs-hello
xs-hello
"""

pytestmark = pytest.mark.skipif(
    not IMAGE.exists(), reason="needs an image: tools/debian-image build/debian.tar"
)


@pytest.fixture
def archive(world: World, tmp_path: Path) -> Iterator[Path]:
    """A package at http://web.test/debian, and the list of it."""
    where, tree = world.directory / "www" / "debian", tmp_path / "tree"
    for folder in (where, tree / "DEBIAN", tree / "usr" / "bin"):
        folder.mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(CONTROL)
    (tree / "usr" / "bin" / "xs-hello").write_text("#!/bin/sh\necho hello from a package\n")
    (tree / "usr" / "bin" / "xs-hello").chmod(0o755)
    deb = where / "xs-hello.deb"
    argv = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(deb)]
    subprocess.run(argv, check=True, capture_output=True)
    data = deb.read_bytes()
    facts = f"Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {sha256(data).hexdigest()}\n"
    (where / "Packages").write_text(CONTROL + facts)
    yield where
    for file in where.iterdir():
        file.unlink()
    where.rmdir()


@needs("dpkg-deb")
@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("engine", ["docker", "rootless"], indirect=True)
def test_apt_installs(engine: Engine) -> None:
    """Its fetching runs as a user of its own, with the C library's names."""
    engine("import", str(IMAGE), "debian", timeout=120)
    try:
        done = engine.run("debian", "sh", "-c", INSTALL, labels={"xensock.allow": "web.test:80"})
        assert done.stdout.endswith("\nhello from a package\n")
        done = engine.run(
            "debian", "sh", "-c", INSTALL, labels={"xensock.deny": "web.test"}, check=False
        )
        assert done.returncode != 0
        assert "hello" not in done.stdout
    finally:
        engine("rmi", "debian")
