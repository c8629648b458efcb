"""Every message of the wire as a hypothesis strategy."""

from __future__ import annotations

from hypothesis import strategies as st

from xensock.wire import commands as c
from xensock.wire import frames, local
from xensock.wire.extensions import ALL
from xensock.wire.indexes import MAX_LARGE_ORDER, Layout, refs_in_page
from xensock.wire.store import LARGEST_RING_PAGE_ORDER, Choice, Offer

u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)
i32 = st.integers(-0x80000000, 0x7FFFFFFF)
addresses = st.binary(max_size=c.ADDRESS)
values = st.binary(max_size=c.OPTION)

page_connects = st.builds(
    c.Connect,
    u64,
    st.just(b""),
    st.sampled_from([2, 3]),
    u32,
    u32,
    st.builds(c.PageAddress, u16, u32, st.integers(0, c.UNIX_ADDRESS)),
)
requests: st.SearchStrategy[c.Request] = st.one_of(
    st.builds(c.Socket, u64, u32, u32.map(lambda kind: kind & ~0xFF0000), u32, st.integers(0, 255)),
    st.builds(c.Connect, u64, addresses, st.sampled_from([0, 1]), u32, u32),
    page_connects,
    st.builds(c.Release, u64, st.booleans()),
    st.builds(c.Bind, u64, addresses),
    st.builds(c.Listen, u64, u32),
    st.builds(c.Accept, u64, u64, u32, u32),
    st.builds(c.Poll, u64),
    st.builds(c.Shutdown, u64, st.sampled_from(c.How)),
    st.builds(c.GetName, u64, st.sampled_from(c.Which)),
    st.builds(c.SetOption, u64, u32, u32, values),
    st.builds(c.GetOption, u64, u32, u32, st.integers(0, c.PAGE), u32),
    st.builds(c.Close, u64, st.sampled_from([0, 1])),
    st.builds(c.Attach, u64, u32, u32),
    st.builds(c.Explain, u64, u32),
)
responses = st.builds(c.Response, u32, u32, i32, u64, st.binary(max_size=40))

errors = st.integers(-0x80000000, -1)
datagrams = st.builds(frames.Frame, st.binary(max_size=300), addresses, st.booleans())
icmp = st.builds(
    frames.Icmp,
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=16, max_size=16),
    st.binary(max_size=300),
)
reports = st.builds(frames.Frame, st.just(b""), addresses, st.booleans(), errors, st.none() | icmp)

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
nodes = st.dictionaries(text.filter(bool), text, max_size=8)
names = text.filter(lambda name: 0 < len(name.encode()) <= local.LONGEST_NAME)
front_messages: st.SearchStrategy[local.FrontMessage] = st.one_of(
    st.builds(local.Hello, names, u32),
    st.tuples(st.integers(1, 0xFFFF), st.integers(1, 0xFFFF)).map(lambda two: local.Memory(*two)),
    st.builds(local.Event, st.integers(1, 0xFFFFFFFF)),
    st.builds(local.Unevent, st.integers(1, 0xFFFFFFFF)),
    st.builds(local.Write, nodes),
    st.builds(local.Unmap, u32),
)
back_messages: st.SearchStrategy[local.BackMessage] = st.one_of(
    st.builds(local.Welcome, u32),
    st.builds(local.Nodes, nodes),
    st.builds(local.Goodbye, text),
    st.builds(local.Shared, st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1)),
    st.builds(local.Peer, u32),
)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    order = draw(st.integers(1, MAX_LARGE_ORDER))
    first = draw(st.integers(0, 0xFFFF0000))
    return Layout(order, tuple(range(first, first + refs_in_page(order))))


extensions = st.frozensets(st.sampled_from(sorted(ALL)))


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    chosen = draw(extensions)
    large = draw(st.integers(10, MAX_LARGE_ORDER)) if "large-rings" in chosen else 0
    ring = draw(st.integers(0, LARGEST_RING_PAGE_ORDER))
    versions = draw(st.sampled_from([("1",), ("1", "2"), ("3", "1")]))
    return Offer(draw(st.integers(1, 9)), versions, True, ring, large, chosen)


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    order = draw(st.integers(0, LARGEST_RING_PAGE_ORDER))
    refs = tuple(draw(u32) for _ in range(1 << order))
    multi_page = draw(st.booleans()) or order > 0
    return Choice(refs, draw(u32), draw(extensions), "1", multi_page)
