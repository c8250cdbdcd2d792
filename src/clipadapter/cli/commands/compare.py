"""``clipadapter compare`` and ``clipadapter demo``: heads on the same shots and test pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from clipadapter import bench, persistence
from clipadapter.cli import options
from clipadapter.cli.declarations import argument, cli_command, option, options_of
from clipadapter.cli.inputs import open_dataset, rename_classes
from clipadapter.cli.options import Counts, HeadNames
from clipadapter.cli.output import Output, note_kept
from clipadapter.cli.outputs import check_output_folder, check_records_folder
from clipadapter.data import Dataset, draw_shots, load_dataset
from clipadapter.errors import InputError
from clipadapter.heads import create_head
from clipadapter.utils.files import path_without_links, quote_path
from clipadapter.utils.formatting import format_count
from clipadapter.utils.registry import unknown

if TYPE_CHECKING:
    from clipadapter.bench.comparison import Comparison


@cli_command("clipadapter compare shots/ test/ --heads clip-adapter --shots 1,4,16")
def command(
    out: Output,
    shots_from: Path = argument(metavar="SHOTS"),
    test_from: Path | None = argument(metavar="[TEST]"),
    heads: HeadNames | None = option(
        "--heads NAME,...", "Heads to compare, see 'clipadapter heads'; by default 'all'."
    ),
    settings: tuple[str, ...] = option(
        "--set [HEAD.]KEY=VALUE",
        "Parameter of a head, such as clip-adapter.alpha=0.2; with one head in --heads also alpha=0.2. May be "
        "repeated.",
    ),
    shots: Counts = option("--shots N,...", "Numbers of shots per class to compare.", default="1,2,4,8,16"),
    seeds: int = options.seeds_option,
    folds: int = options.folds_option,
    folder: Path = option("--out", "Folder for runs.jsonl, table.md, accuracy.png.", default="clipadapter-compare"),
    title: str = options.title_option,
    plot_formats: tuple[str, ...] = options.plot_format_option,
    encoder_options: options.EncoderOptions = options_of(options.EncoderOptions),
    prompts: options.PromptOptions = options_of(options.PromptOptions),
) -> None:
    """Compare heads: each is fitted to the same shots drawn from SHOTS and measured on TEST.

    Without TEST, the splits train and test of SHOTS are used. If SHOTS has no such splits, heads are compared by
    cross-validation: SHOTS is cut into folds, and each picture is classified by heads fitted to shots of the other
    folds. Then --seeds is 1 by default, since every picture is a test picture once. zero-shot and linear-probe always
    take part. Every run is appended to runs.jsonl as soon as it is done; a successful run that is in this file is not
    repeated.
    """
    check_records_folder(folder)
    check_output_folder(folder, "compare", "table.md", *(f"accuracy.{kind}" for kind in plot_formats))
    if heads is not None:
        _head_options(heads, settings)  # a wrong one is refused before anything slow is imported
    if test_from is not None:
        train = open_dataset(shots_from, None, "train", prompts.class_names)
        test: Dataset | None = open_dataset(test_from, None, "test", prompts.class_names)
    else:
        train, test = rename_classes(load_dataset(shots_from), prompts.class_names), None
        if {"train", "test"} <= set(train.splits):
            train, test = train.split("train"), train.split("test")
    if test is None and click.get_current_context().get_parameter_source("seeds") is ParameterSource.DEFAULT:
        seeds = 1  # the folds of one seed are about as many fits as three draws
    from clipadapter.bench.suite import Variant

    names = list(bench.default_heads() if heads is None else heads)
    chosen = {name: options.HeadOptions(name) for name in (names if heads is None else (*bench.BASELINES, *names))}
    chosen |= _head_options(names, settings)
    # Their names in the table say the parameters that were set.
    selected = {Variant(head=one.name, params=one.parameters()).title: one.create() for one in chosen.values()}
    prompt_parameters = prompts.classifier_parameters(train.class_names)
    model = encoder_options.create_classifier(out, **prompt_parameters)
    opened = model.encoder_
    records = folder / "runs.jsonl"
    draws = range(1, seeds + 1)
    note_kept(f"the records of finished fits are in {folder}, and the same command makes only the other ones")
    result = bench.compare(
        model, train, test, selected, shots, draws, folds=folds, records=records, progress=out.progress
    )
    options.note_backend(opened, model.encoder_, out)
    note_comparison(result, out)
    title = title or f"{shots_from.absolute().name} with {model.encoder_.info.name}"
    files = [records, *result.write(folder, title, plot_formats)]
    text = f"{result.protocol_text}{bench.table(result.runs)}\nwrote {', '.join(map(str, files))}"
    out.result(comparison_record(result, files), text)


def _head_options(names: Sequence[str], settings: Sequence[str]) -> dict[str, options.HeadOptions]:
    """Return heads with their settings by name, checked without importing torch."""
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    for setting in settings:
        path, equals, value = setting.partition("=")
        name, dot, key = path.rpartition(".")
        if not equals or (not dot and len(names) != 1):
            raise InputError(f"--set takes HEAD.KEY=VALUE, such as clip-adapter.alpha=0.2, but got '{setting}'")
        name = name or names[0]
        if name not in names:
            raise unknown("head of this comparison", name, list(names))
        if key in own[name]:
            raise InputError(
                f"{name}.{key} is set twice: several values are compared by a suite with 'vary', see docs/studies.md"
            )
        own[name][key] = options.parse_value(value)
    heads = {name: options.HeadOptions(name, settings=tuple(values.items())) for name, values in own.items()}
    for head in heads.values():
        head.check()
    return heads


def note_comparison(result: Comparison, out: Output) -> None:
    """Report pictures that were left out, and runs that failed or were in the records."""
    out.skipped(result.skipped)
    for sentence in result.warnings:
        out.warn(sentence)
    if result.n_new < len(result.runs):
        out.note(f"{len(result.runs) - result.n_new} of {len(result.runs)} runs were taken from the records")
    for text in dict.fromkeys(f"{run.head} failed: {run.error}" for run in result.runs if run.error is not None):
        out.warn(text)


def comparison_record(result: Comparison, files: Sequence[Path], metric: str = "accuracy") -> dict[str, Any]:
    """Return a comparison as JSON."""
    return {
        **bench.summarise(result.runs, metric),
        "encoder": result.runs[0].encoder.name,
        **({} if result.folds is None else {"protocol": "cross-validation", "folds": result.folds}),
        "n_test": len(result.test),
        "classes": list(result.text.labels),
        "skipped": [{"source": name, "reason": reason} for name, reason in result.skipped],
        "warnings": result.warnings,
        "files": [str(path) for path in files],
    }


SHOWN_HEAD = "auto"  # the head of the table beside the class names alone, and of the saved model


@cli_command("clipadapter demo --data my-pictures/ --shots 1,4", extra="demo")
def demo(
    out: Output,
    data: Path | None = option(
        "--data",
        "Your own folder or table, or a named data set such as imagenette, which is downloaded (94 MB); by "
        "default pictures of fabric, without network.",
    ),
    encoder_options: options.EncoderOptions = options_of(
        options.EncoderOptions, only=("uris", "quality", "cache", "max_pixels"), uris=("lite",)
    ),
    shots: Counts = option("--shots N,...", "Numbers of shots per class to compare.", default="1,4,16"),
    seeds: int = options.seeds_option,
    folder: Path = option("--out", "Folder for table, plots, records and a model.", default="clipadapter-demo"),
) -> None:
    """Show the whole workflow on pictures of fabric, without network: fit, save, measure, explain.

    A model is fitted to a few pictures of each class and saved. Then class names alone and models of other numbers of
    pictures are measured on the same test pictures. There are a table, a learning curve, and a sheet of test pictures
    with their answers, on which the place to look at is marked and enlarged.

    If the data has the splits train and test, shots are drawn from train, and models are measured on test. Else every
    other picture of each class is a test picture. Of more than 300 test pictures, 300 are drawn. An interrupted demo
    continues where it was.
    """
    from clipadapter.demo import Results, draw_answers, open_demo_data

    check_records_folder(folder)
    check_output_folder(folder, "compare", "table.md", "*accuracy.png")
    check_output_folder(folder, "demo", "answers.png")
    persistence.check_target_folder(folder / "model")
    pictures = open_demo_data(data, out.note, progress=out.progress)
    from clipadapter.classifier import FewShotClassifier

    out.note(f"{pictures.describe(shots, seeds)}\n")
    encoders, train, most = encoder_options.open(out), pictures.train, max(shots)
    common: dict[str, Any] = {"templates": pictures.templates, "cache": encoder_options.store, "progress": out.progress}
    model = FewShotClassifier(encoders, SHOWN_HEAD, quality=encoder_options.quality, **common)
    note_kept(f"the records of finished fits are in {folder}, and the same command makes only the other ones")
    rows = draw_shots(train.labels, most, seed=1)
    model.fit([train.paths[row] for row in rows], [train.labels[row] for row in rows], train.class_names)
    model.save(path_without_links(folder, "model"))
    quality = model.support_.provenance["quality"]
    out.note(f"with {most} of each class, the model {quality['why']}\n" if quality["why"] else "")
    measured = FewShotClassifier(encoders, SHOWN_HEAD, quality=quality["name"], **common)
    heads = {name: create_head(name) for name in ("zero-shot", SHOWN_HEAD)}
    records, draws = folder / "runs.jsonl", range(1, seeds + 1)
    result = bench.compare(measured, train, pictures.test, heads, shots, draws, records=records, progress=out.progress)
    note_comparison(result, out)
    title = f"{pictures.name} with {encoders[0].info.name}"
    page, curve = result.write(folder, title, metric=pictures.metric, reference=pictures.constant_answer)
    about = f"{SHOWN_HEAD}, {most} shots per class"
    answers, sheet = draw_answers(model, pictures.test, result.test, about, folder)
    results = Results(result.runs, pictures, result.test.y)
    findings = results.findings()
    files = {
        curve: "the learning curve",
        sheet: f"answers for {format_count(len(answers), 'test picture')}",
        page: "all figures as tables",
        records: "the record of every fit; a second run continues from it",
        folder / "model": "the fitted model",
    }
    own = "YOUR_FOLDER" if data is None or not data.exists() else quote_path(data)
    subject = next((answer for answer in answers if not answer.is_right), answers[0])
    text = [
        results.table(),
        "\n".join(findings),
        "\n".join(f"{path}: {what}" for path, what in files.items()),
        f"Next, see why the model is {'right' if subject.is_right else 'wrong'} on one of the pictures, and fit one to "
        "your own, in one folder per class:\n"
        f"  clipadapter explain {quote_path(folder / 'model')} {quote_path(subject.path)} --out why.png\n"
        f"  clipadapter fit {own} --out model",
    ]
    record = {
        **comparison_record(result, list(files), pictures.metric),
        **pictures.to_dict(),
        "quality": quality,
        "answers": [answer.to_dict() for answer in answers],
        "findings": findings,
    }
    out.result(record, "\n\n".join(filter(None, text)))
