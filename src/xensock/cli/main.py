"""The `xensock` command: finds the subcommand, runs it, turns errors into lines and statuses.

Subcommands are imported when used, so that `xensock run` starts without what only others need.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import TYPE_CHECKING

import click

from xensock import __version__
from xensock.cli import errors, examples
from xensock.cli.errors import UserError
from xensock.cli.terminal import CHOICES
from xensock.streams import complete, let_go

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# name → module, attribute, one line of help
COMMANDS = {
    "run": ("xensock.cli.run", "run", "Run a program in a guest without a network card."),
    "backend": ("xensock.cli.backend", "backend", "Carry out the calls of guests that connect."),
    "ps": ("xensock.cli.looking", "ps", "List guests."),
    "ss": ("xensock.cli.looking", "ss", "List the sockets of guests."),
    "status": ("xensock.cli.overview", "status", "Show backends, guests, sockets and refusals."),
    "top": ("xensock.cli.overview", "top", "Show what guests move, again and again."),
    "inspect": ("xensock.cli.overview", "inspect", "Print all that is known of a guest as JSON."),
    "events": ("xensock.cli.looking", "events", "Show calls of guests as they happen."),
    "kill": ("xensock.cli.looking", "kill", "End a guest or a connection."),
    "upgrade": ("xensock.cli.upgrading", "upgrade", "Have a new version of a backend take over."),
    "policy": ("xensock.cli.policy", "policy", "Check, explain and test policy files."),
    "install": (
        "xensock.cli.install",
        "install",
        "Make Docker, Podman or systemd know XenSock.",
    ),
    "uninstall": ("xensock.cli.install", "uninstall", "Undo what `xensock install` did."),
    "logs": ("xensock.cli.reporting", "logs", "Show the journal of the installed backend."),
    "bugreport": ("xensock.cli.reporting", "bugreport", "Print what a report of a fault needs."),
    "doctor": ("xensock.cli.doctor", "doctor", "Check what this machine offers to XenSock."),
    "bench": ("xensock.cli.bench", "bench", "Measure XenSock against the native network."),
    "version": ("xensock.cli.version", "version", "Show the version of XenSock and its kernel."),
    "help": ("xensock.cli.main", "show_help", "Show help for a command."),
}

HELP = """Carry out a program's socket calls outside it: filtered, recorded, at native speed.

\b
Examples:
  xensock run -- curl -sS http://web.example/
  xensock run --trace -- git clone https://git.example/project.git
  xensock run --allow api.example:443 -- python3 client.py
  xensock run --publish 8080:3000 -- node server.js
  xensock doctor

