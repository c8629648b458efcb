"""The networks that rules may name by `via`, as a policy file describes them.

Beside those that the file names under [networks] there are "host", the backend's own, which is always there, and
"guest", the guest's own interface, which not every guest has.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xensock.calls.call import Decision

HOST = "host"
GUEST = "guest"
RESERVED = (HOST, GUEST)
AWAY = (errno.ENETUNREACH, errno.ENETDOWN)
"""What connect(2) says at once of a network that leads nowhere for the moment."""
NO_WAY = "no network of its via is there, with a way there: bring one up"


@dataclass(frozen=True, slots=True)
class Network:
    """A network that is not the backend's own; one of `netns` and `backend` is given.

    netns        the path of a network namespace (network_namespaces(7))
    backend      the URL of another backend
    resolv_conf  of a namespace: which name servers it has (resolv.conf(5)); "" for the usual places
    """

    name: str
    netns: str = ""
    backend: str = ""
    resolv_conf: str = ""

    @property
    def where(self) -> str:
        """What a person calls it."""
        return self.netns or self.backend


def ended(decision: Decision, error: int) -> Decision:
    """A decision as it is recorded, or explained: with what to do where none of its rule's networks led anywhere."""
    if not decision.via or error not in AWAY:
        return decision
    return replace(decision, hint=NO_WAY)
