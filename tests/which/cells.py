"""Which sockets, where: the tables behind docs/reference/which-sockets.md and their test.

A cell of ROWS is CARRIED (by the backend, as the rules say), LOCAL (the guest's own kernel's, inside the guest) or the
errno of socket(2). Of URGENT it is the same about the urgent byte of MSG_OOB (tcp(7)), IGNORED where the flag is, or
the errno of socket(2) or send(2).
"""

from __future__ import annotations

from dataclasses import dataclass

CARRIED, LOCAL, IGNORED = "carried", "local", "ignored"
COLUMNS = ("direct", "relay", "own", "ring", "v1")

FAMILIES = {
    "AF_UNIX": 1,
    "AF_INET": 2,
    "AF_INET6": 10,
    "AF_NETLINK": 16,
    "AF_PACKET": 17,
    "AF_CAN": 29,
    "AF_BLUETOOTH": 31,
    "AF_ALG": 38,
    "AF_VSOCK": 40,
    "AF_XENSOCK": 0x5853,
}
TYPES = {"SOCK_STREAM": 1, "SOCK_DGRAM": 2, "SOCK_RAW": 3, "SOCK_RDM": 4, "SOCK_SEQPACKET": 5}
PROTOCOLS = {
    "0": 0,
    "ICMP": 1,
    "TCP": 6,
    "UDP": 17,
    "ICMPV6": 58,
    "SCTP": 132,
    "UDPLITE": 136,
    "MPTCP": 262,
    "ROUTE": 0,
    "AUDIT": 9,
}


@dataclass(frozen=True)
class Row:
    """One kind of socket, and what it is over each path."""

    family: str
    type: str
    protocol: str
    direct: str
    relay: str
    own: str
    ring: str
    v1: str

    @property
    def numbers(self) -> tuple[int, int, int]:
        """The arguments of socket(2)."""
        return FAMILIES[self.family], TYPES[self.type], PROTOCOLS[self.protocol]

    @property
    def name(self) -> str:
        return f"{self.family}-{self.type.removeprefix('SOCK_')}-{self.protocol}"


def _rows(family: str, kind: str, protocols: str, cells: str) -> tuple[Row, ...]:
    return tuple(Row(family, f"SOCK_{kind}", each, *cells.split()) for each in protocols.split())


def _inet(family: str, ping: str, other: str, v1: str) -> tuple[Row, ...]:
    """`v1` is what a backend of version 1 makes of streams; there, other kinds fail as theirs."""
    beyond = "ESOCKTNOSUPPORT" if v1 == CARRIED else v1
    none = "EPROTONOSUPPORT"
    return (
        *_rows(family, "STREAM", "0 TCP", f"{CARRIED} {CARRIED} {LOCAL} {CARRIED} {v1}"),
        *_rows(family, "STREAM", "UDP SCTP MPTCP", _all(none)),
        *_rows(family, "DGRAM", "0 UDP", f"{CARRIED} {CARRIED} {LOCAL} {CARRIED} {beyond}"),
        *_rows(family, "DGRAM", ping, f"{CARRIED} {CARRIED} EACCES {CARRIED} {beyond}"),
        *_rows(family, "DGRAM", "UDPLITE", f"{none} {none} {none} {CARRIED} {beyond}"),
        *_rows(family, "DGRAM", f"TCP {other}", _all(none)),
        *_rows(family, "RAW", f"{ping} UDP", _all("EPERM")),
        *_rows(family, "SEQPACKET", "0 SCTP", _all("ESOCKTNOSUPPORT")),
        *_rows(family, "RDM", "0", _all("ESOCKTNOSUPPORT")),
    )


def _all(word: str) -> str:
    return " ".join(len(COLUMNS) * [word])


def _foreign(family: str, kind: str, protocol: str, inside: str) -> tuple[Row, ...]:
    return _rows(family, kind, protocol, f"{inside} {inside} {inside} {LOCAL} {LOCAL}")


ROWS: tuple[Row, ...] = (
    *_inet("AF_INET", "ICMP", "ICMPV6", CARRIED),
    *_inet("AF_INET6", "ICMPV6", "ICMP", "EAFNOSUPPORT"),
    *_rows(
        "AF_XENSOCK", "STREAM", "0 TCP", f"{CARRIED} {CARRIED} {CARRIED} {CARRIED} EAFNOSUPPORT"
    ),
    *_rows(
        "AF_XENSOCK",
        "DGRAM",
        "0 UDP",
        f"{CARRIED} {CARRIED} ESOCKTNOSUPPORT {CARRIED} EAFNOSUPPORT",
    ),
    *_rows("AF_XENSOCK", "SEQPACKET", "0", _all("ESOCKTNOSUPPORT")),
    *_foreign("AF_UNIX", "STREAM", "0", LOCAL),
    *_foreign("AF_UNIX", "DGRAM", "0", LOCAL),
    *_foreign("AF_UNIX", "SEQPACKET", "0", LOCAL),
    *_foreign("AF_NETLINK", "RAW", "ROUTE", LOCAL),
    *_foreign("AF_NETLINK", "RAW", "AUDIT", "EPROTONOSUPPORT"),
    *_foreign("AF_PACKET", "RAW", "0", "EPERM"),
    *_foreign("AF_PACKET", "DGRAM", "0", "EPERM"),
    *_foreign("AF_CAN", "RAW", "0", "EAFNOSUPPORT"),
    *_foreign("AF_BLUETOOTH", "SEQPACKET", "0", "EAFNOSUPPORT"),
    *_foreign("AF_ALG", "SEQPACKET", "0", "EAFNOSUPPORT"),
    *_foreign("AF_VSOCK", "STREAM", "0", "EAFNOSUPPORT"),
)


_NONE = "EOPNOTSUPP"
URGENT: tuple[Row, ...] = (
    *_rows("AF_INET", "STREAM", "0 TCP", f"{CARRIED} {CARRIED} {LOCAL} {CARRIED} {_NONE}"),
    *_rows("AF_INET", "DGRAM", "0 UDP", f"{_NONE} {_NONE} {_NONE} {_NONE} ESOCKTNOSUPPORT"),
    *_rows("AF_INET", "DGRAM", "ICMP", f"{_NONE} {_NONE} EACCES {_NONE} ESOCKTNOSUPPORT"),
    *_rows("AF_INET6", "STREAM", "0 TCP", f"{CARRIED} {CARRIED} {LOCAL} {CARRIED} EAFNOSUPPORT"),
    *_rows("AF_INET6", "DGRAM", "0 UDP", f"{IGNORED} {IGNORED} {LOCAL} {IGNORED} EAFNOSUPPORT"),
    *_rows("AF_INET6", "DGRAM", "ICMPV6", f"{_NONE} {_NONE} EACCES {_NONE} EAFNOSUPPORT"),
    *_rows(
        "AF_XENSOCK", "STREAM", "0 TCP", f"{CARRIED} {CARRIED} {CARRIED} {CARRIED} EAFNOSUPPORT"
    ),
    *_rows("AF_XENSOCK", "DGRAM", "0 UDP", f"{_NONE} {_NONE} ESOCKTNOSUPPORT {_NONE} EAFNOSUPPORT"),
    *_rows("AF_UNIX", "STREAM", "0", _all(LOCAL)),
    *_rows("AF_UNIX", "DGRAM", "0", _all(_NONE)),
    *_rows("AF_UNIX", "SEQPACKET", "0", _all(_NONE)),
)
