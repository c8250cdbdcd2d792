"""``clipadapter history`` and ``clipadapter undo``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipadapter.cli.commands.edit import author_option, describe_change, find_author
from clipadapter.cli.groups import cli_command
from clipadapter.cli.options import COUNT, FOLDER, argument, option
from clipadapter.cli.output import Fact, Output, table
from clipadapter.utils.files import quote_path

MAX_NAMED_CLASSES = 5


@cli_command("clipadapter history model/")
def history(out: Output, model: Path = argument(type=FOLDER)) -> None:
    """List the versions of MODEL: when each was made, by whom, and what was changed.

    'clipadapter undo' goes back to a version. Very old versions are only listed: their models are not stored any more.
    """
    from clipadapter.persistence import History

    versions = History.load(model)
    versions.check()
    stored, last = versions.stored_versions(), versions.changes[-1]
    data = [{**one.model_dump(exclude={"key", "config"}), "kept": one.version in stored} for one in versions.changes]
    rows = [
        (one.version, one.when.replace("T", " ").rstrip("Z"), one.by, describe_change(one), one.classes, one.pictures)
        for one in versions.changes
    ]
    listing = table(["version", "when (UTC)", "who", "what", "classes", "pictures"], rows)
    others = [number for number in stored if versions.changes[number - 1].content != last.content]
    same_as = "" if last.content == last.version else f", the same as version {last.content}"
    undo = f"; to go back to {format_ranges(others)}: clipadapter undo {quote_path(model)} [--to VERSION]"
    summary = f"{model} is version {last.version}{same_as}" + (undo if others else "")
    out.result({"model": str(model), "version": last.version, "changes": data}, f"{listing}\n\n{summary}")


def format_ranges(numbers: Sequence[int]) -> str:
    """Format sorted numbers as ranges.

    >>> format_ranges([1, 3, 4, 5, 8])
    '1, 3-5, 8'
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][-1] == number - 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in ranges)


@cli_command("clipadapter undo model/")
def undo(
    out: Output,
    model: Path = argument(type=FOLDER),
    to: int | None = option(
        "--to", type=COUNT, metavar="VERSION", help="Go to this version, which may be one that was undone."
    ),
    author: str | None = author_option,
) -> None:
    """Undo the last change of MODEL. Run it again to undo the change before.

    Nothing is lost: the result is a new version, and --to goes to any version that 'clipadapter history' can go back
    to. No picture and no encoder is needed.
    """
    from clipadapter.persistence import read_config, restore_version

    changes = restore_version(model, to, find_author(author)).changes
    *_, before, now = changes
    undone, names = changes[before.content - 1], read_config(model).class_names
    more = " ..." if len(names) > MAX_NAMED_CLASSES else ""
    went = Fact("undone", undone.version, f"version {undone.version}, {describe_change(undone)}")
    out.facts(
        [
            Fact("model", str(model), f"{model}, version {now.version}"),
            Fact("version", now.version),
            went if to is None else Fact("undone", None, f"to version {to}", "went"),
            Fact(
                "content", now.content, f"version {now.content}, {describe_change(changes[now.content - 1])}", "same as"
            ),
            Fact("classes", names, f"{len(names)}: {', '.join(names[:MAX_NAMED_CLASSES])}{more}"),
            Fact("pictures", now.pictures, now.pictures),
            Fact("", text=f"clipadapter undo {quote_path(model)} --to {before.version}", name="go back"),
        ]
    )
