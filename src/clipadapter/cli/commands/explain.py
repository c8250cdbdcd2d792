"""``clipadapter explain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter.cli import options
from clipadapter.cli.declarations import argument, cli_command, option, options_of
from clipadapter.cli.inputs import check_output_file, is_missing
from clipadapter.cli.options import FILE, FOLDER, PLOT_SUFFIXES
from clipadapter.cli.output import Output, table
from clipadapter.errors import ImageError
from clipadapter.utils.files import explain_missing, printable

if TYPE_CHECKING:
    from clipadapter.explain import Explanation


@cli_command("clipadapter explain model/ photo.jpg --out why.png")
def command(
    out: Output,
    model: Path = argument(type=FOLDER),
    photo: Path = argument(type=click.Path(path_type=Path)),
    path: Path | None = option("--out FILE.png", "PNG, PDF or SVG file to draw.", type=FILE),
    class_name: str | None = option("--class NAME", "Class to explain; by default the predicted one."),
    neighbours: int = option(
        "--neighbours K", "How many of the nearest shots to list.", type=click.IntRange(0), default=5
    ),
    encoder: options.ModelEncoderOptions = options_of(options.ModelEncoderOptions),
) -> None:
    """Explain the prediction of MODEL for PHOTO.

    Prints by how much the predicted class leads the next one, how much of that comes from the class text and how much
    from the shots, how much from each block of features if the model reads several, and which shots are most similar to
    the picture, by cosine. --out draws these shots, and a map of where in the picture the class is seen. --class
    explains another class: why it was not predicted.

    A model that was fitted with --quality best and uses the block rare-patches also says where the picture differs most
    from its rest, such as at a small defect. --out draws a map of that.
    """
    check_output_file(path, photo, suffixes=PLOT_SUFFIXES)
    if is_missing(photo):
        raise ImageError(str(photo), f"no such file{explain_missing(photo)}")
    from clipadapter.explain import explain  # imports torch, so only after the checks

    explanation = explain(encoder.load(model), photo, class_name=class_name, neighbours=neighbours)
    for note in explanation.notes:
        if path is not None or "heat map" not in note:  # without --out none is drawn
            out.note(note)
    files = None if path is None else [explanation.plot(path)]
    out.result(explanation.to_dict(), _text(explanation), files)


def _text(explanation: Explanation) -> str:
    from clipadapter.explain.explanation import BLOCK_HEADER

    lines = [*map(printable, (explanation.source, *explanation.sentences()))]
    if explanation.blocks:
        parts = [(part.name, f"{part.margin:+.2f}", part.label or "-") for part in explanation.blocks]
        lines += ["", table(list(BLOCK_HEADER), parts)]
    if explanation.nearest:
        rows = [(f"{shot.similarity:.3f}", shot.label, shot.source) for shot in explanation.nearest]
        lines += ["", table(["cosine", "class", "nearest shot"], rows)]
    return "\n".join(lines)
