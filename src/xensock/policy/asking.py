"""A person is asked about destinations that no rule is about.

Rules
- Asked about are destinations that a default decides, allowed or not; what a rule says stands, and so does the refusal
  of the host's loopback, link-local addresses and metadata services.
- One question for a destination (its name, or its address without one), however many calls wait for it. "always" and
  "never" hold until the guest has ended, "once" for the calls that wait.
- No answer is a refusal.
"""

from __future__ import annotations

import errno
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Literal

from xensock.calls.call import Decision

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.address import Endpoint
    from xensock.calls.call import Protocol

    # What a person said; "" where nobody was there.
    Word = Literal["once", "always", "never", ""]
    Key = tuple[Protocol, str, int]


class Asker:
    """Asks by `ask`, which takes the question's text and tells the answer some day, from any thread."""

    def __init__(self, ask: Callable[[str], Future[Word]]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._known: dict[Key, Word] = {}
        self._waiting: dict[Key, list[tuple[Future[Decision], Decision]]] = {}

    def ask(
        self,
        decision: Decision,
        protocol: Protocol,
        end: Endpoint,
        names: tuple[str, ...],
        who: str,
    ) -> Future[Decision]:
        """What becomes of a call to `end`, of which a default said `decision`; `who` is the caller, for the reader."""
        told: Future[Decision] = Future()
        key = protocol, names[0] if names else str(end.host), end.port
        with self._lock:
            word = self._known.get(key)
            if word is None:
                waiting = self._waiting.setdefault(key, [])
                waiting.append((told, decision))
                if len(waiting) > 1:
                    return told
        if word is not None:
            told.set_result(decided(word, decision))
            return told
        where = f"{end}/{protocol}" if str(protocol) != "tcp" else str(end)
        if names:
            where = f"{names[0]}:{end.port}/{protocol} at {end.host}"
        self._ask(f"{who} wants to reach {where}").add_done_callback(
            lambda said: self._said(key, said.result())
        )
        return told

    def _said(self, key: Key, word: Word) -> None:
        with self._lock:
            if word in ("always", "never"):
                self._known[key] = word
            waiting = self._waiting.pop(key)
        for told, decision in waiting:
            told.set_result(decided(word, decision))


def decided(word: Word, decision: Decision) -> Decision:
    """What an answer means for a call of which a default said `decision`."""
    text = f"--ask: {word or 'no answer'}"
    if word in ("once", "always"):
        return Decision(True, text, name=decision.name, cacheable=False)
    return Decision(False, text, errno.EACCES, decision.name, False, decision.hint)
