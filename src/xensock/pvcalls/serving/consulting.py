"""Calls that wait for somebody's word beside the rules: a hook's, or another backend's.

The loop goes on with other calls. Once the word is there, the call goes on in a turn of its own; if another policy is
in force by then, it is judged anew.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from xensock.pvcalls.serving.held import Phase

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from xensock.calls.address import Endpoint
    from xensock.calls.call import Decision, Protocol, Verb
    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held

Word = TypeVar("Word")


def ask(
    guest: Guest, verb: Verb, decision: Decision, protocol: Protocol, end: Endpoint
) -> Future[Decision] | None:
    """Who is asked about a call of which the rules say this, by its (unmapped) address; None: nobody."""
    return guest.point.consult(verb, decision, protocol, end, guest.transport.pid)


def then(guest: Guest, word: Future[Word], known: Callable[[Word | None], None]) -> None:
    """known(what was decided) in the loop, as soon as it is; with None if another policy is in force."""
    generation = guest.point.policy.generation
    loop = guest.backend.loop

    def tell() -> None:
        known(word.result() if guest.point.policy.generation == generation else None)

    def came(word: Future[Word]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            loop.call_soon_threadsafe(tell)

    word.add_done_callback(came)


def park(
    guest: Guest,
    call: Call,
    held: Held,
    word: Future[Word],
    go_on: Callable[[Word], None],
    again: Callable[[], None],
) -> None:
    """Let a call at a socket wait, which is busy meanwhile: go_on(what was decided), or `again` under another policy.
    Both may raise OSError, which is the call's end. Released meanwhile, the call is answered then."""
    before = held.phase
    over = False

    def give_up(error: int) -> None:
        nonlocal over
        over = True
        held.phase, held.cancel = before, None
        call.fail(error)

    def known(decision: Word | None) -> None:
        if over or guest.gone:
            return
        held.phase, held.cancel = before, None
        try:
            if decision is None:
                again()
            else:
                go_on(decision)
        except OSError as error:
            call.fail(error.errno or errno.EIO)
        except Exception:
            guest.log.exception("internal error, a call of %s was refused", guest.name)
            if not call.answered:
                call.fail(errno.EPERM)

    held.phase, held.cancel = Phase.CONNECTING, give_up
    then(guest, word, known)
