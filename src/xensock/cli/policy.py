"""`xensock policy`: what a policy file says, before anything runs under it."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import click

from xensock.cli.errors import FAILURE, UserError
from xensock.cli.group import Group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xensock.backend.reloading import Source
    from xensock.calls.address import IPAddress
    from xensock.calls.call import Decision
    from xensock.policy.entries import Entry
    from xensock.policy.load import Document
    from xensock.policy.policy import Policy

OTHERS = 5  # runners-up that are shown


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
def policy() -> None:
    """Check, explain and test policy files (docs/reference/policy.md)."""


@policy.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="One object a line for each error.")
@click.pass_context
def check(ctx: click.Context, files: tuple[str, ...], as_json: bool) -> None:
    """Report every error of policy files, with line, column and a suggestion."""
    from xensock.policy.load import PolicyError, load

    bad = False
    for path in files:
        try:
            document = load(path)
        except PolicyError as error:
            bad = True
            for problem in error.problems:
                where = f"{path}:{problem.line}:{problem.column}"
                if as_json:
                    click.echo(json.dumps({"file": path, **_fields(problem)}))
                    continue
                click.echo(f"{where}: {_clean(problem.message)}")
                click.echo(f"  hint: {_clean(problem.hint)}")
        except OSError as error:
            raise _unreadable(path, error) from error
        else:
            if not as_json:
                tables = document.tables
                click.echo(f"{path}: good, {len(tables.rule)} rules, {len(document.cases)} cases")
    if bad:
        ctx.exit(FAILURE)


@policy.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--policy", "path", metavar="FILE", help="The policy file.")
@click.option("--allow", multiple=True, metavar="RULE", help="As of `xensock run`.")
@click.option("--deny", multiple=True, metavar="RULE", help="As of `xensock run`.")
@click.option("--program", default="", metavar="PATH", help="The program that calls.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of the guest.")
@click.option("--address", metavar="ADDRESS", help="Where the name leads; 192.0.2.1 if absent.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
@click.argument("call", nargs=-1, required=True, metavar="CALL...")
@click.pass_context
def explain(
    ctx: click.Context,
    path: str | None,
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    program: str,
    labels: tuple[str, ...],
    address: str | None,
    as_json: bool,
    call: tuple[str, ...],
) -> None:
    """Say how a call would be decided, and why. Status 0: allowed, 1: refused.

    \b
    Examples of CALL:
      connect tcp api.example.test:443
      listen tcp any:8080
      accept 198.51.100.7:8080
      resolve api.example.test
    """
    from xensock.calls.call import Subject
    from xensock.policy.explain import Call
    from xensock.policy.explain import explain as explained

    rules = policy_of(path, allow, deny)
    asked = Call.of_words(call)
    found = explained(rules, asked, _address(address), Subject(program, read_labels(labels)))
    decision = found.decision
    if as_json:
        click.echo(
            json.dumps(
                {
                    "allowed": decision.allowed,
                    "rule": decision.rule,
                    "source": decision.source,
                    "others": [_other(entry) for entry in found.others],
                    "smallest": found.smallest,
                }
            )
        )
        ctx.exit(0 if decision.allowed else FAILURE)
    where = f" ({decision.source})" if decision.source else ""
    click.echo(f"{'allow' if decision.allowed else 'deny'}  {decision.rule}{where}")
    for line in terms_of(decision):
        click.echo(f"  {line}")
    for entry in found.others[:OTHERS]:
        click.echo(f"  then  {described(entry)}")
    if len(found.others) > OTHERS:
        click.echo(f"  … and {len(found.others) - OTHERS} more")
    if not decision.allowed:
        if found.smallest:
            click.echo(f"  would allow it: {json.dumps(found.smallest)}")
        else:
            click.echo("  no rule beside it would allow it: change the one that denies")
        ctx.exit(FAILURE)


@policy.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.pass_context
def test(ctx: click.Context, files: tuple[str, ...]) -> None:
    """Run the [[expect]] cases of policy files."""
    failed = ran = 0
    for path in files:
        document = document_of(path)
        if not document.cases:
            raise UserError(
                f"{path} has no cases",
                "a test that tests nothing does not pass",
                'add some: [[expect]] with allow = "HOST:PORT" or deny = "HOST:PORT"',
            )
        for said in failures(document):
            failed += 1
            click.echo(said)
        ran += len(document.cases)
    click.echo(f"{ran - failed} of {ran} cases hold")
    if failed:
        ctx.exit(FAILURE)


@policy.command(context_settings={"help_option_names": ["-h", "--help"]})
def schema() -> None:
    """Print the JSON Schema of policy files."""
    from importlib.resources import files

    click.echo(files("xensock.policy").joinpath("policy.schema.json").read_text(), nl=False)


# --- what others need


def document_of(path: str) -> Document:
    """A policy file, read. Raises PolicyError, UserError."""
    from xensock.policy.load import load

    try:
        return load(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def policy_of(path: str | None, allow: Sequence[str], deny: Sequence[str]) -> Policy:
    """The policy of a file, if any, and of options. Raises PolicyError, RuleError, UserError."""
    if path is None:
        from xensock.policy.policy import Policy

        return Policy.parse(allow, deny)
    return document_of(path).policy(allow, deny)


def source_of(path: str | None, allow: Sequence[str], deny: Sequence[str]) -> Source | None:
    """Where the policy comes from, if it comes from a file, to follow it."""
    if path is None:
        return None
    from xensock.backend.reloading import Source
    from xensock.policy.load import load

    return Source(path, lambda: load(path).policy(allow, deny))


def read_labels(texts: Sequence[str]) -> dict[str, str]:
    """Labels as given by --label. Raises UserError."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals or not text.isprintable():
            raise UserError(
                f"--label {text}: not a label", "a label has a key and a value", "write KEY=VALUE"
            )
        found[key] = value
    return found


