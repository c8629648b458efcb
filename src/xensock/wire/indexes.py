"""The indexes page of a data ring, and where the ring's bytes are.

One page per active socket. Index words are free-running u32; a direction's queue is `prod - cons`
bytes of its half of the ring. The page belongs to the frontend: the backend reads `ring_order` and
the references once, into a `Layout`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .errors import WireError
from .requests import PAGE

IN_CONS = 0
IN_PROD = 4
IN_ERROR = 8
IN_PROD_EVENT = 16
IN_CONS_EVENT = 20
IN_CONS_HIGH = 24
IN_URGENT = 28
IN_URGENT_COUNT = 32
OUT_CONS = 64
OUT_PROD = 68
OUT_ERROR = 72
OUT_PROD_EVENT = 80
OUT_CONS_EVENT = 84
STATUS = 88
SHARED = 92
SIDE = 96
OUT_CONS_HIGH = 100
OUT_URGENT = 104
OUT_URGENT_COUNT = 108
RING_ORDER = 128
REFS = 132

MAX_ORDER = 9
"""The largest ring of v1: 512 pages, 1 MiB for each direction."""
MAX_LARGE_ORDER = 13
"""The largest ring with large-rings: 8192 pages, 16 MiB for each direction."""
REFS_PER_PAGE = PAGE // 4

STATUS_CONNECTING = 0
STATUS_CONNECTED = 1

_U32 = struct.Struct("<I")


def direction_size(order: int) -> int:
    """Bytes of one direction of a ring of 2^order pages: half of them."""
    return PAGE << order >> 1


def check_order(order: int, largest: int = MAX_ORDER) -> int:
    """The order itself. Raises WireError when v1 and the backend do not allow it."""
    if not 1 <= order <= largest:
        raise WireError(f"ring order {order} is not in 1-{largest}")
    return order


@dataclass(frozen=True, slots=True)
class Layout:
    """`ring_order` and the references of the indexes page.

    Up to order 9 they are the ring's pages; above, pages that hold 1024 references each.
    """

    order: int
    refs: tuple[int, ...]

    @property
    def pages(self) -> int:
        """Pages of the data ring."""
        return 1 << self.order

    @property
    def indirect(self) -> bool:
        """Whether the references are those of pages of references (extension large-rings)."""
        return self.order > MAX_ORDER


def refs_in_page(order: int) -> int:
    """How many references the indexes page holds for a ring of this order."""
    return 1 << order if order <= MAX_ORDER else (1 << order) // REFS_PER_PAGE


def write_layout(page: memoryview | bytearray, layout: Layout) -> None:
    """Write a frontend's ring into its zeroed indexes page. Raises WireError."""
    check_order(layout.order, MAX_LARGE_ORDER)
    if len(layout.refs) != refs_in_page(layout.order):
        raise WireError(f"{len(layout.refs)} references for a ring of order {layout.order}")
    page[REFS : REFS + 4 * len(layout.refs)] = encode_refs(layout.refs)
    page[RING_ORDER : RING_ORDER + 4] = _U32.pack(layout.order)


def read_layout(page: bytes | memoryview | bytearray, largest: int = MAX_ORDER) -> Layout:
    """The ring of an indexes page; the order is read once. Raises WireError for a false one."""
    if len(page) < PAGE:
        raise WireError(f"an indexes page has {PAGE} bytes, not {len(page)}")
    order = check_order(_U32.unpack_from(page, RING_ORDER)[0], largest)
    end = REFS + 4 * refs_in_page(order)
    return Layout(order, decode_refs(bytes(page[REFS:end])))


def encode_refs(refs: tuple[int, ...]) -> bytes:
    """Grant references as they stand in a page. Raises WireError for one out of range."""
    try:
        return struct.pack(f"<{len(refs)}I", *refs)
    except struct.error as why:
        raise WireError(f"grant references: {why}") from why


def decode_refs(raw: bytes) -> tuple[int, ...]:
    """Grant references out of a page, at most 1024 of them."""
    return struct.unpack(f"<{len(raw) // 4}I", raw[: len(raw) // 4 * 4])


def queued(prod: int, cons: int, size: int) -> int:
    """Bytes between two indices, as the specification computes it: never more than `size`.

    Both are masked, so indices that a hostile peer wrote cannot lead out of the ring.
    """
    if prod == cons:
        return 0
    masked_prod, masked_cons = prod & (size - 1), cons & (size - 1)
    if masked_prod == masked_cons:
        return size
    if masked_prod > masked_cons:
        return masked_prod - masked_cons
    return size - (masked_cons - masked_prod)


def passed(old: int, new: int, event: int) -> bool:
    """Whether moving an index from `old` to `new` passes `event`: the other side is to be told.

    The rule of Xen's ring.h, u32 arithmetic; used by the command ring and by data-events.
    """
    return (new - event) & 0xFFFFFFFF < (new - old) & 0xFFFFFFFF
