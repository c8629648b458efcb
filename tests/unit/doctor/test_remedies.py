"""Explanations: every stage and errno has a cause and something to do, told by the machine."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from xensock.doctor.remedies import Machine, explain_failure
from xensock.supervisor.launch import STAGES as LAUNCHER_STAGES

if TYPE_CHECKING:
    from pathlib import Path

STAGES = [
    *("userns", "uidmap", "netns", "mountns", "pidns", "proc", "sysfs", "veth", "landlock"),
    *(
        "launcher",
        "seccomp",
        "exec",
        "fork",
        "getfd",
        "memory",
        "notify",
        "addfd",
        "route",
        "private",
    ),
]
ERRORS = [
    *(errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL, errno.ENOSYS, errno.EAGAIN),
    *(errno.ENOMEM, errno.EUSERS, errno.EBUSY, errno.EOPNOTSUPP, errno.ENOENT, errno.EIO),
]


def machine(tmp_path: Path, *, uid: int = 1000, status: str = "", **sysctls: int) -> Machine:
    """A machine with the given sysctls (dots written as __)."""
    (tmp_path / "self").mkdir(parents=True)
    (tmp_path / "self" / "status").write_text(status)
    for name, value in sysctls.items():
        path = tmp_path / "sys" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return Machine(proc=str(tmp_path), root=str(tmp_path), uid=uid)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_and_errno_is_explained(stage: str) -> None:
    for error in ERRORS:
        what, cause, hint = explain_failure(stage, error)
        assert errno.errorcode[error] in what
        assert what[0].islower()
        assert not what.startswith("stage")
        assert cause
        assert hint


def test_every_stage_of_the_launcher_is_explained() -> None:
    for stage in LAUNCHER_STAGES:
        if stage:
            what, cause, hint = explain_failure(stage, errno.EPERM)
            assert not what.startswith("stage "), stage
            assert cause
            assert hint


def test_an_unknown_stage_is_named() -> None:
    assert explain_failure("warp", errno.EIO).what == "stage warp failed (EIO)"


@pytest.mark.parametrize("stage", ["userns", "uidmap", "netns", "mountns", "proc"])
@pytest.mark.parametrize("error", [errno.EPERM, errno.EACCES])
def test_ubuntu(stage: str, error: int, tmp_path: Path) -> None:
    ubuntu = machine(tmp_path, kernel__apparmor_restrict_unprivileged_userns=1)
    _, cause, hint = explain_failure(stage, error, ubuntu)
    assert "AppArmor" in cause
    assert "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0" in hint


def test_debians_switch(tmp_path: Path) -> None:
    debian = machine(tmp_path, kernel__unprivileged_userns_clone=0)
    assert explain_failure("userns", errno.EPERM, debian).hint == (
        "sudo sysctl -w kernel.unprivileged_userns_clone=1"
    )


def test_namespaces_used_up(tmp_path: Path) -> None:
    full = machine(tmp_path, user__max_user_namespaces=10, user__max_net_namespaces=0)
    assert "in use" in explain_failure("userns", errno.ENOSPC, full).cause
    assert explain_failure("netns", errno.ENOSPC, full).hint == (
        "sudo sysctl -w user.max_net_namespaces=28633"
    )


def test_docker(tmp_path: Path) -> None:
    docker = machine(tmp_path, status="Seccomp:\t2\nCapEff:\t00000000a80425fb\n", uid=0)
    for stage in ("userns", "netns", "mountns"):
        assert "docker run --security-opt seccomp=unconfined" in (
            explain_failure(stage, errno.EPERM, docker).hint
        )
    assert "CAP_SYS_ADMIN" in explain_failure("netns", errno.EPERM, docker).cause
    added = machine(tmp_path / "added", status="Seccomp:\t0\nCapEff:\t00000000a82425fb\n", uid=0)
    _, cause, hint = explain_failure("veth", errno.EPERM, added)
    assert "lacks CAP_NET_ADMIN, as" in cause
    assert "--cap-add NET_ADMIN …" in hint


def test_a_chroot_is_among_the_suspects(tmp_path: Path) -> None:
    bare = machine(tmp_path, status="Seccomp:\t0\nCapEff:\t0\n")
    assert "chroot" in explain_failure("userns", errno.EPERM, bare).cause


def test_yama(tmp_path: Path) -> None:
    strict = machine(tmp_path, kernel__yama__ptrace_scope=3)
    assert "ptrace_scope" in explain_failure("getfd", errno.EPERM, strict).cause
    mild = machine(tmp_path / "mild", kernel__yama__ptrace_scope=1)
    assert "ptrace_scope" not in explain_failure("getfd", errno.EPERM, mild).cause


def test_what_a_missing_launcher_needs() -> None:
    assert explain_failure("exec", errno.ENOENT).hint == "make build"
    assert "noexec" in explain_failure("exec", errno.EACCES).cause
