"""Which backends carry a guest's calls, and which destinations go to which: --backend and --route as written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xensock.policy.routes import Route
from xensock.transport import url

if TYPE_CHECKING:
    from collections.abc import Sequence

    Named = tuple[tuple[str, str], ...]

HOST = "host"  # the name of this machine itself, as a route's target


class CarrierError(ValueError):
    """Options that do not go together: `cause` says why, `hint` what to write instead."""

    def __init__(self, what: str, cause: str, hint: str) -> None:
        super().__init__(what)
        self.cause, self.hint = cause, hint


def parse(
    backends: Sequence[str], routes: Sequence[str], datapath: str = "auto"
) -> tuple[Named, tuple[Route, ...]]:
    """((name, URL) of each backend, the default one first; the table of routes).

    A backend is written [NAME=]URL, a route RULE=NAME. Raises CarrierError, UrlError, RuleError: all ValueErrors.
    """
    table = tuple(Route.parse(text) for text in routes)
    named = tuple(_named(text, number) for number, text in enumerate(backends, 1))
    names = [name for name, _ in named]
    if HOST in names:
        raise CarrierError(
            f"a backend cannot be called {HOST!r}",
            "that is this machine itself, as a target of --route",
            "use --backend OTHER=URL",
        )
    for name in (name for name in names if names.count(name) > 1):
        raise CarrierError(
            f"two backends are called {name!r}",
            "names tell backends apart",
            "use --backend OTHER=URL",
        )
    if table and not named:
        raise CarrierError(
            "--route without --backend", "everything goes to this host", "add --backend NAME=URL"
        )
    for route in table:
        if route.stack not in (*names, HOST):
            raise CarrierError(
                f"no backend is called {route.stack!r}",
                f"--route {route.rule}={route.stack} names it",
                f"add --backend {route.stack}=local:PATH, or use one of: {', '.join((*names, HOST))}",
            )
    if named and datapath == "direct":
        raise CarrierError(
            "--datapath direct and --backend exclude each other",
            "sockets of another backend cannot be given to the program",
            "leave --datapath out",
        )
    return named, table


def _named(text: str, number: int) -> tuple[str, str]:
    """A backend without a name is called `backend`, `backend2`, … by its place."""
    name, equals, where = text.partition("=")
    if not equals or ":" in name:
        return (f"backend{number}" if number > 1 else "backend"), str(url.parse(text))
    if not re.fullmatch(r"[\w.-]+", name):
        raise CarrierError(
            f"{name!r} is no name for a backend",
            f"--backend {text} gives it",
            "use letters, digits, dots and hyphens: --backend NAME=URL",
        )
    return name, str(url.parse(where))
