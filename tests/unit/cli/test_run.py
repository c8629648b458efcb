"""`xensock run` when it cannot: exit status, what is said, and what to do; each case forced."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import guestkit

PYTHON = sys.executable
XENSOCK = [
    PYTHON,
    "-c",
    "import sys; from xensock.cli.main import main; sys.exit(main())",
]
CONFINE = [PYTHON, str(Path(__file__).parents[1] / "doctor" / "confine.py")]
# An ordinary user, for root as well: a user namespace in which we are nobody special.
ORDINARY = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]

needs_guests = pytest.mark.skipif(bool(guestkit.missing()), reason=guestkit.missing() or "-")
needs_unshare = pytest.mark.skipif(
    bool(guestkit.no_user_namespaces()), reason=guestkit.no_user_namespaces() or "-"
)


def run(
    *arguments: str, before: list[str] | None = None, fail: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(before or []), *XENSOCK, "run", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "XENSOCK_TEST_FAIL": fail},
    )


def shown(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The error's lines by their labels; fails when there is anything else on stderr."""
    lines = [line.split(": ", 1) for line in done.stderr.splitlines()]
    assert [label for label, _ in lines] in (["error", "cause", "hint"], ["error", "hint"]), (
        done.stderr
    )
    assert done.stdout == ""
    return {label: text for label, text in lines}


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["--allow", "pubilc:80", "--", "true"], "pubilc", "did you mean public"),
        (["--deny", "http://web.test/", "--", "true"], "not a URL", "web.test:80"),
        (["--publish", "x", "--", "true"], "'x'", "8080:3000"),
        (["--alow", "any", "--", "true"], "--alow", "did you mean --allow"),
        (["--datapath", "fast", "--", "true"], "fast", "--help"),
        (["--trace=xml", "--", "true"], "xml", "--help"),
        (["--trace-file", "/nonexistent/t", "--", "true"], "/nonexistent/t", "may write"),
        (["--policy", "/nonexistent/p", "--", "true"], "/nonexistent/p", ""),
        (["--policy", "/proc/self/mem", "--", "true"], "/proc/self/mem", ""),
        (["--color", "never", "--", "true"], "--color", "xensock --color"),
        (["--trace", "true"], "'true'", "--trace -- "),
        (["-v", "-q", "--", "true"], "--quiet", "--help"),
        ([], "PROGRAM", "xensock run -- PROGRAM"),
    ],
)
def test_a_wrong_call_is_one_clear_error(arguments: list[str], error: str, hint: str) -> None:
    done = run(*arguments)
    assert done.returncode == 125
    lines = shown(done)
    assert error in lines["error"]
    assert hint in lines["hint"]


@needs_guests
def test_an_unknown_program(tmp_path: Path) -> None:
    done = run("--", "no-such-program")
    assert done.returncode == 127
    assert "no-such-program" in shown(done)["error"]
    assert run("--", str(tmp_path / "absent")).returncode == 127


@needs_guests
def test_a_program_that_cannot_be_invoked(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("data")
    for path in (plain, tmp_path):
        done = run("--", str(path))
        assert done.returncode == 126
        assert str(path) in shown(done)["error"]


@needs_guests
@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_the_programs_own_status(script: str, status: int) -> None:
    done = run("--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (status, "")


@needs_guests
@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["-c", 'echo "$#:$1" | tr a b', "--", "a x", "y"], "2:b x\n"),
        (["-c", "exit 1", "-c", "echo the last one wins"], "the last one wins\n"),
        (["sh", "-c", 'echo "$1"', "sh", "--deny"], "--deny\n"),  # the program's own from here on
        (["--", "printf", "%s|", "-c", "a b", "--", "--debug"], "-c|a b|--|--debug|"),
    ],
)
def test_shell_text_and_whose_options_are_whose(arguments: list[str], output: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, output, "")


# Stages that every guest passes; those of an ordinary user below. Words of the error and of the hint.
@needs_guests
@pytest.mark.parametrize(
    ("stage", "what", "full"),
    [
        ("netns", "cannot create a network namespace", "sysctl -w user.max_net_namespaces="),
        ("mountns", "cannot create a mount namespace", "sysctl -w user.max_mnt_namespaces="),
        ("pidns", "cannot create a PID namespace", "sysctl -w user.max_pid_namespaces="),
        ("proc", "cannot mount the guest's /proc", "dmesg"),
        ("sysfs", "cannot mount the guest's /sys", "dmesg"),
        ("seccomp", "cannot install the seccomp filter", "xensock doctor"),
        ("fork", "cannot create a process", "dmesg"),
    ],
)
@pytest.mark.parametrize("error", ["EPERM", "ENOSPC"])
def test_a_stage_that_fails_is_explained(stage: str, what: str, full: str, error: str) -> None:
    done = run("--", "true", fail=f"{stage}:{error}")
    assert done.returncode == 125
    lines = shown(done)
    assert what in lines["error"]
    assert lines["error"].endswith(f"({error})")
    assert lines["cause"]
    if error == "ENOSPC":
        assert full in lines["hint"]


