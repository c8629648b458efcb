"""`xensock.run`: a program in a guest, for Python callers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xensock.calls.record import Record

DATAPATHS = ("auto", "direct", "relay")


class RunError(RuntimeError):
    """The guest could not be run. `status` is 125, 126 or 127 as of `xensock run`; the message is what it says."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Done:
    """A guest that ended.

    status  the program's exit status, 128 + n if signal n ended it
    calls   the mediated calls in the order they ended
    stdout, stderr  what it wrote, where `capture` was asked for, else empty
    """

    status: int
    calls: tuple[Record, ...]
    stdout: bytes = b""
    stderr: bytes = b""


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    rules: Sequence[str] = (),
    policy: str | os.PathLike[str] | None = None,
    labels: Mapping[str, str] | None = None,
    publish: Sequence[str] = (),
    datapath: str = "auto",
    backend: str | Sequence[str] = (),
    route: str | Sequence[str] = (),
    name: str = "",
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    input: bytes | None = None,
    capture: bool = False,
    timeout: float | None = None,
) -> Done:
    """Run a program in a guest to its end.

    `rules` are those of `--allow`, each alone or after the word "allow"; after the word "deny" those of `--deny`.
    `policy` is the path of a policy file, `labels` are the guest's. `publish`, `datapath` and `name` are those of
    `xensock run`, and so are `backend` ([NAME=]URL) and `route` (RULE=NAME): one or several, in order. `timeout` in
    seconds; when it passes the guest is ended. Raises ValueError for a malformed rule, policy, publication, data path,
    backend or route, RunError where the guest cannot be made, a backend not be reached or the program not be executed,
    OSError for a policy file that cannot be read, subprocess.TimeoutExpired.
    """
    from xensock.observe.trace import record_from_json
    from xensock.policy.rules import parse_rules
    from xensock.supervisor.publication import Publication

    if not argv:
        raise ValueError("no program is named")
    if datapath not in DATAPATHS:
        raise ValueError(f"datapath {datapath!r} is none of {', '.join(DATAPATHS)}")
    # -P: modules in the caller's folder are not meant for us.
    command = [sys.executable, "-P", "-m", "xensock", "run", "--trace=json"]
    command += ["--datapath", datapath]
    groups: Mapping[str, Sequence[str]] = {}
    if policy is not None:
        from xensock.policy.load import load

        groups = load(os.fspath(policy)).tables.groups
        command += ["--policy", os.fspath(policy)]
    for key, value in (labels or {}).items():
        command += ["--label", f"{key}={value}"]
    for text in rules:
        word, _, rest = text.partition(" ")
        verb, rule = (word, rest.strip()) if word in ("allow", "deny") and rest else ("allow", text)
        parse_rules(rule, groups)
        command += [f"--{verb}", rule]
    for text in publish:
        Publication.parse(text)
        command += ["--publish", text]
    backends, routes = ([x] if isinstance(x, str) else [*x] for x in (backend, route))
    if backends or routes:
        from xensock.backend.carriers import parse

        parse(backends, routes, datapath)
        for text in backends:
            command += ["--backend", text]
        for text in routes:
            command += ["--route", text]
    if name:
        command += ["--name", name]
    with tempfile.TemporaryDirectory(prefix="xensock-run-") as folder:
        trace, report = os.path.join(folder, "trace"), os.path.join(folder, "failure")
        command += [
            "--trace-file",
            trace,
            "--failure-file",
            report,
            "--",
            *[str(os.fspath(word)) for word in argv],
        ]
        done = subprocess.run(
            command,
            env=env,
            cwd=cwd,
            input=input,
            capture_output=capture,
            timeout=timeout,
            check=False,
        )
        if os.path.exists(report):
            with open(report, encoding="utf-8") as f:
                raise RunError(done.returncode, f.read().strip())
        with open(trace, encoding="utf-8") as f:
            # What one thread wrote may precede what another did a moment before.
            calls = tuple(
                sorted((record_from_json(line) for line in f), key=lambda r: r.time + r.duration)
            )
    # The front itself was killed by a signal where the status is negative.
    status = done.returncode if done.returncode >= 0 else 128 - done.returncode
    return Done(status, calls, done.stdout or b"", done.stderr or b"")
