"""`xensock backend`: its options, and what it says when it cannot start."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from backkit import Front
from daemonkit import daemon, gone
from xensock.transport import url

if TYPE_CHECKING:
    from pathlib import Path


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xensock", "backend", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_networks_that_it_does_not_pass_guests_on_to(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    rule = '[networks]\nlab = {{ {} }}\n[[rule]]\nallow = "any"\nvia = "lab"\n'
    for network, options, said in (
        (
            f'backend = "local:{tmp_path}/s"',
            ("--listen", f"local:{tmp_path}/s"),
            "this backend itself for a network: lab",
        ),
        ('netns = "/x"', ("--containers", f"{tmp_path}/s"), "containers cannot be under"),
    ):
        path.write_text(rule.format(network))
        done = run(*options, "--policy", str(path))
        assert done.returncode == 2
        assert said in done.stderr
        assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("listen", "cause", "hint"),
    [
        ("local:/nowhere/at/all/s", "No such file or directory", "make the directory first"),
        ("local:", "", "local:PATH"),
        ("tcp:127.0.0.1:80", "", "local:PATH"),
        ("local:/" + 200 * "x", "", "shorter path"),
    ],
)
def test_where_it_cannot_listen(listen: str, cause: str, hint: str) -> None:
    done = run("--listen", listen)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert cause in done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_path_that_is_taken(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        done = run("--listen", served.url)
        assert done.returncode == 1
        assert "stop the backend that listens there" in done.stderr
        done = run("--listen", f"local:{tmp_path}/other", "--control", served.control)
        assert done.returncode == 1
        assert served.control in done.stderr
        assert not (tmp_path / "other").exists()


def test_bad_rules_and_options_have_hints(tmp_path: Path) -> None:
    assert "hint: " in run("--listen", f"local:{tmp_path}/s", "--allow", "web test").stderr
    assert "absolute" in run("--listen", f"local:{tmp_path}/s", "--allow", "unix:s").stderr
    missing = run()
    assert missing.returncode == 2
    assert "hint: " in missing.stderr
    unwritable = run("--listen", f"local:{tmp_path}/s", "--trace-file", str(tmp_path))
    assert "cannot write the trace" in unwritable.stderr


def test_the_trace_tells_of_calls(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        front = Front(url.connect(served.url, name="tester")).handshake()
        front.listener()
        front.close()
        gone(served)
        assert [r["datapath"] for r in served.records()] == ["ring", "ring"]


@pytest.mark.parametrize(
    ("option", "said", "hint"),
    [
        ("box", "--image box names no policy", "write PATTERN=NAME"),
        ("box=web", "unknown policy 'web'", "name a file"),
    ],
)
def test_images_without_a_policy(tmp_path: Path, option: str, said: str, hint: str) -> None:
    place = ["--containers", f"{tmp_path}/s", "--policies", str(tmp_path)]
    done = run(*place, "--image", option)
    assert done.returncode == 2
    assert said in done.stderr
    assert f"hint: {hint}" in done.stderr
    assert not (tmp_path / "s").exists()
