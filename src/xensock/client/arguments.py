"""What programs give to send and receive, checked before anything moves: the standard library's errors and words."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


def bytes_of(data: Any) -> bytes:
    """What a bytes-like object holds. Raises TypeError."""
    if isinstance(data, bytes):
        return data
    try:
        return bytes(memoryview(data))
    except TypeError:
        kind = type(data).__name__
        raise TypeError(f"a bytes-like object is required, not '{kind}'") from None


def writable(buffer: Any) -> memoryview:
    """A buffer's bytes, to be written. Raises TypeError, BufferError."""
    view = memoryview(buffer)
    if view.readonly:
        kind = type(buffer).__name__
        raise TypeError(f"a read-write bytes-like object is required, not '{kind}'")
    return view.cast("B")


def control_of(messages: Iterable[Any]) -> list[tuple[int, int, bytes]]:
    """Control messages for sendmsg(). Raises TypeError."""
    found = []
    for each in messages:
        try:
            level, kind, data = each
        except (TypeError, ValueError):
            raise TypeError("[sendmsg() ancillary data items must be 3-tuples]") from None
        found.append((operator.index(level), operator.index(kind), bytes_of(data)))
    return found


def room_of(call: str, size: Any, control: Any) -> int:
    """The size of a buffer and of that for control messages: the first. Raises TypeError, ValueError."""
    length = operator.index(size)
    if length < 0:
        raise ValueError(f"negative buffer size in {call}()")
    if operator.index(control) < 0:
        raise ValueError(f"negative ancillary data buffer size in {call}()")
    return length
