"""``clipadapter eval``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter.cli.encoder_options import ModelEncoderOptions
from clipadapter.cli.fit_options import class_names_option, rename_classes
from clipadapter.cli.groups import Section, cli_command
from clipadapter.cli.inputs import check_output_folder, open_dataset, path_beside
from clipadapter.cli.option_types import FOLDER
from clipadapter.cli.options import curve_option, folds_option, option_group, output_options, seeds_option, split_option
from clipadapter.cli.output import Output, table

if TYPE_CHECKING:
    from clipadapter.bench import CrossValidation, ModelEvaluation, MultiLabelModelEvaluation
    from clipadapter.metrics import ClassReport, Evaluation, MultiLabelEvaluation
    from clipadapter.metrics.table import Task

MAX_LISTED_CLASSES = 20
"""How many classes are listed for a person, the worst first; metrics.json has all of them."""


@cli_command("clipadapter eval model/ test/ --out report/", Section.START, 4)
@click.argument("model", type=FOLDER)
@click.argument("data", metavar="[DATA]", type=FOLDER, required=False)
@split_option
@click.option("--out", "folder", type=FOLDER, help="Folder for the results; by default MODEL-eval beside MODEL.")
@click.option("--record", is_flag=True, help="Also write the figures into MODEL and its card.")
@curve_option
@seeds_option
@folds_option
@class_names_option
@option_group("encoder", ModelEncoderOptions)
@output_options
def command(
    model: Path,
    data: Path | None,
    split: str | None,
    folder: Path | None,
    record: bool,
    curve: bool,
    seeds: int,
    folds: int,
    class_names: Path | None,
    encoder: ModelEncoderOptions,
    out: Output,
) -> None:
    """Measure MODEL on the labelled pictures in DATA, beside zero-shot and a linear probe fitted to the same shots.

    Without --split the split "test" is taken if there is one, else everything. Writes metrics.json and
    confusion.png, and learning-curve.png if the model has two shots or more of a class. Pictures with several
    labels are measured by average precision and F1, and only metrics.json is written.

    Without DATA the head of MODEL is cross-validated on the shots that MODEL stores: they are cut into folds, and each
    picture is classified by a head fitted to the other folds. The model itself is not measured. With --record, the
    figures are also written into MODEL and its card (README.md).
    """
    from clipadapter.bench import cross_validate_model, evaluate_model, evaluate_multilabel_model

    target = check_output_folder(folder if folder is not None else path_beside(model, "-eval"))
    if record:
        check_output_folder(model)
    if data is None:
        if split is not None or class_names is not None or record:
            raise click.UsageError("--split, --class-names and --record need DATA")
        validation = cross_validate_model(encoder.load(model, progress=out.progress), folds)
        _finish(validation, validation.write(target), _validation_text(validation), None, out)
        return
    dataset = rename_classes(open_dataset(data, split, default="test"), class_names)
    classifier = encoder.load(model, progress=out.progress)
    if dataset.multilabel:
        multilabel = evaluate_multilabel_model(classifier, dataset)
        out.skipped(multilabel.skipped)
        _finish(multilabel, multilabel.write(target), _multilabel_text(multilabel), model if record else None, out)
        return
    result = evaluate_model(classifier, dataset, curve=curve, seeds=range(1, seeds + 1), progress=out.progress)
    _warn_about(result, out)
    _finish(result, result.write(target), _text(result), model if record else None, out)


def _finish(
    result: ModelEvaluation | MultiLabelModelEvaluation | CrossValidation,
    files: list[Path],
    text: str,
    model: Path | None,
    out: Output,
) -> None:
    """Record the figures in the model, if one is given, and print them and the files."""
    from clipadapter.persistence import record_evaluation

    recorded = [] if model is None else record_evaluation(model, result.to_dict())
    if len(recorded) == 1:
        out.note(f"the card of {model} was written by a person and is not changed")
    wrote = [str(path) for path in (*files, *recorded)]
    out.result({**result.to_dict(), "files": wrote}, f"{text}\n\nwrote {', '.join(wrote)}")


def _warn_about(result: ModelEvaluation, out: Output) -> None:
    out.skipped(result.skipped)
    if result.skipped:
        out.warn(f"{len(result.skipped)} pictures can't be read and are not counted")
    if result.among_shots:
        out.warn(
            f"{result.among_shots} of {result.n_test} test pictures are among the shots that the model was fitted "
            "with: the figures are better than they would be on new pictures"
        )
    if len(result.baselines) == 1:
        out.warn("the model was saved without its shots (--no-support): no linear probe and no learning curve")


def _text(result: ModelEvaluation) -> str:
    evaluation = result.model.evaluation
    parts = [
        f"{result.n_test} pictures of {result.data}",
        _scores({name: score.evaluation for name, score in result.scores.items()}, "single-label"),
        *_decisions(result.facts["decisions"]),
        _classes(evaluation),
    ]
    confusions = evaluation.confusions()
    if confusions:
        rows = [(true, predicted, count) for true, predicted, count in confusions]
        parts.append(table(["class", "predicted as", "times"], rows))
    return "\n\n".join(parts)


def _validation_text(result: CrossValidation) -> str:
    head = (
        f"cross-validation over {result.folds} folds of the {result.n_pictures} pictures that the model was fitted to: "
        "each is classified by a head fitted to the other folds; the model itself is not measured"
    )
    return "\n\n".join(
        [
            head,
            _scores({name: score.evaluation for name, score in result.scores.items()}, "single-label"),
            _classes(result.model.evaluation),
        ]
    )


def _decisions(measured: Mapping[str, float]) -> list[str]:
    """Describe the outcome of the decisions that the model makes by default."""
    lines = []
    if "rejected" in measured:
        share, rate = _percent(measured["rejected"]), _percent(measured["reject"])
        lines.append(
            f"{share} % are called none of these (requested: {rate} %); the figures above give each picture a class"
        )
    if "covered" in measured:
        share, rate = _percent(measured["covered"]), _percent(measured["coverage"])
        size = f"{measured['set_size']:.2f} classes on average"
        lines.append(f"{share} % have their class in the set (requested: {rate} %), of {size}")
    if "cost" in measured:
        lines.append(
            f"mean cost {measured['cost']:.3g}, accuracy {_percent(measured['accuracy_by_cost'])} %, decided by costs; "
            f"mean cost {measured['cost_of_likeliest']:.3g} decided by the most probable class, as in the figures above"
        )
    return ["\n".join(lines)] if lines else []


def _multilabel_text(result: MultiLabelModelEvaluation) -> str:
    classes = sorted(result.model.classes, key=lambda scores: scores.f1)[:MAX_LISTED_CLASSES]
    rows = [
        (
            scores.name,
            scores.count,
            _percent(scores.average_precision or 0.0),
            _percent(scores.precision),
            _percent(scores.recall),
        )
        for scores in classes
    ]
    more = _not_listed(len(result.model.classes) - len(rows))
    head = _scores(result.scores, "multilabel")
    body = table(["class", "pictures", "average precision %", "precision %", "recall %"], rows)
    return f"{result.n_test} pictures of {result.data}, several labels each\n\n{head}\n\n{body}{more}"


def _scores(scores: Mapping[str, Evaluation | MultiLabelEvaluation], task: Task) -> str:
    from clipadapter.metrics import metrics_shown

    metrics = metrics_shown("terminal", task)
    rows = [
        (name, *(metric.format(evaluation.metrics[key] or 0.0) for key, metric in metrics.items()))
        for name, evaluation in scores.items()
    ]
    return table(["", *(metric.heading for metric in metrics.values())], rows)


def _classes(evaluation: Evaluation) -> str:
    classes: Sequence[ClassReport] = evaluation.classes
    if len(classes) > MAX_LISTED_CLASSES:
        classes = sorted(classes, key=lambda scores: scores.f1)[:MAX_LISTED_CLASSES]
    rows = [
        (scores.name, scores.count, _percent(scores.precision), _percent(scores.recall), _percent(scores.f1))
        for scores in classes
    ]
    listed = table(["class", "pictures", "precision %", "recall %", "F1 %"], rows)
    return listed + _not_listed(len(evaluation.classes) - len(rows))


def _not_listed(count: int) -> str:
    return f"\nand {count} classes with a better F1; metrics.json has all" if count else ""


def _percent(fraction: float) -> float:
    return round(100 * fraction, 1)
