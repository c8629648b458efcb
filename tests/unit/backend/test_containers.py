"""Runtimes that talk to the backend: what it answers, and what does it no harm. Containers: tests/containers."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

import pytest

from daemonkit import daemon
from xensock.backend import oci

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemonkit import Daemon

CONFIG = {"process": {"args": ["true"]}, "linux": {"namespaces": [{"type": "network"}]}}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path, f"--containers={tmp_path}/r") as made:
        yield made


def connected(served: Daemon) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(20)
    sock.connect(f"{served.directory}/r")
    return sock


def file(content: bytes) -> int:
    fd = os.memfd_create("config")
    os.write(fd, content)
    return fd


def ask(sock: socket.socket, words: bytes, *contents: bytes) -> tuple[bytes, list[int]]:
    fds = [file(content) for content in contents]
    socket.send_fds(sock, [words], fds)
    for fd in fds:
        os.close(fd)
    data, got, _, _ = socket.recv_fds(sock, 4096, 4)
    return data, got


def create(served: Daemon, content: bytes, ident: bytes = b"abc") -> tuple[bytes, list[int]]:
    with connected(served) as sock:
        return ask(sock, b"create\0%s\0/b\x004\0" % ident, content)


def test_a_description_and_the_terms(served: Daemon) -> None:
    with connected(served) as sock:
        data, fds = ask(sock, b"create\0abc\0/b\x004\0", json.dumps(CONFIG).encode())
        assert data == b"O"
        with os.fdopen(fds[0], "rb") as described:
            made = json.loads(described.read())
        assert made["process"]["args"][:3] == [oci.INIT, "container", "4"]
        data, fds, _, _ = socket.recv_fds(sock, 4096, 4)
        assert (data[0], len(data), len(fds)) == (ord("T"), 16, 1)
        os.close(fds[0])
    # It never started; another one may have the id.
    data, fds = create(served, json.dumps(CONFIG).encode())
    assert data == b"O"
    os.close(fds[0])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", b"not JSON"),
        (b"[]", b"no JSON object"),
        (b"{}", b"share the host's network"),
        (json.dumps({**CONFIG, "process": {}}).encode(), b"process.args"),
        (json.dumps({**CONFIG, "mounts": 7}).encode(), b""),
        (json.dumps({**CONFIG, "linux": []}).encode(), b""),
        (
            json.dumps({**CONFIG, "annotations": {"xensock.policy": "x"}}).encode(),
            b"unknown policy",
        ),
    ],
)
def test_what_is_refused(served: Daemon, content: bytes, said: bytes) -> None:
    data, fds = create(served, content)
    assert (data[:1], fds) == (b"N", [])
    assert said in data
    assert create(served, json.dumps(CONFIG).encode(), b"def")[0] == b"O"


def test_exec_in_a_container_that_nobody_knows(served: Daemon) -> None:
    with connected(served) as sock:
        data, _ = ask(sock, b"exec\0abc\0\x003\0", json.dumps(CONFIG["process"]).encode())
        assert data.startswith(b"N")
        assert b"restart it" in data


@pytest.mark.parametrize("packet", [b"x", b"\0" * 4, b"create", b"a\0b\0c\0x\0", os.urandom(200)])
def test_packets_that_make_no_sense(served: Daemon, packet: bytes) -> None:
    for contents in ((), (b"{}",), (b"{}", b"{}")):
        with connected(served) as sock:
            data, _ = ask(sock, packet, *contents)
            assert data[:1] in (b"", b"N")
    assert create(served, json.dumps(CONFIG).encode())[0] == b"O"


def test_a_step_that_hands_over_no_listener(served: Daemon) -> None:
    with connected(served) as sock:
        ask(sock, b"create\0abc\0/b\x004\0", json.dumps(CONFIG).encode())
        socket.recv_fds(sock, 4096, 4)
        fd = file(b"")
        socket.send_fds(sock, [b"L\0\0\0" + bytes(12)], [fd])
        os.close(fd)
        assert sock.recv(4096)[:1] in (b"N", b"")
    assert create(served, json.dumps(CONFIG).encode())[0] == b"O"
