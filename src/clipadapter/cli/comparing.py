"""What the commands that measure have in common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.output import Output
from clipadapter.errors import InputError

if TYPE_CHECKING:
    from clipadapter.bench import Comparison


def numbers(ctx: click.Context | None, param: click.Parameter | None, value: str) -> list[int]:
    """The different numbers of a text such as ``1,2,4``, rising; an option's callback.

    >>> numbers(None, None, "4,1,16")
    [1, 4, 16]
    """
    try:
        found = sorted({int(part) for part in value.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 1:
        raise click.BadParameter(f"expected numbers of 1 or more such as 1,2,4, but got '{value}'", ctx, param)
    return found


shots_option = click.option(
    "--shots",
    default="1,2,4,8,16",
    show_default=True,
    metavar="N,...",
    callback=numbers,
    help="Shots a class, one or several numbers.",
)
seeds_option = click.option(
    "--seeds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    metavar="N",
    help="How many times shots are drawn; the seeds are 1 to N.",
)


folds_option = click.option(
    "--folds",
    type=click.IntRange(2),
    default=5,
    show_default=True,
    metavar="N",
    help="Folds of the cross-validation, if there is no test folder.",
)


def check_out(folder: Path) -> Path:
    """Refuse before the work a folder that can't be written after it.

    Raises:
        InputError: if so.
    """
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"can't write {folder}: {above} is no folder that you may write to; give another --out")
    return folder


def tell(result: Comparison, out: Output) -> None:
    """Notes on the pictures and on runs that failed or were there already."""
    out.skipped(result.skipped)
    for sentence in result.warnings:
        out.warn(sentence)
    if result.fresh < len(result.runs):
        out.note(f"{len(result.runs) - result.fresh} of {len(result.runs)} runs were taken from the records")
    for text in dict.fromkeys(f"{run.head} failed: {run.error}" for run in result.runs if run.error is not None):
        out.warn(text)


def as_json(result: Comparison, files: Sequence[Path]) -> dict[str, Any]:
    """A comparison for machines."""
    from clipadapter.bench import summarise

    return {
        **summarise(result.runs).to_dict(),
        "encoder": result.runs[0].encoder.name,
        **({} if result.folds is None else {"protocol": "cross-validation", "folds": result.folds}),
        "n_test": len(result.test),
        "classes": list(result.text.labels),
        "skipped": [{"source": name, "reason": reason} for name, reason in result.skipped],
        "warnings": result.warnings,
        "files": [str(path) for path in files],
    }
