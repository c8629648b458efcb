"""Guests for tests of the supervisor's parts: a Python script in a guest, what it said, and its mediated calls."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

import xensock
from xensock import _core
from xensock.backend.embedded import LANDLOCK_TCP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xensock.calls.record import Record

PRELUDE = """\
import ctypes, errno, fcntl, json, os, select, signal, socket, struct, sys

def said(value):
    print(json.dumps(value), flush=True)

def error_of(call, *arguments):
    try:
        call(*arguments)
    except OSError as failure:
        return errno.errorcode[failure.errno]
    return ""

def listener(host="127.0.0.1", port=0, family=socket.AF_INET):
    made = socket.socket(family)
    made.bind((host, port))
    made.listen()
    return made

"""


@cache
def missing() -> str:
    """Why guests cannot be made here, or nothing."""
    try:
        xensock.run(["true"])
    except xensock.RunError as failure:
        return f"no guests here: {failure}"
    return ""


@cache
def no_user_namespaces() -> str:
    """Why unshare(1) cannot make a user namespace here, or nothing."""
    try:
        done = subprocess.run(["unshare", "--user", "true"], capture_output=True, text=True)
    except FileNotFoundError:
        return "needs unshare(1)"
    return f"no user namespaces here: {done.stderr.strip()}" if done.returncode else ""


def paths() -> list[str]:
    """The data paths that this machine has."""
    return ["direct", "relay"] if _core.landlock_abi() >= LANDLOCK_TCP else ["relay"]


def run(script: str, **options: Any) -> tuple[list[Any], tuple[Record, ...]]:
    """What the script said by `said(…)`, in order, and the calls; fails unless it ended well and was silent else."""
    if missing():
        pytest.skip(missing())
    if options.get("datapath") == "direct" and "direct" not in paths():
        pytest.skip("no Landlock rules for TCP here (Linux 6.7): no direct data path")
    done = xensock.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
        capture=True,
        timeout=60,
        **options,
    )
    assert (done.status, done.stderr.decode()) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()], done.calls


def shown(calls: Sequence[Record], *verbs: str) -> list[tuple[str, str, str, int]]:
    """(verb, decision, data path, errno) of the calls with these verbs."""
    return [(c.verb, c.decision, c.datapath, c.error) for c in calls if c.verb in verbs]
