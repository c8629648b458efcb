"""The nodes that both sides write into the store, and what they agree on by them.

Values are decimal numbers and short words, as xenstore has them. The backend's nodes are an
`Offer`, the frontend's a `Choice`; `agree` is the one place that decides what is in force.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import WireError
from .extensions import ALL, NEEDS, V1, Extension
from .indexes import MAX_LARGE_ORDER, MAX_ORDER
from .requests import PAGE, SLOT

if TYPE_CHECKING:
    from collections.abc import Mapping

STATE = "state"
VERSIONS = "versions"
FUNCTION_CALLS = "function-calls"
MAX_PAGE_ORDER = "max-page-order"
MAX_RING_PAGE_ORDER = "max-ring-page-order"
MAX_LARGE_PAGE_ORDER = "max-large-page-order"
VERSION = "version"
PORT = "port"
RING_REF = "ring-ref"
RING_PAGE_ORDER = "ring-page-order"

SUPPORTED_VERSION = "1"
LARGEST_RING_PAGE_ORDER = 4
"""Command rings have at most 16 pages, as those of other Xen drivers."""

_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)


def slots(ring_page_order: int) -> int:
    """Slots of a command ring of 2^order pages: a power of two, 32 for a single page."""
    whole = ((PAGE << ring_page_order) - SLOT) // SLOT
    return 1 << (whole.bit_length() - 1)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a backend announces. v1 has `max_page_order` alone; its other values here are off."""

    max_page_order: int = MAX_ORDER
    versions: tuple[str, ...] = (SUPPORTED_VERSION,)
    function_calls: bool = True
    max_ring_page_order: int = 0
    max_large_page_order: int = 0
    extensions: frozenset[Extension] = V1

    def nodes(self) -> dict[str, str]:
        """The nodes; those of extensions only where there is something to announce."""
        nodes = {
            VERSIONS: ",".join(self.versions),
            MAX_PAGE_ORDER: str(self.max_page_order),
            FUNCTION_CALLS: str(int(self.function_calls)),
        }
        if self.max_ring_page_order:
            nodes[MAX_RING_PAGE_ORDER] = str(self.max_ring_page_order)
        if self.max_large_page_order:
            nodes[MAX_LARGE_PAGE_ORDER] = str(self.max_large_page_order)
        return nodes | {extension.feature: "1" for extension in sorted(self.extensions)}


@dataclass(frozen=True, slots=True)
class Choice:
    """What a frontend writes in one transaction: its command ring and the extensions it wants.

    `multi_page`: the ring is told by `ring-page-order` and `ring-ref0`… instead of `ring-ref`.
    """

    ring_refs: tuple[int, ...]
    port: int
    extensions: frozenset[Extension] = V1
    version: str = SUPPORTED_VERSION
    multi_page: bool = False

    @property
    def ring_page_order(self) -> int:
        """The order of the command ring; 0 is v1's single page."""
        return len(self.ring_refs).bit_length() - 1

    def nodes(self) -> dict[str, str]:
        """The nodes. Raises WireError when the ring's pages are no power of two."""
        nodes = {VERSION: self.version, PORT: str(self.port)}
        if len(self.ring_refs) == 1 and not self.multi_page:
            nodes[RING_REF] = str(self.ring_refs[0])
        else:
            if len(self.ring_refs) != 1 << max(self.ring_page_order, 0):
                raise WireError(f"a command ring of {len(self.ring_refs)} pages")
            nodes[RING_PAGE_ORDER] = str(self.ring_page_order)
            nodes |= {f"{RING_REF}{index}": str(ref) for index, ref in enumerate(self.ring_refs)}
        return nodes | {extension.request: "1" for extension in sorted(self.extensions)}


@dataclass(frozen=True, slots=True)
class Features:
    """What is in force in a session. `Features()` is a v1 session with rings of any v1 order."""

    extensions: frozenset[Extension] = V1
    max_page_order: int = MAX_ORDER
    ring_page_order: int = 0

    def __contains__(self, extension: Extension) -> bool:
        return extension in self.extensions

    @property
    def slots(self) -> int:
        """Slots of the command ring."""
        return slots(self.ring_page_order)


