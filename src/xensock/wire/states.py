"""How a session begins and ends: the xenbus states of both sides, as tables.

Theory of operation
- Each side publishes its own state in the store and watches the other's. A watch may fire late, for
  nothing, or once for several changes: what counts is the other's state as it is now.
- A table maps (own state, what happened) to the new state and the actions that come with it.
  What happened is the other's state, or an event of one's own.
- Actions are carried out in the table's order, then the new state is published. If one of them
  fails, the machine is given FAULT in the old state instead.
- What a table does not have breaks the protocol: it is taken as FAULT, and the step says so.
- After a step the other's current state is given again, until nothing changes.
- CLOSED is final. A session is never taken up again: the frontend opens a new one.

Rules
- Everything that decides about a session's states is here; the diagrams of
  docs/reference/pvcalls.md are drawn from these tables (tools/states.py).
- The frontend frees its pages only when the backend let go of them, or the transport is gone.
- UNKNOWN of the other side means that its nodes are gone. Nodes that it has not written yet are
  not a state: nothing happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TypeAlias


class State(IntEnum):
    """xenbus states (xen/include/public/io/xenbus.h). PV Calls does not use the last two."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


class Event(StrEnum):
    """What happens on one's own side."""

    START = "start"
    """The session is to begin."""
    STOP = "stop"
    """It is to end in order."""
    FAULT = "fault"
    """The other side broke the protocol, or an action failed."""
    LOST = "lost"
    """The transport is gone, and with it the other side."""


class Action(StrEnum):
    """What a step asks for, before the new state is published."""

    PUBLISH = "publish"
    """Backend: write the offer. Frontend: read it, make the command ring, write the choice."""
    MAP = "map"
    """Backend: map the command ring, bind its event channel, serve."""
    OPEN = "open"
    """Frontend: calls may be made."""
    FAIL = "fail calls"
    """Frontend: every call that waits for an answer fails, new ones too."""
    UNMAP = "unmap"
    """Backend: close every socket of the session, unmap every page, unbind every event channel."""
    FREE = "free"
    """Frontend: free the pages and event channels. Backend: forget the frontend."""
    EXPEL = "expel"
    """Backend: say why and end the transport, without waiting for the frontend."""


Input: TypeAlias = State | Event


@dataclass(frozen=True, slots=True)
class Step:
    """The new state, what to do first, and whether the other side broke the protocol."""

    state: State
    actions: tuple[Action, ...] = ()
    breach: bool = False


Table: TypeAlias = dict[tuple[State, Input], Step]

_EVERYTHING: tuple[Input, ...] = (*State, *Event)

