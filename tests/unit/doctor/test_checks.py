"""The checks on machines that lack something: each lack is made for real."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import guestkit
from xensock.doctor import checks, netlink

CONFINE = Path(__file__).with_name("confine.py")
PYTHON = sys.executable
DOCTOR = [
    PYTHON,
    "-c",
    "import sys; from xensock.cli.main import main; sys.exit(main(['doctor', '--json']))",
]


def doctor(
    *before: str, refusing: tuple[str, ...] = (), status: int | None = None, **options: Any
) -> dict[str, Any]:
    """The doctor's JSON when run behind `before`, with the calls in `refusing` failing."""
    confined = [PYTHON, str(CONFINE), *refusing, "--"] if refusing else []
    done = subprocess.run(
        [*before, *confined, *DOCTOR], capture_output=True, text=True, timeout=60, **options
    )
    assert done.stderr == ""
    if status is not None:
        assert done.returncode == status
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def row(report: dict[str, Any], name: str) -> dict[str, str]:
    found: dict[str, str] = next(check for check in report["checks"] if check["name"] == name)
    return found


needs_unshare = pytest.mark.skipif(
    bool(guestkit.no_user_namespaces()), reason=guestkit.no_user_namespaces() or "-"
)


def in_user_namespace(script: str) -> tuple[str, ...]:
    """Run the rest of a command after `script`, in a user namespace with mounts of its own.

    The command itself is in another user namespace, under a uid that is not root.
    """
    if guestkit.no_user_namespaces():
        pytest.skip(guestkit.no_user_namespaces())
    inner = "unshare --user --map-user=1000 --map-group=1000"
    return (
        *("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"),
        *("sh", "-ec", f'{script}; exec {inner} "$@"', "sh"),
    )


def test_this_machine_is_described() -> None:
    report = doctor()
    assert report["schema"] == 1
    assert set(report["platform"]) == {"kernel", "machine", "system", "python"}
    names = [check["name"] for check in report["checks"]]
    assert len(names) == len(set(names))
    for check in report["checks"]:
        assert check["state"] in ("ok", "warn", "fail")
        assert check["detail"]
        assert bool(check["remedy"]) == (check["state"] != "ok")


