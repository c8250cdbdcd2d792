"""``clipadapter eval``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter.backends.formats import is_exported
from clipadapter.cli.encoder_options import ModelEncoderOptions
from clipadapter.cli.fit_options import class_names_option, rename_classes
from clipadapter.cli.groups import cli_command
from clipadapter.cli.inputs import check_model, check_output_folder, open_dataset, path_beside
from clipadapter.cli.options import (
    FOLDER,
    argument,
    curve_option,
    folds_option,
    option,
    options_of,
    plot_format_option,
    seeds_option,
    split_option,
    title_option,
)
from clipadapter.cli.output import Output, table
from clipadapter.utils.files import write_atomically
from clipadapter.utils.formatting import format_count

if TYPE_CHECKING:
    from clipadapter.bench.evaluation import ModelEvaluation
    from clipadapter.data import Dataset

MIN_UNBIASED_SHOTS = 8
"""Shots per class from which cross-validation was at most two points too low on development sets."""
VALIDATION_BIAS = (
    f"below {MIN_UNBIASED_SHOTS} shots per class these figures are pessimistic, since each fold is fitted to fewer "
    "shots: with 2 shots per class accuracy was 3 (auto) to 8 points (linear-probe) too low on small development sets"
)


@cli_command("clipadapter eval model/ test/ --out report/")
def command(
    out: Output,
    model: Path = argument(type=FOLDER),
    data: Path | None = argument(metavar="[DATA]", type=FOLDER, required=False),
    split: str | None = split_option,
    folder: Path | None = option(
        "--out", type=FOLDER, help="Folder for the results; by default MODEL-eval beside MODEL."
    ),
    original: Path | None = option(
        "--parity", metavar="MODEL", type=FOLDER, help="Compare an exported file with the model it comes from."
    ),
    record: bool = option(
        "--record", default=False, is_flag=True, help="Also write the figures into MODEL and its card."
    ),
    curve: bool = curve_option,
    seeds: int = seeds_option,
    folds: int = folds_option,
    class_names: Path | None = class_names_option,
    title: str = title_option,
    plot_formats: tuple[str, ...] = plot_format_option,
    encoder: ModelEncoderOptions = options_of(ModelEncoderOptions),
) -> None:
    """Measure MODEL on the labelled pictures in DATA, beside zero-shot and a linear probe fitted to the same shots.

    Without --split the split "test" is taken if there is one, else everything. Writes metrics.json and
    confusion.png, and learning-curve.png if the model has two shots or more of a class. Pictures with several
    labels are measured by average precision and F1, and only metrics.json is written.

    Without DATA the head of MODEL is cross-validated on the shots that MODEL stores: they are cut into folds, and each
    picture is classified by a head fitted to the other folds. The model itself is not measured. With --record, the
    figures are also written into MODEL and its card (README.md).

    MODEL may be an exported file: then it is measured alone, and only metrics.json is written. With --parity, its
    outputs are compared with those of the model that it was exported from.
    """
    target = check_output_folder(folder if folder is not None else path_beside(model, "-eval"))
    is_file = is_exported(model) and model.is_file()
    if original is not None and not is_file:
        raise click.UsageError("--parity needs an exported file as MODEL")
    if is_file:
        if data is None or record:
            raise click.UsageError(f"{model.name} is an exported file: give DATA, and leave out --record")
        dataset = rename_classes(open_dataset(data, split, default="test"), class_names)
        _measure_file(model, dataset, original, target, encoder, out)
        return
    if record:
        check_output_folder(model)
    recorded = model if record else None
    if data is None:
        if split is not None or class_names is not None or record:
            raise click.UsageError("--split, --class-names and --record need DATA")
        classifier = encoder.load(model, progress=out.progress)
        from clipadapter.bench import cross_validate_model

        validation = cross_validate_model(classifier, folds)
        _finish(validation, validation.write(target, title, plot_formats), _validation_text(validation), None, out)
        return
    check_model(model)
    dataset = rename_classes(open_dataset(data, split, default="test"), class_names)
    classifier = encoder.load(model, progress=out.progress)
    from clipadapter.bench import evaluate_model

    result = evaluate_model(classifier, dataset, curve=curve, seeds=range(1, seeds + 1), progress=out.progress)
    warn_about(result, out)
    _finish(result, result.write(target, title, plot_formats), describe_evaluation(result), recorded, out)


def _measure_file(
    path: Path, dataset: Dataset, original: Path | None, target: Path, encoder: ModelEncoderOptions, out: Output
) -> None:
    """Measure an exported file, and compare it with its model if that is given."""
    if original is not None:
        check_model(original)
    predictor = encoder.open_exported(path)
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.export.parity import describe_parity, evaluate_file

    model = None if original is None else FewShotClassifier.load(original)
    result, parity = evaluate_file(predictor, dataset, model)
    out.skipped(list(result.skipped))
    facts = {"file": str(path), "precision": predictor.precision, **result.to_dict()}
    del facts["among_shots"]  # the file does not have the shots
    if parity is not None:
        facts["parity"] = parity
    written = write_atomically(target / "metrics.json", json.dumps(facts, indent=1) + "\n")
    text = f"{result}" if parity is None else f"{result}\n\ncompared with {original}: {describe_parity(parity)}"
    out.result({**facts, "files": [str(written)]}, f"{text}\n\nwrote {written}")


def _finish(result: ModelEvaluation, files: list[Path], text: str, model: Path | None, out: Output) -> None:
    """Record the figures in the model, if one is given, and print them and the files."""
    from clipadapter.persistence import record_evaluation

    recorded = [] if model is None else record_evaluation(model, result.to_dict())
    if len(recorded) == 1:
        out.note(f"the card of {model} was written by a person and is not changed")
    wrote = [str(path) for path in (*files, *recorded)]
    out.result({**result.to_dict(), "files": wrote}, f"{text}\n\nwrote {', '.join(wrote)}")


def warn_about(result: ModelEvaluation, out: Output) -> None:
    """Warn of pictures that could not be read, or are shots of the model."""
    out.skipped(result.skipped)
    if result.skipped:
        out.warn(f"{format_count(len(result.skipped), 'picture')} not counted: can't be read")
    if result.among_shots:
        out.warn(
            f"{result.among_shots} of {result.n_test} test pictures are among the shots that the model was fitted "
            "with: the figures are better than they would be on new pictures"
        )
    if result.baselines and "linear-probe" not in result.baselines:
        out.warn("the model was saved without its shots (--no-support): no linear probe and no learning curve")


def describe_evaluation(result: ModelEvaluation) -> str:
    """Describe the scores of the model and its baselines, and those of each class."""
    from clipadapter.classifier.evaluation import describe_decisions, format_classes, format_confusions

    evaluation, decisions = result.evaluations[0], result.facts.get("decisions", {})
    head = f"{result.n_test} pictures of {result.data}" + (", several labels each" if result.is_multilabel else "")
    parts = [*describe_decisions(decisions), format_classes(evaluation), *format_confusions(evaluation)]
    return "\n\n".join([head, _scores(result), *parts])


def _validation_text(result: ModelEvaluation) -> str:
    """The scores, the interval of the accuracy, and its bias if there are few shots."""
    from clipadapter.classifier.evaluation import format_classes

    head = (
        f"cross-validation over {result.folds} folds of the {result.n_test} pictures that the model was fitted to: "
        "each is classified by a head fitted to the other folds; the model itself is not measured"
    )
    low, high = (f"{100 * end:.1f}" for end in result.accuracy_interval)
    interval = f"accuracy of this head: {low} to {high} % (Wilson's 95 % interval for {result.n_test} pictures)"
    if result.n_test / len(result.facts["shots"]) < MIN_UNBIASED_SHOTS:
        interval += f"\n{VALIDATION_BIAS}"
    return "\n\n".join([head, _scores(result), interval, format_classes(result.evaluations[0])])


def _scores(result: ModelEvaluation) -> str:
    from clipadapter.metrics import metrics_shown

    metrics = metrics_shown("terminal", "multilabel" if result.is_multilabel else "single-label")
    rows = [
        (name, *(metric.format(evaluation.metrics[key]) for key, metric in metrics.items()))
        for name, evaluation in zip(result.scores, result.evaluations, strict=True)
    ]
    return table(["", *(metric.heading for metric in metrics.values())], rows)
