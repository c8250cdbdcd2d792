"""``clipadapter export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.options import FOLDER, output_options
from clipadapter.cli.output import Output, facts
from clipadapter.errors import InputError
from clipadapter.files import EXPORT_SUFFIXES

if TYPE_CHECKING:
    from clipadapter.export import ExportResult


@click.command(epilog="Example: clipadapter export model/ --format onnx --out model.onnx")
@click.argument("model", type=FOLDER)
@click.option(
    "--format", "kind", type=click.Choice(list(EXPORT_SUFFIXES)), default="onnx", show_default=True, help="Of the file."
)
@click.option(
    "--out",
    "path",
    metavar="FILE",
    type=FOLDER,
    help="File to write: .onnx, or .xml, which has its weights beside it in .bin; MODEL.onnx beside MODEL without it.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8"]),
    default="fp32",
    show_default=True,
    help="Of the image tower; int8 is about a third as large.",
)
@click.option(
    "--input",
    "source",
    type=click.Choice(["uint8", "float"]),
    default="uint8",
    show_default=True,
    help="Plain squares of 0 to 255, or pixels that are normalised already.",
)
@click.option(
    "--pictures",
    metavar="DATA",
    type=FOLDER,
    help="Folder or table of pictures to compare on, and to calibrate int8 with; the model's shots without it.",
)
@click.option("--encoder", metavar="URI", help="Where the model's encoder is now, if its weights were moved.")
@output_options
def command(
    model: Path,
    kind: str,
    path: Path | None,
    precision: str,
    source: str,
    pictures: Path | None,
    encoder: str | None,
    out: Output,
) -> None:
    """Write MODEL as one file that answers without this package, and without torch.

    The file holds the image tower, the head, calibrated probabilities and the scores of "none of these" as one
    graph, and class names and preprocessing as metadata. It is run on pictures first: one that does not answer as
    MODEL does is not written. All heads can be exported but cocoop, whose prompts hang on the picture; of encoders all
    but those that pad pictures to a square, and pairs that see pictures in two ways.
    """
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.export import export_model
    from clipadapter.persistence import read_config

    config = read_config(model)  # a wrong folder is told before anything is loaded
    target = _target(model, path, kind)
    classifier = FewShotClassifier.load(model, encoder=encoder, cache=None)
    out.note(f"converting {classifier.encoder_.info.name} with the head {config.head.name}, then comparing")
    done = export_model(classifier, target, format=kind, precision=precision, input=source, pictures=pictures)
    for note in done.notes:
        out.warn(note)
    if done.parity["pictures"] == "drawn":
        out.note(
            "compared on drawn pictures: the model's shots are not on this machine. --pictures DATA takes real ones"
        )
    out.result(_record(done), _text(done))


def _target(model: Path, path: Path | None, kind: str) -> Path:
    """Where to write."""
    if path is None:
        named = model if model.name not in ("", "..") else model.resolve()
        return named.with_name(named.name + EXPORT_SUFFIXES[kind])
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file, such as {path / ('model' + EXPORT_SUFFIXES[kind])}")
    if path.suffix.lower() != EXPORT_SUFFIXES[kind]:
        other = next((name for name, suffix in EXPORT_SUFFIXES.items() if path.suffix == suffix), None)
        advice = f"say --format {other}" if other else f"give a name that ends with {EXPORT_SUFFIXES[kind]}"
        raise InputError(f"{path} would be no {EXPORT_SUFFIXES[kind]} file by its name: {advice}")
    return path


def _text(done: ExportResult) -> str:
    files = ", ".join(map(str, done.files))
    return (
        facts(
            [
                ("wrote", files),
                ("size", f"{done.size_bytes / 1e6:.1f} MB, {done.precision}"),
                ("compared", done.parity_summary),
            ]
        )
        + f"\n\nuse it: clipadapter predict {done.path} photo.jpg\nwithout this package: docs/export.md has 15 lines"
    )


def _record(done: ExportResult) -> dict[str, Any]:
    return {
        "path": str(done.path),
        "files": [str(path) for path in done.files],
        "format": done.format,
        "precision": done.precision,
        "input": done.input,
        "size": done.size_bytes,
        "gate": dict(done.parity),
        "notes": list(done.notes),
    }
