"""``clipadapter demo``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter.cli.comparing import as_json, check_out, seeds_option, shots_option, tell
from clipadapter.cli.options import FILE, FOLDER, Towers, output_options
from clipadapter.cli.output import Output

if TYPE_CHECKING:
    from clipadapter.bench import Comparison
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import Dataset

HEADS = ("zero-shot", "linear-probe", "clip-adapter", "auto")


@click.command(epilog="Example: clipadapter demo --data my-pictures/ --shots 1,4")
@click.option("--data", type=FOLDER, help="Your own folder or table instead of the pictures of fabric.")
@click.option("--encoder", default="lite", show_default=True, help="URI of the encoder; see 'clipadapter encoders'.")
@shots_option
@seeds_option
@click.option(
    "--out",
    "folder",
    type=FOLDER,
    default=Path("clipadapter-demo"),
    show_default=True,
    help="Folder for table, plot, records and a model.",
)
@click.option("--cache", type=FILE, help="File that keeps the features; by default in the user's cache folder.")
@output_options
def command(
    data: Path | None,
    encoder: str,
    shots: list[int],
    seeds: int,
    folder: Path,
    cache: Path | None,
    out: Output,
) -> None:
    """Show the whole job on 2,000 pictures of fabric, without network: compare, fit, save, predict.

    zero-shot, linear-probe, clip-adapter and auto learn from the same few pictures. Shots are drawn from the part train
    and measured on the part test if there are such parts; else from every other picture of each class, measured on
    those between. The second time the features and the runs are there already.
    """
    from clipadapter.bench import compare, table
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.heads import create_head

    train, test, rule = _parts(data)
    check_out(folder)
    towers = Towers(encoder, cache=cache)
    model = FewShotClassifier(towers.open(out), cache=towers.store, progress=out.progress)
    out.note(_story(train, test, rule, shots, seeds))
    records, heads = folder / "runs.jsonl", {name: create_head(name) for name in HEADS}
    numbers = range(1, seeds + 1)
    result = compare(model, train, test, heads, shots, numbers, records=records, progress=out.progress)
    tell(result, out)
    what = "fabric" if data is None else data.absolute().name
    files = [records, *result.write(folder, f"{what} with {model.encoder_.info.name}")]
    said = _main_job(model, result, test, folder / "model", max(shots))
    files.append(folder / "model")
    text = [table(result.runs), said, "", f"wrote {', '.join(map(str, files))}", "", _next(encoder, folder / "model")]
    out.result(as_json(result, files), "\n".join(text))


def _parts(data: Path | None) -> tuple[Dataset, Dataset, str]:
    """What shots are drawn from, what is tested on, and how the two were told apart."""
    from clipadapter.bench import split_in_halves, split_train_test
    from clipadapter.data import load_dataset, textiles

    dataset = textiles() if data is None else load_dataset(data)
    if {"train", "test"} <= set(dataset.splits):
        return *split_train_test(dataset), "The shots come from train, the test pictures from test"
    return *split_in_halves(
        dataset
    ), "The shots come from every other picture of a class, the test pictures are those between"


def _story(train: Dataset, test: Dataset, rule: str, shots: list[int], seeds: int) -> str:
    names, many = train.class_names, f"{min(shots)} to {max(shots)}" if len(shots) > 1 else f"{shots[0]}"
    counts = Counter([*train.labels, *test.labels])
    some = ", ".join(f"{name} ({counts[name]})" for name in names[:5]) + (" ..." if len(names) > 5 else "")
    return (
        f"{counts.total()} pictures of {len(names)} classes: {some}.\n"
        f"The encoder turns each picture into numbers once; then four methods learn from {many} pictures a class, "
        f"drawn {seeds} times.\n{rule}, {len(test.samples)} in all."
    )


def _main_job(model: FewShotClassifier, result: Comparison, test: Dataset, folder: Path, shots: int) -> str:
    """Fit, save, load and predict one picture, as a person would; says what came of it."""
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import draw_shots

    if result.fresh or not (folder / "config.json").is_file():
        rows = draw_shots(result.support.y, shots, seed=1)
        model.fit_features(result.support.take(rows), result.text).save(folder)
    loaded = FewShotClassifier.load(folder, encoder=model.encoder_, cache=model.cache)
    sample = test.samples[0]
    (answer,) = loaded.classify([sample.path])
    said = answer.error or f"'{answer.label}' with probability {answer.probability:.2f}; it is '{sample.label}'"
    return f"A model of {shots} shots a class is saved in {folder}. Asked for {sample.path.name} it says {said}."


def _next(encoder: str, folder: Path) -> str:
    return (
        "Next, with one folder of pictures a class:\n"
        f"  clipadapter fit YOUR_FOLDER --encoder {encoder} --out my-model\n"
        f"  clipadapter predict {folder} SOME_PICTURE.jpg"
    )
