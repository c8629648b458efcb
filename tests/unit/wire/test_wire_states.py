"""The session's states: every way two honest sides can go, and what a dishonest one gets."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from xensock.wire import states
from xensock.wire.states import BACK, FRONT, Action, Event, State, Table

EVERY_INPUT: list[states.Input] = [*State, *Event]


class Side(NamedTuple):
    """One side as the explorer sees it: its state and what it holds."""

    state: State
    holds: bool = False
    """Frontend: pages are granted. Backend: they are mapped."""
    left: bool = False
    """It will do nothing any more of its own accord."""


class Pair(NamedTuple):
    """Both sides, and the states of each that the other has not looked at yet."""

    front: Side
    back: Side
    to_front: tuple[State, ...] = ()
    to_back: tuple[State, ...] = ()
    front_saw: State | None = None
    back_saw: State | None = None
    broken: bool = False
    """The transport is gone."""


def act(side: Side, step: states.Step) -> Side:
    holds = side.holds
    for action in step.actions:
        if action in (Action.PUBLISH, Action.MAP):
            holds = True
        if action is Action.UNMAP:
            assert holds, "unmapped what was not mapped"
        if action in (Action.FREE, Action.UNMAP):
            holds = False
    return side._replace(state=step.state, holds=holds)


def front_does(pair: Pair, what: states.Input) -> Pair:
    step = states.front(pair.front.state, what)
    assert not step.breach, f"{pair} {what}"
    if Action.FREE in step.actions and not pair.broken:
        assert not pair.back.holds, f"freed what the backend has mapped: {pair} {what}"
    side = act(pair.front, step)
    told = (*pair.to_back, step.state) if step.state != pair.front.state else pair.to_back
    return pair._replace(front=side, to_back=told)


def back_does(pair: Pair, what: states.Input) -> Pair:
    step = states.back(pair.back.state, what)
    assert not step.breach, f"{pair} {what}"
    actions = [action for action in step.actions if action is not Action.PUBLISH]
    if Action.MAP in actions:
        assert pair.front.holds, f"mapped what is not granted: {pair} {what}"
    side = act(pair.back, states.Step(step.state, tuple(actions)))
    told = (*pair.to_front, step.state) if step.state != pair.back.state else pair.to_front
    return pair._replace(back=side, to_front=told)


def moves(pair: Pair, *, stops: bool, loss: bool) -> list[Pair]:
    """What may happen next: a watch that skips states, a start, an end of either side's wish."""
    following = []
    if not pair.broken:
        for index, state in enumerate(pair.to_front):
            rest = pair._replace(to_front=pair.to_front[index + 1 :], front_saw=state)
            following.append(front_does(rest, state))
        for index, state in enumerate(pair.to_back):
            rest = pair._replace(to_back=pair.to_back[index + 1 :], back_saw=state)
            following.append(back_does(rest, state))
    # What was seen is given again after any step, and a watch may fire for nothing.
    if pair.front_saw is not None and not pair.broken:
        following.append(front_does(pair, pair.front_saw))
    if pair.back_saw is not None and not pair.broken:
        following.append(back_does(pair, pair.back_saw))
    if pair.back.state is State.INITIALISING:
        following.append(back_does(pair, Event.START))
    if pair.front.state is State.UNKNOWN:
        following.append(front_does(pair, Event.START))
    if stops and not pair.front.left:
        following.append(
            front_does(pair._replace(front=pair.front._replace(left=True)), Event.STOP)
        )
    if stops and not pair.back.left:
        following.append(back_does(pair._replace(back=pair.back._replace(left=True)), Event.STOP))
    if loss and not pair.broken:
        broken = pair._replace(broken=True)
        following.append(back_does(front_does(broken, Event.LOST), Event.LOST))
    return following


def explore(start: Pair, *, stops: bool = False, loss: bool = False) -> tuple[set[Pair], set[Pair]]:
    """Every pair that can come up, and those in which nothing happens any more."""
    known, todo, ends = {start}, [start], set()
    while todo:
        pair = todo.pop()
        following = [one for one in moves(pair, stops=stops, loss=loss) if one != pair]
        if not following:
            ends.add(pair)
        todo += set(following) - known
        known |= set(following)
    return known, ends


BEGINNINGS = [
    pytest.param(Pair(Side(State.INITIALISING), Side(State.INITIALISING)), id="toolstack"),
    pytest.param(Pair(Side(State.UNKNOWN), Side(State.INITIALISING)), id="local"),
]


@pytest.mark.parametrize("start", BEGINNINGS)
def test_left_alone_both_sides_become_connected(start: Pair) -> None:
    _, ends = explore(start)
    assert {(pair.front, pair.back) for pair in ends} == {
        (Side(State.CONNECTED, holds=True), Side(State.CONNECTED, holds=True))
    }


