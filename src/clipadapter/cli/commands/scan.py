"""``clipadapter scan``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from clipadapter.cli.groups import cli_command
from clipadapter.cli.options import FOLDER, argument, max_pixels_option, option
from clipadapter.cli.output import MAX_LISTED, Failure, Output, table
from clipadapter.utils.files import printable
from clipadapter.utils.formatting import format_count

if TYPE_CHECKING:
    from clipadapter.data import ScanReport


@cli_command("clipadapter scan shots/")
def command(
    out: Output,
    data: Path = argument(type=FOLDER),
    strict: bool = option("--strict", default=False, is_flag=True, help="Exit with 1 if a picture can't be read."),
    max_pixels: int = max_pixels_option,
) -> None:
    """List the contents of DATA: classes, counts, unreadable files, duplicates.

    Every picture is read completely. Nothing is written.
    """
    from clipadapter.data import scan

    report = scan(data)
    out.result(report.to_dict(), "\n".join(_lines(report)))
    for warning in report.warnings:
        out.warn(warning)
    if strict and report.unreadable:
        raise Failure(f"{format_count(len(report.unreadable), 'picture')} can't be read")


def _lines(report: ScanReport) -> Iterator[str]:
    if report.classes:
        rows = [[name, *parts.values()] for name, parts in report.classes.items()]
        totals = [sum(parts[split] for parts in report.classes.values()) for split in report.splits]
        yield table(["class", *report.splits], [*rows, ["total", *totals]])
    else:
        yield f"{format_count(report.readable, 'picture')}, none in a class"
    yield from _section("unreadable", (f"{path}: {reason}" for path, reason in report.unreadable))
    yield from _section("left out", (f"{path}: {reason}" for path, reason in report.left_out))
    yield from _section("equal files", (" = ".join(group.paths) for group in report.duplicates))


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    """Yield a title and the first lines, if there are any."""
    section = list(lines)
    if section:
        yield f"\n{title}: {len(section)}"
        yield from (f"  {printable(line)}" for line in section[:MAX_LISTED])
    if len(section) > MAX_LISTED:
        yield f"  and {len(section) - MAX_LISTED} more; --json has all"
