"""The frontend against a backend that answers late, out of order, wrongly, or not at all."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

import pytest
from pairs import held
from scripted import STEPS, Script, until

from xensock import _core
from xensock.pvcalls.datapages import Spares
from xensock.transport.base import PAGE, TransportError
from xensock.wire import indexes, store
from xensock.wire.commands import (
    Accept,
    Bind,
    Command,
    Connect,
    ConnectFlag,
    GetName,
    Listen,
    Poll,
    Release,
    Response,
    Socket,
)
from xensock.wire.errors import ENOTSUP, WireError
from xensock.wire.extensions import ALL, V1, Extension
from xensock.wire.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from xensock.pvcalls.frontend import Frontend

RICH = store.Offer(max_ring_page_order=4, max_large_page_order=13, extensions=ALL)

Make = "Callable[..., tuple[Script, Frontend]]"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., tuple[Script, Frontend]]]:
    """Makes connected pairs; all are closed afterwards."""
    scripts: list[Script] = []
    fronts: list[Frontend] = []

    def pair(offer: store.Offer | None = None, **options: object) -> tuple[Script, Frontend]:
        (tmp_path / str(len(scripts))).mkdir()
        scripts.append(Script(tmp_path / str(len(scripts)), offer))
        fronts.append(scripts[-1].frontend(**options))
        return scripts[-1], fronts[-1]

    yield pair
    for front in fronts:
        front.close(0.2)
    for script in scripts:
        script.close()


# --- the handshake


def test_with_a_v1_backend_nothing_but_v1_is_said(make: Make) -> None:
    script, front = make()
    assert script.session.nodes.keys() == {"version", "ring-ref", "port", "state"}
    until(lambda: script.states[-1] == State.CONNECTED)
    assert set(script.states) <= {-1, 1, 3, 4}
    assert front.features == store.Features(V1, 9, 0)
    assert script.ring.slots == 32
    assert front.error is None


def test_extensions_are_those_that_both_have(make: Make) -> None:
    offered = {Extension.NAMES, Extension.RESOLVE, Extension.IPV6}
    nodes = store.Offer(extensions=frozenset(offered), max_ring_page_order=3).nodes()
    script, front = make({**nodes, "feature-of-tomorrow": "1"}, wanted=ALL - {Extension.IPV6})
    # resolve is of no use without datagrams
    assert front.features.extensions == {Extension.NAMES}
    assert front.features.slots == 128
    assert script.ring.slots == 128
    assert script.session.nodes["ring-page-order"] == "2"


def test_what_is_no_backend_of_ours(tmp_path: Path) -> None:
    good = store.Offer().nodes()
    for nodes in (
        {},
        {**good, "versions": "2"},
        {**good, "function-calls": "0"},
        {**good, "max-page-order": "many"},
    ):
        before = held()
        script = Script(tmp_path, nodes)
        with pytest.raises((WireError, OSError)) as raised:
            script.frontend()
        assert str(raised.value)
        script.close()
        assert held() == before


def test_a_backend_that_goes_back_breaks_the_protocol(make: Make) -> None:
    script, front = make()
    future = front.submit(Poll(1))
    script.state(State.INITIALISING)
    with pytest.raises(OSError, match="INITIALISING") as raised:
        future.result(5)
    assert raised.value.errno == errno.EPROTO


@pytest.mark.parametrize("step", STEPS[:-1])
def test_a_backend_that_vanishes_during_the_handshake(tmp_path: Path, step: str) -> None:
    before = held()
    script = Script(tmp_path, until=step)
    with pytest.raises(TransportError) as raised:
        script.frontend()
    assert raised.value.errno in (errno.ECONNRESET, errno.ENOTCONN, errno.ECONNREFUSED)
    script.close()
    assert held() == before


def test_a_backend_that_says_nothing(tmp_path: Path) -> None:
    before = held()
    script = Script(tmp_path, {"nothing": "said"})
    script.offer = {}
    script._until = 9  # it offers nodes and waits for ever  # shakes hands no further
    with pytest.raises((TimeoutError, OSError, WireError)):
        script.frontend(timeout=0.05)
    script.close()
    assert held() == before


# --- calls


def test_a_call_and_its_answer(make: Make) -> None:
    script, front = make(RICH)
    future = front.submit(Socket(7, 2, 1, 0))
    req_id, request = script.take()
    assert request == Socket(7, 2, 1, 0)
    script.answer(req_id, request)
    response = future.result(5)
    assert (response.id, response.cmd, response.ret) == (7, Command.SOCKET, 0)

    future = front.submit(GetName(7, 0))
    req_id, request = script.take()
    script.respond(Response(req_id, Command.GETNAME, 0, 7).with_address(b"\x02\x00address"))
    assert future.result(5).address == b"\x02\x00address"


def test_what_v1_leaves_undefined_in_an_answer_is_not_read(make: Make) -> None:
    """Linux's backend leaves there what was in the slot."""
    script, front = make()
    future = front.submit(Accept(7, 8, 9, 10))
    req_id, _ = script.take()
    script.respond(Response(req_id, Command.ACCEPT, 0, 7).with_address(b"\x09\x00no address"))
    assert future.result(5).address == b""