def test_rows_for_people() -> None:
    """The platform first, so that it can be pasted; each row with its mark, a remedy below it."""
    argv = [*DOCTOR[:-1], DOCTOR[-1].replace(", '--json'", "")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    first, blank, *rows = done.stdout.splitlines()
    assert first.startswith("xensock ")
    assert f"Linux {os.uname().release}" in first
    assert blank == ""
    report = doctor()
    marks = {"ok": "✓", "warn": "!", "fail": "✗"}
    shown = [line[2:].split("  ")[0] for line in rows if line[:2].strip() in marks.values()]
    assert shown == [check["name"] for check in report["checks"]]
    for check in report["checks"]:
        (line,) = (line for line in rows if line[2:].startswith(f"{check['name']}  "))
        assert line[0] == marks[check["state"]]
        assert not check["remedy"] or f"→ {check['remedy']}" in done.stdout
    assert rows[-1].startswith("data paths: ")
    assert done.returncode == (0 if report["healthy"] else 1)


@pytest.mark.alone
def test_nothing_is_left_behind() -> None:
    def traces() -> list[list[str]]:
        # Children of this process: other tests have servers of theirs running.
        children = [
            path.parent.name
            for path in Path("/proc").glob("[0-9]*/stat")
            if _parent(path) == os.getpid()
        ]
        listings = [os.listdir("/sys/class/net"), os.listdir("/proc/self/fd"), children]
        return [sorted(listing) for listing in listings]

    before = traces()
    checks.run_checks()
    assert traces() == before


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0  # it ended meanwhile


def test_a_profile_that_refuses_namespaces() -> None:
    report = doctor(refusing=("unshare:EPERM",), status=1)
    assert report["healthy"] is False
    assert report["datapaths"] == []
    check = row(report, "user namespaces")
    assert "EPERM" in check["detail"]
    assert "seccomp" in check["detail"]
    assert "--security-opt seccomp=unconfined" in check["remedy"]
    assert row(report, "network namespace")["state"] == "fail"
    assert "solve that one first" in row(report, "guest routes")["remedy"]


def test_no_user_namespaces_left() -> None:
    report = doctor(*in_user_namespace("echo 1 > /proc/sys/user/max_user_namespaces"), status=1)
    check = row(report, "user namespaces")
    assert "ENOSPC" in check["detail"]
    assert "sudo sysctl -w user.max_user_namespaces=" in check["remedy"]


@needs_unshare
def test_user_namespaces_switched_off() -> None:
    before = (
        *("unshare", "--user", "--map-root-user"),
        *("sh", "-ec", 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "sh"),
    )
    check = row(doctor(*before), "user namespaces")
    assert "user.max_user_namespaces is 0" in check["detail"]
    assert check["remedy"] == "sudo sysctl -w user.max_user_namespaces=28633"
    # Mapped root needs none: advice, not illness.
    assert check["state"] == "warn"


@needs_unshare
@pytest.mark.parametrize(("answer", "fixed"), [("y", True), ("n", False)])
def test_a_remedy_is_run_when_it_is_wanted(answer: str, fixed: bool) -> None:
    script = (
        "echo 0 > /proc/sys/user/max_user_namespaces; "
        f'echo {answer} | "$@" --fix; cat /proc/sys/user/max_user_namespaces'
    )
    done = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "sh",
            "-ec",
            script,
            "sh",
            PYTHON,
            "-P",
            "-m",
            "xensock",
            "doctor",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "run `sysctl -w user.max_user_namespaces=28633`?" in done.stderr
    assert done.stdout.splitlines()[-1] == ("28633" if fixed else "0")


def test_masked_proc() -> None:
    report = doctor(*in_user_namespace("mount --bind /dev/null /proc/cmdline"), status=1)
    check = row(report, "guest /proc")
    assert check["state"] == "fail"
    assert "masked" in check["detail"]
    assert "systempaths=unconfined" in check["remedy"]


@needs_unshare
def test_no_proc() -> None:
    before = (
        *("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"),
        *("sh", "-ec", 'mount -t tmpfs none /proc; exec "$@"', "sh"),
    )
    check = row(doctor(*before, status=1), "/proc")
    assert check["remedy"] == "sudo mount -t proc proc /proc"


@pytest.mark.parametrize(
    ("error", "words"),
    [("ENOSYS", "no Landlock"), ("EOPNOTSUPP", "not enabled"), ("EPERM", "seccomp")],
)
def test_without_landlock_only_relay_is_left(error: str, words: str) -> None:
    report = doctor(refusing=(f"landlock:{error}",))
    check = row(report, "landlock")
    assert check["state"] == "warn"
    assert words in check["detail"]
    assert "--datapath relay" in check["remedy"]
    assert "direct" not in report["datapaths"]


@pytest.mark.parametrize(
    ("call", "error", "name", "remedy"),
    [
        ("seccomp", "ENOSYS", "seccomp notification", "Linux 5.14"),
        ("seccomp", "EPERM", "seccomp notification", "seccomp=unconfined"),
        ("pidfd_getfd", "EPERM", "pidfd_getfd", "seccomp=unconfined"),
        ("pidfd_getfd", "ENOSYS", "pidfd_getfd", "Linux 5.14"),
        ("process_vm_readv", "EPERM", "process_vm_readv", "seccomp=unconfined"),
        ("mount", "EPERM", "mount namespace", "seccomp=unconfined"),
    ],
)
def test_a_refused_call(call: str, error: str, name: str, remedy: str) -> None:
    if call == "mount" and guestkit.missing():
        pytest.skip(guestkit.missing())  # what comes before it is missing
    report = doctor(refusing=(f"{call}:{error}",), status=1)
    check = row(report, name)
    assert check["state"] == "fail"
    assert error in check["detail"]
    assert remedy in check["remedy"]


def test_inside_another_supervisor() -> None:
    report = doctor(refusing=("--supervised",), status=1)
    check = row(report, "seccomp notification")
    assert "EBUSY" in check["detail"]
    assert "outside of that sandbox" in check["remedy"]


def test_few_descriptors_are_advice_only() -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    check = row(doctor(preexec_fn=few), "open files")
    assert check["state"] == "warn"
    assert "ulimit -Hn 65536" in check["remedy"]


def test_data_paths_follow_from_the_checks() -> None:
    fine = checks.Check("landlock", "ok", "")
    advice = fine._replace(state="warn")
    broken = checks.Check("kernel", "fail", "")
    assert checks.data_paths([fine]) == ["direct", "relay"]
    assert checks.data_paths([advice]) == ["relay"]
    assert checks.data_paths([fine, broken]) == []


@pytest.mark.parametrize("abi", [1, 3])
def test_a_kernel_whose_landlock_has_no_tcp_rules(
    monkeypatch: pytest.MonkeyPatch, abi: int
) -> None:
    """Linux 5.13 to 6.6: guests run, by the relay."""
    monkeypatch.setattr(checks.probe, "landlock", lambda: (abi, 0))
    rows = checks.run_checks()
    found = next(check for check in rows if check.name == "landlock")
    assert (found.state, f"ABI {abi}" in found.detail) == ("warn", True)
    assert "6.7" in found.detail
    assert "--datapath relay" in found.remedy
    assert checks.data_paths(rows) in (["relay"], [])


def test_a_kernel_without_the_modules_that_tell_of_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    assert row(doctor(), "sock_diag")["state"] == "ok"
    monkeypatch.setattr(netlink, "look_at_sockets", refuse)
    (found,) = (each for each in checks.run_checks() if each.name == "sock_diag")
    assert found.state == "warn"
    assert found.remedy is not None
    assert "tcp_diag" in found.remedy
