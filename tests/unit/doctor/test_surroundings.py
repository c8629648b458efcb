"""Rows that are read: on this machine, and on trees that show another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from xensock.doctor import surroundings
from xensock.doctor.remedies import Machine

if TYPE_CHECKING:
    from pathlib import Path

    from xensock.doctor.check import Check

ALL = (1 << 41) - 1


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def row(
    name: str,
    root: Path,
    uid: int = 0,
    effective: int = ALL,
    group: str = "/",
) -> Check:
    write(root / "proc/self/status", f"Name:\tx\nCapEff:\t{effective:016x}\n")
    write(root / "proc/self/cgroup", f"0::{group}\n")
    rows = surroundings.rows(Machine(str(root / "proc"), str(root), uid))
    return next(check for check in rows if check.name == name)


def test_this_machine_has_each_row_once() -> None:
    rows = surroundings.rows(Machine())
    assert [check.name for check in rows] == ["capabilities", "libc", "cgroup", "Xen"]
    assert all(check.detail for check in rows)
    assert all(check.remedy for check in rows if check.state != "ok")
    assert not [check for check in rows if check.state == "fail"]


def test_root_that_lacks_what_root_has(tmp_path: Path) -> None:
    assert row("capabilities", tmp_path).state == "ok"
    found = row("capabilities", tmp_path, effective=ALL & ~(1 << 12))
    assert (found.state, "CAP_NET_ADMIN" in found.detail) == ("warn", True)


def test_an_ordinary_user_and_its_ports(tmp_path: Path) -> None:
    write(tmp_path / "proc/sys/net/ipv4/ip_unprivileged_port_start", "80\n")
    found = row("capabilities", tmp_path, uid=1000, effective=0)
    assert (found.state, found.detail.endswith("from port 80 on")) == ("ok", True)


@pytest.mark.parametrize(("limit", "state"), [("max", "ok"), ("1000", "ok"), ("20", "warn")])
def test_the_smallest_limit_of_all_groups_counts(tmp_path: Path, limit: str, state: str) -> None:
    groups = tmp_path / "sys/fs/cgroup"
    write(groups / "a/pids.max", limit + "\n")
    write(groups / "a/b/pids.max", "5000\n")
    found = row("cgroup", tmp_path, group="/a/b")
    assert found.state == state
    assert ("5000" if limit == "max" else limit) in found.detail


def test_xen_names_what_is_missing_one_after_the_other(tmp_path: Path) -> None:
    loaded: list[str] = []
    assert "not a Xen domain" in surroundings.xen(tmp_path, loaded.append).detail
    write(tmp_path / "sys/hypervisor/type", "xen\n")
    for file in surroundings.XEN_FILES:
        found = surroundings.xen(tmp_path, loaded.append)
        assert (found.state, file in found.detail) == ("warn", True)
        write(tmp_path / "dev/xen" / file, "")
    assert surroundings.xen(tmp_path, loaded.append).state == "ok"
    assert loaded == list(surroundings.XEN_LIBRARIES)

    def missing(name: str) -> None:
        raise OSError(name)

    found = surroundings.xen(tmp_path, missing)
    assert (found.state, "apt-get install" in found.remedy) == ("warn", True)