def test_answers_come_in_any_order(make: Make) -> None:
    script, front = make()
    futures = {id: front.submit(Bind(id, b"")) for id in range(20)}
    taken = [script.take() for _ in futures]
    for req_id, request in reversed(taken):
        script.answer(req_id, request, -request.id)
    for id, future in futures.items():
        assert future.result(5).ret == -id


@pytest.mark.parametrize(
    ("ret", "number"),
    [
        (-13, errno.EACCES),
        (-111, errno.ECONNREFUSED),
        (ENOTSUP, errno.EOPNOTSUPP),
        (-4000, errno.EIO),
    ],
)
def test_errors_are_raised(make: Make, ret: int, number: int) -> None:
    script, front = make()
    script.echo = lambda req_id, request: Response(req_id, Command.LISTEN, ret, request.id)
    with pytest.raises(OSError, match="Errno") as raised:
        front.command(Listen(1, 5), timeout=5)
    assert raised.value.errno == number


def test_24_calls_are_parked_and_others_pass_them(make: Make) -> None:
    script, front = make()
    parked = [front.submit(Accept(id, 100 + id, id, id)) for id in range(1, 31)]
    taken = [script.take() for _ in range(24)]
    assert script.idle()
    assert [request.id for _, request in taken] == list(range(1, 25))
    for id in range(200):  # each goes at once, by any of the 8 slots left
        future = front.submit(Release(id))
        req_id, request = script.take()
        assert request == Release(id)
        assert req_id not in {each for each, _ in taken}
        script.answer(req_id, request)
        future.result(5)
    script.answer(*taken.pop(5))
    assert parked[5].result(5).id == 6
    req_id, request = script.take()
    assert request.id == 25
    assert script.idle()
    for each in [*taken, (req_id, request)]:
        script.answer(*each)
    for _ in range(5):
        script.answer(*script.take())
    for future in parked:
        future.result(5)


def test_what_parks(make: Make) -> None:
    script, front = make()
    for id in range(24):
        front.submit(Poll(id))
        script.take()
    front.submit(Poll(100))
    front.submit(Connect(101, b"", 0, 5, 6))
    assert script.idle()
    front.submit(Connect(102, b"", ConnectFlag.ASYNC, 5, 6))
    assert script.take()[1].id == 102
    front.submit(Connect(103, b"", 0, 0, 0))  # the peer of a datagram socket
    assert script.take()[1].id == 103


def test_larger_rings_park_more(make: Make) -> None:
    script, front = make(RICH)
    for id in range(100):
        front.submit(Poll(id))
    for _ in range(96):
        script.take()
    assert script.idle()


def test_a_full_ring_is_no_error(make: Make) -> None:
    script, front = make()
    futures = [front.submit(Release(id)) for id in range(100)]
    for id in range(100):
        req_id, request = script.take()
        assert request.id == id
        script.answer(req_id, request)
    for future in futures:
        future.result(5)


def test_a_late_answer_belongs_to_nobody_else(make: Make) -> None:
    script, front = make()
    with pytest.raises(TimeoutError) as raised:
        front.command(Poll(1), timeout=0.01)
    assert raised.value.errno == errno.ETIMEDOUT
    late = script.take()
    future = front.submit(Poll(2))
    other = script.take()
    assert other[0] != late[0]
    script.answer(*late)
    assert not future.done()
    script.answer(*other)
    assert future.result(5).id == 2


