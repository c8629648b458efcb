"""Errors: their form, their exit statuses, and that each one says what to do."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest

from xensock.cli import errors
from xensock.cli.errors import UserError

SOURCES = Path(__file__).parents[3] / "src" / "xensock"


def shown(error: BaseException, *, debug: bool = False) -> str:
    out = io.StringIO()
    errors.show(error, debug=debug, stream=out)
    return out.getvalue()


def test_an_error_is_what_cause_and_hint() -> None:
    text = shown(UserError("cannot start", cause="no file", hint="make build"))
    assert text == "error: cannot start\ncause: no file\nhint: make build\n"


def test_an_error_without_a_known_cause_has_no_cause_line() -> None:
    assert shown(UserError("cannot start", hint="make build")) == (
        "error: cannot start\nhint: make build\n"
    )


def test_quoted_input_cannot_write_to_the_terminal() -> None:
    assert "\x1b" not in shown(UserError("no \x1b[2Jfile", hint="x"))


def test_a_traceback_only_with_debug() -> None:
    with pytest.raises(ValueError, match="boom") as caught:
        raise ValueError("boom")
    assert "Traceback" not in shown(caught.value)
    assert "ValueError: boom" in shown(caught.value)
    assert "--debug" in shown(caught.value)
    assert "Traceback" in shown(caught.value, debug=True)


def test_exceptions_with_a_hint_of_their_own_keep_it() -> None:
    class RuleError(ValueError):
        cause = ""
        hint = "write it so"

    assert shown(RuleError("bad rule")) == "error: bad rule\nhint: write it so\n"
    error = RuleError("bad rule")
    error.cause = "it is long"
    assert shown(error) == "error: bad rule\ncause: it is long\nhint: write it so\n"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "absent").read_text()
    text = shown(caught.value)
    assert "absent" in text
    assert "cause: No such file or directory" in text


@pytest.mark.parametrize(
    ("code", "verb", "status"),
    [
        (125, "run", 125),
        (1, "run", 125),
        (2, "run", 125),
        (126, "run", 126),
        (127, "run", 127),
        (125, "doctor", 1),
        (1, "doctor", 1),
        (2, "doctor", 2),
        (125, "", 1),
    ],
)
def test_exit_statuses(code: int, verb: str, status: int) -> None:
    assert errors.exit_status(UserError("x", hint="y", code=code), verb) == status


def calls_of(name: str) -> list[tuple[Path, ast.Call]]:
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func
                last = called.attr if isinstance(called, ast.Attribute) else ast.unparse(called)
                if last == name:
                    found.append((path, node))
    return found


def has_hint(call: ast.Call) -> bool:
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        return True  # an explanation as a tuple; its own test asserts its hint
    given = [k.value for k in call.keywords if k.arg == "hint"] or call.args[2:3]
    return bool(given) and not (isinstance(given[0], ast.Constant) and not given[0].value)


def test_every_error_has_a_hint() -> None:
    calls = calls_of("UserError")
    assert calls
    without = [f"{path.name}:{call.lineno}" for path, call in calls if not has_hint(call)]
    assert without == []


@pytest.mark.parametrize(
    ("source", "fine"),
    [
        ("UserError('a', hint='b')", True),
        ("UserError('a', 'b', 'c')", True),
        ("UserError(*explain())", True),
        ("UserError('a')", False),
        ("UserError('a', cause='b')", False),
        ("UserError('a', hint='')", False),
    ],
)
def test_the_check_for_hints_can_fail(source: str, fine: bool) -> None:
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    assert has_hint(call) is fine
