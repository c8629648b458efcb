"""What a backend decided about an own socket, or a name (extension explain)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xensock.calls.call import Decision
from xensock.wire.commands import Explain
from xensock.wire.errors import WireError, from_wire
from xensock.wire.explanations import Explanation
from xensock.wire.extensions import Extension

if TYPE_CHECKING:
    from xensock.client.held import Held


def explanation_of(held: Held) -> Explanation | None:
    """Why its last connect, bind or listen was allowed or refused; None where the backend does not say."""
    if not held.link.has(Extension.EXPLAIN):
        return None
    try:
        pages = held.link.frontend.session.allocate(1)
    except OSError:
        return None
    try:
        length = held.command(Explain(held.id, pages.refs[0])).length
        return Explanation.decode(bytes(pages.memory[:length]))[0]
    except (OSError, WireError):
        return None
    finally:
        pages.free()


def decision_of(why: Explanation) -> Decision:
    """What a backend decided, as ours are; never kept, as its rules may change."""
    error = from_wire(why.error) if why.error else 0
    return Decision(why.allowed, why.rule, error, why.name or None, False, why.hint)
