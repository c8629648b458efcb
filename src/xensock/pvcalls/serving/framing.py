"""Datagrams through a data ring: frames out of `out`, frames into `in` (extension datagrams)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xensock import _core
from xensock.wire.errors import WireError, to_wire
from xensock.wire.extensions import Extension
from xensock.wire.frames import HEADER, Frame, decode_frame, largest_payload, next_frame
from xensock.wire.packet_info import SIZE as INFO_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.rings import MappedRing

TURN = 64  # frames before others get their turn


class Frames:
    """The backend's end of a ring of frames.

    take   is given each frame that the guest sent; False: it cannot take it now, `resume` follows
    room   is called when there may be room again, after `put` found none
    A guest that writes what are no frames is disconnected. `informed`: frames say what IP says (packet-info).
    """

    def __init__(
        self,
        guest: Guest,
        ring: MappedRing,
        take: Callable[[Frame], bool],
        room: Callable[[], None],
    ) -> None:
        self._guest = guest
        self._loop = guest.backend.loop
        self._event = ring.event
        self._ring = _core.DataRing(
            ring.indexes, ring.data, "back", Extension.DATA_EVENTS in guest.extensions
        )
        self._take = take
        self._room = room
        self._full = False
        self._held: Frame | None = None
        self._again = False
        self._open = True
        self.informed = Extension.PACKET_INFO in guest.extensions
        self.longest = largest_payload(self._ring.size) - (INFO_SIZE if self.informed else 0)
        self._loop.add_reader(self._event.wait_fd, self._woken)
        self._soon()

    def close(self) -> None:
        """Let go of the ring."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._event.wait_fd)
            self._ring.close()

    def put(self, frame: Frame) -> bool:
        """Give the guest a frame; False: there is no room."""
        if not self._open:
            return True
        raw = frame.encode()
        if self._ring.room < len(raw) and not self._ring.arm_write(len(raw)):
            self._full = True
            return False
        _, notify = self._ring.write(raw)
        if notify:
            self._event.notify()
        return True

    def fail(self, error: int, address: bytes = b"") -> None:
        """Tell the guest of an errno, if there is room: an error may get lost as datagrams may."""
        self.put(Frame(b"", address, error=to_wire(error)))

    def resume(self) -> None:
        """What `take` could not take may be offered again."""
        self._soon()

    def _soon(self) -> None:
        if not self._again and self._open:
            self._again = True
            self._loop.call_soon(self._pump)

    def _woken(self) -> None:
        self._event.clear()
        if self._full:
            self._full = False
            self._room()
        self._soon()

    def _pump(self) -> None:
        self._again = False
        for _ in range(TURN):
            if not self._open:
                return
            if self._held is None:
                try:
                    self._held = self._next()
                except WireError as error:
                    self._guest.breach(str(error))
                    return
            if self._held is None:
                if not self._ring.arm_read():
                    return
                continue
            if not self._take(self._held):
                return
            self._held = None
        self._soon()

    def _next(self) -> Frame | None:
        """The next frame, copied. Raises WireError."""
        there = self._ring.readable
        if not there:
            return None
        size = next_frame(self._ring.peek(HEADER))
        if size > there:
            raise WireError(f"a frame of {size} bytes, of which {there} are there")
        raw, notify = self._ring.read(size)
        if notify:
            self._event.notify()
        # The guest may have changed the head since: what counts is this copy.
        if next_frame(raw) != size:
            raise WireError("a frame that changed while it was read")
        return decode_frame(raw, self.informed)[0]
