"""Hooks that send what a guest asks of one host to a mirror, and keep names from carrying data out.

MIRROR in the environment is the mirror's ADDRESS:PORT, MIRRORED the host's name.
"""

from __future__ import annotations

import os

from xensock.policy.hooks import Answer, Call, allow, deny, redirect

MIRROR = os.environ.get("MIRROR", "192.0.2.80:80")
MIRRORED = os.environ.get("MIRRORED", "packages.example.com")
LONGEST = 20  # of a label that is no data


class Mirror:
    def resolve(self, call: Call) -> Answer | None:
        if call.host == MIRRORED:
            return allow()
        if any(len(label) > LONGEST for label in call.host.split(".")):
            return deny("a label this long may be data")
        return None

    def connect(self, call: Call) -> Answer | None:
        if call.protocol == "tcp" and MIRRORED in call.names:
            return redirect(MIRROR)
        return None

    def listen(self, call: Call) -> Answer | None:
        return None if call.port >= 10_000 else deny("from 10000 on")

    def accept(self, call: Call) -> Answer | None:
        return None if call.host.startswith("198.51.100.") else deny("not one of us")