@pytest.mark.parametrize("start", BEGINNINGS)
@pytest.mark.parametrize("loss", [False, True], ids=["orderly", "loss"])
def test_whoever_stops_when_both_end_closed_with_nothing_held(start: Pair, loss: bool) -> None:
    known, ends = explore(start, stops=True, loss=loss)
    assert len(known) > 50
    assert {(pair.front.state, pair.back.state) for pair in ends} == {(State.CLOSED, State.CLOSED)}
    assert not any(pair.front.holds or pair.back.holds for pair in ends)


def walk(table: Table, state: State, *inputs: states.Input) -> list[State]:
    passed = []
    for what in inputs:
        state = (states.front if table is FRONT else states.back)(state, what).state
        passed.append(state)
    return passed


def test_the_order_of_the_specification() -> None:
    assert walk(
        FRONT, State.INITIALISING, State.INIT_WAIT, State.CONNECTED, Event.STOP, State.CLOSING
    ) == [State.INITIALISED, State.CONNECTED, State.CLOSING, State.CLOSED]
    assert walk(
        BACK, State.INITIALISING, Event.START, State.INITIALISED, State.CLOSING, State.CLOSED
    ) == [State.INIT_WAIT, State.CONNECTED, State.CLOSING, State.CLOSED]


def test_a_frontend_that_vanishes_is_cleaned_up_at_once() -> None:
    step = states.back(State.CONNECTED, Event.LOST)
    assert step == states.Step(State.CLOSED, (Action.UNMAP, Action.FREE))
    assert states.back(State.CONNECTED, State.UNKNOWN) == step
    assert states.back(State.CONNECTED, State.CLOSED) == step


@pytest.mark.parametrize("again", [State.INITIALISING, State.INITIALISED, State.CONNECTED])
def test_a_closed_session_is_not_taken_up_again(again: State) -> None:
    step = states.back(State.CLOSED, again)
    assert (step.state, step.breach) == (State.CLOSED, True)
    assert Action.EXPEL in step.actions
    assert states.front(State.CLOSED, again).state is State.CLOSED
    assert states.front(State.CLOSED, Event.START) == states.Step(State.CLOSED)


def test_a_frontend_that_begins_again_while_connected_is_expelled() -> None:
    step = states.back(State.CONNECTED, State.INITIALISING)
    assert step == states.Step(State.CLOSING, (Action.UNMAP, Action.EXPEL), breach=True)


@pytest.mark.parametrize("early", [State.UNKNOWN, State.INITIALISING, State.INIT_WAIT])
def test_a_frontend_cannot_be_connected_before_the_backend(early: State) -> None:
    step = states.back(early, State.CONNECTED)
    assert step.breach
    assert Action.MAP not in step.actions


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("what", EVERY_INPUT, ids=str)
def test_every_input_in_every_state_has_an_answer(state: State, what: states.Input) -> None:
    for side, table in ((states.front, FRONT), (states.back, BACK)):
        step = side(state, what)
        if step.breach and state in {own for own, _ in table}:
            assert isinstance(what, State) or what is Event.START
            assert step.state in (State.CLOSING, State.CLOSED)
        if state is State.CLOSED:
            assert step.state is State.CLOSED
            assert not {Action.OPEN, Action.MAP, Action.PUBLISH} & set(step.actions)


@pytest.mark.parametrize("table", [FRONT, BACK], ids=["front", "back"])
def test_every_state_of_a_table_knows_every_end(table: Table) -> None:
    for state in {state for state, _ in table}:
        for what in (Event.STOP, Event.FAULT, Event.LOST, State.CLOSED, State.CLOSING):
            assert (state, what) in table


@pytest.mark.parametrize("table", [FRONT, BACK], ids=["front", "back"])
def test_the_diagram_has_every_step_that_moves(table: Table) -> None:
    drawn = states.diagram(table)
    assert drawn.startswith("stateDiagram-v2\n")
    for (state, _), step in table.items():
        if state != step.state:
            assert f"    {state.name} --> {step.state.name}: " in drawn
        for action in step.actions:
            assert action in drawn


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("4", State.CONNECTED),
        ("0", State.UNKNOWN),
        ("9", State.UNKNOWN),
        ("", State.UNKNOWN),
        ("-1", State.UNKNOWN),
        ("\u0664", State.UNKNOWN),
        ("4" * 9999, State.UNKNOWN),
    ],
)
def test_states_in_the_store(text: str, state: State) -> None:
    assert states.seen(text) is state
