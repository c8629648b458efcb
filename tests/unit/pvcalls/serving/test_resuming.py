"""What a backend that was killed still had to deliver."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from backkit import Serving
from xensock.pvcalls.keeping import KeptRest
from xensock.pvcalls.serving.counting import cookie, counts
from xensock.pvcalls.serving.resuming import deliver


def test_a_reset_waits_for_what_the_kernel_still_has() -> None:
    """The other backend had given everything to the socket, and the peer had not taken it yet."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    begin = counts(near).taken
    sent = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            piece = os.urandom(10_000)
            sent += piece[: near.send(piece)]
    memory = os.memfd_create("rest", os.MFD_CLOEXEC)
    os.write(memory, sent)
    rest = KeptRest(-1, cookie(near), -1, len(sent), begin, True)
    far.settimeout(20)
    with far, Serving() as serving:
        serving.call(deliver, serving.backend, near, rest, memory)
        got = b""
        while len(got) < len(sent):
            got += far.recv(1 << 20)
        assert got == sent
        with pytest.raises(ConnectionResetError):
            far.recv(1)
