"""The host's name files: /etc/hosts, /etc/resolv.conf and the hosts line of /etc/nsswitch.conf.

Theory of operation
    Each file is parsed when first asked for and kept until what stat(2) says about it changes, so
    that an edit, a rename(2) over it or a re-pointed symbolic link is seen by the next question.
    A missing or unreadable file is an empty one, as libc has it.

Rules
- Parsing follows glibc (resolv/res_init.c, nss/nss_files/files-hosts.c): we skip what it skips.
- Results are immutable and replaced whole, so any thread may ask.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xensock.calls.address import IPAddress

T = TypeVar("T")

# resolv.conf(5) and glibc's <resolv.h>: MAXNS, RES_MAXRETRANS, RES_MAXRETRY, RES_MAXNDOTS.
MAX_SERVERS = 3
MAX_TIMEOUT = 30
MAX_ATTEMPTS = 5
MAX_NDOTS = 15

# File systems stamp times by the tick (1 to 10 ms): a file read this soon after its last change can
# change again without a new time, so it is read once more next time.
_RACY_NS = 50_000_000


class Followed(Generic[T]):
    """A parsed file that follows its changes. `parse` gets the text, "" for a missing file."""

    def __init__(self, path: str, parse: Callable[[str], T]) -> None:
        self._path = path
        self._parse = parse
        self._seen: tuple[tuple[int, ...] | None, T] | None = None

    def get(self) -> T:
        """What the file says now."""
        seen = self._seen
        if seen is not None and seen[0] is not None:
            try:
                if _identity(os.stat(self._path)) == seen[0]:
                    return seen[1]
            except OSError:
                pass  # gone or not readable any more: below it counts as empty
        try:
            with open(self._path, "rb") as file:
                # Before reading: a change in between then shows as a difference next time.
                status = os.fstat(file.fileno())
                text = file.read().decode("utf-8", "replace")
        except OSError:
            self._seen = (None, self._parse(""))
            return self._seen[1]
        racy = abs(time.time_ns() - status.st_mtime_ns) < _RACY_NS
        self._seen = (None if racy else _identity(status), self._parse(text))
        return self._seen[1]


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        status.st_dev,
        status.st_size,
    )


@dataclass(frozen=True, slots=True)
class Hosts:
    """/etc/hosts: addresses by lower-case name without final dot, and names by address, both in
    the order of the file; the first name of an address is its canonical one (hosts(5))."""

    addresses: Mapping[str, tuple[IPAddress, ...]] = field(default_factory=dict)
    names: Mapping[IPAddress, tuple[str, ...]] = field(default_factory=dict)


def parse_hosts(text: str) -> Hosts:
    """Read hosts(5). Lines whose address is not one, or has a scope, are skipped."""
    addresses: dict[str, dict[IPAddress, None]] = {}
    names: dict[IPAddress, dict[str, None]] = {}
    for line in text.split("\n"):
        words = line.partition("#")[0].split()
        if len(words) < 2 or "%" in words[0]:
            continue
        try:
            address = ip_address(words[0])
        except ValueError:
            continue
        for word in words[1:]:
            name = word.lower().removesuffix(".")
            if name:
                addresses.setdefault(name, {})[address] = None
                names.setdefault(address, {})[name] = None
    return Hosts(
        {name: tuple(found) for name, found in addresses.items()},
        {address: tuple(found) for address, found in names.items()},
    )


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """/etc/resolv.conf. `timeout` in seconds per server and attempt; without a nameserver line
    libc asks this machine's port 53, and so do we."""

    servers: tuple[IPAddress, ...] = (IPv4Address("127.0.0.1"),)
    search: tuple[str, ...] = ()
    timeout: int = 5
    attempts: int = 2
    ndots: int = 1
    rotate: bool = False
    edns0: bool = False
    use_vc: bool = False


def parse_resolv_conf(text: str) -> ResolvConf:
    """Read resolv.conf(5). IPv6 servers keep their scope (fe80::1%eth0) as `scope_id`."""
    servers: list[IPAddress] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.split("\n"):
        match = re.match(r"(nameserver|domain|search|options)[ \t]+(.*)", line)
        if match is None:
            continue
        words = re.split(r"[#;]", match[2])[0].split()
        if not words:
            continue
        if match[1] == "nameserver":
            try:
                servers.append(ip_address(words[0]))
            except ValueError:
                continue
        elif match[1] == "domain":
            search = (words[0].lower().removesuffix("."),)
        elif match[1] == "search":
            search = tuple(word.lower().removesuffix(".") for word in words)
        else:
            options += words
    return ResolvConf(
        servers=tuple(servers[:MAX_SERVERS]) or (IPv4Address("127.0.0.1"),),
        search=tuple(domain for domain in search if domain),
        timeout=_number(options, "timeout", 5, 1, MAX_TIMEOUT),
        attempts=_number(options, "attempts", 2, 1, MAX_ATTEMPTS),
        ndots=_number(options, "ndots", 1, 0, MAX_NDOTS),
        rotate="rotate" in options,
        edns0="edns0" in options,
        use_vc="use-vc" in options,
    )


def _number(options: list[str], name: str, default: int, low: int, high: int) -> int:
    """The last `name:N` among the options, within bounds (glibc lowers what is too much)."""
    for option in reversed(options):
        key, colon, value = option.partition(":")
        if key == name and colon and value.isascii() and value.isdigit():
            return min(max(int(value), low), high)
    return default


def parse_nsswitch(text: str) -> tuple[str, ...]:
    """The modules of the hosts line of nsswitch.conf(5), in order and without [actions].

    glibc's default, "files dns" (nss/nsswitch.c), where there is none.
    """
    found: tuple[str, ...] = ()
    for line in text.split("\n"):
        database, colon, modules = line.partition("#")[0].partition(":")
        if colon and database.strip() == "hosts":
            found = tuple(re.sub(r"\[[^\]]*\]", " ", modules).split())
    return found or ("files", "dns")


class HostFiles:
    """The three files of one host."""

    def __init__(self, resolv_conf: str, hosts: str, nsswitch: str) -> None:
        self._resolv_conf = Followed(resolv_conf, parse_resolv_conf)
        self._hosts = Followed(hosts, parse_hosts)
        self._nsswitch = Followed(nsswitch, parse_nsswitch)

    def resolv_conf(self) -> ResolvConf:
        """Name servers, search list and options, as they are now."""
        return self._resolv_conf.get()

    def hosts(self) -> Hosts:
        """The hosts file, as it is now."""
        return self._hosts.get()

    def modules(self) -> tuple[str, ...]:
        """The name service modules for hosts, as they are now."""
        return self._nsswitch.get()
