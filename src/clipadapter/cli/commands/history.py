"""``clipadapter history``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.options import FOLDER, output_options
from clipadapter.cli.output import Output, table

if TYPE_CHECKING:
    from clipadapter.persistence import Change


@click.command(epilog="Example: clipadapter history model/")
@click.argument("model", type=FOLDER)
@output_options
def command(model: Path, out: Output) -> None:
    """Tell every version of MODEL: when it was made, by whom, and what was changed.

    'clipadapter undo' goes back to a version; of very old ones only this record is kept, not the model.
    """
    from clipadapter.persistence import History

    history = History.load(model)
    history.check()
    kept, now = history.stored_versions(), history.changes[-1]
    data = [{**one.model_dump(exclude={"key", "config"}), "kept": one.version in kept} for one in history.changes]
    rows = [
        (one.version, one.when.replace("T", " ").rstrip("Z"), plain(one.by), what(one), one.classes, one.pictures)
        for one in history.changes
    ]
    shown = table(["version", "when (UTC)", "who", "what", "classes", "pictures"], rows)
    others = [number for number in kept if history.changes[number - 1].content != now.content]
    was = "" if now.content == now.version else f", which is version {now.content} again"
    back = f"it can go back to {ranges(others)}: clipadapter undo {model} [--to VERSION]" if others else ""
    last = f"{model} is version {now.version}{was}" + (f"; {back}" if back else "")
    out.result({"model": str(model), "version": now.version, "changes": data}, f"{shown}\n\n{last}")


def what(change: Change) -> str:
    """What was done, in a few words."""
    facts = change.facts
    name = f" '{plain(facts['class'])}'" if "class" in facts else ""
    counts = [f"{facts[key]} {word}" for key, word in COUNTED.items() if facts.get(key)]
    told = TOLD[change.action](facts) if change.action in TOLD else ""
    return f"{plain(change.action)}{name}{told}{': ' if counts else ''}{', '.join(counts)}"


def _fitted(facts: dict[str, Any]) -> str:
    said = f" {plain(facts['head'])}" if "head" in facts else ""
    return said if facts.get("recorded", True) else f"{said} (found in the folder, without a record)"


def _undone(facts: dict[str, Any]) -> str:
    return f" of version {facts['undone']}" if "undone" in facts else f", to version {facts.get('to', '?')}"


COUNTED = {"pictures": "pictures", "relabelled": "relabelled", "known": "known already"}
TOLD: dict[str, Callable[[dict[str, Any]], str]] = {
    "fit": _fitted,
    "undo": _undone,
    "rename-class": lambda facts: f" to '{plain(facts.get('to', '?'))}'",
    "pull": lambda facts: f" {plain(facts.get('repo', ''))}",
}


def plain(text: object) -> str:
    """A text of others on one line, without what a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in words.

    >>> ranges([1, 3, 4, 5, 8])
    '1, 3-5, 8'
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] == number - 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in found)
