"""``clipadapter simclr``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import click

from clipadapter.cli.encoder_options import device_option, find_device
from clipadapter.cli.groups import cli_command
from clipadapter.cli.inputs import read_samples
from clipadapter.cli.options import (
    COUNT,
    FOLDER,
    argument,
    max_pixels_option,
    option,
    options_of,
    seed_option,
    split_option,
)
from clipadapter.cli.output import Output, note_kept, plain_facts


@dataclass(frozen=True)
class TrainingOptions:
    """How the encoder is trained."""

    epochs: int = option("--epochs", default=200, type=COUNT, help="Number of passes over the pictures.")
    batch_size: int = option(
        "--batch-size",
        default=256,
        type=click.IntRange(2),
        metavar="N",
        help="Pictures per step; 256 of them take about 3 GB of memory.",
    )
    size: int = option("--size", default=112, type=click.IntRange(8), help="Side of a view in pixels.")
    weights: str | None = option(
        "--weights", metavar="FILE|imagenet", help="ResNet-18 weights to start from; by default random."
    )


@cli_command("clipadapter simclr pictures/ --out encoder/ --epochs 100")
def command(
    out: Output,
    pictures: Path = argument(type=FOLDER),
    folder: Path = option("--out", type=FOLDER, required=True, help="Folder for the encoder."),
    training: TrainingOptions = options_of(TrainingOptions),
    seed: int = seed_option,
    split: str | None = split_option,
    device: str = device_option,
    max_pixels: int = max_pixels_option,
) -> None:
    """Train an image encoder on the PICTURES, which need no classes.

    An interrupted training continues when the same command is given again. The encoder has no text tower: name one that
    has before it, as in fit --encoder lite --encoder simclr:FOLDER.
    """
    from clipadapter.pretraining import train_simclr

    started = time.monotonic()
    note_kept("the training has a checkpoint of each finished epoch, and the same command continues from the last one")
    done = train_simclr(
        [sample.path for sample in read_samples(pictures, split)],
        folder,
        seed=seed,
        device=find_device(device),
        progress=out.progress,
        **vars(training),
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
    out.facts(plain_facts(result))
