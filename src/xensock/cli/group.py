"""A group of commands below `xensock`: `help` in it is its `--help`, and its commands' help begins with examples."""

from __future__ import annotations

import click

from xensock.cli import examples


class Group(click.Group):
    """click's, with both."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            examples.first(command, f"{self.name} {cmd_name}")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[:1] == ["help"]:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        return super().resolve_command(ctx, args)
