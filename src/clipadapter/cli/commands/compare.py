"""``clipadapter compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter.cli.comparing import as_json, check_out, folds_option, seeds_option, shots_option, tell
from clipadapter.cli.fit_options import Prompts, prompt_options
from clipadapter.cli.options import FOLDER, Towers, encoder_options, open_dataset, output_options
from clipadapter.cli.output import Output

if TYPE_CHECKING:
    from clipadapter.data import Dataset
    from clipadapter.heads import Head


@click.command(epilog="Example: clipadapter compare shots/ test/ --heads clip-adapter --shots 1,4,16")
@click.argument("shots_from", metavar="SHOTS", type=FOLDER)
@click.argument("test_from", metavar="[TEST]", type=FOLDER, required=False)
@click.option("--heads", metavar="NAME,...", help="Heads to compare; all without it. See 'clipadapter heads'.")
@shots_option
@seeds_option
@folds_option
@click.option(
    "--out",
    "folder",
    type=FOLDER,
    default=Path("clipadapter-compare"),
    show_default=True,
    help="Folder for runs.jsonl, table.md and accuracy.png.",
)
@encoder_options
@prompt_options
@output_options
def command(
    shots_from: Path,
    test_from: Path | None,
    heads: str | None,
    shots: list[int],
    seeds: int,
    folds: int,
    folder: Path,
    towers: Towers,
    prompts: Prompts,
    out: Output,
) -> None:
    """Compare heads: each is fitted to the same shots drawn from SHOTS and measured on TEST.

    Without TEST, the parts train and test of SHOTS are used. If SHOTS has no such parts, heads are compared by
    cross-validation: SHOTS is cut into folds, and each picture is answered by heads fitted to shots of the other
    folds. zero-shot and linear-probe always take part. Every run
    is appended to runs.jsonl as soon as it is done; one that stands there is not made again.
    """
    from clipadapter.bench import compare, table
    from clipadapter.classifier import FewShotClassifier

    train, test = _parts(shots_from, test_from)
    train, test = prompts.rename(train), None if test is None else prompts.rename(test)
    chosen = _heads(heads)
    descriptions = prompts.read_descriptions(train.class_names)
    check_out(folder)
    encoder = towers.open(out)
    model = FewShotClassifier(
        encoder,
        templates=prompts.templates,
        descriptions=descriptions,
        backend=towers.backend,
        precision=towers.precision,
        cache=towers.store,
        batch_size=towers.batch_size,
        progress=out.progress,
    )
    records = folder / "runs.jsonl"
    numbers = range(1, seeds + 1)
    result = compare(model, train, test, chosen, shots, numbers, folds=folds, records=records, progress=out.progress)
    towers.tell(encoder, model.encoder_, out)
    tell(result, out)
    title = f"{'/'.join(shots_from.absolute().parts[-2:])} with {model.encoder_.info.name}"
    files = [records, *result.write(folder, title)]
    out.result(
        as_json(result, files), f"{result.protocol_text}{table(result.runs)}\nwrote {', '.join(map(str, files))}"
    )


def _parts(shots_from: Path, test_from: Path | None) -> tuple[Dataset, Dataset | None]:
    from clipadapter.bench import split_train_test
    from clipadapter.data import load_dataset

    if test_from is None:
        dataset = load_dataset(shots_from)
        return split_train_test(dataset) if {"train", "test"} <= set(dataset.splits) else (dataset, None)
    return open_dataset(shots_from, None, default="train"), open_dataset(test_from, None, default="test")


def _heads(names: str | None) -> dict[str, Head]:
    from clipadapter.bench import BASELINES, default_heads
    from clipadapter.heads import create_head

    if names is None:
        return default_heads()
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    return {name: create_head(name) for name in dict.fromkeys([*BASELINES, *wanted])}
