"""What goes along into the machine: XenSock with what it needs, the probes, and file systems of domUs with both.

base.cpio     Python's standard library and programs, of the bed: the first part of each file system
domu.cpio     the second one: the folder `xensock` with one compiled file and a launcher
backend.cpio  besides, the packages that a backend imports: for driver domains, and tests that import what it is made of

Nothing is compressed, and Python's files are compiled: an emulated processor would be busy with either for long.
"""

from __future__ import annotations

import compileall
import importlib.util
import shutil
import subprocess
from pathlib import Path
from py_compile import PycInvalidationMode

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
    shutil.copy(bed / "domu.cpio", into / "base.cpio")
    _pack(overlay, into / "domu.cpio")
    for name in NEEDED:
        shutil.copytree(library / name, overlay / "opt/needed" / name)
    _pack(overlay, into / "backend.cpio")
    shutil.rmtree(overlay)


def _pack(overlay: Path, image: Path) -> None:
    names = subprocess.run(["find", "."], cwd=overlay, stdout=subprocess.PIPE, check=True).stdout
    command = ["cpio", "-o", "-H", "newc", "--quiet"]
    with image.open("wb") as out:
        subprocess.run(command, cwd=overlay, input=names, stdout=out, check=True)


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
    # Whichever file system they get into, and whatever becomes of their times there.
    compileall.compile_dir(into, quiet=1, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
