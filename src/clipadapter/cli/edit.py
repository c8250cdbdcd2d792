"""What the commands that change a model share: who did it, the pictures that are meant, and what is told."""

from __future__ import annotations

import getpass
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.options import Towers
from clipadapter.cli.output import Output, facts
from clipadapter.errors import ArtifactError, DataError
from clipadapter.files import is_exported

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier

by_option = click.option("--by", metavar="NAME", help="Who does it, for the history; the login name if not given.")


def login(by: str | None) -> str:
    """Who makes a change."""
    if by is not None:
        return by
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # nobody is logged in, as in a container
        return ""


def pictures(inputs: Sequence[Path]) -> list[Path]:
    """All pictures of files and folders.

    Raises:
        DataError: if there is no such file, or a folder has no picture.
    """
    from clipadapter.data import list_images

    found: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise DataError(f"{path} is not there: give pictures, or folders with pictures")
        own = list_images(path) if path.is_dir() else [path]
        if not own:
            raise DataError(f"{path} has no picture anywhere below it")
        found += own
    return found


def change(folder: Path, towers: Towers, strict: bool, out: Output, act: Callable[[FewShotClassifier], Any]) -> None:
    """Load a model, change it, save it as its next version, and tell.

    Args:
        folder: of the model.
        towers: how its encoder runs.
        strict: fail at a picture that can't be read.
        out: where to tell.
        act: what is done.

    Raises:
        ArtifactError: if there is no sound model, or someone else changed it meanwhile.
    """
    if is_exported(folder) and folder.is_file():
        raise ArtifactError(f"{folder} is an exported file, which can't learn: give the folder of its model")
    started = time.monotonic()
    model = towers.load(folder, strict=strict, progress=out.progress)
    before, kept = model.history_.version, bool(len(model.support_))
    act(model)
    out.skipped(model.skipped_)
    if model.history_.version == before:
        out.result({"model": str(folder), "version": before, "changed": False}, f"{folder}: nothing changed")
        return
    model.save(folder, support=kept)
    model.make_quick(folder)
    _tell(model, folder, time.monotonic() - started, out)


def _tell(model: FewShotClassifier, folder: Path, seconds: float, out: Output) -> None:
    last = model.history_.changes[-1]
    told = dict(last.facts)
    shots = model.support_.counts
    least, most = min(shots.values()), max(shots.values())
    lines: list[tuple[str, object]] = [
        ("model", f"{folder}, version {last.version}"),
        ("change", _words(last.action, told)),
        ("classes", len(model.class_names_)),
        ("shots", f"{least} a class" if least == most else f"{least} to {most} a class, {len(model.support_)} in all"),
        ("seconds", f"{seconds:.1f}"),
        ("undo", f"clipadapter undo {folder}"),
    ]
    if not len(model.support_):
        lines[3] = ("shots", "not kept: what it says of strange pictures and sets was of other classes, and is gone")
    data = {
        "model": str(folder),
        "version": last.version,
        "changed": True,
        "action": last.action,
        **told,
        "classes": list(model.class_names_),
        "shots": shots,
        "seconds": round(seconds, 2),
    }
    out.result(data, facts(lines))


def _words(action: str, told: dict[str, Any]) -> str:
    """What was changed, in a few words."""
    parts = [f"{told['pictures']} new pictures"] if told.get("pictures") else []
    parts += [f"{told['relabelled']} shots relabelled"] if told.get("relabelled") else []
    parts += [f"{told['known']} known already"] if told.get("known") else []
    what = ", ".join(parts)
    if action == "rename-class":
        return f"{action} '{told['class']}' to '{told['to']}'"
    if action == "remove-class":
        shots = f" and its {told['pictures']} shots" if told["pictures"] else ""
        return f"{action} '{told['class']}'{shots}"
    return f"{action} '{told['class']}': {what}" if "class" in told else f"{action}: {what}"
