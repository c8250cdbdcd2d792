"""``clipadapter embed`` and ``clipadapter simclr``: features of pictures, and an encoder trained on them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from clipadapter import features
from clipadapter.cli import options
from clipadapter.cli.declarations import argument, cli_command, option, options_of
from clipadapter.cli.inputs import read_samples
from clipadapter.cli.options import Count
from clipadapter.cli.output import Output, note_kept, plain_facts
from clipadapter.cli.outputs import check_output_file, has_parquet_key
from clipadapter.errors import DataError
from clipadapter.utils.files import ENCODER_KEY
from clipadapter.utils.formatting import describe_unreadable


@cli_command("clipadapter embed pictures/ --encoder lite --shard 1/4")
def command(
    out: Output,
    data: Path = argument(),
    encoder_options: options.EncoderOptions = options_of(options.EncoderOptions, without=["no_cache"]),
    views: Count = option(
        "--views N", "Views per picture: the plain one and N - 1 random crops.", default=1, heading="Views"
    ),
    crop: Literal["tip", "coop"] | None = options.crop_option,
    seed: int = options.seed_option,
    split: str | None = options.split_option,
    shard: str | None = option(
        "--shard I/N", "Only every N-th picture, starting at the I-th, to share work between N machines."
    ),
    to: Path | None = option("--to", "Parquet file for the features of the plain pictures."),
    strict: bool = options.strict_option,
) -> None:
    """Compute and store the features of all pictures in DATA.

    Stored features are never computed again: an interrupted run continues when it is started again, and several
    processes may write to one feature store. The pictures need no classes.
    """
    if to is not None:
        check_output_file(
            to,
            "table that embed wrote",
            lambda path: has_parquet_key(path, ENCODER_KEY),
            data,
            suffixes=(".parquet",),
        )
        note_kept(f"{to} was not written", and_features=True)
    from clipadapter.classifier.encoder_choice import block_names, blocks_of_quality
    from clipadapter.encoders import open_blocks

    shard_number, n_shards = features.parse_shard(shard or "1/1")
    spec = features.ViewSpec.from_crop(crop or "tip", count=views, seed=seed)
    samples = read_samples(data, split)[shard_number - 1 :: n_shards]
    paths = [sample.path for sample in samples]
    with features.FeatureStore(encoder_options.cache) as store:
        first, *others = encoder_options.open(out)
        blocks = blocks_of_quality(first, others, encoder_options.quality, block_names(first))
        opened = open_blocks(first, blocks, others)
        backend, precision = encoder_options.backend, encoder_options.precision
        encoder = features.choose_backend(
            opened, paths, backend=backend, precision=precision, store=store, progress=out.progress
        )
        options.note_backend(opened, encoder, out)
        embedded = features.extract(
            encoder,
            paths,
            store=store,
            views=spec,
            batch_size=encoder_options.batch_size,
            progress=out.progress,
            strict=strict,
            keep=False,
        )
        skipped = [(name, reason) for _, name, reason in embedded.skipped]
        out.skipped(skipped)
        if not embedded.rows and skipped:
            raise DataError(describe_unreadable(len(samples)))
        if to is not None:
            rows = features.extract_rows(encoder, samples, store)
            features.write_parquet(to, rows, encoder.info, encoder.block_fingerprints())
            note_kept(f"{to} is written")
        result = {
            "encoder": encoder.info.name,
            "backend": encoder.info.backend,
            "precision": encoder.info.precision,
            "pictures": len(embedded.rows),
            "views": spec.count,
            "crop": spec.crop if spec.count > 1 else None,
            "computed": embedded.computed,
            "cached": embedded.cached,
            "skipped": [{"source": name, "reason": reason} for name, reason in skipped],
            "cache": str(store.path),
            "table": None if to is None else str(to),
        }
    out.facts(plain_facts(result))


@dataclass(frozen=True)
class TrainingOptions:
    """How the encoder is trained."""

    epochs: Count = option("--epochs", "Number of passes over the pictures.", default=200)
    batch_size: int = option(
        "--batch-size N",
        "Pictures per step; 256 of them take about 3 GB of memory.",
        type=click.IntRange(2),
        default=256,
    )
    size: int = option("--size", "Side of a view in pixels.", type=click.IntRange(8), default=112)
    weights: str | None = option("--weights FILE|imagenet", "ResNet-18 weights to start from; by default random.")


@cli_command("clipadapter simclr pictures/ --out encoder/ --epochs 100")
def simclr(
    out: Output,
    pictures: Path = argument(),
    folder: Path = option("--out", "Folder for the encoder.", required=True),
    training: TrainingOptions = options_of(TrainingOptions),
    seed: int = options.seed_option,
    split: str | None = options.split_option,
    device: str = options.device_option,
    max_pixels: int = options.max_pixels_option,
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
        device=options.find_device(device),
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
