"""The output of a command: results on stdout, as text or JSON; notes, warnings and errors on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import click

from clipadapter.errors import DataWarning, MethodWarning
from clipadapter.utils.files import printable
from clipadapter.utils.formatting import table as table

MAX_LISTED = 10  # how many similar lines are printed for a person; JSON has all of them


KEPT_KEY = "clipadapter.kept"
CONTINUE = "features that were computed are in the feature store, and the same command continues from there"
START_AGAIN = "the same command starts from the beginning"


def note_kept(text: str, and_features: bool = False) -> None:
    """Set what the program says if the command is interrupted from here on: what is kept, and how to go on."""
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta[KEPT_KEY] = f"{text}; {context.meta[KEPT_KEY]}" if and_features else text


def echo(text: str, err: bool = False) -> None:
    """Write text, in which names from anybody can't change what the terminal shows. All output goes through here."""
    click.echo(escape_lines(text), err=err)


def escape_lines(text: str) -> str:
    """Text of which only the line breaks are no printable characters."""
    return "\n".join(map(printable, text.split("\n")))


class Failure(click.ClickException):
    """A failed run: one line ``error: ...`` on stderr and exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002 - click gives none
        """Write the line."""
        echo(f"error: {' '.join(self.message.splitlines())}", err=True)


@dataclass(frozen=True)
class Fact:
    """One fact of a result."""

    key: str  # in JSON; "" for a fact that is for people only
    value: Any = None  # in JSON
    text: object = None  # for people; None for a fact that is in JSON only
    name: str = ""  # for people; by default the key


@dataclass(frozen=True)
class Output:
    """Where a command writes."""

    as_json: bool = False  # only JSON to stdout
    quiet: bool = False  # only errors to stderr

    @property
    def progress(self) -> bool:
        """Whether progress bars are shown."""
        return not self.quiet and sys.stderr.isatty()

    def result(self, data: Any, text: str, files: Sequence[object] | None = None) -> None:
        """Write the result: `data` as one JSON document, or `text`; both name the files that were written."""
        if files is not None:
            names = list(map(str, files))
            data, text = {**data, "files": names}, f"{text}\n\nwrote {', '.join(names)}" if names else text
        echo(json.dumps(data, indent=1) if self.as_json else text)

    def facts(self, result: Sequence[Fact], *more: str) -> None:
        """Write facts as one JSON object, or as lines of names and texts with further paragraphs after them."""
        pairs = [(fact.name or fact.key.replace("_", " "), fact.text) for fact in result if fact.text is not None]
        data = {fact.key: fact.value for fact in result if fact.key}
        self.result(data, "\n\n".join([facts(pairs), *filter(None, more)]))

    def row(self, data: Any, text: str) -> None:
        """Write one of many results: `data` as a line of JSON, or `text`."""
        echo(json.dumps(data) if self.as_json else text)

    def note(self, text: str) -> None:
        """Write information to stderr."""
        if not self.quiet and text:
            echo(text, err=True)

    def warn(self, text: str) -> None:
        """Write a warning to stderr, as one line."""
        self.note(f"warning: {' '.join(text.splitlines())}")

    def skipped(self, pictures: Sequence[tuple[str, str]]) -> None:
        """Warn of pictures that were left out, each with the reason."""
        for name, reason in pictures[:MAX_LISTED]:
            self.warn(f"skipped {name}: {reason}")
        if len(pictures) > MAX_LISTED:
            self.warn(f"skipped {len(pictures) - MAX_LISTED} more")


def plain_facts(result: Mapping[str, Any]) -> list[Fact]:
    """Facts whose text is their value: of a list the number, and none if there is no value."""
    return [Fact(key, value, len(value) if isinstance(value, list) else value) for key, value in result.items()]


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """Format names and values, one pair per line.

    >>> print(facts([("head", "zero-shot"), ("classes", 3)]))
    head     zero-shot
    classes  3
    """
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {printable(str(value))}" for name, value in pairs)


@contextmanager
def collect_warnings(out: Output) -> Iterator[None]:
    """Collect the warnings about files and methods, and write one line for each kind at the end; silence libraries."""
    if not out.progress:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read once, when the client is imported
    names: dict[str, dict[str, None]] = {}
    texts: dict[str, None] = {}

    def collect(message: Warning | str, *args: Any, **options: Any) -> None:
        if isinstance(message, DataWarning):
            names.setdefault(message.note, {}).update(dict.fromkeys(message.names))
        elif isinstance(message, MethodWarning):
            texts[str(message)] = None

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for category in (DataWarning, MethodWarning):
                warnings.simplefilter("always", category)
            warnings.showwarning = collect
            yield
    finally:
        logging.disable(before)
        for note, files in names.items():
            out.warn(str(DataWarning(note, tuple(files))))
        for text in texts:
            out.warn(text)
