"""Who may have a program in the kernel tell of ends; what the sources tell is in test_ending.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from xensock.supervisor.end_sources import may_attach

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("effective", "may"),
    [
        ("0000000000000000", False),
        ("000001ffffffffff", True),  # root
        ("0000000000200000", True),  # CAP_SYS_ADMIN alone, as the installed service has it
        ("0000008000001000", True),  # CAP_BPF, CAP_NET_ADMIN
        ("0000008000000000", False),
        ("0000000000001000", False),
        ("00000000a80425fb", False),  # a container's
    ],
)
def test_who_may(tmp_path: Path, effective: str, may: bool) -> None:
    (tmp_path / "status").write_text(f"Name:\tx\nCapPrm:\t{effective}\nCapEff:\t{effective}\n")
    assert may_attach(tmp_path) is may
