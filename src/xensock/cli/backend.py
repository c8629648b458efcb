"""`xensock backend`: carries out the socket calls of guests that connect to it."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xensock.cli import auditing, messages
from xensock.cli.errors import USAGE, UserError
from xensock.cli.failures import not_entered
from xensock.cli.run import recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xensock.backend.containers import Allowance
    from xensock.backend.oci import Container
    from xensock.policy.point import Current
    from xensock.policy.policy import Policy

EPILOG = """\b
Rules: [connect:|listen:|accept:]HOST|CIDR|GROUP[:PORT[-PORT]][/tcp|udp|icmp],
unix:PATH
Without rules, guests may connect to public and private addresses, not to the
host's loopback, link-local and metadata addresses, and listen on ports from
1024 on. Any --allow refuses everything else.
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.option(
    "--listen",
    multiple=True,
    metavar="URL",
    help="Where guests come to: local:PATH. Repeatable.",
)
@click.option(
    "--containers",
    metavar="PATH",
    help="Serve containers: where xensock-runtime comes to.",
)
@click.option(
    "--policies",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Policy files that a container's label xensock.policy=NAME names: DIR/NAME.toml.",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="PATTERN=NAME",
    help="Containers of such images are under the policy DIR/NAME.toml, unless a label says else. Repeatable.",
)
@click.option(
    "--allow", multiple=True, metavar="RULE", help="Allow this, refuse all else. Repeatable."
)
@click.option(
    "--deny", multiple=True, metavar="RULE", help="Refuse this; wins over --allow. Repeatable."
)
@click.option(
    "--policy",
    "policy_file",
    metavar="FILE",
    help="Rules of a policy file (docs/reference/policy.md); --allow and --deny join them.",
)
@click.option(
    "--trace",
    is_flag=False,
    flag_value="text",
    type=click.Choice(["text", "json"]),
    help="Show every mediated call on stderr (--trace=json: one object a line).",
)
@click.option("--trace-file", metavar="FILE", help="Write the trace to FILE instead.")
@auditing.options
@messages.options
@click.option("--control", metavar="PATH", help="Serve the control API on a unix socket at PATH.")
@click.option(
    "--user",
    multiple=True,
    type=click.IntRange(0, 2**32 - 2),
    metavar="UID",
    help="Let processes of this user be guests, too. Repeatable.",
)
@click.option(
    "--hold",
    is_flag=True,
    help="Run behind a small process that starts the backend again if it is killed; guests go on.",
)
@click.option(
    "--cleanup",
    is_flag=True,
    help="Serve nobody: remove the sockets that a killed backend with these options left behind.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.pass_context
def backend(
    ctx: click.Context,
    listen: tuple[str, ...],
    containers: str | None,
    policies: Path | None,
    images: tuple[str, ...],
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    policy_file: str | None,
    trace: str | None,
    trace_file: str | None,
    audit: str | None,
    audit_size: int,
    audit_keep: int,
    audit_full: str,
    quiet: bool,
    verbose: bool,
    log_format: str | None,
    log_file: str | None,
    log_size: int,
    control: str | None,
    user: tuple[int, ...],
    hold: bool,
    cleanup: bool,
    debug: bool,
) -> None:
    """Carry out the socket calls of guests that connect to it, on this host's network."""
    if cleanup:
        _clean_up(listen, containers, control)
        return
    if hold:
        from xensock.backend import holder

        if not holder.held():
            ctx.exit(holder.hold())
    from xensock.backend import daemon
    from xensock.cli.policy import policy_of, source_of
    from xensock.policy.point import Current
    from xensock.stack.netns import RightsError

    messages.Messages(quiet, verbose or debug, log_format, log_file, log_size).begin()
    if not listen and containers is None:
        raise UserError(
            "nobody could come to this backend",
            "it has neither --listen nor --containers",
            "say where guests come to: --listen local:PATH, or --containers PATH for xensock-runtime",
            USAGE,
        )
    places = (*listen, *([containers] if containers is not None else []))
    policy = policy_of(policy_file, allow, deny)
    _check_networks(policy, listen, containers is not None)
    current = Current(policy)
    wanted = auditing.Audit(audit, audit_size, audit_keep, audit_full)
    log = wanted.open(logging.getLogger("xensock.backend").error)
    settings = daemon.Settings(
        listen=listen,
        policy=current,
        record=auditing.tap_of(recorder(trace, trace_file, ctx, policy_file), log),
        gate=wanted.gate(log),
        control=control,
        users=user,
        ready=lambda: _ready(places),
        containers=containers,
        judge=_judge(allow, deny, policies, current if policy_file else None, images)
        if containers
        else None,
        source=source_of(policy_file, allow, deny),
        held=hold,
    )
    try:
        daemon.serve(settings)
    except RightsError as error:
        raise not_entered(error) from error
    except OSError as error:
        raise _explained(error, (*places, *([control] if control else []))) from error
    finally:
        if log is not None:
            log.close()


def _clean_up(listen: Sequence[str], *others: str | None) -> None:
    """Raises UrlError, UserError."""
    from xensock.backend.cleaning import clean
    from xensock.transport import url

    urls = [url.parse(each) for each in listen]
    paths = [each.path for each in urls if each.scheme == "local"]
    try:
        removed = clean([*paths, *filter(None, others)])
    except OSError as error:
        raise UserError(
            f"cannot remove {error.filename or 'what is left'}",
            error.strerror or str(error),
            "do it as the user that started the backend, or as root",
        ) from error
    for path in removed:
        click.echo(f"removed: {path}")


def _check_networks(policy: Policy, listen: Sequence[str], containers: bool) -> None:
    """Raises UserError for networks that a backend cannot carry its guests' calls to."""
    if not policy.networks_needed:
        return
    if containers:
        raise UserError(
            "the policy has rules with `via`, which containers cannot be under",
            "a container has the backend's own network only",
            "leave via out, or have a backend for containers alone",
            USAGE,
        )
    for network in policy.networks:
        if network.backend in listen:
            raise UserError(
                f"the policy has this backend itself for a network: {network.name}",
                "its calls would go round in a circle",
                "name another backend, or leave via out",
                USAGE,
            )


def _judge(
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    policies: Path | None,
    whole: Current | None,
    images: tuple[str, ...],
) -> Callable[[Container], Allowance]:
    """Raises UserError for images whose policy does not exist."""
    from xensock.backend.labels import Labels

    pairs = []
    for each in images:
        pattern, equals, name = each.rpartition("=")
        if not pattern or not equals or not name:
            raise UserError(
                f"--image {each} names no policy",
                "",
                "write PATTERN=NAME, such as --image '*/shop-web:*=web'",
                USAGE,
            )
        pairs.append((pattern, name))
    judge = Labels(allow, deny, policies, whole, pairs)
    if why := judge.unknown():
        raise UserError(
            "--image names a policy that cannot be used",
            why,
            "name a file of the --policies directory, without .toml; `xensock policy check FILE` explains it",
            USAGE,
        )
    return judge


def _ready(listen: Sequence[str]) -> None:
    from xensock.backend import systemd

    logging.getLogger("xensock.backend").info("listening at %s", ", ".join(listen))
    systemd.notify("READY=1")


def _explained(error: OSError, places: Sequence[str]) -> UserError:
    """What a failure to listen means, with the remedy."""
    named = error.filename if isinstance(error.filename, str) else ", ".join(places)
    hints = {
        errno.EADDRINUSE: "stop the backend that listens there, or use another path",
        errno.EACCES: "use a path in a directory that you may write to",
        errno.EPERM: "use a path in a directory that you may write to",
        errno.ENOENT: "make the directory first, or use another path",
        errno.ENOTDIR: "use a path whose directories exist",
        errno.ENOTSOCK: "something else than a socket is there: use another path",
    }
    return UserError(
        f"cannot listen at {named}",
        error.strerror or str(error),
        hints.get(error.errno or 0, "check the path, or use another one"),
    )
