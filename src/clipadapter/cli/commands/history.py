"""``clipadapter history``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.groups import cli_command
from clipadapter.cli.option_types import FOLDER
from clipadapter.cli.options import output_options
from clipadapter.cli.output import Output, table
from clipadapter.utils.files import quote_path

if TYPE_CHECKING:
    from clipadapter.persistence import Change


@cli_command("clipadapter history model/")
@click.argument("model", type=FOLDER)
@output_options
def command(model: Path, out: Output) -> None:
    """List the versions of MODEL: when each was made, by whom, and what was changed.

    'clipadapter undo' goes back to a version. Very old versions are only listed: their models are not stored any more.
    """
    from clipadapter.persistence import History

    history = History.load(model)
    history.check()
    stored, last = history.stored_versions(), history.changes[-1]
    data = [
        {**change.model_dump(exclude={"key", "config"}), "kept": change.version in stored} for change in history.changes
    ]
    rows = [
        (
            change.version,
            change.when.replace("T", " ").rstrip("Z"),
            change.by,
            describe_change(change),
            change.classes,
            change.pictures,
        )
        for change in history.changes
    ]
    listing = table(["version", "when (UTC)", "who", "what", "classes", "pictures"], rows)
    others = [number for number in stored if history.changes[number - 1].content != last.content]
    same_as = "" if last.content == last.version else f", the same as version {last.content}"
    undo = f"; to go back to {format_ranges(others)}: clipadapter undo {quote_path(model)} [--to VERSION]"
    summary = f"{model} is version {last.version}{same_as}" + (undo if others else "")
    out.result({"model": str(model), "version": last.version, "changes": data}, f"{listing}\n\n{summary}")


def describe_change(change: Change) -> str:
    """Describe what was changed in a few words."""
    facts = change.facts
    name = f" '{facts['class']}'" if "class" in facts else ""
    counts = [describe(facts[key]) for key, describe in COUNTS.items() if facts.get(key)]
    details = DETAILS[change.action](facts) if change.action in DETAILS else ""
    return f"{change.action}{name}{details}{': ' if counts else ''}{', '.join(counts)}"


def _describe_fit(facts: dict[str, Any]) -> str:
    head = f" {facts['head']}" if "head" in facts else ""
    return head if facts.get("recorded", True) else f"{head} (found in the folder, without a record)"


def _describe_undo(facts: dict[str, Any]) -> str:
    return f" of version {facts['undone']}" if "undone" in facts else f", to version {facts.get('to', '?')}"


COUNTS: dict[str, Callable[[Any], str]] = {
    "pictures": lambda count: f"{count} picture{'' if count == 1 else 's'}",
    "relabelled": lambda count: f"{count} relabelled",
    "known": lambda count: f"{count} already known",
}
DETAILS: dict[str, Callable[[dict[str, Any]], str]] = {
    "fit": _describe_fit,
    "undo": _describe_undo,
    "rename-class": lambda facts: f" to '{facts.get('to', '?')}'",
    "pull": lambda facts: f" {facts.get('repo', '')}",
}


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