FRONT: Table = {
    (State.UNKNOWN, Event.START): Step(State.INITIALISING),
    (State.UNKNOWN, State.INITIALISING): Step(State.UNKNOWN),
    (State.UNKNOWN, State.INIT_WAIT): Step(State.UNKNOWN),
    (State.UNKNOWN, Event.STOP): Step(State.CLOSED),
    (State.UNKNOWN, State.CLOSING): Step(State.CLOSED),
    (State.UNKNOWN, State.CLOSED): Step(State.CLOSED),
    (State.UNKNOWN, State.UNKNOWN): Step(State.CLOSED),
    (State.UNKNOWN, Event.FAULT): Step(State.CLOSED),
    (State.UNKNOWN, Event.LOST): Step(State.CLOSED),
    (State.INITIALISING, State.INITIALISING): Step(State.INITIALISING),
    (State.INITIALISING, State.INIT_WAIT): Step(State.INITIALISED, (Action.PUBLISH,)),
    (State.INITIALISING, Event.STOP): Step(State.CLOSED, (Action.FREE,)),
    (State.INITIALISING, State.CLOSING): Step(State.CLOSED, (Action.FREE,)),
    (State.INITIALISING, State.CLOSED): Step(State.CLOSED, (Action.FREE,)),
    (State.INITIALISING, State.UNKNOWN): Step(State.CLOSED, (Action.FREE,)),
    (State.INITIALISING, Event.FAULT): Step(State.CLOSED, (Action.FREE,)),
    (State.INITIALISING, Event.LOST): Step(State.CLOSED, (Action.FREE,)),
    (State.INITIALISED, State.INIT_WAIT): Step(State.INITIALISED),
    (State.INITIALISED, State.CONNECTED): Step(State.CONNECTED, (Action.OPEN,)),
    (State.INITIALISED, Event.STOP): Step(State.CLOSING, (Action.FAIL,)),
    (State.INITIALISED, Event.FAULT): Step(State.CLOSING, (Action.FAIL,)),
    (State.INITIALISED, State.CLOSING): Step(State.CLOSED, (Action.FAIL, Action.FREE)),
    (State.INITIALISED, State.CLOSED): Step(State.CLOSED, (Action.FAIL, Action.FREE)),
    (State.INITIALISED, State.UNKNOWN): Step(State.CLOSED, (Action.FAIL, Action.FREE)),
    (State.INITIALISED, Event.LOST): Step(State.CLOSED, (Action.FAIL, Action.FREE)),
    (State.CONNECTED, State.CONNECTED): Step(State.CONNECTED),
    (State.CONNECTED, Event.STOP): Step(State.CLOSING, (Action.FAIL,)),
    (State.CONNECTED, Event.FAULT): Step(State.CLOSING, (Action.FAIL,)),
    (State.CONNECTED, State.CLOSING): Step(State.CLOSED, (Action.FAIL, Action.FREE)),
    (State.CONNECTED, State.CLOSED): Step(State.CLOSED, (Action.FAIL, Action.FREE)),
    (State.CONNECTED, State.UNKNOWN): Step(State.CLOSED, (Action.FAIL, Action.FREE)),
    (State.CONNECTED, Event.LOST): Step(State.CLOSED, (Action.FAIL, Action.FREE)),
    (State.CLOSING, State.INITIALISING): Step(State.CLOSING),
    (State.CLOSING, State.INIT_WAIT): Step(State.CLOSING),
    (State.CLOSING, State.CONNECTED): Step(State.CLOSING),
    (State.CLOSING, Event.STOP): Step(State.CLOSING),
    (State.CLOSING, Event.FAULT): Step(State.CLOSING),
    (State.CLOSING, State.CLOSING): Step(State.CLOSED, (Action.FREE,)),
    (State.CLOSING, State.CLOSED): Step(State.CLOSED, (Action.FREE,)),
    (State.CLOSING, State.UNKNOWN): Step(State.CLOSED, (Action.FREE,)),
    (State.CLOSING, Event.LOST): Step(State.CLOSED, (Action.FREE,)),
    **{(State.CLOSED, what): Step(State.CLOSED) for what in _EVERYTHING},
}

