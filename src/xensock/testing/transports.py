"""What every transport must hold (xensock.transport.base), as checks of a pair of sessions.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_mine(check):
        check(front, back, settle)

`settle()` has the backend's side take in what the frontend sent. A check leaves the sessions open, the last one apart.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from xensock.transport.base import PAGE, GrantError, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.transport.base import BackSession, FrontSession

    Settle = Callable[[], object]
    Check = Callable[[FrontSession, BackSession, Settle], None]

PATIENCE_S = 10.0


def pages_are_common(front: FrontSession, back: BackSession, settle: Settle) -> None:
    """Granted pages are zeroed, mapped in any order, and the same memory on both sides."""
    pages = front.allocate(3)
    settle()
    assert 0 not in pages.refs
    assert not any(pages.memory)
    with back.map([pages.refs[2], pages.refs[0]]) as view:
        assert len(view) == 2 * PAGE
        pages.memory[2 * PAGE : 2 * PAGE + 3] = b"abc"
        assert bytes(view[:3]) == b"abc"
        view[PAGE] = 7
        assert pages.memory[0] == 7
    pages.free()


def what_was_not_granted_is_refused(front: FrontSession, back: BackSession, settle: Settle) -> None:
    """References and ports that do not exist are errors, and do no harm."""
    pages = front.allocate(1)
    settle()
    for refs in ([0], [pages.refs[0] + 1000], [0xFFFFFFFF]):
        assert _refused(lambda refs=refs: back.map(refs))  # type: ignore[misc]
    assert _refused(lambda: back.bind(0xFFFF))
    pages.free()


def events_go_both_ways(front: FrontSession, back: BackSession, settle: Settle) -> None:
    """A notification wakes the other side once; a port is bound once at a time."""
    mine = front.event()
    settle()
    theirs = back.bind(mine.port)
    assert _refused(lambda: back.bind(mine.port))
    for sender, receiver in ((mine, theirs), (theirs, mine)):
        assert not receiver.clear()
        sender.notify()
        sender.notify()
        assert select.select([receiver.wait_fd], [], [], PATIENCE_S)[0]
        assert receiver.clear()
        assert not receiver.clear()
    theirs.close()
    mine.close()


def nodes_go_both_ways(front: FrontSession, back: BackSession, settle: Settle) -> None:
    """Each side sees what the other wrote, and keeps what was not written anew."""
    front.write({"state": "1", "one": "1"})
    front.write({"one": "2"})
    settle()
    assert back.nodes["state"] == "1"
    assert back.nodes["one"] == "2"
    back.write({"versions": "1"})
    seen = front.wait_for(lambda nodes: nodes.get("versions") == "1", PATIENCE_S)
    assert "one" not in seen


def the_end_is_heard(front: FrontSession, back: BackSession, settle: Settle) -> None:
    """A backend that closes ends the session with an error; what was mapped stays usable."""
    pages = front.allocate(1)
    settle()
    with back.map(pages.refs) as view:
        back.close("the end")
        try:
            front.wait_for(lambda nodes: False, PATIENCE_S)
        except TransportError:
            assert front.error is not None
        else:
            raise AssertionError("the frontend waits for a backend that is gone")
        view[0] = 1
        assert pages.memory[0] == 1


def _refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except GrantError:
        return True
    return False


CHECKS: tuple[Check, ...] = (
    pages_are_common,
    what_was_not_granted_is_refused,
    events_go_both_ways,
    nodes_go_both_ways,
    the_end_is_heard,
)
