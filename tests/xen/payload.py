"""What goes along into the machine: XenSock with what it needs, the probes, and file systems of domUs with both.

domu.gz     Python's standard library, the folder `xensock` with one compiled file and a launcher, programs
backend.gz  besides, the packages that a backend imports: for driver domains, and tests that import what it is made of
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import xensock

HERE = Path(__file__).resolve().parent
NEEDED = ("click", "dns", "msgspec")
"""Packages of the base installation that a backend imports, the last for policy files. A frontend needs none."""

KITS = ("backkit.py", "hostilekit.py")
"""Of the tests of other parts, what speaks PV Calls by hand. They go to domains, too."""

NOT_IN_A_DOMU = ("xensock-runtime", "xensock-ringload")
"""What an installation has for containers and benches."""


def build(bed: Path, into: Path, strip: str = "strip") -> None:
    """Fill a folder that becomes /payload of dom0."""
    library = into / "lib"
    _library(library, strip)
    for file in (HERE / "guest").iterdir():
        if file.is_file():
            shutil.copy(file, into / file.name)
    overlay = into / "overlay"
    (overlay / "guest").mkdir(parents=True)
    for file in (HERE / "guest").iterdir():
        if file.is_file():
            shutil.copy(file, overlay / "guest" / file.name)
    for name in KITS:
        shutil.copy(HERE.parent / name, overlay / "guest" / name)
    (overlay / "opt").mkdir()
    ours = overlay / "opt/xensock/xensock"
    shutil.copytree(library / "xensock", ours)
    for name in NOT_IN_A_DOMU:
        (ours / name).unlink(missing_ok=True)
    _pack(bed, overlay, into / "domu.gz")
    for name in NEEDED:
        shutil.copytree(library / name, overlay / "opt/needed" / name)
    _pack(bed, overlay, into / "backend.gz")
    shutil.rmtree(overlay)


def _pack(bed: Path, overlay: Path, image: Path) -> None:
    names = subprocess.run(["find", "."], cwd=overlay, stdout=subprocess.PIPE, check=True).stdout
    archive = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"],
        cwd=overlay,
        input=names,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    # The kernel unpacks one archive after the other; Xen's tools take them as one compressed file only.
    both = (bed / "domu.cpio").read_bytes() + archive
    with image.open("wb") as out:
        subprocess.run(["gzip", "-1"], input=both, stdout=out, check=True)


def _library(into: Path, strip: str) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.pyi", "testing", "lib", "share", "include")
    # An editable installation has its sources in one place, what was compiled in another.
    for folder in xensock.__path__:
        shutil.copytree(folder, into / "xensock", ignore=ignored, dirs_exist_ok=True)
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        shutil.copytree(spec.submodule_search_locations[0], into / name, ignore=ignored)
    for compiled in (into / "xensock").glob("*.so"):
        subprocess.run([strip, "-g", compiled], check=True)