BACK: Table = {
    (State.UNKNOWN, Event.START): Step(State.INIT_WAIT, (Action.PUBLISH,)),
    (State.UNKNOWN, State.INITIALISING): Step(State.UNKNOWN),
    (State.UNKNOWN, Event.STOP): Step(State.CLOSING),
    (State.UNKNOWN, Event.FAULT): Step(State.CLOSING, (Action.EXPEL,)),
    (State.UNKNOWN, State.CLOSING): Step(State.CLOSING),
    (State.UNKNOWN, State.CLOSED): Step(State.CLOSED, (Action.FREE,)),
    (State.UNKNOWN, State.UNKNOWN): Step(State.CLOSED, (Action.FREE,)),
    (State.UNKNOWN, Event.LOST): Step(State.CLOSED, (Action.FREE,)),
    (State.INITIALISING, Event.START): Step(State.INIT_WAIT, (Action.PUBLISH,)),
    (State.INITIALISING, State.INITIALISING): Step(State.INITIALISING),
    (State.INITIALISING, Event.STOP): Step(State.CLOSING),
    (State.INITIALISING, Event.FAULT): Step(State.CLOSING, (Action.EXPEL,)),
    (State.INITIALISING, State.CLOSING): Step(State.CLOSING),
    (State.INITIALISING, State.CLOSED): Step(State.CLOSED, (Action.FREE,)),
    (State.INITIALISING, State.UNKNOWN): Step(State.CLOSED, (Action.FREE,)),
    (State.INITIALISING, Event.LOST): Step(State.CLOSED, (Action.FREE,)),
    (State.INIT_WAIT, State.INITIALISING): Step(State.INIT_WAIT),
    (State.INIT_WAIT, State.INITIALISED): Step(State.CONNECTED, (Action.MAP,)),
    (State.INIT_WAIT, Event.STOP): Step(State.CLOSING),
    (State.INIT_WAIT, Event.FAULT): Step(State.CLOSING, (Action.EXPEL,)),
    (State.INIT_WAIT, State.CLOSING): Step(State.CLOSING),
    (State.INIT_WAIT, State.CLOSED): Step(State.CLOSED, (Action.FREE,)),
    (State.INIT_WAIT, State.UNKNOWN): Step(State.CLOSED, (Action.FREE,)),
    (State.INIT_WAIT, Event.LOST): Step(State.CLOSED, (Action.FREE,)),
    (State.CONNECTED, State.INITIALISED): Step(State.CONNECTED),
    (State.CONNECTED, State.CONNECTED): Step(State.CONNECTED),
    (State.CONNECTED, Event.STOP): Step(State.CLOSING, (Action.UNMAP,)),
    (State.CONNECTED, Event.FAULT): Step(State.CLOSING, (Action.UNMAP, Action.EXPEL)),
    (State.CONNECTED, State.CLOSING): Step(State.CLOSING, (Action.UNMAP,)),
    (State.CONNECTED, State.CLOSED): Step(State.CLOSED, (Action.UNMAP, Action.FREE)),
    (State.CONNECTED, State.UNKNOWN): Step(State.CLOSED, (Action.UNMAP, Action.FREE)),
    (State.CONNECTED, Event.LOST): Step(State.CLOSED, (Action.UNMAP, Action.FREE)),
    (State.CLOSING, State.INITIALISING): Step(State.CLOSING),
    (State.CLOSING, State.INITIALISED): Step(State.CLOSING),
    (State.CLOSING, State.CONNECTED): Step(State.CLOSING),
    (State.CLOSING, State.CLOSING): Step(State.CLOSING),
    (State.CLOSING, Event.STOP): Step(State.CLOSING),
    (State.CLOSING, Event.FAULT): Step(State.CLOSING, (Action.EXPEL,)),
    (State.CLOSING, State.CLOSED): Step(State.CLOSED, (Action.FREE,)),
    (State.CLOSING, State.UNKNOWN): Step(State.CLOSED, (Action.FREE,)),
    (State.CLOSING, Event.LOST): Step(State.CLOSED, (Action.FREE,)),
    (State.CLOSED, State.CLOSED): Step(State.CLOSED),
    (State.CLOSED, State.CLOSING): Step(State.CLOSED),
    (State.CLOSED, State.UNKNOWN): Step(State.CLOSED),
    (State.CLOSED, Event.START): Step(State.CLOSED),
    (State.CLOSED, Event.STOP): Step(State.CLOSED),
    (State.CLOSED, Event.LOST): Step(State.CLOSED),
    # A frontend that begins again: no session is taken up a second time.
    (State.CLOSED, Event.FAULT): Step(State.CLOSED, (Action.EXPEL,)),
}


def _step(table: Table, state: State, what: Input) -> Step:
    found = table.get((state, what))
    if found is not None:
        return found
    fault = table.get((state, Event.FAULT), Step(State.CLOSED))
    return Step(fault.state, fault.actions, breach=True)


def front(state: State, what: Input) -> Step:
    """The frontend's step, for every state and every input."""
    return _step(FRONT, state, what)


def back(state: State, what: Input) -> Step:
    """The backend's step, for every state and every input."""
    return _step(BACK, state, what)


def seen(text: str) -> State:
    """The state in a `state` node; what is no number of a state is UNKNOWN, as in xenbus."""
    try:
        return State(int(text)) if text.isascii() and text.isdigit() else State.UNKNOWN
    except ValueError:
        return State.UNKNOWN


def diagram(table: Table) -> str:
    """A table as a mermaid state diagram; steps that neither move nor do anything are left out."""
    labels: dict[tuple[State, State, tuple[Action, ...]], list[str]] = {}
    for (state, what), step in table.items():
        if step.state != state or step.actions:
            word = what.value if isinstance(what, Event) else f"other {what.name}"
            labels.setdefault((state, step.state, step.actions), []).append(word)
    lines = ["stateDiagram-v2"]
    for (state, new, actions), words in labels.items():
        doing = f" / {', '.join(actions)}" if actions else ""
        lines.append(f"    {state.name} --> {new.name}: {' | '.join(words)}{doing}")
    return "\n".join(lines) + "\n"
