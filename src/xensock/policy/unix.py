"""Rules about sockets in the host's file system: `unix:/run/service.sock`.

A path opens only to a rule that names it, exactly; rules about hosts say nothing about paths, and these nothing
about hosts. They matter where a guest has no file system in common with the host.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from xensock.calls.call import Decision
from xensock.policy.rules import RuleError

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "unix:"
LONGEST = 107  # bytes of a path in struct sockaddr_un (unix(7))


def is_unix(text: str) -> bool:
    """Whether a rule is one of these."""
    return text.strip().startswith(PREFIX)


def parse_unix(text: str) -> str:
    """The path of a rule. Raises RuleError."""
    path = text.strip().removeprefix(PREFIX)
    if not path.startswith("/"):
        raise RuleError(
            f"rule {text!r}: the path is not absolute", "write it like unix:/run/app.sock"
        )
    if not path.isprintable():
        raise RuleError(
            f"rule {text!a}: the path is not printable text",
            "bind the socket under another name; rules are shown to people and kept as JSON",
        )
    if len(os.fsencode(path)) > LONGEST:
        raise RuleError(f"rule {text!a}: no socket has such a path", f"at most {LONGEST} bytes")
    right = os.path.normpath(path)
    if right != path:
        raise RuleError(f"rule {text!r}: the path has a shorter form", f"write {PREFIX}{right}")
    return path


class UnixRules:
    """Which paths a guest may connect to; deny wins."""

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        self._allow = frozenset(allow)
        self._deny = frozenset(deny)

    def joined(self, other: UnixRules) -> UnixRules:
        """The rules of both."""
        return UnixRules(self._allow | other._allow, self._deny | other._deny)

    def connect(self, path: str) -> Decision:
        """May the guest connect to this path? Refused with EACCES."""
        rule = f"{PREFIX}{path}"
        if path in self._deny:
            return Decision(False, rule, errno.EACCES, hint=f"remove --deny {rule}")
        if path in self._allow:
            return Decision(True, rule)
        hint = f"--allow {rule}" if path.isprintable() else "bind it under a name that is text"
        return Decision(False, "default: host paths", errno.EACCES, hint=hint)
