"""Threads for whose work nobody waits."""

from __future__ import annotations

import contextlib
import os


def give_way() -> None:
    """From now on this thread pushes no other one off its processor when it wakes (sched(7), SCHED_BATCH): it takes an
    idle one, or its turn. A policy that somebody chose for it stays."""
    with contextlib.suppress(OSError):  # where this process may not (a filter), it works without
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
