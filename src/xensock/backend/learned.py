"""What a guest learned from its resolver, kept for the backend that comes after this one: rules by name go on to hold.

A file in memory gets a line for every answer. The times in it are the kernel's (CLOCK_MONOTONIC), which all processes
share. A line that was cut off by a sudden end is one answer that the guest never got.
"""

from __future__ import annotations

import json
import os
from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xensock.calls.address import IPAddress
    from xensock.policy.names import Names

LONGEST = 1 << 20  # bytes, from which on what has lapsed is left out


class Learned:
    """Goes on with what is in the file, and writes down what is learned from now on. The descriptor stays the caller's
    for the time of this call."""

    def __init__(self, names: Names, fd: int) -> None:
        self._names = names
        self._fd = os.dup(fd)
        self._longest = LONGEST
        self._at = 0
        for line in _content(self._fd).split(b"\n"):
            try:
                expiry, name, *addresses = json.loads(line)
                names.restore(name, [ip_address(each) for each in addresses], expiry)
            except ValueError:  # cut off
                continue
        self._rewrite()
        names.told = self._told

    def close(self) -> None:
        self._names.told = None
        os.close(self._fd)

    def _told(self, name: str, addresses: list[IPAddress], expiry: float) -> None:
        self._at += os.pwrite(self._fd, _line(name, addresses, expiry), self._at)
        if self._at > self._longest:
            self._rewrite()
            self._longest = max(LONGEST, 2 * self._at)

    def _rewrite(self) -> None:
        whole = b"".join(_line(name, [at], expiry) for at, name, expiry in self._names.current())
        os.ftruncate(self._fd, 0)
        self._at = os.pwrite(self._fd, whole, 0) if whole else 0


def _line(name: str, addresses: list[IPAddress], expiry: float) -> bytes:
    return json.dumps([expiry, name, *map(str, addresses)]).encode() + b"\n"


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
