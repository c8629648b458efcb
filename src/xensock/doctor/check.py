"""One row of `xensock doctor`."""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    """One row: `fail` makes XenSock unusable, `warn` costs a data path or a feature."""

    name: str
    state: State
    detail: str
    remedy: str = ""
