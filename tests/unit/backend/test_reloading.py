"""A policy file that changes: loaded anew, left as it was, and noticed."""

from __future__ import annotations

import os
import select
import threading
from typing import TYPE_CHECKING

import pytest

from xensock.backend.reloading import FileWatch, Reloader, Watcher
from xensock.policy import Policy
from xensock.policy.load import load
from xensock.policy.point import Current

if TYPE_CHECKING:
    from pathlib import Path


def test_a_good_file_takes_the_place_of_the_policy_and_a_broken_one_does_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[[rule]]\nallow = "any"\n')
    before = Policy()
    current, applied, said = Current(before), list[int](), list[str]()
    reloader = Reloader(
        current,
        lambda: load(str(path)).policy(),
        lambda: applied.append(current.policy.generation),
        said.append,
    )
    assert reloader.reload() == ""
    good = current.policy
    assert good.generation != before.generation
    assert applied == [good.generation]
    path.write_text('[[rule]]\nalow = "any"\n')
    assert "unknown key 'alow'" in reloader.reload()
    path.unlink()
    assert "No such file" in reloader.reload()
    assert current.policy is good
    assert len(applied) == 1
    assert said[0] == "the policy was loaded anew: 1 rules"
    assert said[1].startswith("the policy was not loaded, the one before stays in force: ")
    assert "did you mean allow?" in said[1]


def test_other_networks_take_another_start(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    rule = '[[rule]]\nallow = "any"\nvia = "{}"\n[networks]\n{} = {{ netns = "/run/netns/x" }}\n'
    path.write_text(rule.format("vpn", "vpn"))
    current, said = Current(load(str(path)).policy()), list[str]()
    before = current.policy
    reloader = Reloader(current, lambda: load(str(path)).policy(), lambda: None, said.append)
    assert reloader.reload() == ""
    assert current.policy is not before
    before = current.policy
    path.write_text(rule.format("lab", "lab"))
    assert "its [networks] are not those of the one before" in reloader.reload()
    assert current.policy is before
    path.write_text('[[rule]]\nallow = "any"\n')
    assert reloader.reload() == ""
    # Without networks at the start none are there later.
    current.policy = Policy()
    path.write_text('[[rule]]\nallow = "any"\nvia = "host"\n')
    assert "its [networks]" in reloader.reload()


def test_what_only_holds_for_guests_that_begin_is_told(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('unix_datagrams = "refuse"\n')
    current, said = Current(Policy()), list[str]()
    reloader = Reloader(current, lambda: load(str(path)).policy(), lambda: None, said.append)
    for _ in range(2):
        assert reloader.reload() == ""
    told = "its unix_datagrams is for guests that begin from now on"
    assert [line == told for line in said] == [False, True, False]


def changed(watch: FileWatch, timeout: float) -> bool:
    """Whether a change of the file is told within `timeout` seconds."""
    while select.select([watch], [], [], timeout)[0]:
        if watch.read():
            return True
    return False


def test_a_file_that_is_written_or_replaced_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("")
    watch = FileWatch(str(path))
    try:
        (tmp_path / "other.toml").write_text("x")
        assert not changed(watch, 0)
        assert not watch.read()
        path.write_text("x")
        assert changed(watch, 20)
        (tmp_path / "new").write_text("y")
        os.replace(tmp_path / "new", path)
        assert changed(watch, 20)
    finally:
        watch.close()
    with pytest.raises(FileNotFoundError):
        FileWatch(str(tmp_path / "absent" / "p.toml"))


def test_a_watcher_calls_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("")
    called = threading.Event()
    watcher = Watcher(str(path), called.set)
    try:
        path.write_text("x")
        assert called.wait(20)
    finally:
        watcher.close()
    called.clear()
    path.write_text("y")
    assert not called.is_set()
