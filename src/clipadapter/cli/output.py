"""What a command writes: results to stdout, as text or JSON; notes, warnings and errors to stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import click

SHOWN = 10
"""How many of many alike lines are written for a person; JSON has all."""


class Failure(click.ClickException):
    """A run that failed: one line ``error: ...`` on stderr and exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the line."""
        click.echo(f"error: {' '.join(self.message.splitlines())}", file=file, err=True)


@dataclass(frozen=True)
class Output:
    """Where a command writes.

    Args:
        as_json: stdout carries JSON only.
        quiet: stderr carries errors only.
    """

    as_json: bool = False
    quiet: bool = False

    @property
    def progress(self) -> bool:
        """Whether bars are shown."""
        return not self.quiet and sys.stderr.isatty()

    def result(self, data: Any, text: str) -> None:
        """Write the result: `data` as one JSON document, or `text`."""
        click.echo(json.dumps(data, indent=1) if self.as_json else text)

    def row(self, data: Any, text: str) -> None:
        """Write one of many results: `data` as a line of JSON, or `text`."""
        click.echo(json.dumps(data) if self.as_json else text)

    def note(self, text: str) -> None:
        """Tell something that is good to know."""
        if not self.quiet and text:
            click.echo(text, err=True)

    def warn(self, text: str) -> None:
        """Tell something that should not be so."""
        self.note(f"warning: {text}")

    def skipped(self, pictures: Sequence[tuple[str, str]]) -> None:
        """Warn of pictures, each with its reason, that were left out."""
        for name, reason in pictures[:SHOWN]:
            self.warn(f"skipped {name}: {reason}")
        if len(pictures) > SHOWN:
            self.warn(f"skipped {len(pictures) - SHOWN} more")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of equal width, two spaces apart; numbers to the right.

    >>> print(table(["class", "all"], [["cat", 12], ["zebra", 3]]))
    class  all
    cat     12
    zebra    3
    """
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if end else cell.ljust(width)
            for cell, width, end in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """Names and values below each other.

    >>> print(facts([("head", "zero-shot"), ("classes", 3)]))
    head     zero-shot
    classes  3
    """
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs)


@contextmanager
def hushed(bars: bool) -> Iterator[None]:
    """Keep what other libraries log, warn of and draw off the terminal.

    Args:
        bars: let the hub's client show the progress of a download.
    """
    if not bars:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read once, when the client is imported
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
