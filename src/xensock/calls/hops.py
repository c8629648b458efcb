"""How many backends passed a call on, each to the next: what ends circles of backends that forward to each other.

A count, and no list of who they were: backends have no names that others must believe.
"""

from __future__ import annotations

import errno
from contextvars import ContextVar

from xensock.calls.call import Decision

MOST = 8

# Of the question that a task is about.
passed_on: ContextVar[int] = ContextVar("passed_on", default=0)


def circle(name: str) -> Decision:
    """The refusal of a call that was to be passed on to the backend of that name although MOST have done so before."""
    return Decision(
        False,
        f"forwarded in a circle: {MOST} backends passed it on, and the next would be {name}",
        errno.EACCES,
        cacheable=False,
        hint="let the policy of one of them send it by a network of its own: leave its via out",
    )
