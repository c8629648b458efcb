"""A measurement that could not be made."""

from __future__ import annotations


class BenchError(Exception):
    """`what` failed, its `cause` as far as known, and a `hint`: the next thing to do."""

    def __init__(self, what: str, cause: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.cause = cause
        self.hint = hint
