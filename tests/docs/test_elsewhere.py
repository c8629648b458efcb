"""Commands of the documents that need a machine changed, an engine or a Xen host: each is run by a test elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from named import is_defined

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WORDS = (
    "xensock docker podman ctr sudo systemctl cmake pkg-config kubectl curl python3 tcpdump make ip"
)
COMMAND = re.compile(rf"^ *(?:\$ )?(?:[A-Z_]+=\S+ )*(?:{'|'.join(WORDS.split())}) [^=│].*$")
SYNTAX = re.compile(r"\[OPTION\]")  # what follows is no command

# How a command begins, and the test that runs it or its like.
RUN_BY = {
    "xensock install --docker --podman --systemd": "unit/backend/test_installing.py:test_all_and_back",
    "xensock install --systemd --option": "unit/backend/test_installing.py:test_systemd_understands_the_units",
    "systemctl enable --now xensock.service": "containers/test_systemd.py:test_the_first_container_starts_it",
    "systemctl daemon-reload": "containers/test_systemd.py:test_the_first_container_starts_it",
    "systemctl enable --now xensock.socket": "containers/test_systemd.py:test_the_first_container_starts_it",
    "systemctl reload docker": "containers/test_engines.py:test_the_world_by_name",
    "docker run --runtime xensock --network none": "containers/test_engines.py:test_the_world_by_name",
    "podman --runtime xensock run": "containers/test_engines.py:test_the_world_by_name",
    "xensock backend --containers": "containers/test_engines.py:test_the_world_by_name",
    "podman --runtime xensock kube play": "containers/test_compose.py:test_only_web_is_reached",
    "xensock bench containers": "containers/test_start.py:test_a_start_is_hardly_longer",
    "ctr run --runc-binary=": "containers/test_containerd.py:test_a_container_of_containerd",
    "xensock bench xen": "xen/test_cells.py:test_the_bench",
    "cmake -S . -B build/lib": "lib/test_libxensock.py:test_a_program_is_built_by_pkg_config",
    "pkg-config --cflags --libs libxensock": "lib/test_libxensock.py:test_a_program_is_built_by_pkg_config",
    "sudo sysctl -w kernel.apparmor": "unit/cli/test_run.py:test_ubuntus_restriction",
    "sudo sysctl -w kernel.unprivileged_userns_clone=1": "unit/doctor/test_remedies.py:test_debians_switch",
    "sudo sysctl -w user.max_user": "unit/doctor/test_checks.py:test_a_remedy_is_run_when_it_is_wanted",
    "docker run --security-opt": "containers/test_inside.py:test_the_remedy_for_a_default_profile",
    "xensock backend --listen xen:": "xen/test_cells.py:test_a_pair_does_what_every_pair_must",
    "PYTHONPATH=/opt/xensock python3 -m xensock run": "xen/test_cells.py:test_programs_of_a_domu_as_they_are",
    "XENSOCK=xen: PYTHONPATH": "xen/test_cells.py:test_a_pair_does_what_every_pair_must",
}


def not_run(text: str) -> Iterator[str]:
    """The lines of blocks marked `text` or not at all, and of indented ones."""
    kind: str | None = None
    for line in text.splitlines():
        if line.strip().startswith("```"):
            kind = line.strip()[3:] if kind is None else None
        elif kind in ("", "text") or (kind is None and line.startswith("    ")):
            yield line


def commands() -> list[str]:
    """In order, as `FILE: COMMAND`, of blocks that test_commands.py does not run."""
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in DOCUMENTS
        for line in not_run(path.read_text())
        if COMMAND.match(line) and not SYNTAX.search(line)
    ]
    return [*dict.fromkeys(found)]


@pytest.mark.parametrize("command", commands())
def test_it_is_run_elsewhere(command: str) -> None:
    line = command.partition(": ")[2]
    named = [test for words, test in RUN_BY.items() if line.startswith(words)]
    assert named, "name the test that runs it, or mark its block `console`"
    for test in named:
        file, _, function = test.partition(":")
        assert is_defined(ROOT / "tests" / file, function)


def test_no_name_is_left_over() -> None:
    lines = [command.partition(": ")[2] for command in commands()]
    assert [words for words in RUN_BY if not any(line.startswith(words) for line in lines)] == []
