"""What a container's labels say about its network: `xensock.policy`, `xensock.allow` and the like."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from xensock.backend.containers import Allowance
from xensock.backend.oci import Container, RefusedError
from xensock.policy.policy import Policy
from xensock.policy.rules import RuleError
from xensock.supervisor.publication import Publication, PublishError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PREFIX = "xensock."
KNOWN = ("policy", "allow", "deny", "publish", "datapath")
PATHS = ("auto", "direct", "relay")


class Labels:
    """Judges containers by their labels, and by the backend's own rules where those say nothing.

    allow, deny   the backend's rules; what is denied there stays denied whatever a label says
    policies      those that a label can name
    """

    def __init__(
        self, allow: Sequence[str], deny: Sequence[str], policies: Mapping[str, Policy]
    ) -> None:
        """Raises RuleError."""
        self._allow, self._deny = tuple(allow), tuple(deny)
        self._policies = policies
        self._default = Policy.parse(allow, deny)

    def __call__(self, container: Container) -> Allowance:
        """Raises RefusedError for labels that cannot be followed."""
        said = {
            label.removeprefix(PREFIX): text
            for label, text in container.labels.items()
            if label.startswith(PREFIX)
        }
        for name in said:
            if name not in KNOWN:
                near = difflib.get_close_matches(name, KNOWN, 1)
                hint = f"did you mean {PREFIX}{near[0]}?" if near else f"known are {_listed(KNOWN)}"
                raise RefusedError(f"unknown label {PREFIX}{name}; {hint}")
        path = said.get("datapath", "auto")
        if path not in PATHS:
            raise RefusedError(f"label {PREFIX}datapath={path}: write auto, direct or relay")
        try:
            published = tuple(map(Publication.parse, _words(said.get("publish", ""))))
        except PublishError as error:
            raise RefusedError(f"label {PREFIX}publish: {error}; {error.hint}") from error
        return Allowance(self._policy(said), published, path)

    def _policy(self, said: Mapping[str, str]) -> Policy:
        if "policy" in said:
            if "allow" in said or "deny" in said:
                raise RefusedError(
                    f"labels {PREFIX}policy and {PREFIX}allow or {PREFIX}deny exclude each other: "
                    "put the rules into the policy"
                )
            found = self._policies.get(said["policy"])
            if found is None:
                known = _listed(self._policies) or "none"
                raise RefusedError(f"unknown policy {said['policy']!r}; the backend has: {known}")
            return found
        if "allow" not in said and "deny" not in said:
            return self._default
        allow = _words(said["allow"]) if "allow" in said else self._allow
        try:
            return Policy.parse(allow, (*self._deny, *_words(said.get("deny", ""))))
        except RuleError as error:
            raise RefusedError(f"label {PREFIX}allow or {PREFIX}deny: {error}") from error


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _listed(names: Sequence[str] | Mapping[str, Policy]) -> str:
    return ", ".join(sorted(names))