@needs_unshare
@pytest.mark.parametrize(
    ("fail", "what"),
    [
        ("userns:EPERM", "cannot create a user namespace"),
        ("uidmap:EACCES", "cannot map the user into a user namespace"),
        ("userns:ENOSYS", "cannot create a user namespace"),
    ],
)
def test_no_user_namespace_for_an_ordinary_user(fail: str, what: str) -> None:
    done = run("--", "true", before=ORDINARY, fail=fail)
    assert done.returncode == 125
    assert shown(done)["error"] == f"{what} ({fail.partition(':')[2]})"


@needs_guests
def test_without_landlock_auto_is_relay_and_direct_is_an_error() -> None:
    assert run("--", "true", fail="landlock:ENOSYS").returncode == 0
    done = run("--datapath", "direct", "--", "true", fail="landlock:ENOSYS")
    assert done.returncode == 125
    assert "--datapath relay" in shown(done)["hint"]


@needs_guests
@pytest.mark.parametrize(
    ("call", "hint"),
    [
        ("unshare:EPERM", "--security-opt seccomp=unconfined"),
        ("mount:EPERM", "--security-opt seccomp=unconfined"),
        ("seccomp:ENOSYS", "Linux 5.14"),
        ("--supervised", "outside of that sandbox"),
    ],
)
def test_a_profile_that_refuses_calls(call: str, hint: str) -> None:
    done = run("--", "true", before=[*CONFINE, call, "--"])
    assert done.returncode == 125
    assert hint in shown(done)["hint"]


@needs_unshare
@pytest.mark.parametrize(
    ("script", "hint"),
    [
        ("echo 1 > /proc/sys/user/max_user_namespaces", "sysctl -w user.max_user_namespaces="),
        ("mount --bind /dev/null /proc/cmdline", "systempaths=unconfined"),
    ],
    ids=["namespaces", "masked"],
)
def test_a_machine_that_lacks_something(script: str, hint: str) -> None:
    before = [
        *("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"),
        *("sh", "-ec", f'{script}; exec "$@"', "sh", *ORDINARY),
    ]
    done = run("--", "true", before=before)
    assert done.returncode == 125
    assert hint in shown(done)["hint"]


@needs_unshare
@pytest.mark.parametrize("refused", ["unshare", "mount"])
def test_ubuntus_restriction(refused: str) -> None:
    """Its AppArmor refuses the namespace itself, or gives it no capabilities; a filter does here, as other
    kernels lack the sysctl: a file where it would be makes the rest."""
    there = "/proc/sys/kernel"
    script = (
        f"mount -t tmpfs none {there}; echo 1 > {there}/apparmor_restrict_unprivileged_userns; "
        'exec "$@"'
    )
    before = [
        *("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"),
        *("sh", "-ec", script, "sh", *ORDINARY, *CONFINE, f"{refused}:EPERM", "--"),
    ]
    done = run("--", "true", before=before)
    assert done.returncode == 125
    lines = shown(done)
    assert "AppArmor" in lines["cause"]
    setting = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    assert lines["hint"].startswith(setting)
    assert "docs/howto/user-namespaces.md" in lines["hint"]


@needs_guests
def test_a_traceback_only_with_debug() -> None:
    assert "Traceback" not in run("--", "true", fail="netns:EPERM").stderr
    assert "Traceback" in run("--debug", "--", "true", fail="netns:EPERM").stderr


@needs_guests
@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_trace_on_a_terminal_is_coloured_and_apart_from_the_output(
    environment: dict[str, str], coloured: bool
) -> None:
    script = (
        "import socket; print(socket.socket().connect_ex(('192.0.2.1', 9)), flush=True)"  # EACCES
    )
    master, slave = os.openpty()
    try:
        done = subprocess.run(
            [*XENSOCK, "run", "--trace", "--deny", "any", "--", sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=slave,
            text=True,
            timeout=60,
            env={**os.environ, "TERM": "xterm", **environment},
        )
        os.close(slave)
        shown = os.read(master, 65536).decode()
    finally:
        os.close(master)
    assert done.stdout == f"{errno.EACCES}\n"
    assert "connect(192.0.2.1:9)" in shown
    assert ("\x1b[" in shown) == coloured


@needs_guests
def test_a_plain_run_does_not_load_what_other_backends_need() -> None:
    """Half of the start-up is modules: what speaks PV Calls comes with the first other backend."""
    done = subprocess.run(
        [*XENSOCK, "run", "--", "true"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "xensock.supervisor.supervisor" in loaded
    unwanted = ("xensock.client", "xensock.wire.requests", "xensock.pvcalls.frontend", "dns.")
    assert not [name for name in loaded if name.startswith(unwanted)]