The program and its arguments follow `--` unchanged. An option given twice: the last one wins,
unless its help says that it may be repeated.
"""


class Commands(click.Group):
    """A group whose commands are imported only when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        examples.first(command, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UserError(
                f"no such command: {args[0]}", hint=_did_you_mean(args[0]), code=errors.USAGE
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


def _did_you_mean(word: str) -> str:
    close = difflib.get_close_matches(word, COMMANDS, n=1)
    if close:
        return f"did you mean `xensock {close[0]}`?"
    return f"to run a program: xensock run -- {word} …; `xensock help` lists the commands"


@click.group(
    cls=Commands,
    help=HELP,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--color", type=click.Choice(CHOICES), default="auto", help="Colour output; NO_COLOR is obeyed."
)
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.option("--version", "show_version", is_flag=True, help="Show the version.")
@click.option("--tree", is_flag=True, help="Show all commands and their options.")
@click.pass_context
def cli(ctx: click.Context, color: str, debug: bool, show_version: bool, tree: bool) -> None:
    ctx.color = {"always": True, "never": False}.get(color)
    if ctx.color is None and os.environ.get("NO_COLOR"):
        ctx.color = False
    if show_version:
        click.echo(f"xensock {__version__}")
        ctx.exit(0)
    if tree:
        click.echo("\n".join(_tree(ctx, "xensock")))
        ctx.exit(0)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _tree(ctx: click.Context, path: str) -> Iterator[str]:
    """A line for each command below this one: its name in full, its options."""
    group = ctx.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _tree(click.Context(command, info_name=name, parent=ctx), f"{path} {name}")
            continue
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        yield " ".join((path, name, *(max(p.opts, key=len) for p in options)))


@click.command(help="Show help for a command.")
@click.argument("command", nargs=-1)
@click.pass_context
def show_help(ctx: click.Context, command: tuple[str, ...]) -> None:
    root = ctx.find_root()
    if not command:
        click.echo(root.get_help())
        return
    assert isinstance(root.command, Commands)
    name, found, _ = root.command.resolve_command(root, [command[0]])
    assert found is not None
    with click.Context(found, info_name=name, parent=root) as context:
        if isinstance(found, click.Group) and len(command) > 1:
            _, sub, _ = found.resolve_command(context, [command[1]])
            assert sub is not None
            with click.Context(sub, info_name=command[1], parent=context) as inner:
                click.echo(inner.get_help())
                return
        click.echo(found.get_help(context))


def _usage_error(error: click.UsageError, verb: str) -> UserError:
    """Click's complaint in our form, always with a hint."""
    message = error.format_message().rstrip(".")
    hint = f"`xensock {verb} --help` lists the options" if verb else "see `xensock --help`"
    if isinstance(error, click.NoSuchOption):
        message = f"no such option: {error.option_name}"
        near = error.possibilities or ()
        known = [o for p in (error.ctx.command.params if error.ctx else ()) for o in p.opts]
        close = [*near, *difflib.get_close_matches(error.option_name, known, n=1)]
        if close:
            hint = f"did you mean {close[0]}? {hint}"
        elif verb and error.option_name == "--color":
            hint = f"it comes before the command: xensock --color … {verb}"
        elif verb == "run":
            hint = "the program's own options follow `--`: xensock run -- PROGRAM [ARG…]"
    elif message.startswith("No such command") and error.ctx is not None:
        word = message.split("'")[1]
        group = (error.ctx.info_name or "").removeprefix("xensock ")
        message = f"no such command: {group} {word}"
        assert isinstance(error.ctx.command, click.Group)
        close = difflib.get_close_matches(word, error.ctx.command.list_commands(error.ctx), n=1)
        if close:
            hint = f"did you mean `xensock {group} {close[0]}`?"
    elif isinstance(error, click.BadParameter) and message.startswith(
        "Invalid value for '--trace'"
    ):
        hint = "--trace=json, --trace=text, or `xensock run --trace -- PROGRAM` (see --help)"
    elif isinstance(error, click.MissingParameter) and verb == "run":
        hint = "name the program after `--`: xensock run -- PROGRAM [ARG…]"
    return UserError(message[:1].lower() + message[1:], hint=hint, code=errors.USAGE)


def _verb(arguments: Sequence[str]) -> str:
    """The subcommand among the arguments, "" if there is none."""
    skip = False
    for argument in arguments:
        if skip or argument.startswith("-"):
            skip = argument == "--color" and not skip
            continue
        return argument
    return ""


def _debug(arguments: Sequence[str]) -> bool:
    """Whether `--debug` was given to us, not to the guest's program (which follows `--`)."""
    ours = list(arguments)
    return "--debug" in (ours[: ours.index("--")] if "--" in ours else ours)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    complete()
    verb, debug = _verb(args), _debug(args)
    try:
        status = cli.main(args=args, prog_name="xensock", standalone_mode=False)
        # Output that is still buffered may fail only now.
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        # A group without a command: its help is all there is to say.
        error.show()
        return errors.USAGE
    except click.UsageError as error:
        problem = errors.show(_usage_error(error, verb), debug=debug)
    except (KeyboardInterrupt, click.Abort):
        return errors.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left, as `| head` does: not worth a word.
        let_go(sys.stdout.fileno())
        return errors.FAILURE
    except Exception as error:
        problem = errors.show(error, debug=debug)
    else:
        return status if isinstance(status, int) else 0
    return errors.exit_status(problem, verb)
