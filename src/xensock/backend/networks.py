"""The networks of a policy, made ready for the guests under it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from xensock.observe.tap import Tap
from xensock.policy.networks import GUEST, HOST
from xensock.stack.kernel import Kernel
from xensock.stack.networks import Networks, Opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xensock.policy.networks import Network
    from xensock.stack.stacks import Query, Stack
    from xensock.stack.upstream import Upstream


def reach(
    networks: Iterable[Network],
    host: Stack,
    resolver: Query,
    guest: str,
    record: object,
    say: Callable[[str], None],
    beside: bool = False,
) -> Networks:
    """Reach a policy's networks for a guest. Raises RightsError for one that this process may not enter.

    `beside`: the guest is of this machine, and another backend carries its calls by default, so that this machine's
    interfaces are the guest's own. Else it has none, and calls by it end as those of any network that is away.
    """
    openers = {each.name: partial(_open, each, guest, record) for each in networks}
    assert host.name == HOST
    own = (Opened(Kernel(GUEST), resolver),) if beside else ()
    made = Networks((Opened(host, resolver), *own), openers, say)
    try:
        made.open()
    except BaseException:
        made.close()
        raise
    return made


def _open(network: Network, guest: str, record: object) -> Opened:
    if network.netns:
        from xensock.stack.netns import Netns

        entered = Netns(network.name, network.netns)
        return Opened(entered, entered.resolver(network.resolv_conf))
    from xensock.stack.upstream import Upstream, guest_name

    upstream = Upstream(network.name, network.backend, guest_name(guest), record is not None)
    if isinstance(record, Tap):
        follow(record, upstream)
    return Opened(upstream, upstream)


def follow(tap: Tap, upstream: Upstream) -> None:
    """What the backend decided is asked for exactly while somebody wants records."""

    def changed() -> None:
        upstream.recording = tap.active

    tap.watch(changed)
