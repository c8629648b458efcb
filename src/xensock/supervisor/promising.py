"""Non-blocking connects that another backend carries, where that is slow to answer.

Natively such a call returns at once, and its end comes later. So it does here: while it is not known yet whether
the other backend will have the call, the guest's own socket begins to connect to the relay, which holds it, and the
caller is told EINPROGRESS. Once the backend has answered, or another network of the rule has, the relay goes on.

Rules
- What is recorded is what came of it, once, with the time until then; and what was asked of whom, where the guest gives
  up before that. The caller's thread may be gone by then: who it was is noted before.
- A dial that nobody waits for any more leaves the queue. One that is under way cannot, and counts as one that is
  waited for, until the backend has answered.
"""

from __future__ import annotations

import errno
import os
import socket
import time
import traceback
from typing import TYPE_CHECKING

from xensock.calls.call import Decision, Protocol, Subject, Verb
from xensock.policy.deferred import final
from xensock.policy.networks import AWAY
from xensock.policy.point import program_path, user_of
from xensock.stack.stacks import decided
from xensock.supervisor.carried import asked_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from xensock.calls.address import Endpoint
    from xensock.calls.record import Outcome, Path
    from xensock.stack.dials import Dials
    from xensock.stack.stacks import Stack
    from xensock.supervisor.carried import Asked
    from xensock.supervisor.connecting import Attempt
    from xensock.supervisor.question import Question
    from xensock.supervisor.relay import Ended, Relay
    from xensock.supervisor.relay_client import Hold
    from xensock.supervisor.supervisor import Supervisor

    # The socket that dials, or the errno where there is none; and what connect(2) said at once.
    Begun = tuple[socket.socket | int, int]

CHANGED = "the policy changed while another backend was asked"


def begin(relay: Relay, stack: Stack, asked: Asked, to: Endpoint) -> Begun:
    """Have a socket of the stack's dial; `asked` is what the guest's own was. As long as the stack takes."""
    far = None
    try:
        if stack.passer is not None:
            far = stack.passer.make_aside(to.family)
        else:
            far = stack.make(to.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0)
        begun = relay.begin(asked, far, to)
    except OSError as error:
        if far is not None:
            far.close()
        far = begun = error.errno or errno.EIO
    except BaseException:
        if far is not None:
            far.close()
        raise
    if begun not in (0, errno.EINPROGRESS) and stack.passer is not None and stack.passer.gone:
        begun = errno.ENETDOWN  # it ended while it was asked, and its call with it
        if isinstance(far, int):
            far = begun
    return far, begun


def dial(sup: Supervisor, stack: Stack, asked: Asked, to: Endpoint) -> Future[Begun]:
    """As `begin`, on a thread of another backend's. Raises OSError (ENETDOWN)."""
    relay = sup.parts.relay
    try:
        dialled: Future[Begun] = stack.passer.dials.begin(
            lambda: begin(relay, stack, asked, to), (errno.ENETDOWN, 0)
        )
    except RuntimeError:  # it was closed
        raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN)) from None
    return dialled


def close_unused(dialled: Future[Begun]) -> None:
    """Nobody goes on with what came of it: its caller is gone, or another policy is in force."""
    if not dialled.cancelled() and dialled.exception() is None:
        far, _ = dialled.result()
        if not isinstance(far, int):
            far.close()


def give_up(sup: Supervisor, dials: Dials, dialled: Future[Begun]) -> None:
    """Nobody waits for a dial any more; who has asked for what came of it is told all the same. From any thread."""
    if not dials.give_up(dialled):
        abandoned = sup.held.abandoned
        abandoned.add(dialled)
        dialled.add_done_callback(abandoned.discard)


def promise(
    sup: Supervisor, q: Question, call: Attempt, stack: Stack, dialled: Future[Begun]
) -> bool:
    """Answer a call whose dial by `stack` takes its time. Whether what comes of that has a use; if not, nobody is
    left to wait for it. Raises OSError before there is an answer."""
    made = _Promised(sup, q, call, stack, dialled)
    hold = sup.parts.relay.promise(q.sock, call.dest, made.gave_up)
    if isinstance(hold, int):
        sup.answer(q, hold)  # it is connecting already, by another thread's call
        made.record(made.asked(), "allow", hold)
        return False
    made.hold = hold
    sup.remember_relayed(call.key)
    sup.answer(q, errno.EINPROGRESS)
    dialled.add_done_callback(made.known)
    return True


