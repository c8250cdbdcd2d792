"""``clipadapter bench speed``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from clipadapter.cli.options import FOLDER, output_options
from clipadapter.cli.output import Output, facts, table
from clipadapter.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipadapter.bench.speed import SpeedReport


@click.command(epilog="Example: clipadapter bench speed pictures/ --encoder lite")
@click.argument("pictures", type=FOLDER, required=False)
@click.option("--encoder", metavar="URI", default="auto", show_default=True, help="See 'clipadapter encoders'.")
@click.option("--device", default="cpu", show_default=True, help="Torch device, such as cuda.")
@click.option("--batch-size", type=click.IntRange(1), metavar="N", default=32, show_default=True, help="At a time.")
@click.option("--rounds", type=click.IntRange(1), metavar="N", default=5, show_default=True, help="Times each.")
@click.option(
    "--count", type=click.IntRange(1), metavar="N", default=64, show_default=True, help="Pictures that are taken."
)
@output_options
def speed(
    pictures: Path | None, encoder: str, device: str, batch_size: int, rounds: int, count: int, out: Output
) -> None:
    """Time all backends and precisions on this machine.

    Tells what the processor could do at best (a matrix product), pictures a second of each backend and precision, its
    share of the best, how near its features come to fp32, and what reading a picture costs. Without PICTURES made-up
    ones are taken: then speed is right, and nearness only a hint.
    """
    from clipadapter.bench.speed import measure_speed
    from clipadapter.cli.options import Towers

    sources = _sources(pictures, count)
    opened = Towers(encoder, device).open(out)
    with tqdm(bar_format="{desc}", disable=not out.progress, leave=False) as bar:
        found = measure_speed(opened, sources, batch_size=batch_size, rounds=rounds, on_step=bar.set_description_str)
    out.result(_record(found, opened.info.name), _text(found))


def _sources(folder: Path | None, count: int) -> Sequence[Path | NDArray[Any]]:
    """Pictures from all over the folder, or made-up ones."""
    import numpy as np

    from clipadapter.data import list_images

    if folder is None:
        rng = np.random.default_rng(0)
        small = rng.integers(0, 256, (count, 12, 16, 3), dtype=np.uint8)
        return [each.repeat(32, axis=0).repeat(32, axis=1) for each in small]
    paths = list(list_images(folder))
    if not paths:
        raise DataError(f"there are no pictures in {folder}")
    return [paths[i * len(paths) // count] for i in range(count)] if len(paths) > count else paths


def _text(found: SpeedReport) -> str:
    rows = [
        [
            each.backend,
            each.precision,
            f"{each.rate:.1f}",
            f"{each.rate / found.speeds[0].rate:.2f}",
            "" if each.share is None else f"{each.share:.0%}",
            f"{each.parity.mean_cosine:.5f}",
            f"{each.parity.min_cosine:.5f}",
            f"{each.ready:.1f}",
        ]
        for each in found.speeds
    ]
    head = ["backend", "precision", "img/s", "ratio", "of limit", "mean cosine", "least", "ready in s"]
    limits = ", ".join(f"{name} {value:.0f}" for name, value in found.limits.items())
    about = facts(
        [
            ("matrix product, GFLOP/s", limits),
            ("one picture, GFLOP", f"{found.gflop:.2f}"),
            ("reading one picture, ms", f"{found.decode:.1f}"),
            ("pictures", found.pictures),
        ]
    )
    return f"{about}\n\n{table(head, rows)}"


def _record(found: SpeedReport, encoder: str) -> dict[str, Any]:
    from dataclasses import asdict

    return {"encoder": encoder, **asdict(found)}
