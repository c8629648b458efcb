"""Hooks that let each guest reach only so many different hosts: the first few are its, every other one is refused.

A name that leads to several addresses is one host. BUDGET in the environment says how many; 3 if it does not.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict

from xensock.policy.hooks import Answer, Call, deny

BUDGET = int(os.environ.get("BUDGET", "3"))


class Budget:
    def __init__(self) -> None:
        self._hosts: defaultdict[str, set[str]] = defaultdict(set)  # by guest
        self._lock = asyncio.Lock()

    async def connect(self, call: Call) -> Answer | None:
        if not call.allowed:
            return None  # what the rules refuse costs nothing
        hosts = self._hosts[call.guest]
        host = call.names[0] if call.names else call.host
        async with self._lock:
            if host not in hosts and len(hosts) >= BUDGET:
                return deny(f"{call.guest} has reached its {BUDGET} hosts")
            hosts.add(host)
        return None  # as the rules say
