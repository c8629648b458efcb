"""The capture of a guest's packets has what its connections carried, and says what it lacks."""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import guestkit
from xensock.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Iterator

XENSOCK = [str(Path(sys.executable).with_name("xensock")), "run"]
MIB = 1 << 20

FETCH = """
import hashlib, socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
    sock.sendall(b"please")
    digest = hashlib.sha256()
    while data := sock.recv(1 << 20):
        digest.update(data)
print(digest.hexdigest())
"""
LOCALLY = """
import socket, sys, threading
with socket.create_server(("127.0.0.1", 0)) as server:
    sock = socket.create_connection(server.getsockname())
    peer = server.accept()[0]
def take():
    while peer.recv(1 << 20): pass
taking = threading.Thread(target=take)
taking.start()
for _ in range(64):
    sock.sendall(bytes(1 << 20))
sock.close()
taking.join()
open(sys.argv[1], "w").close()
"""


@pytest.fixture(autouse=True)
def guests() -> None:
    if guestkit.missing():
        pytest.skip(guestkit.missing())


def packets(data: bytes) -> Iterator[bytes]:
    """Those of a pcap file, whole ones."""
    magic, *_, link = struct.unpack_from("=IHHiIII", data)
    assert (magic, link) == (0xA1B23C4D, 1)
    at = 24
    while at < len(data):
        _, _, captured, length = struct.unpack_from("=4I", data, at)
        assert captured == length
        at += 16 + captured
        yield data[at - captured : at]


def streams(data: bytes) -> dict[tuple[int, int], bytes]:
    """What went from one port to another over IPv4 and TCP; each byte must be there once."""
    first: dict[tuple[int, int], int] = {}
    parts: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
    for packet in packets(data):
        kind, protocol = packet[12:14], packet[23]
        if kind != b"\x08\0" or protocol != socket.IPPROTO_TCP:
            continue
        (total,) = struct.unpack_from("!H", packet, 16)
        source, to, sequence, _, offset, flags = struct.unpack_from("!HHIIBB", packet, 34)
        ends = source, to
        if flags & 2:  # SYN
            first[ends] = sequence + 1
        if payload := packet[34 + (offset >> 4) * 4 : 14 + (total or len(packet) - 14)]:
            parts.setdefault(ends, []).append((sequence - first[ends] & 0xFFFFFFFF, payload))
    whole = {}
    for ends, pieces in parts.items():
        pieces.sort()  # of two processors, neither waits for the other's packets
        whole[ends] = b"".join(piece for _, piece in pieces)
        places = [place for place, _ in pieces]
        assert places == [
            0,
            *itertools.accumulate(len(piece) for _, piece in pieces[:-1]),
        ]
    return whole


def test_a_relayed_connection(tmp_path: Path) -> None:
    sent = bytes(range(256)) * 4096 * 4
    file = tmp_path / "packets"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            with server.accept()[0] as peer:
                peer.recv(100)
                peer.sendall(sent)

        serving = threading.Thread(target=serve)
        serving.start()
        argv = ["--pcap", str(file), "--allow", f"loopback:{port}", "--", sys.executable, "-c"]
        done = subprocess.run(
            [*XENSOCK, *argv, FETCH, str(port)], capture_output=True, text=True, check=True
        )
        serving.join()
    digest = hashlib.sha256(sent).hexdigest()
    assert (done.stdout, done.stderr) == (digest + "\n", "")
    seen = streams(file.read_bytes())
    (client,) = {source for source, to in seen if to == port}
    assert seen[client, port] == b"please"
    assert hashlib.sha256(seen[port, client]).hexdigest() == digest


def test_what_came_faster_than_it_was_written_is_counted(tmp_path: Path) -> None:
    slow, ended = tmp_path / "slow", tmp_path / "ended"
    os.mkfifo(slow)
    os.mkfifo(ended)
    argv = ["--pcap", str(slow), "--", sys.executable, "-c", LOCALLY, str(ended)]
    with subprocess.Popen([*XENSOCK, *argv], stderr=subprocess.PIPE, text=True) as guest:
        with slow.open("rb") as reader:
            ended.read_bytes()  # the program does not wait for its capture
            data = reader.read()
        said = guest.communicate()[1]
    assert guest.returncode == 0
    assert "the capture lacks" in said
    assert sum(map(len, packets(data))) > MIB


def test_a_file_that_takes_nothing_ends_the_capture_alone() -> None:
    done = subprocess.run(
        [*XENSOCK, "--pcap", "/dev/full", "--", "echo", "here"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "here\n")
    assert done.stderr == "xensock: the capture ends here: No space left on device\n"


def test_direct_connections_have_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "packets"
    assert main(["run", "--pcap", str(file), "--datapath", "direct", "--", "true"]) == 125
    assert "tcpdump" in capsys.readouterr().err
    assert not file.exists()
