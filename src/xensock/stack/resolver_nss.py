"""The host's name service switch (nsswitch.conf(5)), asked through getaddrinfo(3) in threads.

DNS and the hosts file are ours to ask; NSS is asked only where it may know more, because it blocks
a thread for as long as it likes. A thread that does not come back in time is left behind (it is a
daemon and ends by itself); their number is bounded, beyond it NSS is skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.address import IPAddress
    from xensock.stack.hostfiles import ResolvConf

MAX_THREADS = 64

_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")

# systemd-resolved's own stub: what nss-resolve knows, a DNS question to it gets as well.
_RESOLVED = (IPv4Address("127.0.0.53"), IPv4Address("127.0.0.54"))

# Which names a module can know. What is not listed here may know any name.
_NOTHING = frozenset({"files", "dns"})
_SINGLE_LABEL = frozenset({"myhostname", "wins"})
_MDNS = ("mdns", "mdns4", "mdns6", "mdns_minimal", "mdns4_minimal", "mdns6_minimal")


def may_know_more(name: str, modules: tuple[str, ...], conf: ResolvConf) -> bool:
    """Whether getaddrinfo(3) can know `name` (lower-case, no final dot) when neither the hosts file
    nor a DNS question for exactly this name does."""
    if not _HOST_NAME.fullmatch(name) or _is_number(name):
        return False
    if "." not in name:
        return True  # the search list, the machine's own name, LLMNR, NetBIOS
    for module in modules:
        if module in _NOTHING or module in _SINGLE_LABEL:
            continue
        if module in _MDNS and not name.endswith(".local"):
            continue
        if module == "resolve" and any(server in _RESOLVED for server in conf.servers):
            continue
        return True
    return False


def _is_number(name: str) -> bool:
    """Whether getaddrinfo(3) takes it for an address, as in 127.1 or 0x7f000001: DNS does not."""
    try:
        socket.inet_aton(name)
    except OSError:
        return False
    return True


def _ask(name: str) -> tuple[IPAddress, ...]:
    """Every address of `name`; raises OSError (socket.gaierror) when there is none."""
    found: dict[IPAddress, None] = {}
    for *_, address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
        host = str(address[0])
        # A link-local address means nothing without the interface, which DNS cannot tell.
        if "%" not in host:
            found[ip_address(host)] = None
    return tuple(found)


class Nss:
    """Asks NSS without ever blocking the event loop. `ask` is replaceable for other databases; it
    raises OSError where it knows nothing."""

    def __init__(self, ask: Callable[[str], tuple[IPAddress, ...]] = _ask) -> None:
        self._ask = ask
        self._free = MAX_THREADS

    async def lookup(self, name: str, patience: float) -> tuple[IPAddress, ...]:
        """All addresses of `name`; none when unknown, when there is no answer within `patience`
        seconds, or when too many questions are pending."""
        if self._free <= 0:
            return ()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[IPAddress, ...]] = loop.create_future()

        def done(found: tuple[IPAddress, ...]) -> None:
            self._free += 1
            if not future.done():
                future.set_result(found)

        def work() -> None:
            found: tuple[IPAddress, ...] = ()
            try:
                found = self._ask(name)
            except (OSError, UnicodeError):
                pass  # unknown; UnicodeError: not a host name (IDNA)
            finally:
                # The loop may have ended while the host's modules were thinking.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(done, found)

        try:
            threading.Thread(target=work, name="xensock-nss", daemon=True).start()
        except RuntimeError:  # no more threads for this user (RLIMIT_NPROC, pids.max)
            return ()
        self._free -= 1
        try:
            async with asyncio.timeout(patience):
                return await future
        except TimeoutError:
            return ()