def failures(document: Document) -> list[str]:
    """The cases of a policy that do not hold, with why."""
    from xensock.calls.call import Subject
    from xensock.policy.explain import Call
    from xensock.policy.explain import explain as explained

    rules = document.policy()
    failed = []
    for at, text, wanted in document.cases:
        case = document.tables.expect[at]
        subject = Subject(case.program or "", case.labels)
        found = explained(rules, Call.parse(text), _address(case.address), subject)
        if found.decision.allowed == wanted:
            continue
        decision = found.decision
        where = f" ({decision.source})" if decision.source else ""
        failed.append(
            f"{document.where(at)}: {text}: expected {'allow' if wanted else 'deny'}, "
            f"got {'allow' if decision.allowed else 'deny'} by {decision.rule}{where}"
        )
        if wanted and found.smallest:
            failed[-1] += f"\n  would allow it: {json.dumps(found.smallest)}"
    return failed


def described(entry: Entry) -> str:
    """A rule in a few words."""
    word = "allow" if entry.allow else "deny"
    option = f"--{word}"
    return f"{word} {entry.rule.text} ({entry.terms.source or option})"


def terms_of(decision: Decision) -> list[str]:
    """How an allowed call is carried out, where a rule says so."""
    said = []
    if decision.redirect is not None:
        said.append(f"redirect to {decision.redirect}")
    if decision.via:
        said.append(f"via {', else '.join(decision.via)}")
    if decision.verify is not None:
        said.append(f"verify {decision.verify}")
    limit = decision.limit
    if limit is not None:
        parts = {
            "bytes per second": limit.rate,
            "new connections per second": limit.connects,
            "connections at once": limit.concurrent,
        }
        said += [
            f"at most {value:.15g} {what}" for what, value in parts.items() if value is not None
        ]
    if decision.needs_relay:
        said.append("carried by the relay")
    return said


def _other(entry: Entry) -> dict[str, Any]:
    return {"allow": entry.allow, "rule": entry.rule.text, "source": entry.terms.source}


def _fields(problem: object) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(problem)  # type: ignore[call-overload,no-any-return]


def _address(text: str | None) -> IPAddress | None:
    if text is None:
        return None
    try:
        return ip_address(text)
    except ValueError:
        raise UserError(
            f"--address {text}: not an address",
            "names do not stand here",
            "write one such as 192.0.2.1",
        ) from None


def _clean(text: str) -> str:
    from xensock.observe.trace import printable

    return printable(text)


def _unreadable(path: str, error: OSError) -> UserError:
    return UserError(
        f"cannot read the policy {path}",
        error.strerror or str(error),
        "name a file that exists and that you may read",
    )
