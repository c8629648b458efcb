"""--audit and its kin, which `xensock run` and `xensock backend` share, and the tap that records go through."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from xensock.cli.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.record import Record
    from xensock.observe.audit import AuditLog
    from xensock.observe.tap import Tap
    from xensock.policy.gate import Gate

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
LEAST = 4096


class Size(click.ParamType[int]):
    """A number of bytes: 64M, 500K, 1G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+)([KMG]?)", value, re.I)
        size = int(found[1]) * _UNITS[found[2].upper()] if found else 0
        if size < LEAST:
            self.fail(f"{value!r} is no size of at least {LEAST} bytes, as 500K, 64M or 1G")
        return size


@dataclass(frozen=True, slots=True)
class Audit:
    """What was asked for. `open` it in the process that writes it."""

    path: str | None
    size: int
    keep: int
    full: str

    def open(self, complain: Callable[[str], None]) -> AuditLog | None:
        """The log, if there is to be one. Raises UserError."""
        if self.path is None:
            return None
        from xensock.observe.audit import AuditError, AuditLog

        try:
            return AuditLog(self.path, size=self.size, keep=self.keep, complain=complain)
        except AuditError as error:
            raise UserError(
                f"cannot write the audit log {self.path}",
                error.strerror or str(error),
                "name a regular file in a directory that you may write to",
            ) from error

    def gate(self, log: AuditLog | None) -> Gate | None:
        """What refuses calls that could not be recorded, where that is wanted."""
        if log is None or self.full != "refuse":
            return None
        from xensock.calls.call import Decision

        refusal = Decision(
            False,
            "--audit-full refuse: the audit log is full",
            errno.EACCES,
            cacheable=False,
            hint=f"make room for {self.path}",
        )
        return lambda: refusal if log.full else None


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options; it gets them as `audit`, `audit_size`, `audit_keep` and `audit_full`."""
    for option in (
        click.option(
            "--audit-full",
            type=click.Choice(["drop", "refuse"]),
            default="drop",
            show_default=True,
            help="What becomes of calls that the audit log has no room for: done and counted, or refused.",
        ),
        click.option(
            "--audit-keep",
            type=click.IntRange(0, 10_000),
            default=5,
            show_default=True,
            metavar="N",
            help="Rotated audit logs to keep: FILE.1 is the latest.",
        ),
        click.option(
            "--audit-size",
            type=Size(),
            default="64M",
            show_default=True,
            help="Rotate the audit log at this size.",
        ),
        click.option(
            "--audit",
            metavar="FILE",
            help="Append a line of JSON to FILE for every call and connection.",
        ),
    ):
        command = option(command)
    return command


def tap_of(trace: Callable[[Record], None] | None, log: AuditLog | None) -> Tap:
    """Where records go at first; watchers come later."""
    from xensock.observe.tap import Tap

    tap = Tap()
    if trace is not None:
        tap.add(trace)
    if log is not None:
        tap.add(log.record, ends=True, lines=log.take)
    return tap