def parse_backend(nodes: Mapping[str, str]) -> Offer:
    """Read a backend's nodes. Features that XenSock does not know are not there.

    Raises WireError for missing or malformed nodes, a backend without socket calls, and one that
    does not speak version 1.
    """
    versions = tuple(_needed(nodes, VERSIONS).split(","))
    if SUPPORTED_VERSION not in versions:
        raise WireError(f"the backend speaks versions {nodes[VERSIONS]!a}, not 1")
    if not _flag(nodes, FUNCTION_CALLS):
        raise WireError("the backend offers no socket calls: function-calls is not 1")
    largest = _number(nodes, MAX_PAGE_ORDER)
    if largest < 1:
        raise WireError(f"{MAX_PAGE_ORDER} is {largest}, at least 1 is needed")
    extensions = {extension for extension in Extension if _flag(nodes, extension.feature)}
    large = _number(nodes, MAX_LARGE_PAGE_ORDER, 0)
    if Extension.LARGE_RINGS in extensions and large <= MAX_ORDER:
        raise WireError(f"feature-large-rings with {MAX_LARGE_PAGE_ORDER} {large}")
    return Offer(
        min(largest, MAX_ORDER),
        versions,
        True,
        min(_number(nodes, MAX_RING_PAGE_ORDER, 0), LARGEST_RING_PAGE_ORDER),
        min(large, MAX_LARGE_ORDER),
        frozenset(extensions),
    )


def parse_frontend(nodes: Mapping[str, str]) -> Choice:
    """Read a frontend's nodes. Raises WireError for missing or malformed ones.

    A request for an extension that XenSock does not know is malformed: nobody announced it.
    """
    requested = {name for name in nodes if name.startswith("request-") and _flag(nodes, name)}
    unknown = requested - {extension.request for extension in ALL}
    if unknown:
        raise WireError(f"the frontend asks for {min(unknown)!a}, which was not announced")
    version = _needed(nodes, VERSION)
    multi_page = RING_PAGE_ORDER in nodes
    if multi_page:
        order = _number(nodes, RING_PAGE_ORDER)
        if order > LARGEST_RING_PAGE_ORDER:
            raise WireError(f"{RING_PAGE_ORDER} {order}, at most {LARGEST_RING_PAGE_ORDER}")
        refs = tuple(_number(nodes, f"{RING_REF}{index}") for index in range(1 << order))
    else:
        refs = (_number(nodes, RING_REF),)
    extensions = frozenset(extension for extension in ALL if extension.request in requested)
    return Choice(refs, _number(nodes, PORT), extensions, version, multi_page)


def agree(offer: Offer, choice: Choice) -> Features:
    """What a session has. Raises WireError for a choice that was not offered."""
    if choice.version not in offer.versions:
        raise WireError(f"version {choice.version!a} was not offered")
    if choice.ring_page_order > offer.max_ring_page_order:
        raise WireError(
            f"a command ring of order {choice.ring_page_order}, at most {offer.max_ring_page_order}"
        )
    missing = choice.extensions - offer.extensions
    if missing:
        raise WireError(f"the frontend asks for {min(missing)}, which was not announced")
    for extension, needed in NEEDS.items():
        if extension in choice.extensions and needed not in choice.extensions:
            raise WireError(f"{extension} without {needed}")
    large = Extension.LARGE_RINGS in choice.extensions
    largest = offer.max_large_page_order if large else offer.max_page_order
    return Features(choice.extensions, largest, choice.ring_page_order)


def _needed(nodes: Mapping[str, str], name: str) -> str:
    if name not in nodes:
        raise WireError(f"node {name} is missing")
    return nodes[name]


def _number(nodes: Mapping[str, str], name: str, default: int | None = None) -> int:
    """An unsigned 32-bit number."""
    if default is not None and name not in nodes:
        return default
    text = _needed(nodes, name)
    if not _NUMBER.fullmatch(text) or int(text) > 0xFFFFFFFF:
        raise WireError(f"node {name} is {text[:40]!a}, not a number of 32 bits")
    return int(text)


def _flag(nodes: Mapping[str, str], name: str) -> bool:
    """Whether a node is "1"; "0" and no node mean no."""
    return _number(nodes, name, 0) == 1
