"""Where a process is among control groups, as /proc tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from xensock.cgroups import own_cgroup

V2 = "30 29 0:26 {root} {where} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
OTHERS = "22 27 0:20 / /proc rw,nosuid - proc proc rw\n31 29 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"


def place(proc: Path, group: str, mounts: str) -> Path:
    (proc / "cgroup").write_text(group)
    (proc / "mountinfo").write_text(mounts)
    return own_cgroup(proc)


@pytest.mark.parametrize(
    ("group", "root", "where", "found"),
    [
        ("0::/", "/", "/sys/fs/cgroup", "/sys/fs/cgroup"),
        ("0::/user.slice/a.scope", "/", "/sys/fs/cgroup", "/sys/fs/cgroup/user.slice/a.scope"),
        ("9:cpu:/x\n0::/a", "/", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/a"),
        ("0::/docker/f00/b", "/docker/f00", "/sys/fs/cgroup", "/sys/fs/cgroup/b"),
        ("0::/a b", "/", "/mnt/two\\040words", "/mnt/two words/a b"),
        ("0::/..hidden", "/", "/sys/fs/cgroup", "/sys/fs/cgroup/..hidden"),
    ],
)
def test_where_it_is(tmp_path: Path, group: str, root: str, where: str, found: str) -> None:
    mounts = OTHERS + V2.format(root=root, where=where)
    assert place(tmp_path, group + "\n", mounts) == Path(found)


def test_mount_points_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/a\n")
    mounts = V2.format(root="/", where="/m\udcff") + V2.format(root="/", where="/n")
    (tmp_path / "mountinfo").write_text(mounts, errors="surrogateescape")
    assert own_cgroup(tmp_path) == Path("/m\udcff/a")


def test_the_first_mount_that_shows_it(tmp_path: Path) -> None:
    mounts = V2.format(root="/other", where="/one") + V2.format(root="/", where="/two")
    assert place(tmp_path, "0::/a\n", mounts) == Path("/two/a")


@pytest.mark.parametrize(
    ("group", "mounts"),
    [
        ("0::/a\n", OTHERS),
        ("9:cpu:/\n", V2.format(root="/", where="/sys/fs/cgroup")),
        ("0::/../outside\n", V2.format(root="/", where="/sys/fs/cgroup")),
    ],
)
def test_where_none_is_to_be_seen(tmp_path: Path, group: str, mounts: str) -> None:
    with pytest.raises(FileNotFoundError):
        place(tmp_path, group, mounts)
