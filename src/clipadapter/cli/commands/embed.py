"""``clipadapter embed``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter.cli.fit_options import Views, view_options
from clipadapter.cli.options import (
    FILE,
    FOLDER,
    Towers,
    embed_options,
    output_options,
    seed_option,
    split_option,
    strict_option,
)
from clipadapter.cli.output import Output, facts
from clipadapter.errors import DataError, require

if TYPE_CHECKING:
    from clipadapter.data import Sample


@click.command(epilog="Example: clipadapter embed pictures/ --encoder lite --shard 1/4")
@click.argument("data", type=FOLDER)
@embed_options
@view_options
@seed_option
@split_option
@click.option("--shard", metavar="I/N", help="Every N-th picture, beginning with the I-th, so that N machines share.")
@click.option("--to", type=FILE, help="Write the plain features to this Parquet file too.")
@strict_option
@output_options
def command(
    data: Path,
    towers: Towers,
    views: Views,
    seed: int,
    split: str | None,
    shard: str | None,
    to: Path | None,
    strict: bool,
    out: Output,
) -> None:
    """Compute the features of all pictures in DATA and keep them.

    What is kept is never computed again: an embed that was cut short goes on where it was, and several may fill
    one cache file at once. The pictures need no classes.
    """
    from clipadapter.features import FeatureStore, choose_backend, embed, extract_rows, parse_shard, write_parquet

    i, n = parse_shard(shard or "1/1")
    spec = views.spec(seed)
    samples = _samples(data, split)[i - 1 :: n]
    if to is not None:
        _check_table(to)
    with FeatureStore(towers.cache) as store:
        plain, paths = towers.open(out), [sample.path for sample in samples]
        encoder = choose_backend(
            plain, paths, backend=towers.backend, precision=towers.precision, store=store, progress=out.progress
        )
        towers.tell(plain, encoder, out)
        done = embed(
            encoder,
            paths,
            store,
            views=spec,
            batch_size=towers.batch_size,
            progress=out.progress,
            strict=strict,
        )
        out.skipped([(name, reason) for _, name, reason in done.skipped])
        if not done.done and done.skipped:
            raise DataError(f"none of the {len(samples)} pictures can be read")
        if to is not None:
            write_parquet(to, extract_rows(encoder, samples, store), encoder.info)
        result = {
            "encoder": encoder.info.name,
            "backend": encoder.info.backend,
            "precision": encoder.info.precision,
            "pictures": done.done,
            "views": spec.count,
            "crop": spec.crop if spec.count > 1 else None,
            "computed": done.computed,
            "cached": done.cached,
            "skipped": [{"source": name, "reason": reason} for _, name, reason in done.skipped],
            "cache": str(store.path),
            "table": None if to is None else str(to),
        }
    out.result(result, facts([(key, _short(value)) for key, value in result.items() if value is not None]))


def _samples(data: Path, split: str | None) -> Sequence[Sample]:
    """Pictures of a data set, which may have one class or none."""
    from clipadapter.data import load_dataset
    from clipadapter.data.load import read_listing

    dataset = read_listing(data).dataset
    if not dataset.samples:
        dataset = load_dataset(data)  # says why there is nothing
    return (dataset.split(split) if split else dataset).samples


def _check_table(path: Path) -> None:
    """Refuse before the work what `write_parquet` would refuse after it."""
    require("pyarrow.parquet", "parquet", "The Parquet export")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path} can't be written: there is no folder {path.absolute().parent}")


def _short(value: object) -> object:
    return len(value) if isinstance(value, list) else value
