"""`xensock policy`: check, explain, test, schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from xensock.cli.errors import UserError
from xensock.cli.main import main
from xensock.cli.policy import read_labels

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
[[rule]]
allow = ["api.test:443", "10.0.0.0/8"]
limit = { rate = "1M", connects = 2, concurrent = 3 }
redirect = "127.0.0.1:8443"

[[rule]]
deny = "10.1.0.0/16"

[[rule]]
allow = "any:9418"
program = "/usr/bin/git"
labels = { team = "web" }

[[expect]]
allow = ["api.test:443", "10.0.0.1:22"]

[[expect]]
deny = ["10.1.0.1:22", "192.0.2.1:9418"]

[[expect]]
allow = "192.0.2.1:9418"
program = "/usr/bin/git"
labels = { team = "web" }
"""


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.toml"
    path.write_text(GOOD)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["policy", *words])
    out, err = capsys.readouterr()
    return status, out, err


def test_check_says_what_is_good_and_all_that_is_not(
    good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('[[rule]]\nalow = "a.test"\n[[rule]]\nallow = "pubilc\\u001b[2J:80"\n')
    assert run(capsys, "check", good) == (0, f"{good}: good, 3 rules, 5 cases\n", "")
    status, out, err = run(capsys, "check", good, str(bad))
    assert (status, err) == (1, "")
    assert out.splitlines()[:3] == [
        f"{good}: good, 3 rules, 5 cases",
        f"{bad}:2:1: unknown key 'alow' in rule 1",
        "  hint: did you mean allow?",
    ]
    assert "\x1b" not in out
    status, out, _ = run(capsys, "check", "--json", str(bad))
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert lines[0] == {
        "file": str(bad),
        "line": 2,
        "column": 1,
        "message": "unknown key 'alow' in rule 1",
        "hint": "did you mean allow?",
    }
    status, _, err = run(capsys, "check", str(tmp_path / "absent.toml"))
    assert status == 1
    assert "hint: name a file that exists" in err


def test_explain(good: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "explain", "--policy", good, "connect", "tcp", "api.test:443")
    assert status == 0
    assert out.splitlines() == [
        f"allow  api.test:443 ({good}:3)",
        "  redirect to 127.0.0.1:8443",
        "  at most 1000000 bytes per second",
        "  at most 2 new connections per second",
        "  at most 3 connections at once",
        "  carried by the relay",
    ]
    status, out, _ = run(capsys, "explain", "--policy", good, "connect", "tcp", "10.1.0.1:22")
    assert status == 1
    assert out.splitlines() == [
        f"deny  10.1.0.0/16 ({good}:8)",
        f"  then  allow 10.0.0.0/8 ({good}:3)",
        '  would allow it: "10.1.0.1:22"',
    ]
    status, out, _ = run(
        capsys, "explain", "--policy", good, "--deny", "10.0.0.0/8", "--json", "10.0.0.1:22"
    )
    assert status == 1
    assert json.loads(out) == {
        "allowed": False,
        "rule": "10.0.0.0/8",
        "source": "",
        "others": [{"allow": True, "rule": "10.0.0.0/8", "source": f"{good}:3"}],
        "smallest": "",
    }
    git = ("--program", "/usr/bin/git", "192.0.2.1:9418")
    assert run(capsys, "explain", "--policy", good, "--label", "team=web", *git)[0] == 0
    assert run(capsys, "explain", "--policy", good, "--label", "team=db", *git)[0] == 1
    # Without a file: what the options say.
    assert run(capsys, "explain", "192.0.2.1:80")[0] == 0
    assert run(capsys, "explain", "--allow", "a.test", "192.0.2.1:80")[0] == 1
    named = ("explain", "--allow", "a.test:80", "a.test:80")
    assert run(capsys, *named)[0] == 0
    assert run(capsys, *named, "--address", "127.0.0.1")[0] == 1
    status, _, err = run(capsys, *named, "--address", "x")
    assert status == 1
    assert "not an address" in err


def test_cases(good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "test", good) == (0, "5 of 5 cases hold\n", "")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(
        GOOD + '\n[[expect]]\nallow = "10.1.0.1:22"\n[[expect]]\ndeny = "10.0.0.1:1"\n'
    )
    status, out, _ = run(capsys, "test", good, str(wrong))
    assert status == 1
    assert out.splitlines() == [
        f"{wrong}:26: 10.1.0.1:22: expected allow, got deny by 10.1.0.0/16 ({wrong}:8)",
        '  would allow it: "10.1.0.1:22"',
        f"{wrong}:28: 10.0.0.1:1: expected deny, got allow by 10.0.0.0/8 ({wrong}:3)",
        "10 of 12 cases hold",
    ]
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    status, _, err = run(capsys, "test", str(empty))
    assert status == 1
    assert "has no cases" in err


def test_a_bad_file_is_an_error_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("version = 2\n")
    for words in (("test", str(bad)), ("explain", "--policy", str(bad), "a.test:1")):
        status, _, err = run(capsys, *words)
        assert status == 1
        assert err.splitlines() == [
            f"error: {bad}:1:11: version: 2 is not 1",
            f"hint: write 1; all that is wrong: xensock policy check {bad}",
        ]


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from xensock.policy.file import schema

    status, out, _ = run(capsys, "schema")
    assert (status, json.loads(out)) == (0, schema())


def test_labels() -> None:
    assert read_labels(["a=b", "c="]) == {"a": "b", "c": ""}
    for text in ("a", "=b", "a=\n"):
        with pytest.raises(UserError, match="not a label"):
            read_labels([text])
