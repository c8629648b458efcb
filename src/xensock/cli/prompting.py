"""--ask: the questions of a backend, and the terminal at which a person answers them.

Theory of operation: the backend is not of the terminal's job, so it may not read there. The front is: a thread of it
takes the questions from a socket, one after the other, and sends back what was typed.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

from xensock.cli.errors import UserError

if TYPE_CHECKING:
    from xensock.policy.asking import Asker, Word

TERMINAL = "/dev/tty"
WORDS: dict[str, Word] = {"o": "once", "a": "always", "n": "never"}
ANSWERS = "[o]nce, [a]lways, [n]ever? "
LONGEST = 1 << 16


class Prompts:
    """A pair of sockets: `serve` in the front, `ask` in the backend. Raises UserError without a terminal."""

    def __init__(self) -> None:
        try:
            os.close(os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        except OSError as error:
            raise UserError(
                "--ask: there is no terminal to ask at",
                error.strerror or str(error),
                "run it at a terminal, or write the rules down: --learn FILE helps",
            ) from error
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._asked: dict[int, Future[Word]] = {}
        self._reader: threading.Thread | None = None
        self._gone = False

    # --- the front

    def serve(self) -> None:
        """Ask at the terminal, on a thread, until the backend is gone."""
        self._far.close()
        threading.Thread(target=self._serve, name="prompts", daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while data := self._near.recv(LONGEST):
                number, text = json.loads(data)
                self._near.send(json.dumps([number, at_terminal(text)]).encode())

    # --- the backend

    def asker(self) -> Asker:
        """Who asks a person."""
        from xensock.policy.asking import Asker

        return Asker(self.ask)

    def ask(self, text: str) -> Future[Word]:
        """Ask a person; "" is the answer where nobody is left."""
        said: Future[Word] = Future()
        with self._lock:
            if self._reader is None:
                self._near.close()
                self._reader = threading.Thread(target=self._read, name="answers", daemon=True)
                self._reader.start()
            number = next(self._numbers)
            self._asked[number] = said
            gone = self._gone
        try:
            if not gone:
                self._far.send(json.dumps([number, text]).encode(), socket.MSG_DONTWAIT)
                return said
        except OSError:  # nobody there, or more questions than anybody answers
            pass
        self._tell(number, "")
        return said

    def _read(self) -> None:
        with suppress(OSError):
            while data := self._far.recv(LONGEST):
                number, word = json.loads(data)
                self._tell(number, word)
        with self._lock:
            self._gone = True
            left = list(self._asked)
        for number in left:
            self._tell(number, "")

    def _tell(self, number: int, word: Word) -> None:
        with self._lock:
            said = self._asked.pop(number, None)
        if said is not None:
            said.set_result(word)


def at_terminal(text: str) -> Word:
    """Ask until one of the words is typed, by its first letter; "" at the end of the terminal's input."""
    from xensock.observe.trace import printable

    try:
        terminal = os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        while True:
            os.write(terminal, f"xensock: {printable(text)}: {ANSWERS}".encode())
            typed = os.read(terminal, 4096)
            if not typed:
                return ""
            word = WORDS.get(typed.decode(errors="replace").strip().lower()[:1])
            if word is not None:
                return word
    except OSError:
        return ""
    finally:
        os.close(terminal)
