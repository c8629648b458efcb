"""What a container may do by its labels (`xensock.policy`, `xensock.allow` and the like), and by its image."""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from xensock.backend.containers import Allowance
from xensock.backend.oci import Container, RefusedError
from xensock.policy.load import PolicyError, load
from xensock.policy.policy import Policy
from xensock.policy.rules import RuleError
from xensock.supervisor.publication import Publication, PublishError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from xensock.policy.point import Current

PREFIX = "xensock."
KNOWN = ("policy", "allow", "deny", "publish", "listen", "group", "datapath", "network")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PATHS = ("auto", "direct", "relay")


class Labels:
    """Judges containers by their labels, and by the backend's own rules where those say nothing.

    allow, deny   the backend's rules; what is denied there stays denied whatever a label says
    whole         the backend's policy, if it is more than those: labels add no rules to it
    policies      directory of the policy files that a label can name, NAME.toml; read at each start of a container
    images        patterns of images, and the policies of containers of theirs whose labels say nothing about rules;
                  the first that fits holds
    """

    def __init__(
        self,
        allow: Sequence[str],
        deny: Sequence[str],
        policies: Path | None = None,
        whole: Policy | Current | None = None,
        images: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Raises RuleError."""
        self._allow, self._deny = tuple(allow), tuple(deny)
        self._policies = policies
        self._whole = whole
        self._images = tuple(images)
        self._default = whole if whole is not None else Policy.parse(allow, deny)

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
                hint = (
                    f"did you mean {PREFIX}{near[0]}?" if near else f"known are {', '.join(KNOWN)}"
                )
                raise RefusedError(f"unknown label {PREFIX}{name}; {hint}")
        path = said.get("datapath", "auto")
        if path not in PATHS:
            raise RefusedError(f"label {PREFIX}datapath={path}: write auto, direct or relay")
        listen = said.get("listen", "all")
        if listen not in ("all", "published"):
            raise RefusedError(f"label {PREFIX}listen={listen}: write all or published")
        if said.get("network", "none") not in ("none", "guest"):
            raise RefusedError(
                f"label {PREFIX}network={said['network']}: write none, for a network of its own without interfaces, "
                "or guest, to use the engine's by rules with `via`"
            )
        try:
            published = tuple(map(Publication.parse, _words(said.get("publish", ""))))
        except PublishError as error:
            raise RefusedError(f"label {PREFIX}publish: {error}; {error.hint}") from error
        only = listen == "published"
        return Allowance(
            self._policy(said, container), published, path, said.get("group", ""), only
        )

    def unknown(self) -> str:
        """Why containers of some image could never start, "" where all named policies can be read."""
        for _, name in self._images:
            try:
                self._named(name)
            except RefusedError as error:
                return str(error)
        return ""

    def _policy(self, said: Mapping[str, str], container: Container) -> Policy | Current:
        if "policy" in said:
            if "allow" in said or "deny" in said:
                raise RefusedError(
                    f"labels {PREFIX}policy and {PREFIX}allow or {PREFIX}deny exclude each other: "
                    "put the rules into the policy"
                )
            return self._named(said["policy"])
        if "allow" not in said and (name := self._by_image(container)) is not None:
            try:
                return self._named(name, _words(said.get("deny", "")))
            except RuleError as error:
                raise RefusedError(f"label {PREFIX}deny: {error}") from error
        if "allow" not in said and "deny" not in said:
            return self._default
        if self._whole is not None:
            raise RefusedError(
                f"this backend has a policy file, to which {PREFIX}allow and {PREFIX}deny add nothing; "
                f"name a policy: {PREFIX}policy"
            )
        allow = _words(said["allow"]) if "allow" in said else self._allow
        try:
            return Policy.parse(allow, (*self._deny, *_words(said.get("deny", ""))))
        except RuleError as error:
            raise RefusedError(f"label {PREFIX}allow or {PREFIX}deny: {error}") from error

    def _by_image(self, container: Container) -> str | None:
        known = {container.image, *container.images} - {""}
        names = known | {full_name(each) for each in known if not each.startswith("sha256:")}
        for pattern, policy in self._images:
            if any(fnmatchcase(name, pattern) for name in names):
                return policy
        return None

    def _named(self, name: str, deny: Sequence[str] = ()) -> Policy:
        """The policy of a file, and what the backend denies. Raises RuleError for `deny`."""
        folder = self._policies
        file = folder / f"{name}.toml" if folder is not None and _NAME.fullmatch(name) else None
        if folder is None or file is None or not file.is_file():
            raise RefusedError(f"unknown policy {name!r}; {_there_are(folder)}")
        try:
            return load(str(file)).policy((), (*self._deny, *deny))
        except (PolicyError, OSError) as error:
            raise RefusedError(f"policy {name!r}: {error}") from error


def full_name(image: str) -> str:
    """An image's name with the registry and the tag that engines take where it has none."""
    registry, slash, _ = image.partition("/")
    if not slash:
        image = f"docker.io/library/{image}"
    elif "." not in registry and ":" not in registry and registry != "localhost":
        image = f"docker.io/{image}"
    return image if ":" in image.rpartition("/")[2] else f"{image}:latest"


def _there_are(folder: Path | None) -> str:
    if folder is None:
        return "the backend has none (--policies DIR)"
    names = sorted(file.stem for file in folder.glob("*.toml"))
    return f"{folder} has: {', '.join(names) or 'none'}"


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()
