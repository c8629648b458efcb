"""What a domU of these tests has for XenSock: Python's standard library, the C core as one file, and a launcher."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from payload import NEEDED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Dom0

HEADER, MAGIC = 110, b"070701"
LIBRARY = "usr/lib/python3.11/"
# What Debian puts beside the modules, and what is for its packages: empty here.
BESIDE = {
    "EXTERNALLY-MANAGED",
    "LICENSE.txt",
    "lib-dynload",
    "dist-packages",
    "site-packages",
    "sitecustomize.py",
}


def files(payload: Path, image: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the regular files of an initramfs: one archive after the other, as Linux unpacks it."""
    data = b"".join((payload / f"{part}.cpio").read_bytes() for part in ("base", image))
    at = 0
    while at < len(data):
        if data[at] == 0:  # between archives
            at += 4
            continue
        assert data[at : at + 6] == MAGIC
        field = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = field[1], field[6], field[11]
        name = data[at + HEADER : at + HEADER + length - 1].decode()
        start = (at + HEADER + length + 3) & ~3
        if mode >> 12 == 0o10:
            yield name.removeprefix("./"), data[start : start + size]
        at = (start + size + 3) & ~3


def test_a_domu_has_the_standard_library_and_the_core_as_one_file(dom0: Dom0) -> None:
    found = dict(files(dom0.payload, "domu"))
    ours = {name: data for name, data in found.items() if name.startswith("opt/")}
    compiled = [name for name, data in ours.items() if data.startswith(b"\x7fELF")]
    # The own sockets need the core alone, `xensock run` also what builds a guest and execs the program.
    assert sorted(compiled) == [
        "opt/xensock/xensock/_core.abi3.so",
        "opt/xensock/xensock/xensock-init",
    ]
    assert {name for name in ours if not name.startswith("opt/xensock/xensock/")} == set()
    assert len(ours) > 100
    known = sys.stdlib_module_names | BESIDE
    top = {name.removeprefix(LIBRARY).split("/")[0] for name in found if name.startswith(LIBRARY)}
    strange = {name for name in top if name not in known and name.split(".")[0] not in known}
    assert {name for name in strange if not name.startswith("_")} == set()  # Debian's own
    # Nowhere else is there Python, nor metadata of a distribution.
    elsewhere = [
        name for name in found
        if name.endswith((".py", ".dist-info/RECORD")) and not name.startswith((LIBRARY, "opt/", "guest/"))
    ]  # fmt: skip
    assert elsewhere == []
    packages = [n for n in found if "/dist-packages/" in n or "/site-packages/" in n]
    assert packages == []
    assert [name for name in found if set(name.split("/")) & set(NEEDED)] == []
    # The other image, for backends, has them: this would see it.
    other = [name for name, _ in files(dom0.payload, "backend")]
    assert {name.split("/")[2] for name in other if name.startswith("opt/needed/")} == set(NEEDED)
