"""A command that has commands of its own, such as ``clipadapter data list``."""

from __future__ import annotations

import click

from clipadapter.registry import unknown


class Verbs(click.Group):
    """As click's, but an unknown name says what comes close."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first word."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            ctx.fail(str(unknown("command", args[0], sorted(self.commands))))
        return super().resolve_command(ctx, args)
