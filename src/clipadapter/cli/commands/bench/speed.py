"""``clipadapter bench speed``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from clipadapter.cli.declarations import argument, cli_command, option, options_of
from clipadapter.cli.inputs import list_pictures
from clipadapter.cli.options import COUNT, FOLDER, EncoderOptions
from clipadapter.cli.output import Output, facts, table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipadapter.bench.speed import SpeedReport


@cli_command("clipadapter bench speed pictures/ --encoder lite")
def speed(
    out: Output,
    pictures: Path | None = argument(type=FOLDER, required=False),
    encoder: EncoderOptions = options_of(EncoderOptions, only=("uris", "device", "batch_size", "max_pixels")),
    rounds: int = option("--rounds N", "Number of measurements of each.", type=COUNT, default=5),
    count: int = option("--count N", "Number of pictures.", type=COUNT, default=64),
) -> None:
    """Time all backends and precisions on this machine.

    Prints the limit of the processor (a matrix product); for each backend and precision the pictures per second, the
    fraction of the limit, and the similarity of the features to those in fp32; and the time to read a picture. Without
    PICTURES, random ones are used: then the speed is right, but the similarity is only a hint.
    """
    from clipadapter.bench.speed import measure_speed

    sources = _sources(pictures, count)
    opened = encoder.open_first(out)
    with tqdm(bar_format="{desc}", disable=not out.progress, leave=False) as bar:
        result = measure_speed(
            opened, sources, batch_size=encoder.batch_size, rounds=rounds, on_step=bar.set_description_str
        )
    out.result({"encoder": opened.info.name, **asdict(result)}, _text(result))


def _sources(folder: Path | None, count: int) -> Sequence[Path | NDArray[Any]]:
    """Return pictures spread evenly over the folder, or random ones."""
    import numpy as np

    if folder is None:
        rng = np.random.default_rng(0)
        small = rng.integers(0, 256, (count, 12, 16, 3), dtype=np.uint8)
        return [each.repeat(32, axis=0).repeat(32, axis=1) for each in small]
    paths = list_pictures(folder)
    return [paths[i * len(paths) // count] for i in range(count)] if len(paths) > count else paths


def _text(result: SpeedReport) -> str:
    rows = [
        [
            each.backend,
            each.precision,
            f"{each.rate:.1f}",
            f"{each.rate / result.speeds[0].rate:.2f}",
            "" if each.share is None else f"{each.share:.0%}",
            f"{each.parity.mean_cosine:.5f}",
            f"{each.parity.min_cosine:.5f}",
            f"{each.ready:.1f}",
        ]
        for each in result.speeds
    ]
    head = ["backend", "precision", "img/s", "ratio", "of limit", "mean cosine", "least", "ready in s"]
    limits = ", ".join(f"{name} {value:.0f}" for name, value in result.limits.items())
    about = {
        "matrix product, GFLOP/s": limits,
        "one picture, GFLOP": f"{result.gflop:.2f}",
        "reading one picture, ms": f"{result.decode:.1f}",
        "pictures": result.pictures,
    }
    return f"{facts(list(about.items()))}\n\n{table(head, rows)}"
