"""What the commands that change a model share: the author, the pictures, and the report of the change."""

from __future__ import annotations

import functools
import getpass
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.backends.formats import is_exported
from clipadapter.cli.encoder_options import ModelEncoderOptions
from clipadapter.cli.options import Command, option_group, output_options, strict_option
from clipadapter.cli.output import Output, facts, note_kept
from clipadapter.cli.uncertainty_options import describe_accuracy
from clipadapter.errors import ArtifactError, DataError
from clipadapter.utils.files import explain_missing, quote_path
from clipadapter.utils.formatting import describe_shots, format_count

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier

author_option = click.option(
    "--by", "author", metavar="NAME", help="Author of the change, for the history; by default the login name."
)


@dataclass(frozen=True)
class ModelEdit:
    """One change of a model in a folder.

    Args:
        author: for the history; None for the login name.
        encoder: how the encoder of the model runs.
        out: where the change is reported.
        strict: fail at a picture that can't be read.
    """

    author: str | None
    encoder: ModelEncoderOptions
    out: Output
    strict: bool = False

    def apply(self, folder: Path, change: Callable[[FewShotClassifier, str], Any]) -> None:
        """Load a model, change it, save it as its next version, and report the change.

        Args:
            folder: of the model.
            change: called with the model and the name of the author.

        Raises:
            ArtifactError: if there is no valid model, or somebody else changed it meanwhile.
        """
        if is_exported(folder) and folder.is_file():
            raise ArtifactError(f"{folder} is an exported file, which can't be changed: give the folder of its model")
        _check_head(folder)
        note_kept(f"the model in {folder} is as it was; {self.encoder.kept}")
        started = time.monotonic()
        model = self.encoder.load(folder, strict=self.strict, progress=self.out.progress)
        version, has_shots = model.history_.version, bool(len(model.support_))
        shots_before = model.support_.counts
        change(model, find_author(self.author))
        self.out.skipped(model.skipped_)
        if model.history_.version == version:
            data = {"model": str(folder), "version": version, "changed": False}
            self.out.result(data, f"{folder}: nothing changed")
            return
        from clipadapter.export.cached import export_to_cache

        model.save(folder, support=has_shots)
        note_kept(f"the change is saved in {folder}")
        export_to_cache(model, folder)
        _report_change(model, folder, time.monotonic() - started, self.out)
        for name, count in model.support_.counts.items():
            if not count and shots_before.get(name):
                remove = shlex.join(["clipadapter", "remove-class", str(folder), name])
                self.out.warn(f"class '{name}' has no shots left: undo the change, or remove the class with: {remove}")


def edit_options(function: Command) -> Command:
    """Add the options of all commands that learn from new pictures. The command gets them as ``edit``.

    These are ``--by``, ``--strict``, those of the encoder, ``--json`` and ``--quiet``. Put it right above the function.
    """

    @author_option
    @strict_option
    @option_group("encoder", ModelEncoderOptions)
    @output_options
    @functools.wraps(function)
    def wrapped(author: str | None, strict: bool, encoder: ModelEncoderOptions, out: Output, **values: Any) -> None:
        function(edit=ModelEdit(author, encoder, out, strict), **values)

    return wrapped


def find_author(name: str | None) -> str:
    """Return the name, or the login name if it is None."""
    if name is not None:
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # nobody is logged in, as in a container
        return ""


def collect_pictures(inputs: Sequence[Path]) -> list[Path]:
    """Collect the pictures of files and folders.

    Raises:
        DataError: if a file does not exist, or a folder has no picture.
    """
    from clipadapter.data import list_images

    expected = "pictures, or folders with pictures"
    pictures: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise DataError(f"{path} does not exist{explain_missing(path, expected)}")
        new = list_images(path) if path.is_dir() else [path]
        if not new:
            raise DataError(f"{path} has no pictures: give {expected}")
        pictures += new
    return pictures


def _check_head(folder: Path) -> None:
    """Refuse, before an encoder is opened, a model whose head can't be updated. Torch is not imported.

    Raises:
        ArtifactError: if there is no valid model.
        InputError: if it can't be updated.
    """
    from clipadapter.heads.registry import HEADS, refuse_update
    from clipadapter.persistence import read_config

    name = read_config(folder).head.name
    declared = HEADS.declared_attributes(name)
    facts = {fact: bool(declared.get(fact)) for fact in ("transductive", "tunes_encoder")}
    refuse_update(name, **facts, model=folder)


def _report_change(model: FewShotClassifier, folder: Path, seconds: float, out: Output) -> None:
    change = model.history_.changes[-1]
    details = dict(change.facts)
    shots, accuracy = model.support_.counts, model.uncertainty_.accuracy
    lines: list[tuple[str, object]] = [
        ("model", f"{folder}, version {change.version}"),
        ("change", _describe_change(change.action, details)),
        ("classes", len(model.class_names_)),
        ("shots", describe_shots(shots, len(model.support_))),
        ("seconds", f"{seconds:.1f}"),
        ("accuracy", describe_accuracy(model)),
        ("undo", f"clipadapter undo {quote_path(folder)}"),
    ]
    if not len(model.support_):
        removed = "not stored: rejection, prediction sets and accuracy were learned for other classes, and are removed"
        lines = [(key, removed if key == "shots" else value) for key, value in lines if key != "accuracy"]
    data = {
        "model": str(folder),
        "version": change.version,
        "changed": True,
        "action": change.action,
        **details,
        "classes": list(model.class_names_),
        "shots": shots,
        "accuracy": None if accuracy is None else accuracy.to_dict(),
        "seconds": round(seconds, 2),
    }
    out.result(data, facts(lines))


def _describe_change(action: str, details: dict[str, Any]) -> str:
    parts = [format_count(details["pictures"], "new picture")] if details.get("pictures") else []
    parts += [f"{format_count(details['relabelled'], 'shot')} relabelled"] if details.get("relabelled") else []
    parts += [f"{details['known']} already known"] if details.get("known") else []
    counts = ", ".join(parts)
    if action == "rename-class":
        return f"{action} '{details['class']}' to '{details['to']}'"
    if action == "remove-class":
        shots = f" and its {format_count(details['pictures'], 'shot')}" if details["pictures"] else ""
        return f"{action} '{details['class']}'{shots}"
    return f"{action} '{details['class']}': {counts}" if "class" in details else f"{action}: {counts}"
