"""A guest's data ring, mapped: its indexes page, its bytes and its event channel.

The order and the references are read once and never again: the guest may change them meanwhile.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xensock.pvcalls.serving.limits import refuse
from xensock.transport.base import GrantError
from xensock.wire import indexes
from xensock.wire.errors import WireError, from_wire, to_wire
from xensock.wire.extensions import Extension

if TYPE_CHECKING:
    from xensock.pvcalls.serving.guest import Guest
    from xensock.transport.base import Event

_I32, _U32 = struct.Struct("<i"), struct.Struct("<I")


@dataclass(slots=True, eq=False)
class MappedRing:
    """Held until the socket is released; `pages` count against the guest's limit."""

    guest: Guest
    indexes: memoryview
    data: memoryview
    event: Event
    pages: int
    ref: int
    port: int
    open: bool = True

    def fail(self, error: int) -> None:
        """Tell the guest that the connection ended before the mover had it."""
        word = _I32.pack(to_wire(error))
        self.indexes[indexes.OUT_ERROR : indexes.OUT_ERROR + 4] = word
        self.indexes[indexes.IN_ERROR : indexes.IN_ERROR + 4] = word
        self.event.notify()

    def told(self) -> tuple[int, int]:
        """The errno by which the guest was told that `in` and `out` ended, 0 where they did not."""
        ends = indexes.IN_ERROR, indexes.OUT_ERROR
        of_in, of_out = (from_wire(_I32.unpack_from(self.indexes, at)[0]) for at in ends)
        return of_in, of_out

    def connected(self) -> None:
        """Tell the guest that an asynchronous connect is done."""
        word = _U32.pack(indexes.STATUS_CONNECTED)
        self.indexes[indexes.STATUS : indexes.STATUS + 4] = word
        self.event.notify()

    def share(self, number: int, side: int) -> None:
        """Tell the guest that the pages of that number are used instead (shared-rings)."""
        self.indexes[indexes.SIDE : indexes.SIDE + 4] = _U32.pack(side)
        self.indexes[indexes.SHARED : indexes.SHARED + 4] = _U32.pack(number)

    def release(self) -> None:
        """Unmap and unbind. The mover must have let go of it."""
        if self.open:
            self.open = False
            self.event.close()
            self.data.release()
            self.indexes.release()
            self.guest.pages -= self.pages


def map_ring(guest: Guest, ref: int, port: int) -> MappedRing:
    """Map the ring whose indexes page is grant `ref`, and bind event channel `port`.

    Raises OSError: EINVAL for a false grant, order or channel, ENOMEM beyond the guest's limit.
    """
    large = Extension.LARGE_RINGS in guest.extensions
    limits = guest.backend.limits
    views: list[memoryview] = []
    try:
        page = guest.transport.map((ref,))
        views.append(page)
        layout = indexes.read_layout(page, limits.large_order if large else limits.order)
        pages = 1 + layout.pages
        if guest.pages + pages > limits.pages:
            raise refuse(errno.ENOMEM)
        refs = _references(guest, layout) if layout.indirect else layout.refs
        data = guest.transport.map(refs)
        views.append(data)
        event = guest.transport.bind(port)
    except (GrantError, WireError, OSError) as error:
        for view in views:
            view.release()
        if isinstance(error, OSError):
            raise
        guest.log.debug("%s: %s", guest.name, error)
        raise refuse(getattr(error, "errno", errno.EINVAL)) from error
    guest.pages += pages
    return MappedRing(guest, page, data, event, pages, ref, port)


def tell(guest: Guest, ref: int, port: int, error: int) -> None:
    """As MappedRing.fail, of a ring that is not mapped. Raises GrantError, OSError."""
    page = guest.transport.map((ref,))
    try:
        event = guest.transport.bind(port)
    except BaseException:
        page.release()
        raise
    ring = MappedRing(guest, page, memoryview(b""), event, 0, ref, port)
    ring.fail(error)
    ring.release()


def _references(guest: Guest, layout: indexes.Layout) -> tuple[int, ...]:
    """The ring's references, out of the pages that hold them (large-rings)."""
    found: list[int] = []
    for ref in layout.refs:
        with guest.transport.map((ref,)) as page:
            found += indexes.decode_refs(bytes(page))
    return tuple(found[: layout.pages])
