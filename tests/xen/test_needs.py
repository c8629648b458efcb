"""What is needed: of Xen nothing, to build and to import; by what runs in domains, what their images have."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from payload import KITS, NEEDED

import xensock

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
XENS = r"(?:lib)?xen(?!sock)\w*"
GUEST = Path(__file__).parent / "guest"
SCRIPTS = [*sorted(GUEST.glob("*.py")), *(ROOT / "tests" / name for name in KITS)]

# Whoever imports: a machine without Xen's libraries, which says what it is asked for.
ALONE = """
import importlib, pkgutil, sys

asked = []

def hook(event, arguments):
    if event == "ctypes.dlopen" and "libxen" in str(arguments[0]) and "libxensock" not in str(arguments[0]):
        asked.append(arguments[0])
        raise OSError("no such library")

sys.addaudithook(hook)
import xensock

names = [found.name for found in pkgutil.walk_packages(xensock.__path__, "xensock.") if "__main__" not in found.name]
for name in names:
    importlib.import_module(name)
print(len(names), sum(".transport.xen_" in name for name in names), *asked)
from xensock.transport import url
from xensock.transport.base import TransportError

try:
    url.connect("xen:", timeout=1)
except TransportError as error:
    print(error)
print(*asked)
"""


def test_no_source_includes_a_header_of_xens() -> None:
    sources = [*(ROOT / "native").rglob("*.[ch]")]
    included = [
        name for source in sources for name in re.findall(r'^\s*#\s*include\s*[<"](.+?)[>"]', source.read_text(), re.M)
    ]  # fmt: skip
    assert len(included) > len(sources)
    assert [name for name in included if re.match(XENS + r"[/.]", name)] == []
    built_by = (ROOT / "CMakeLists.txt").read_text() + (ROOT / "pyproject.toml").read_text()
    assert re.findall(XENS, built_by) == []


def test_nothing_that_was_compiled_is_linked_with_xens_libraries() -> None:
    files = [file for folder in xensock.__path__ for file in Path(folder).rglob("*")]
    read = {file.name: file.read_bytes() for file in files if file.is_file()}
    compiled = {name: data for name, data in read.items() if data.startswith(b"\x7fELF")}
    assert {"_core.abi3.so", "xensock-init"} <= compiled.keys()
    # What an ELF file needs it names as it is.
    assert b"libc.so.6" in compiled["_core.abi3.so"]
    for name, data in compiled.items():
        assert re.findall(rb"libxen(?!sock)[\w.]*", data) == [], name


def test_every_module_is_imported_without_xens_libraries() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    imported, failed, asked = done.stdout.splitlines()
    modules, of_xens, *loaded = imported.split()
    assert int(modules) > 100
    assert int(of_xens) == 6
    assert loaded == []
    # Whoever asks for xen: is told which library is not there.
    assert "libxenstore.so.4" in failed
    assert "libxenstore4" in failed
    assert "libxenstore.so.4" in asked


def imports(script: Path) -> Iterator[str]:
    """The modules that a script imports when it runs, by the first part of their names."""

    class Found(ast.NodeVisitor):
        names: list[str]

        def __init__(self) -> None:
            self.names = []

        def visit_If(self, node: ast.If) -> None:
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            self.names += [alias.name for alias in node.names]

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            self.names.append(node.module or "")

    found = Found()
    found.visit(ast.parse(script.read_text()))
    return (name.split(".")[0] for name in found.names)


# In domains there is neither pytest nor anything else of a machine that develops.
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_what_runs_in_domains_imports_what_their_images_have(script: Path) -> None:
    beside = {each.stem for each in SCRIPTS}
    known = sys.stdlib_module_names | beside | set(NEEDED) | {"xensock"}
    assert [name for name in imports(script) if name not in known] == []
