"""``clipadapter explain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter.cli.options import FILE, FOLDER, Towers, check_page, model_options, output_options
from clipadapter.cli.output import Output, table

if TYPE_CHECKING:
    from clipadapter.explain import Explanation


@click.command(epilog="Example: clipadapter explain model/ photo.jpg --out why.png")
@click.argument("model", type=FOLDER)
@click.argument("photo", type=click.Path(path_type=Path))
@click.option("--out", "path", metavar="FILE.png", type=FILE, help="Draw it; without it there is text only.")
@click.option("--class", "class_name", metavar="NAME", help="The class to explain; the best one without it.")
@click.option(
    "--neighbours",
    type=click.IntRange(0),
    metavar="K",
    default=5,
    show_default=True,
    help="How many of the nearest shots to name.",
)
@model_options
@output_options
def command(
    model: Path, photo: Path, path: Path | None, class_name: str | None, neighbours: int, towers: Towers, out: Output
) -> None:
    """Say why MODEL says what it says of PHOTO.

    Tells by how much the class leads the next one, what class text and what the shots give of that, and which
    shots are most like the picture, by cosine. With --out it draws them, and where in the picture the class is
    seen. --class asks for another class: what it lacks.
    """
    from clipadapter.explain import explain

    check_page(path, photo, suffix=".png")
    found = explain(towers.load(model), photo, class_name=class_name, neighbours=neighbours)
    for note in found.notes:
        out.note(note)
    data, text = found.to_dict(), _text(found)
    if path is not None:
        data["files"] = [str(found.to_png(path))]
        text = f"{text}\n\nwrote {path}"
    out.result(data, text)


def _text(found: Explanation) -> str:
    lines = [found.source, *found.sentences()]
    if found.nearest:
        rows = [(f"{one.similarity:.3f}", one.label, one.source) for one in found.nearest]
        lines += ["", table(["cosine", "class", "nearest shot"], rows)]
    return "\n".join(lines)
