"""``clipadapter simclr``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from clipadapter.cli.options import FOLDER, check_device, output_options, seed_option, split_option
from clipadapter.cli.output import Output, facts


@click.command(epilog="Example: clipadapter simclr pictures/ --out encoder/ --epochs 100")
@click.argument("pictures", type=FOLDER)
@click.option("--out", "folder", type=FOLDER, required=True, help="Folder for the encoder.")
@click.option("--epochs", type=click.IntRange(1), default=200, show_default=True, help="Passes over the pictures.")
@click.option(
    "--batch-size",
    type=click.IntRange(2),
    metavar="N",
    default=256,
    show_default=True,
    help="Pictures a step; 256 of them take about 3 GB of memory.",
)
@click.option("--size", type=click.IntRange(8), default=112, show_default=True, help="Side of a view in pixels.")
@click.option("--weights", metavar="FILE|imagenet", help="ResNet-18 weights to start from; random without it.")
@seed_option
@split_option
@click.option("--device", default="cpu", show_default=True, help="Torch device, such as cuda.")
@output_options
def command(
    pictures: Path,
    folder: Path,
    epochs: int,
    batch_size: int,
    size: int,
    weights: str | None,
    seed: int,
    split: str | None,
    device: str,
    out: Output,
) -> None:
    """Train an image encoder on the PICTURES, which need no classes.

    A training that was cut short goes on where it was when the same line is given again. The encoder knows no
    text: use it beside one that does, as in fit --encoder pair:lite+simclr:FOLDER --head svl-adapter.
    """
    from clipadapter.data import load_dataset
    from clipadapter.data.load import read_listing
    from clipadapter.pretraining import train_simclr

    started = time.monotonic()
    check_device(device)
    dataset = read_listing(pictures).dataset
    if not dataset.samples:
        dataset = load_dataset(pictures)  # says why there is nothing
    samples = (dataset.split(split) if split else dataset).samples
    done = train_simclr(
        [sample.path for sample in samples],
        folder,
        epochs=epochs,
        batch_size=batch_size,
        size=size,
        seed=seed,
        weights=weights,
        device=device,
        progress=out.progress,
    )
    out.skipped(done.skipped)
    result = {
        "encoder": done.encoder,
        "pictures": done.pictures,
        "skipped": [{"source": name, "reason": reason} for name, reason in done.skipped],
        "epochs": done.epochs,
        "resumed": done.resumed,
        "loss": round(done.loss, 4),
        "seconds": round(time.monotonic() - started, 2),
    }
    out.result(
        result, facts([(key, len(value) if isinstance(value, list) else value) for key, value in result.items()])
    )
