"""Where a guest is known to differ from the kernel, each with its reason; docs/explanation/differences.md tells users.

Keys: data path, then FILE:PROBE, for both versions without ".4" or ".6". A probe listed here may still find no
difference: some depend on the moment at which a signal arrives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """A difference: why, and what of a probe's problems it accounts for (a regular expression for each whole line)."""

    why: str
    problem: str

    def accounts_for(self, problems: list[str]) -> bool:
        """Whether there is nothing among the problems but this difference."""
        return all(re.fullmatch(self.problem, line) for line in problems)


def _observed(what: str, native: str, guest: str) -> str:
    """How an observation differs: in words of `Seen.wrong` or of `difference`."""
    return f"{what}: (natively {native}, in the guest {guest}|{guest}, not {native})"


_WHY = "a signal without SA_RESTART can end a trapped call before the backend has noticed it"
_ENDED = r"natively \d observations?, in the guest 0|the probe ended: InterruptedError: .*"
BIND = Known(_WHY, _observed("results", r"\['0'\]", r"\['0', 'EINTR'\]") + f"|{_ENDED}")
SOCKET = Known(_WHY, _observed("results", r"\[True\]", r"\[False, True\]"))

_REFUSED, _REACHED = r"\{'connect': 'ECONNREFUSED'\}", r"\{'connect': 'ok', .*'end': '[^']*'\}"
FREED = Known(
    "the host's port is freed a moment after the guest's close or shutdown",
    _observed("dial", _REFUSED, _REACHED) + "|" + _observed("afterwards", "'ECONNREFUSED'", "'ok'"),
)

KNOWN: dict[tuple[str, str], Known] = {
    **{
        (datapath, f"interrupt:{title}"): known
        for datapath in ("direct", "relay", "ring")
        for title, known in {"bind_in_the_rain": BIND, "socket_in_the_rain": SOCKET}.items()
    },
    # Over rings the guest's end is the relay's, too.
    **{
        (datapath, name): FREED
        for datapath in ("relay", "ring")
        for name in ("bind:closed_is_refused", "bind:listener_in_child_only")
    },
    **{
        (datapath, "connect:bound_keeps_its_port"): Known(
            "what the host bound for it is used up by the connect() that was refused",
            _observed("seen", "True", "False"),
        )
        for datapath in ("relay", "ring")
    },
    ("relay", "bind:shutdown_listener"): FREED,
    ("ring", "bind:shutdown_listener"): Known(
        "the host's listener outlives shutdown(2) of the guest's",
        _observed("dial", _REFUSED, _REACHED),
    ),
    ("ring", "options:changed_after"): Known(
        "TCP_MAXSEG is that of the guest's own connection",
        _observed("TCP_MAXSEG", r"\['ok', \d+\]", r"\['ok', \d+\]"),
    ),
}


def known(datapath: str, file: str, title: str) -> Known | None:
    """What may differ of this probe, None where nothing may."""
    name = file.removeprefix("probe_").removesuffix(".py")
    wanted = (f"{name}:{title}", f"{name}:{title.rpartition('.')[0] or title}")
    return next((KNOWN[datapath, each] for each in wanted if (datapath, each) in KNOWN), None)