def test_a_call_that_waits_for_its_turn_can_be_cancelled(make: Make) -> None:
    script, front = make()
    for id in range(24):
        front.submit(Poll(id))
    waiting = [front.submit(Poll(id)) for id in (100, 101)]
    taken = [script.take() for _ in range(24)]
    assert waiting[0].cancel()
    script.answer(*taken[0])
    assert script.take()[1].id == 101
    with pytest.raises(CancelledError):
        waiting[0].result(0)
    assert not waiting[1].cancel()  # it is the backend's


def test_threads_do_not_mix_their_answers(make: Make) -> None:
    script, front = make()
    script.echo = lambda req_id, request: Response(req_id, Command.RELEASE, -request.id, request.id)
    wrong: list[object] = []

    def work(base: int) -> None:
        for id in range(base, base + 100):
            response = front.submit(Release(id)).result(20)
            if (response.id, response.ret) != (id, -id):
                wrong.append(response)

    threads = [threading.Thread(target=work, args=(number * 1000,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


def test_a_request_that_has_no_room(make: Make) -> None:
    script, front = make()
    with pytest.raises(WireError):
        front.submit(Bind(1, bytes(29)))
    assert script.idle()


def test_ids_are_never_given_twice(make: Make) -> None:
    _, front = make()
    assert len({front.new_id() for _ in range(100)}) == 100


# --- the end


def test_when_the_backend_vanishes_every_call_fails_at_once(make: Make) -> None:
    script, front = make()
    sent = [front.submit(Poll(id)) for id in range(24)]
    queued = [front.submit(Poll(id)) for id in range(5)]
    start = time.monotonic()
    script.vanish()
    for future in sent + queued:
        with pytest.raises(OSError, match="Errno") as raised:
            future.result(5)
        assert raised.value.errno == errno.ECONNRESET
    assert time.monotonic() - start < 2
    with pytest.raises(OSError, match="Errno") as raised:
        front.submit(Poll(1))
    assert raised.value.errno == errno.ECONNRESET
    with pytest.raises(OSError, match="Errno"):
        front.data_ring(1)
    assert front.error is not None


def test_the_backends_reason_is_told(make: Make) -> None:
    script, front = make()
    future = front.submit(Poll(1))
    script.vanish("you asked for it")
    with pytest.raises(OSError, match="you asked for it"):
        future.result(5)


def test_an_orderly_end_by_the_backend(make: Make) -> None:
    script, front = make()
    future = front.submit(Poll(1))
    script.take()
    script.follow = False
    script.call(script._unmap)
    script.state(State.CLOSING)
    with pytest.raises(OSError, match="over") as raised:
        future.result(5)
    assert raised.value.errno == errno.ENOTCONN
    until(lambda: script.states[-1] == State.CLOSED)


def test_an_orderly_end_by_us(make: Make) -> None:
    script, front = make()
    future = front.submit(Poll(1))
    front.close()
    until(lambda: script.states[-2:] == [State.CLOSING, State.CLOSED])
    assert script.page is None
    with pytest.raises(OSError, match="Errno") as raised:
        future.result(0)
    assert raised.value.errno == errno.ENOTCONN
    with pytest.raises(OSError, match="Errno") as raised:
        front.submit(Poll(1))
    assert raised.value.errno == errno.ENOTCONN
    front.close()


def test_a_backend_that_does_not_let_go_is_left(make: Make) -> None:
    script, front = make()
    script.follow = False
    start = time.monotonic()
    front.close(0.05)
    assert time.monotonic() - start < 5
    until(lambda: script.session.fileno() < 0)


@pytest.mark.parametrize(
    "lie",
    [
        lambda script: script._respond(Response(77, Command.POLL, 0, 1)),
        lambda script: script._respond(Response(0xFFFFFFFF, Command.POLL, 0, 1)),
        lambda script: script._respond(Response(script.taken[0], Command.ACCEPT, 0, 1)),
        lambda script: struct.pack_into("<I", script.page, 8, 33) or script.event.notify(),
    ],
    ids=["a req_id in range", "a req_id out of range", "another command", "rsp_prod"],
)
def test_answers_that_were_not_asked_for_end_the_session(make: Make, lie: Callable) -> None:
    script, front = make()
    future = front.submit(Poll(1))
    script.taken = script.take()
    script.call(lambda: lie(script))
    with pytest.raises(OSError, match="Errno") as raised:
        future.result(5)
    assert raised.value.errno == errno.EPROTO
    with pytest.raises(OSError, match="Errno"):
        front.submit(Poll(1))


def test_a_child_of_fork_has_no_frontend(make: Make) -> None:
    script, front = make()
    end, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for call in (lambda: front.submit(Poll(1)), lambda: front.data_ring(1), front.close):
                try:
                    call()
                except RuntimeError as error:
                    os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(end) as stream:
        assert stream.read().count("parent") == 3
    os.waitpid(pid, 0)
    assert script.idle()
    front.submit(Poll(2))
    assert script.take()[1].id == 2


def test_nothing_stays(tmp_path: Path) -> None:
    def session(number: int) -> None:
        (tmp_path / str(number)).mkdir()
        script = Script(tmp_path / str(number), RICH)
        front = script.frontend()
        front.submit(Poll(1))
        rings = [front.data_ring(3) for _ in range(3)]
        rings[0].free()
        if number % 2:
            script.vanish()
        for ring in rings[number % 3 :]:
            ring.free()
        front.close()
        script.close()  # what was never freed goes with the session

    session(0)
    threads, before = threading.active_count(), held()
    for number in range(1, 9):
        session(number)
    assert held() == before
    assert threading.active_count() == threads


# --- data rings


def test_a_data_ring_as_the_backend_finds_it(make: Make) -> None:
    script, front = make()
    ring = front.data_ring(2)

    def look() -> tuple[indexes.Layout, bytes]:
        script.session.receive()
        page = script.session.map([ring.ref])
        layout = indexes.read_layout(page)
        data = script.session.map(layout.refs)
        back = _core.DataRing(page, data, "back")
        back.write(b"to the frontend")
        back.close()
        data.release()
        page.release()
        event = script.session.bind(ring.port)
        event.notify()
        event.close()
        return layout, b""

    found: list[indexes.Layout] = []
    script.call(lambda: found.append(look()[0]))
    assert (found[0].order, len(found[0].refs)) == (2, 4)
    mine = _core.DataRing(ring.indexes, ring.data, "front")
    assert mine.read(100)[0] == b"to the frontend"
    assert ring.event.clear()
    assert ring.size == 2 * PAGE
    mine.close()
    ring.free()
    ring.free()


def test_orders_are_what_the_backend_takes(make: Make) -> None:
    _, front = make(store.Offer(max_page_order=3))
    assert front.data_ring(9).size == 4 * PAGE
    assert front.data_ring(0).size == PAGE


def test_large_rings_name_their_pages_in_pages(make: Make) -> None:
    script, front = make(RICH)
    ring = front.data_ring(11)
    found: list[int] = []

    def look() -> None:
        script.session.receive()
        with script.session.map([ring.ref]) as page:
            layout = indexes.read_layout(page, 13)
        assert layout.indirect
        for ref in layout.refs:
            with script.session.map([ref]) as page:
                found.extend(indexes.decode_refs(bytes(page)))

    script.call(look)
    assert len(found) == len(set(found)) == 1 << 11


def test_rings_are_used_anew_when_nobody_looks(make: Make) -> None:
    script, front = make()
    first = front.data_ring(2)
    names = first.ref, first.port
    first.indexes[0] = 9
    seen = _core.DataRing(first.indexes, first.data, "front")
    first.free()  # somebody looks
    other = front.data_ring(2)
    assert other.ref != names[0]
    seen.close()
    names = other.ref, other.port
    other.indexes[0] = 9
    other.event.notify()
    other.free()
    again = front.data_ring(2)
    assert (again.ref, again.port) == names
    assert bytes(again.indexes[:16]) == bytes(16)
    assert front.data_ring(3).ref != again.ref
    assert script.idle()


def test_not_all_rings_are_kept(make: Make) -> None:
    _, front = make()
    spares = Spares(front.session, events=False)
    rings = [spares.take(7) for _ in range(20)]
    ports = front.session._open_ports
    assert len(ports) == 21  # with the command ring's
    for ring in rings:
        ring.free()
    # 129 pages each: 7 of them fit into MOST_PAGES. The others' event channels are closed.
    assert len(ports) == 1 + Spares.MOST_PAGES // 129
    spares.close()
    assert len(ports) == 1
    spares.take(1).free()  # closed: it keeps nothing more
    assert len(ports) == 1
