"""Threads for whose work nobody waits."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from xensock.background import give_way


@pytest.mark.parametrize(
    ("before", "after"),
    [("SCHED_OTHER", "SCHED_BATCH"), ("SCHED_BATCH", "SCHED_BATCH"), ("SCHED_IDLE", "SCHED_IDLE")],
)
def test_only_what_nobody_chose_changes(before: str, after: str) -> None:
    def policy() -> int:
        os.sched_setscheduler(0, getattr(os, before), os.sched_param(0))
        give_way()
        return os.sched_getscheduler(0)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(policy).result() == getattr(os, after)