class _Promised:
    """A call that was answered with EINPROGRESS before anybody would carry it."""

    def __init__(
        self, sup: Supervisor, q: Question, call: Attempt, stack: Stack, dialled: Future[Begun]
    ) -> None:
        from xensock.supervisor.supervisor import program_of

        self.hold: Hold  # there before anything is known
        self._sup, self._call, self._stack = sup, call, stack
        self._dial = stack.passer.dials, dialled  # which is under way or was the last
        self._options = asked_of(q.sock)
        self._to = call.end if call.asked.redirect is None else call.asked.redirect
        self._target = sup.target(q) or str(call.dest)
        self._tid, self._start = q.tid, q.start_ns
        self._program = q.program if sup.point.recording else program_of(q.tid)
        self._user = user_of(q.tid)
        self._subject = Subject(program_path(q.tid), sup.point.labels)
        self._generation = sup.point.policy.generation
        self._over = False

    def asked(self) -> Decision:
        """Our decision, with the network that the call went by."""
        decision = self._call.asked
        return decision.by(self._stack.name) if decision.via else decision

    def known(self, dialled: Future[Begun]) -> None:
        """What came of a dial. On whatever thread brings it."""
        if dialled.cancelled():
            return
        with self._sup.held.lock:
            try:
                self._tried(*dialled.result())
            except Exception:
                self._sup.parts.complain(traceback.format_exc())
                self._fail(Decision(False, "fault", errno.EPERM), "deny", errno.EPERM)

    def _tried(self, far: socket.socket | int, begun: int) -> None:
        from xensock.supervisor.connecting import is_own

        call, sup = self._call, self._sup
        while True:
            error = far if isinstance(far, int) else begun
            if error in (0, errno.EINPROGRESS) and not isinstance(far, int):
                self._go_on(far)
                return
            theirs = None
            if not isinstance(far, int):
                theirs = decided(far)
                far.close()
            if error not in AWAY or not call.left:
                break
            if self._over:
                return  # nobody waits for another one
            refused = self._refused()
            if refused is not None:
                self._fail(refused, "deny", refused.error)
                return
            self._stack = call.left.pop(0)
            if self._stack.passer is not None:
                try:
                    self._ask_next()
                    return
                except OSError as failure:
                    far, begun = failure.errno or errno.EIO, 0
            else:
                assert not isinstance(self._to, str)  # what has a path is dialled here
                far, begun = begin(sup.parts.relay, self._stack, self._options, self._to)
        decision = final(self.asked(), theirs)
        if error == errno.EACCES and is_own(call.end.host) and not self._stack.local:
            # Not the backend's loopback then, but the guest's, where nobody listens.
            self._fail(decision, "guest", errno.ECONNREFUSED)
            return
        self._fail(decision, "allow" if decision.allowed else "deny", error)

    def _ask_next(self) -> None:
        """Have the next backend dial. Raises OSError."""
        assert not isinstance(self._to, str)
        sup, stack = self._sup, self._stack
        dialled = dial(sup, stack, self._options, self._to)
        self._dial = stack.passer.dials, dialled
        dialled.add_done_callback(self.known)
        if self._over:  # meanwhile: gave_up() may have seen the one before
            give_up(sup, *self._dial)

    def _go_on(self, far: socket.socket) -> None:
        """A network carries the call."""
        kept = False
        try:
            refused = self._refused()
            if refused is not None:
                self._fail(refused, "deny", refused.error)
                return
            decision = final(self.asked(), decided(far))
            outcome: Outcome = "allow" if decision.allowed else "deny"
            kept = self._keep(far, 0, self._ended(decision, outcome))
        finally:
            if not kept:
                far.close()
        if kept:
            self.record(decision, outcome, errno.EINPROGRESS, self._call.key)

    def _refused(self) -> Decision | None:
        """What another policy, which is in force by now, has against the call; that it goes elsewhere is enough."""
        sup, end, asked = self._sup, self._call.end, self._call.asked
        if sup.point.policy.generation == self._generation:
            return None
        if sup.parts.gate is not None and (shut := sup.parts.gate()):
            return shut
        names = sup.point.names_of(end.host)
        found = sup.point.policy.connect(Protocol.TCP, end.host, end.port, names, self._subject)
        elsewhere = (found.via, found.redirect) != (asked.via, asked.redirect)
        if found.allowed and (elsewhere or sup.point.consults(Verb.CONNECT)):
            return Decision(False, CHANGED, errno.ECONNREFUSED, cacheable=False)
        return None if found.allowed else found

    def _ended(self, decision: Decision, outcome: Outcome) -> Ended | None:
        """Who is told of the connection's end."""
        sup, terms = self._sup, self._call.terms
        ended = None
        if sup.endings is not None and sup.point.recording:
            ended = sup.endings.ended(
                sup.point.make(
                    Verb.CONNECT, self._target, decision, outcome, self._path(outcome), 0,
                    pid=self._tid, program=self._program, user=self._user, start=self._start,
                    took=0, connection=self._call.key,
                )
            )  # fmt: skip
        if terms is not None:
            terms.ended = ended
        return terms or ended

    def _keep(self, far: socket.socket | None, error: int, ended: Ended | None = None) -> bool:
        """Tell the relay; whether the guest still waits, and nothing was said before."""
        if self._over or not self._sup.parts.relay.keep(self.hold, far, error, ended):
            return False
        self._over = True
        return True

    def _fail(self, decision: Decision, outcome: Outcome, error: int) -> None:
        """The end of the call, of which a guest that has given up hears nothing, nor anybody else."""
        if self._keep(None, error):
            self.record(decision, outcome, error)

    def gave_up(self) -> None:
        """The guest closed the socket, or its kernel waited long enough."""
        self._over = True
        give_up(self._sup, *self._dial)
        self.record(self.asked(), "allow", errno.EINPROGRESS)

    def _path(self, outcome: Outcome) -> Path:
        if outcome == "guest":
            return "guest"
        if outcome == "deny":
            return ""
        return "relay" if self._stack.local else "ring"

    def record(self, decision: Decision, outcome: Outcome, error: int, connection: int = 0) -> None:
        """What came of the call, by now."""
        point = self._sup.point
        if not point.keeps(outcome):
            return
        point.write(
            Verb.CONNECT, self._target, decision, outcome, self._path(outcome), error,
            pid=self._tid, program=self._program, user=self._user, start=self._start,
            took=time.monotonic_ns() - self._start, connection=connection,
        )  # fmt: skip
