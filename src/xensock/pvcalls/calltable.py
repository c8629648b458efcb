"""Calls under way in a command ring: which cookie is whose, and how many may be parked.

A parked call (ACCEPT, POLL, CONNECT that waits) keeps its slot until something happens outside. If all slots were
parked nothing could be asked any more, so that some are always left for calls that are answered at once; calls beyond
wait here. Cookies come from a list of free ones: a ring's index would come round while a parked call still has it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xensock.wire.commands import Accept, Command, Connect, ConnectFlag, Poll, command_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from xensock.wire.commands import Request
    from xensock.wire.responses import Response

MOST_PARKED_V1 = 24


@dataclass(frozen=True, slots=True)
class Call:
    """A request and who waits for its answer."""

    request: Request
    future: Future[Response]
    command: Command
    parks: bool


def make_call(request: Request, future: Future[Response]) -> Call:
    """The call for a request. Raises WireError for what is none."""
    parks = isinstance(request, (Accept, Poll)) or (
        isinstance(request, Connect) and bool(request.ref) and not request.flags & ConnectFlag.ASYNC
    )
    return Call(request, future, command_of(request), parks)


class CallTable:
    """The calls of a ring with `slots` slots. Not for several threads at once."""

    def __init__(self, slots: int) -> None:
        self.most_parked = slots * MOST_PARKED_V1 // 32
        self.parked = 0
        self._free = deque(range(slots))
        self._under_way: dict[int, Call] = {}
        self._waiting: deque[Call] = deque()
        self._waiting_to_park: deque[Call] = deque()

    def __len__(self) -> int:
        """Calls under way."""
        return len(self._under_way)

    def add(self, call: Call) -> None:
        """Queue a call; `next` gives it out when it may go."""
        (self._waiting_to_park if call.parks else self._waiting).append(call)

    def next(self) -> tuple[int, Call] | None:
        """The next call to send and its cookie; None when none may go now. Calls that are answered at once go first;
        those that were cancelled while they waited are passed over."""
        while self._free:
            if self._waiting:
                call = self._waiting.popleft()
            elif self._waiting_to_park and self.parked < self.most_parked:
                call = self._waiting_to_park.popleft()
            else:
                return None
            if not call.future.set_running_or_notify_cancel():
                continue
            cookie = self._free.popleft()
            self._under_way[cookie] = call
            self.parked += call.parks
            return cookie, call
        return None

    def take(self, cookie: int, command: int) -> Call | None:
        """The call that this answer is for; None for an answer to what nobody asked (the call stays then)."""
        call = self._under_way.get(cookie)
        if call is None or call.command != command:
            return None
        del self._under_way[cookie]
        self._free.append(cookie)
        self.parked -= call.parks
        return call

    def clear(self) -> list[Call]:
        """Every call that has no answer; the table is empty then."""
        sent = list(self._under_way.values())
        queued = [
            call
            for call in (*self._waiting, *self._waiting_to_park)
            if call.future.set_running_or_notify_cancel()
        ]
        self._under_way.clear()
        self._waiting.clear()
        self._waiting_to_park.clear()
        self.parked = 0
        return sent + queued
