"""What scenarios read out of `xl list`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

SAID = """\
Name                                        ID   Mem VCPUs\tState\tTime(s)
Domain-0                                     0   900     1     r-----     168.4
two                                          7   260     1     -b----       4.2
two-more                                    12   260     2     r-----       3.0
(null)                                       3     0     1     --ps-d      12.9
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What runs in dom0, whose xl says that."""
    spec = importlib.util.spec_from_file_location("dom0", Path(__file__).parent / "guest/dom0.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    monkeypatch.setattr(made, "run", lambda *command, check=True: SAID)
    return made


def test_rows_and_nothing_else(scripts: Any) -> None:
    assert scripts.listed(SAID) == [("Domain-0", 0), ("two", 7), ("two-more", 12), ("(null)", 3)]


# 1, 2, 168, 260 and 900 are what other columns say.
@pytest.mark.parametrize(
    ("number", "there"),
    [(7, True), (12, True), (3, True), (1, False), (2, False), (260, False), (900, False)],
)
def test_a_number_is_that_of_a_domain(scripts: Any, number: int, there: bool) -> None:
    assert scripts.there(number) is there


def test_a_domain_is_alive_by_its_own_rows(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    two, more, gone = (scripts.Domain(name) for name in ("two", "more", "gone"))
    assert two.alive()
    assert not more.alive()
    assert not gone.alive()  # though another that is gone has pages left
    gone.numbers.add(3)
    assert gone.alive()
    monkeypatch.setattr(scripts, "run", lambda *command, check=True: SAID.replace("two ", "(null)"))
    assert two.alive()  # it has been seen as number 7


def test_what_is_no_list_is_an_error(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "run", lambda *command, check=True: "xl: cannot connect")
    with pytest.raises(scripts.Failed):
        scripts.there(7)
