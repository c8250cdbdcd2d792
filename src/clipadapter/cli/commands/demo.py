"""``clipadapter demo``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter.cli.commands.compare import comparison_record, note_comparison
from clipadapter.cli.encoder_options import EncoderOptions
from clipadapter.cli.groups import Section, cli_command
from clipadapter.cli.inputs import check_output_folder
from clipadapter.cli.option_types import ENCODER_URI, FOLDER
from clipadapter.cli.options import option, option_group, output_options, seeds_option, shots_option
from clipadapter.cli.output import Output
from clipadapter.files import quote_path

if TYPE_CHECKING:
    from clipadapter.bench import Comparison
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import Dataset

HEADS = ("zero-shot", "linear-probe", "clip-adapter", "auto")
MAX_NAMED_CLASSES = 5


@dataclass(frozen=True)
class DemoEncoderOptions(EncoderOptions):
    """The same with the encoder that needs no network by default."""

    uri: str | None = option(
        "--encoder", default="lite", type=ENCODER_URI, metavar="URI", help="Encoder; 'clipadapter encoders' lists them."
    )


@cli_command("clipadapter demo --data my-pictures/ --shots 1,4", Section.START, 6, extra="demo")
@click.option("--data", type=FOLDER, help="Your own folder or table in place of the pictures of fabric.")
@option_group("encoder_options", DemoEncoderOptions, only=("uri", "cache", "max_pixels"))
@shots_option
@seeds_option
@click.option(
    "--out", "folder", type=FOLDER, default="clipadapter-demo", help="Folder for table, plot, records and a model."
)
@output_options
def command(
    data: Path | None, encoder_options: EncoderOptions, shots: list[int], seeds: int, folder: Path, out: Output
) -> None:
    """Show the whole workflow on 2,000 pictures of fabric, without network: compare, fit, save, predict.

    zero-shot, linear-probe, clip-adapter and auto are fitted to the same few pictures. If the data has the splits train
    and test, shots are drawn from train, and the heads are measured on test. Else every other picture of each class is
    a test picture. A second run takes features and runs from the first one.
    """
    from clipadapter.bench import compare, table
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.heads import create_head

    train, test, rule = _split_data(data)
    check_output_folder(folder)
    model = FewShotClassifier(encoder_options.open(out), cache=encoder_options.store, progress=out.progress)
    out.note(_introduction(train, test, rule, shots, seeds))
    records, heads = folder / "runs.jsonl", {name: create_head(name) for name in HEADS}
    draws = range(1, seeds + 1)
    result = compare(model, train, test, heads, shots, draws, records=records, progress=out.progress)
    note_comparison(result, out)
    title = f"{'fabric' if data is None else data.absolute().name} with {model.encoder_.info.name}"
    files = [records, *result.write(folder, title)]
    outcome = _fit_and_predict(model, result, test, folder / "model", max(shots))
    files.append(folder / "model")
    wrote = f"wrote {', '.join(map(str, files))}"
    text = [table(result.runs), outcome, "", wrote, "", _next_steps(encoder_options.uri, folder / "model")]
    out.result(comparison_record(result, files), "\n".join(text))


def _split_data(data: Path | None) -> tuple[Dataset, Dataset, str]:
    """Return the pictures to draw shots from, the test pictures, and a sentence on how they were split."""
    from clipadapter.bench import split_in_halves, split_train_test
    from clipadapter.data import load_dataset, textiles

    dataset = textiles() if data is None else load_dataset(data)
    if {"train", "test"} <= set(dataset.splits):
        return *split_train_test(dataset), "The shots come from train, the test pictures from test"
    return *split_in_halves(dataset), "Every other picture of a class is a test picture; the shots come from the rest"


def _introduction(train: Dataset, test: Dataset, rule: str, shots: list[int], seeds: int) -> str:
    names = train.class_names
    shot_range = f"{min(shots)} to {max(shots)}" if len(shots) > 1 else f"{shots[0]}"
    counts = Counter([*train.labels, *test.labels])
    listed = ", ".join(f"{name} ({counts[name]})" for name in names[:MAX_NAMED_CLASSES])
    more = " ..." if len(names) > MAX_NAMED_CLASSES else ""
    return (
        f"{counts.total()} pictures of {len(names)} classes: {listed}{more}.\n"
        f"The encoder computes the features of each picture once; then four heads are fitted to {shot_range} pictures "
        f"per class, drawn {seeds} times.\n{rule}, {len(test.samples)} in total."
    )


def _fit_and_predict(model: FewShotClassifier, result: Comparison, test: Dataset, folder: Path, shots: int) -> str:
    """Fit, save and load a model and predict one picture; return a sentence on the result."""
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import draw_shots

    if result.n_new or not (folder / "config.json").is_file():
        rows = draw_shots(result.support.y, shots, seed=1)
        model.fit_features(result.support.take(rows), result.text).save(folder)
    loaded = FewShotClassifier.load(folder, encoder=model.encoder_, cache=model.cache)
    sample = test.samples[0]
    (answer,) = loaded.classify([sample.path])
    prediction = f"'{answer.label}' with probability {answer.probability:.2f}; the label is '{sample.label}'"
    return (
        f"A model of {shots} shots per class is saved in {folder}. "
        f"Its prediction for {sample.path.name}: {answer.error or prediction}."
    )


def _next_steps(encoder: str | None, folder: Path) -> str:
    return (
        "Next, with one folder of pictures per class:\n"
        f"  clipadapter fit YOUR_FOLDER --encoder {encoder} --out my-model\n"
        f"  clipadapter predict {quote_path(folder)} SOME_PICTURE.jpg"
    )
