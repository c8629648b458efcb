"""How often a call may be passed on."""

from __future__ import annotations

import contextvars
import errno

from xensock.calls.hops import MOST, circle, passed_on


def test_the_refusal_names_the_backend_and_says_what_to_do() -> None:
    refused = circle("lab")
    assert (refused.allowed, refused.error, refused.cacheable) == (False, errno.EACCES, False)
    assert f"{MOST} backends" in refused.rule
    assert refused.rule.endswith("lab")
    assert "via" in refused.hint


def test_each_task_has_its_own_number() -> None:
    contextvars.copy_context().run(passed_on.set, 3)
    assert passed_on.get() == 0
