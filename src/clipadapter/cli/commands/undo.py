"""``clipadapter undo``."""

from __future__ import annotations

from pathlib import Path

import click

from clipadapter.cli.commands.history import plain, what
from clipadapter.cli.edit import by_option, login
from clipadapter.cli.options import FOLDER, output_options
from clipadapter.cli.output import Output, facts


@click.command(epilog="Example: clipadapter undo model/")
@click.argument("model", type=FOLDER)
@click.option("--to", type=click.IntRange(1), metavar="VERSION", help="Go to this version, also one that was undone.")
@by_option
@output_options
def command(model: Path, to: int | None, by: str | None, out: Output) -> None:
    """Take back the last change of MODEL; again to take back the one before it.

    Nothing is lost: it is a new version, and --to goes to any that 'clipadapter history' lists as kept. No picture
    and no encoder is needed.
    """
    from clipadapter.persistence import History

    before = History.load(model)
    history, content = before.undo(to, login(by))
    from clipadapter.persistence import save_model  # needs torch, which a mistake need not wait for

    save_model(model, content, history=history)
    undone = before.changes[before.changes[-1].content - 1]
    now, names = history.changes[-1], list(content.text.labels)
    lines = [
        ("model", f"{model}, version {now.version}"),
        ("undone", f"version {undone.version}, {what(undone)}") if to is None else ("went", f"to version {to}"),
        ("is now", f"what it was in version {now.content}, {what(history.changes[now.content - 1])}"),
        ("classes", f"{len(names)}: {', '.join(map(plain, names[:5]))}{' ...' if len(names) > 5 else ''}"),
        ("pictures", now.pictures),
        ("back", f"clipadapter undo {model} --to {before.version}"),
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
