"""Calls that wait for somebody's word beside the rules: a hook's, a person's, or another backend's.

Theory of operation: the caller's notification stays unanswered, and the supervisor goes on with other calls. Once the
word is there, the call goes on under the guest's lock, on whatever thread brought it. Meanwhile one thread looks for
signals that would have ended the call natively, and for callers that are gone.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from xensock import _core
from xensock.supervisor.unix_calls import has_signal

if TYPE_CHECKING:
    from concurrent.futures import Future

    from xensock.supervisor.question import Question
    from xensock.supervisor.supervisor import Supervisor

Handler = Callable[["Supervisor", "Question"], None]
ROUND_S = 0.05
LATE_S = 0.1  # from when on who need not wait for a word does not


@dataclass(slots=True, eq=False)
class _Waiter:
    q: Question
    generation: int
    go_on: Handler
    again: Handler
    unused: Callable[[Future[Any]], None]
    left: Callable[[], None]
    late: Callable[[Supervisor, Question], bool] | None
    due: float
    signals: int = 0


class Waiting:
    """The calls of one supervisor that wait. Used under its guest's lock."""

    def __init__(self, sup: Supervisor) -> None:
        self._sup = sup
        self._waiters: set[_Waiter] = set()
        self._thread: threading.Thread | None = None

    def add(
        self,
        q: Question,
        word: Future[Any],
        go_on: Handler,
        again: Handler,
        unused: Callable[[Future[Any]], None] = lambda word: None,
        left: Callable[[], None] = lambda: None,
        late: Callable[[Supervisor, Question], bool] | None = None,
    ) -> None:
        """Let the caller wait until it is known what was decided: `go_on` has it in `told` then. If another policy is
        in force by then, the call is judged `again`. `unused` has the word where `go_on` has not; `left` is called
        once where that is known before the word is. With `late` the caller waits for LATE_S at most: it answers then,
        and says whether it will have the word, too."""
        # socket.dup() would set O_NONBLOCK as Python's own time limit has it, and the guest shares that flag.
        end = q.sock
        kept = replace(
            q, sock=socket.socket(end.family, end.type, end.proto, fileno=os.dup(end.fileno()))
        )
        due = time.monotonic() + LATE_S
        generation = self._sup.point.policy.generation
        waiter = _Waiter(kept, generation, go_on, again, unused, left, late, due)
        self._waiters.add(waiter)
        word.add_done_callback(lambda word: self._known(waiter, word))
        if self._waiters and self._thread is None:
            thread = threading.Thread(target=self._look, name="waiting", daemon=True)
            with suppress(RuntimeError):  # no more threads for this user: the next call may do it
                thread.start()
                self._thread = thread

    def _known(self, waiter: _Waiter, word: Future[Any]) -> None:
        sup, q = self._sup, waiter.q
        with sup.held.lock:  # under which no supervisor stops
            waits = waiter in self._waiters
            same = waits and sup.point.policy.generation == waiter.generation
            valid = waits and sup in sup.held.supervisors and _core.super_valid(sup.handle, q.id)
            if not (valid and same):
                waiter.unused(word)
            if not waits:
                return
            # It waits no more; what it goes on with may let it wait again.
            self._waiters.discard(waiter)
            try:
                if valid:
                    q.told = word.result() if same else None
                    (waiter.go_on if same else waiter.again)(sup, q)
            except Exception:
                sup.parts.complain(traceback.format_exc())
                sup.answer(q, errno.EPERM)
            finally:
                q.sock.close()

    def count(self) -> int:
        """How many wait."""
        return len(self._waiters)

    def _drop(self, waiter: _Waiter) -> None:
        self._waiters.discard(waiter)
        waiter.q.sock.close()
        waiter.left()

    def _late(self, waiter: _Waiter) -> None:
        """Its caller waits no more for the word."""
        sup, q = self._sup, waiter.q
        self._waiters.discard(waiter)
        used = False
        try:
            if sup.point.policy.generation != waiter.generation:
                waiter.again(sup, q)
            elif waiter.late is not None:
                used = waiter.late(sup, q)
        except Exception:
            sup.parts.complain(traceback.format_exc())
            sup.answer(q, errno.EPERM)
        finally:
            q.sock.close()
            if used:
                waiter.unused = lambda word: None
            else:
                waiter.left()

    def _look(self) -> None:
        """Let go of those whose wait has ended otherwise, until nobody waits."""
        while True:
            time.sleep(ROUND_S)
            with self._sup.held.lock:
                for waiter in list(self._waiters):
                    if self._ended(waiter):
                        self._drop(waiter)
                    elif waiter.late is not None and time.monotonic() >= waiter.due:
                        self._late(waiter)
                if not self._waiters:
                    self._thread = None
                    return

    def _ended(self, waiter: _Waiter) -> bool:
        sup, q = self._sup, waiter.q
        if sup not in sup.held.supervisors or not _core.super_valid(sup.handle, q.id):
            return True
        # One for the process is taken at once by a thread that runs: still there a round later, it is for one that
        # waits.
        waiter.signals = waiter.signals + 1 if has_signal(q.tid) else 0
        if waiter.signals > 1:
            _core.super_interrupt(sup.handle, q.id, q.tid)
            return True
        return False
