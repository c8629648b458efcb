"""Hooks: how a class is found, what its answers mean, and that all it does wrong is a refusal."""

from __future__ import annotations

import threading
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from xensock.calls.address import Endpoint
from xensock.calls.call import Decision, Protocol, Verb
from xensock.policy import hooks as module
from xensock.policy.hooks import Answer, Call, HookError, Hooks, allow, deny, find, redirect
from xensock.policy.load import PolicyError, load
from xensock.policy.point import Point
from xensock.policy.policy import Policy

if TYPE_CHECKING:
    from pathlib import Path

YES, NO = Decision(True, "web.test"), Decision(False, "default: not in policy", 13)


def told(
    answer: Any, rules: Decision = YES, verb: Any = "connect", protocol: str = "tcp"
) -> Decision:
    """What becomes of a call whose hook answers so."""

    def method(self: object, call: Call) -> Any:
        return answer

    target = type("Target", (), {verb: method})()
    call = Call(verb, "guest", protocol, "198.51.100.1", 80)
    return Hooks(target, 30).ask(call, rules).result(60)


def test_answers() -> None:
    assert told(None) == Decision(True, "web.test", cacheable=False)
    assert not told(None, NO).allowed
    assert told(allow()) == Decision(True, "web.test", cacheable=False)
    assert told(allow(), NO) == Decision(True, "hook Target.connect", cacheable=False)
    assert told(deny("so")).rule == "hook Target.connect: so"
    assert told(deny(), verb="resolve").error == 0
    assert told(allow(), NO, "resolve").name == "198.51.100.1"
    found = told(redirect("192.0.2.1:80"), NO)
    assert found.allowed
    assert found.needs_relay
    assert found.redirect == Endpoint(ip_address("192.0.2.1"), 80)
    assert told(redirect("unix:/run/x.sock")).redirect == "/run/x.sock"
    assert not told(redirect("192.0.2.1:80"), protocol="udp").allowed
    assert not told(redirect("192.0.2.1:80"), verb="listen").allowed
    for wrong in (True, "allow", 7):
        assert not told(wrong).allowed
    with pytest.raises(ValueError, match="neither"):
        redirect("nowhere")


def test_a_hook_that_never_returns_takes_a_place_and_there_is_an_end_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_slots", threading.BoundedSemaphore(1))
    done = threading.Event()

    class Stuck:
        def connect(self, call: Call) -> Answer | None:
            done.wait(60)
            return allow()

    hooks = Hooks(Stuck(), 0.05)
    call = Call("connect", "guest", "tcp", "198.51.100.1", 80)
    try:
        assert "no answer within" in hooks.ask(call, YES).result(60).rule
        assert "calls are under way" in hooks.ask(call, YES).result(60).rule
    finally:
        done.set()


def test_a_class_is_found_and_made(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("class Good:\n    def connect(self, call): ...\n")
    (tmp_path / "bad.py").write_text(
        "class Bare: pass\nclass Needy:\n  def __init__(self, x): ...\n"
    )
    (tmp_path / "broken.py").write_text("1 +\n")
    assert type(find("good.py:Good", str(tmp_path))).__name__ == "Good"
    for text, said in (
        ("good.py", "not a class"),
        ("good.py:Else", "no class Else"),
        ("bad.py:Bare", "has none of"),
        ("bad.py:Needy", "cannot be made"),
        ("broken.py:X", "SyntaxError"),
        ("gone.py:X", "FileNotFoundError"),
        ("no.such.module:X", "ModuleNotFoundError"),
    ):
        with pytest.raises(HookError, match=said) as caught:
            find(text, str(tmp_path))
        assert caught.value.hint


def test_a_policy_names_them(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(
        "from xensock.policy.hooks import *\n"
        "class Good:\n    def connect(self, call): return deny(call.rule)\n"
    )
    path = tmp_path / "p.toml"
    path.write_text('[[rule]]\nallow = "any"\n[hooks]\nclass = "good.py:Good"\n')
    policy = load(str(path)).policy((), ["192.0.2.9"])
    point = Point("guest", policy, lambda address: (), None)
    end = Endpoint(ip_address("192.0.2.1"), 80)
    decision = point.connect(Protocol.TCP, end)
    asked = point.consult(Verb.CONNECT, decision, Protocol.TCP, end)
    assert asked is not None
    found = asked.result(60)
    assert (found.allowed, found.cacheable, found.source) == (False, False, f"{path}:4")
    assert point.consult(Verb.LISTEN, decision, Protocol.TCP, end) is None
    # Over --deny stands nothing.
    last = Endpoint(ip_address("192.0.2.9"), 80)
    refused = point.connect(Protocol.TCP, last)
    assert not refused.allowed
    assert point.consult(Verb.CONNECT, refused, Protocol.TCP, last) is None
    path.write_text('[hooks]\nclass = "good.py:Bad"\n')
    with pytest.raises(PolicyError, match="no class Bad"):
        load(str(path))
    assert Policy.parse().hooks is None
