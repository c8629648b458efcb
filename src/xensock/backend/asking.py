"""Asking backends by their control sockets: those of this user that are known, or the one at a path."""

from __future__ import annotations

import contextlib
import json
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xensock.backend import places

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 10.0
LONGEST = 64 << 20


class AnswerError(Exception):
    """The backend did not do what it was asked for: `code` for programs, the text for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend that answers at a path; `pid` names it to people."""

    path: str
    pid: int

    def ask(self, command: str, patience: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """The answer to one request, waited for so many seconds. Raises AnswerError, OSError."""
        with _connected(self.path) as sock, sock.makefile("rb") as lines:
            sock.settimeout(patience)
            return _ask(sock, lines, command, fields)

    def follow(self, command: str) -> Iterator[dict[str, Any]]:
        """What a backend sends after its answer, line by line, until it ends. Raises AnswerError, OSError."""
        with _connected(self.path) as sock, sock.makefile("rb") as lines:
            _ask(sock, lines, command, {})
            sock.settimeout(None)
            for line in lines:
                yield json.loads(line)


def _connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(PATIENCE)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def _ask(sock: socket.socket, lines: Any, command: str, fields: dict[str, Any]) -> dict[str, Any]:
    sock.sendall(json.dumps({"id": 1, "command": command, **fields}).encode() + b"\n")
    raw = lines.readline(LONGEST)
    if not raw:
        raise AnswerError(
            "not-admitted",
            "the backend did not answer: it has just ended, or serves its own user on the host only",
        )
    answer: dict[str, Any] = json.loads(raw)
    if not answer.get("ok"):
        error = answer.get("error", {})
        raise AnswerError(error.get("code", ""), error.get("message", "it failed"))
    return answer


def backends(path: str | None = None) -> list[Backend]:
    """Those that answer: the one at `path` (raises OSError, AnswerError), or all of this user."""
    if path is not None:
        return [Backend(path, Backend(path, 0).ask("version")["pid"])]
    found = []
    for each in places.controls():
        with contextlib.suppress(OSError, AnswerError, ValueError):  # it has ended
            found.append(Backend(each, Backend(each, 0).ask("version")["pid"]))
    return found
