"""``clipadapter embed``."""

from __future__ import annotations

from pathlib import Path

from clipadapter.cli.encoder_options import EncoderOptions, note_backend
from clipadapter.cli.fit_options import ViewOptions
from clipadapter.cli.groups import cli_command
from clipadapter.cli.inputs import check_output_parent, is_embedded_table, read_samples
from clipadapter.cli.options import FILE, FOLDER, argument, option, options_of, seed_option, split_option, strict_option
from clipadapter.cli.output import Output, note_kept, plain_facts
from clipadapter.errors import DataError, InputError, require
from clipadapter.utils.formatting import describe_unreadable


@cli_command("clipadapter embed pictures/ --encoder lite --shard 1/4")
def command(
    out: Output,
    data: Path = argument(type=FOLDER),
    encoder_options: EncoderOptions = options_of(EncoderOptions, without=["no_cache"]),
    views: ViewOptions = options_of(ViewOptions),
    seed: int = seed_option,
    split: str | None = split_option,
    shard: str | None = option(
        "--shard",
        metavar="I/N",
        help="Only every N-th picture, starting at the I-th, to share work between N machines.",
    ),
    to: Path | None = option("--to", type=FILE, help="Parquet file for the features of the plain pictures."),
    strict: bool = strict_option,
) -> None:
    """Compute and store the features of all pictures in DATA.

    Stored features are never computed again: an interrupted run continues when it is started again, and several
    processes may write to one feature store. The pictures need no classes.
    """
    if to is not None:
        _check_table(to)
        note_kept(f"{to} was not written; {encoder_options.kept}")
    from clipadapter.classifier.encoder import block_names, blocks_of_quality
    from clipadapter.encoders import open_blocks
    from clipadapter.features import FeatureStore, choose_backend, embed, extract_rows, parse_shard, write_parquet

    shard_number, n_shards = parse_shard(shard or "1/1")
    spec = views.spec(seed)
    samples = read_samples(data, split)[shard_number - 1 :: n_shards]
    with FeatureStore(encoder_options.cache) as store:
        first, *others = encoder_options.open(out)
        blocks = blocks_of_quality(first, others, encoder_options.quality, block_names(first))
        opened = open_blocks(first, blocks, others)
        paths = [sample.path for sample in samples]
        encoder = choose_backend(
            opened,
            paths,
            backend=encoder_options.backend,
            precision=encoder_options.precision,
            store=store,
            progress=out.progress,
        )
        note_backend(opened, encoder, out)
        embedded = embed(
            encoder,
            paths,
            store,
            views=spec,
            batch_size=encoder_options.batch_size,
            progress=out.progress,
            strict=strict,
        )
        out.skipped([(name, reason) for _, name, reason in embedded.skipped])
        if not embedded.stored and embedded.skipped:
            raise DataError(describe_unreadable(len(samples)))
        if to is not None:
            write_parquet(to, extract_rows(encoder, samples, store), encoder.info, encoder.block_fingerprints())
            note_kept(f"{to} is written")
        result = {
            "encoder": encoder.info.name,
            "backend": encoder.info.backend,
            "precision": encoder.info.precision,
            "pictures": embedded.stored,
            "views": spec.count,
            "crop": spec.crop if spec.count > 1 else None,
            "computed": embedded.computed,
            "cached": embedded.cached,
            "skipped": [{"source": name, "reason": reason} for _, name, reason in embedded.skipped],
            "cache": str(store.path),
            "table": None if to is None else str(to),
        }
    out.facts(plain_facts(result))


def _check_table(path: Path) -> None:
    """Refuse, before the work, what `write_parquet` would refuse after it, and a file that is not of this command."""
    if path.suffix.lower() != ".parquet":
        raise InputError(f"--to writes Parquet: give a name that ends with .parquet, not '{path.name}'")
    require("pyarrow.parquet", "parquet", "The Parquet export")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path} can't be written: there is no folder {path.absolute().parent}")
    check_output_parent(path)
    if path.exists() and not (path.is_file() and (path.stat().st_size == 0 or is_embedded_table(path))):
        raise InputError(f"{path} exists and is no table that embed wrote: give another name, or remove it")
