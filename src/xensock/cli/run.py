"""`xensock run`: a program in a guest, its backend beside it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from xensock.cli import auditing
from xensock.cli.errors import UserError, show
from xensock.cli.failures import explained, lost, opened, opened_for_packets
from xensock.streams import warn

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from xensock.calls.record import Record
    from xensock.cli.prompting import Prompts

EPILOG = """\b
Rules: [connect:|listen:|accept:]HOST|CIDR|GROUP[:PORT[-PORT]][/tcp|udp|icmp]:
  api.example.test:443   10.0.0.0/8   loopback:5432   listen:any:80
or unix:PATH, a unix socket of the host, for example unix:/run/app.sock.
Without rules, connections to public and private addresses are allowed, the
host's loopback, link-local and metadata addresses are not, and the program may
listen on ports from 1024 on. Any --allow refuses everything else.

\b
Exit status: the program's own; 128+N if signal N ended it; 125 if xensock
failed, 126 if the program cannot be invoked, 127 if it is not found.
"""


@click.command(
    # Options end where the program begins, also without `--`: those behind it are the program's.
    context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
    options_metavar="[OPTIONS] --",
)
@click.option(
    "--allow",
    "allow",
    multiple=True,
    metavar="RULE",
    help="Allow this, refuse all else. Repeatable.",
)
@click.option(
    "--deny",
    "deny",
    multiple=True,
    metavar="RULE",
    help="Refuse this; wins over --allow. Repeatable.",
)
@click.option(
    "--policy",
    "policy_file",
    metavar="FILE",
    help="Rules of a policy file (docs/reference/policy.md); --allow and --deny join them.",
)
@click.option(
    "--learn",
    metavar="FILE",
    help="Write the tightest policy that allows what the program did to FILE, when it has ended.",
)
@click.option(
    "--ask",
    is_flag=True,
    help="Ask at the terminal about destinations that no rule is about: once, always, never.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="KEY=VALUE",
    help="A label of the guest, for rules that ask for it. Repeatable.",
)
@click.option(
    "--publish",
    multiple=True,
    metavar="[ADDR:]PORT[:GUESTPORT]",
    help="Let the world reach a port that the guest listens on, its 127.0.0.1 included. Repeatable.",
)
@click.option(
    "--datapath",
    type=click.Choice(["auto", "direct", "relay"]),
    default="auto",
    help="How TCP bytes travel.",
)
@click.option(
    "--family",
    type=click.Choice(["inet", "own"]),
    default="inet",
    help="What leaves the guest: AF_INET, AF_INET6 and AF_XENSOCK (inet), or AF_XENSOCK alone (own).",
)
@click.option(
    "--unix-datagrams",
    type=click.Choice(["allow", "refuse"]),
    help="Whether the guest has unix sockets for datagrams; by default as the policy file says, else allow.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="[NAME=]URL",
    help="Have the calls carried out by the backend at local:PATH. Repeatable: the first is the default.",
)
@click.option(
    "--route",
    "routes",
    multiple=True,
    metavar="RULE=NAME",
    help="Connections that RULE is about go to this backend, or to `host`. Repeatable: the first match wins.",
)
@click.option(
    "--limit",
    multiple=True,
    metavar="NAME=N",
    help="What the guest may take of this host: sockets, ports, connects, connections, calls. Repeatable.",
)
@click.option(
    "--trace",
    is_flag=False,
    flag_value="text",
    type=click.Choice(["text", "json"]),
    help="Show every mediated call on stderr (--trace=json: one object a line).",
)
@click.option("--trace-file", metavar="FILE", help="Write the trace to FILE instead.")
@click.option(
    "--pcap", metavar="FILE", help="Write the guest's packets to FILE, for tcpdump and Wireshark."
)
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Say what is refused, and what would allow it, as it happens.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@auditing.options
@click.option("--name", default="", help="Name of the guest in traces; the program's by default.")
@click.option(
    "-c",
    "script",
    metavar="STRING",
    help="Run this text by sh(1) instead of a program; what follows `--` are its $1, $2, …",
)
@click.option(
    "--failure-file", hidden=True, help="For xensock.run(): where to say why nothing ran."
)
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="PROGRAM [ARG]...")
@click.pass_context
def run(
    ctx: click.Context,
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    policy_file: str | None,
    learn: str | None,
    ask: bool,
    labels: tuple[str, ...],
    publish: tuple[str, ...],
    datapath: str,
    family: str,
    unix_datagrams: str | None,
    backends: tuple[str, ...],
    routes: tuple[str, ...],
    limit: tuple[str, ...],
    trace: str | None,
    trace_file: str | None,
    pcap: str | None,
    verbose: bool,
    quiet: bool,
    audit: str | None,
    audit_size: int,
    audit_keep: int,
    audit_full: str,
    name: str,
    script: str | None,
    failure_file: str | None,
    debug: bool,
    argv: tuple[str, ...],
) -> None:
    """Run PROGRAM in a guest without a network card; its socket calls are carried out here."""
    if script is not None:
        argv = ("sh", "-c", script, "sh", *argv)
    elif not argv:
        raise click.MissingParameter(ctx=ctx, param=ctx.command.params[-1])
    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet exclude each other", ctx)
    from xensock.backend.carriers import parse as parse_carriers
    from xensock.cli import front
    from xensock.cli.policy import policy_of, read_labels, source_of
    from xensock.supervisor.limits import Limits
    from xensock.supervisor.publication import Publication

    policy = policy_of(policy_file, allow, deny)
    named = read_labels(labels)
    if pcap is not None:
        datapath = _relayed(datapath)
    carriers, table = parse_carriers(backends, routes, datapath)
    if carriers:
        _no_paths((*allow, *deny))
    if carriers and not allow and not deny and policy_file is None:
        from xensock.policy.deferred import Deferred
        from xensock.policy.routes import Routes

        policy = Deferred(Routes(table, carriers[0][0]))
    limits = Limits.parse(limit)
    publications = tuple(Publication.parse(text) for text in publish)
    record = recorder(trace, trace_file, ctx, policy_file)
    wanted = auditing.Audit(audit, audit_size, audit_keep, audit_full)
    lesson = None
    if learn is not None:
        from xensock.cli.learning import Lesson

        lesson = Lesson(learn)
    prompts = asking(ask, bool(carriers))
    debug = debug or bool(ctx.find_root().params.get("debug"))

    def backend(group: int, job: socket.socket) -> int:
        log = None
        try:
            from xensock.backend.embedded import Embedded, Order

            log = wanted.open(warn)
            tap = auditing.tap_of(record, log)
            if verbose and (trace is None or trace_file is not None):
                tap.denials.tell = recorder("text", None, ctx, policy_file)
            silent = (trace is None or trace_file is not None) and not verbose
            detach = front.detacher(job, quiet=silent)
            if lesson is not None:
                tap.add(lesson.learner.record)
            if lesson is not None or pcap is not None:
                detach = _stay  # nobody goes on before the policy, or the capture, is there
            order = Order(
                argv,
                policy,
                name or os.path.basename(argv[0]),
                datapath,
                publications,
                carriers,
                table,
                group,
                tap,
                detach,
                family == "own",
                None if unix_datagrams is None else unix_datagrams == "allow",
                named,
                wanted.gate(log),
                source_of(policy_file, allow, deny),
                limits,
                _say_nothing if quiet else warn,
                prompts.asker() if prompts is not None else None,
                opened_for_packets(pcap) if pcap is not None else None,
                front.mirror(),
            )
            code = Embedded(order, _complain).run(job)
            if lesson is not None:
                lesson.write(warn)
            return code
        except Exception as error:
            shown = show(explained(error), debug=debug)
            if failure_file is not None:
                with open(failure_file, "w", encoding="utf-8") as report:
                    report.write(f"{shown.what}: {shown.cause} ({shown.hint})")
            return shown.code
        finally:
            if log is not None:
                log.close()

    ctx.exit(front.run(backend, prompts.serve if prompts is not None else lambda: None))


def asking(wanted: bool, elsewhere: bool) -> Prompts | None:
    """Who asks at the terminal, if that is wanted. Raises UserError where nobody can."""
    if not wanted:
        return None
    if elsewhere:
        raise UserError(
            "--ask: another backend decides",
            "a guest with --backend is asked about there",
            "leave out one of them",
        )
    from xensock.cli.prompting import Prompts

    return Prompts()


def _relayed(datapath: str) -> str:
    """The data path of a guest whose packets are wanted. Raises UserError for one that has none."""
    if datapath == "direct":
        raise UserError(
            "--pcap: bytes of direct connections never pass XenSock",
            "their packets are the host's: tcpdump(8) shows them there",
            "leave out --datapath direct; the relay has them",
        )
    return "relay"


def _no_paths(rules: tuple[str, ...]) -> None:
    """Raises UserError for rules about unix sockets where another backend carries the calls."""
    from xensock.policy.unix import is_unix

    for rule in filter(is_unix, rules):
        raise UserError(
            f"rule {rule!r}: it is about this host, and another backend carries the calls",
            "a guest with --backend reaches no unix sockets but its own",
            "leave it out; at `xensock backend` it is for programs with xensock.socket",
        )


def _stay(code: int) -> None:
    """The caller waits for the guest's last process."""


def _say_nothing(text: str) -> None:
    """Instead of `warn`."""


def _complain(text: str) -> None:
    warn(f"internal error, the call was refused: {text}")


def recorder(
    style: str | None, path: str | None, ctx: click.Context, policy: str | None = None
) -> Callable[[Record], None] | None:
    if style is None and path is None:
        return None
    from xensock.cli.terminal import colour_wanted
    from xensock.observe.trace import TraceWriter

    stream = sys.stderr if path is None else opened(path)
    colour = path is None and colour_wanted(stream, ctx.find_root().params.get("color"))
    return TraceWriter(
        stream, "json" if style == "json" else "text", colour, policy or "", lost(path)
    ).write
