"""Two networks for a client and a server, as another host has one, and what is left of them: nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import guestkit
from xensock.bench import apart
from xensock.bench.failure import BenchError
from xensock.bench.process import started, wait_for

SERVER = """
import socket
with socket.create_server(("", 8080)) as server:
    print("there", flush=True)
    while True:
        server.accept()[0].close()
"""
NAMED = "import os, socket; print(os.readlink('/proc/self/ns/net'), len(socket.if_nameindex()))"

may = pytest.mark.skipif(
    os.geteuid() != 0 and bool(guestkit.no_user_namespaces()), reason=guestkit.no_user_namespaces()
)


def told(wrap: tuple[str, ...]) -> list[str]:
    argv = [*wrap, sys.executable, "-c", NAMED]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


@may
def test_they_reach_each_other_and_nobody_else() -> None:
    with apart.networks() as made:
        near, far = told(made.near), told(made.far)
        assert len({near[0], far[0], os.readlink("/proc/self/ns/net")}) == 3
        assert near[1] == far[1] == "2"  # the loopback and the other's end
        assert not made.answers(8080)
        argv = [*made.far, sys.executable, "-c", SERVER]
        with started(argv) as server:
            wait_for(server, "there", argv)
            assert made.answers(8080)
            assert not made.answers(8081)
        pids = [int(word.partition("=")[2]) for word in (*made.near, *made.far) if "target" in word]
        assert len(pids) == 2
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_where_there_can_be_none_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "tool", lambda name: "false")
    with pytest.raises(BenchError) as caught, apart.networks():
        pass
    assert caught.value.what == "cannot make networks to measure in"
    assert "xensock doctor" in caught.value.hint
