"""What of CPython's tests own sockets do not pass, or what differs in guests, and why: only what is not carried.

docs/reference/conformance.md shows it; test_known.py holds the share to 5 % of the tests that pass natively.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

# What a module of tests is about, by class: other families and hardware. They are not run, as some hang without it.
FOREIGN = (
    "VSOCK",
    "CAN",
    "RDS",
    "TIPC",
    "Bluetooth",
    "BT",
    "Qipcrtr",
    "AFALG",
    "LinuxKernelCryptoAPI",
    "HyperV",
)

# Pattern of test ids (fnmatch) → the reason.
KNOWN: dict[str, str] = {}
LITE = "UDP-Lite is refused in a guest (EPROTONOSUPPORT)."

# The same for the kernel's sockets in a guest of `xensock run`.
KNOWN_IN_GUESTS: dict[str, str] = {"test.test_socket.*UDPLITE*": LITE}


def reason_in_guests(test: str) -> str | None:
    """Why this test may come to something else in a guest than natively; None when it must not."""
    found = (why for pattern, why in KNOWN_IN_GUESTS.items() if fnmatchcase(test, pattern))
    return next(found, None)


def reason(test: str) -> str | None:
    """Why this test is exempt; None when it is not."""
    return next((why for pattern, why in KNOWN.items() if fnmatchcase(test, pattern)), None)


def is_foreign(test: str) -> bool:
    """Whether it is about a family that is no business of an internet backend."""
    name = test.split(".")[-2]
    return any(word in name for word in FOREIGN)
