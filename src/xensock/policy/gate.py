"""What refuses every call for the moment, whatever the policy says: an audit log that cannot take another record."""

from __future__ import annotations

from collections.abc import Callable

from xensock.calls.call import Decision

# The refusal, or None while calls may go on.
Gate = Callable[[], Decision | None]
