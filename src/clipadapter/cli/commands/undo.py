"""``clipadapter undo``."""

from __future__ import annotations

from pathlib import Path

import click

from clipadapter.cli.commands.history import describe_change
from clipadapter.cli.edit import author_option, find_author
from clipadapter.cli.groups import cli_command
from clipadapter.cli.option_types import COUNT, FOLDER
from clipadapter.cli.options import output_options
from clipadapter.cli.output import Output, facts
from clipadapter.utils.files import quote_path

MAX_NAMED_CLASSES = 5


@cli_command("clipadapter undo model/")
@click.argument("model", type=FOLDER)
@click.option("--to", type=COUNT, metavar="VERSION", help="Go to this version, which may be one that was undone.")
@author_option
@output_options
def command(model: Path, to: int | None, author: str | None, out: Output) -> None:
    """Undo the last change of MODEL. Run it again to undo the change before.

    Nothing is lost: the result is a new version, and --to goes to any version that 'clipadapter history' can go back
    to. No picture and no encoder is needed.
    """
    from clipadapter.persistence import read_config, restore_version

    history = restore_version(model, to, find_author(author))
    *_, before, now = history.changes
    undone, names = history.changes[before.content - 1], read_config(model).class_names
    more = " ..." if len(names) > MAX_NAMED_CLASSES else ""
    same_as = history.changes[now.content - 1]
    lines = [
        ("model", f"{model}, version {now.version}"),
        ("undone", f"version {undone.version}, {describe_change(undone)}")
        if to is None
        else ("went", f"to version {to}"),
        ("same as", f"version {now.content}, {describe_change(same_as)}"),
        ("classes", f"{len(names)}: {', '.join(names[:MAX_NAMED_CLASSES])}{more}"),
        ("pictures", now.pictures),
        ("go back", f"clipadapter undo {quote_path(model)} --to {before.version}"),
    ]
    data = {
        "model": str(model),
        "version": now.version,
        "undone": undone.version if to is None else None,
        "content": now.content,
        "classes": names,
        "pictures": now.pictures,
    }
    out.result(data, facts(lines))
