"""The command: help, suggestions, exit statuses, what it imports."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import click
import pytest

from xensock import __version__
from xensock.cli.examples import EXAMPLES
from xensock.cli.main import COMMANDS, cli, main


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], []])
def test_help_in_every_form(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "xensock run -- " in out
    for name in COMMANDS:
        assert f"\n  {name} " in out


@pytest.mark.parametrize("words", [["version", "--help"], ["version", "-h"], ["help", "version"]])
def test_help_of_a_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "Usage: xensock version" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"policy", "bench"}))
def test_help_has_examples_first(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Examples:\n    xensock {name}" in out
    assert out.index("Examples:") < out.index("Options:")


@pytest.mark.parametrize("group", ["policy", "bench"])
def test_help_of_a_group_in_every_form(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for words in ([group, "help"], [group, "--help"], [group, "-h"], ["help", group]):
        assert main(words) == 0
        said.append(capsys.readouterr().out)
    assert said[0].startswith(f"Usage: xensock {group}")
    assert len(set(said)) == 1


@pytest.mark.parametrize(
    ("path", "words"),
    [(path, words) for path, all_of_them in EXAMPLES.items() for words in all_of_them],
)
def test_examples_are_calls(path: str, words: str) -> None:
    """Each can be parsed: its options and arguments exist."""
    context = click.Context(cli, info_name="xensock")
    command: click.Command | None = cli
    for name in path.split():
        assert isinstance(command, click.Group)
        command = command.get_command(context, name)
    assert command is not None
    command.make_context(name, shlex.split(words), parent=context)


def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Usage: xensock bench")
    assert "error:" not in err


def test_an_unknown_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["docter"]) == 2
    assert capsys.readouterr().err == (
        "error: no such command: docter\nhint: did you mean `xensock doctor`?\n"
    )


def test_a_command_of_a_group_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["bench", "rnu"], ["help", "bench", "rnu"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.endswith("rnu\nhint: did you mean `xensock bench run`?\n"), said


def test_the_tree_shows_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tree"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines} == set(COMMANDS)
    run = next(line for line in lines if line.startswith("xensock run "))
    assert {"--allow", "--publish", "-c"} <= set(run.split())
    assert any(line.startswith("xensock bench run --json") for line in lines)


def test_a_program_without_run_is_told_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zzzz"]) == 2
    assert "xensock run -- zzzz" in capsys.readouterr().err


def test_help_for_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "versoin"]) == 2
    assert "xensock version" in capsys.readouterr().err


def test_an_unknown_option_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--jsn"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: no such option: --jsn\nhint: did you mean --json?")


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--js"]) == 2
    assert "error:" in capsys.readouterr().err


def test_a_bad_value_names_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--color", "mauve", "version"]) == 2
    err = capsys.readouterr().err
    assert "always" in err
    assert "hint:" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"xensock {__version__}\n"
    assert main(["version", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert known["schema"] == 1
    assert known["xensock"] == __version__


def test_a_reader_that_left_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from xensock.cli.main import main; raise SystemExit(main(['-h']))"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(30)
    assert err == b""


def test_the_command_imports_little() -> None:
    heavy = ["rich", "msgspec", "dns", "asyncio", "xensock.cli.doctor", "xensock.supervisor"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, xensock.cli.main; print([m for m in {heavy!r} if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.strip() == "[]"
