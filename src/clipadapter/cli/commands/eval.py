"""``clipadapter eval``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter.cli.comparing import check_out, folds_option, seeds_option
from clipadapter.cli.fit_options import Prompts, class_names_option
from clipadapter.cli.options import FOLDER, Towers, model_options, open_dataset, output_options, split_option
from clipadapter.cli.output import Output, table

if TYPE_CHECKING:
    from clipadapter.bench import CrossValidation, ModelEvaluation, MultiLabelModelEvaluation
    from clipadapter.metrics import Evaluation, MultiLabelEvaluation
    from clipadapter.metrics.table import Task

WORST = 20
"""How many classes are listed at most, the worst first; metrics.json has all."""


@click.command(epilog="Example: clipadapter eval model/ test/ --out report/")
@click.argument("model", type=FOLDER)
@click.argument("data", metavar="[DATA]", type=FOLDER, required=False)
@split_option
@click.option("--out", "folder", type=FOLDER, help="Folder for what is written; MODEL-eval beside MODEL without it.")
@click.option("--record", is_flag=True, help="Write the figures into MODEL and its card, too.")
@click.option("--curve/--no-curve", default=True, show_default=True, help="Fit on fewer of the model's shots too.")
@seeds_option
@folds_option
@class_names_option
@model_options
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
    towers: Towers,
    out: Output,
) -> None:
    """Measure MODEL on the labelled pictures in DATA, beside zero-shot and a linear probe fitted to the same shots.

    Without --split the part "test" is taken if there is one, else everything. Writes metrics.json and
    confusion.png, and learning-curve.png if the model has two shots or more of a class. Pictures with several
    labels are measured by average precision and F1, and only metrics.json is written.

    Without DATA the model's head is cross-validated on the shots that MODEL keeps: they are cut into folds, and each
    picture is answered by a head fitted to the other folds. The model itself is not measured. With --record the card of
    MODEL (README.md) tells the figures to whoever gets it.
    """
    from clipadapter.bench import cross_validate_model, evaluate_model, evaluate_multilabel_model

    named = model if model.name not in ("", "..") else model.resolve()
    target = check_out(folder if folder is not None else named.with_name(f"{named.name}-eval"))
    if record:
        check_out(model)
    if data is None:
        if split is not None or class_names is not None or record:
            raise click.UsageError("--split, --class-names and --record need DATA")
        validation = cross_validate_model(towers.load(model, progress=out.progress), folds)
        _finish(validation, validation.write(target), _validation_text(validation), None, out)
        return
    dataset = Prompts(class_names=class_names).rename(open_dataset(data, split, default="test"))
    classifier = towers.load(model, progress=out.progress)
    if dataset.multilabel:
        multilabel = evaluate_multilabel_model(classifier, dataset)
        out.skipped(multilabel.skipped)
        _finish(multilabel, multilabel.write(target), _multilabel_text(multilabel), model if record else None, out)
        return
    result = evaluate_model(classifier, dataset, curve=curve, seeds=range(1, seeds + 1), progress=out.progress)
    _tell(result, out)
    _finish(result, result.write(target), _text(result), model if record else None, out)


def _finish(
    result: ModelEvaluation | MultiLabelModelEvaluation | CrossValidation,
    files: list[Path],
    text: str,
    model: Path | None,
    out: Output,
) -> None:
    """Record the figures in the model, if one is given, and say what was found and written."""
    from clipadapter.persistence import record_evaluation

    recorded = [] if model is None else record_evaluation(model, result.to_dict())
    if len(recorded) == 1:
        out.note(f"the card of {model} was written by a person and is left as it is")
    wrote = [str(path) for path in (*files, *recorded)]
    out.result({**result.to_dict(), "files": wrote}, f"{text}\n\nwrote {', '.join(wrote)}")


def _tell(result: ModelEvaluation, out: Output) -> None:
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
    found = result.model.evaluation
    head = f"{result.n_test} pictures of {result.data}"
    parts = [
        head,
        _scores({name: one.evaluation for name, one in result.scores.items()}, "single-label"),
        *_asked(result.facts["asked"]),
        _classes(found),
    ]
    wrong = found.confusions()
    if wrong:
        rows = [(true, predicted, count) for true, predicted, count in wrong]
        parts.append(table(["is", "was called", "times"], rows))
    return "\n\n".join(parts)


def _validation_text(result: CrossValidation) -> str:
    head = (
        f"cross-validation over {result.folds} folds of the {result.n_pictures} pictures that the model was fitted to: "
        "each is answered by a head fitted to the other folds; the model itself is not measured"
    )
    return "\n\n".join(
        [
            head,
            _scores({name: one.evaluation for name, one in result.scores.items()}, "single-label"),
            _classes(result.model.evaluation),
        ]
    )


def _asked(told: Mapping[str, float]) -> list[str]:
    """What becomes of the pictures by what the model says by default."""
    lines = []
    if "rejected" in told:
        share, rate = _percent(told["rejected"]), _percent(told["reject"])
        lines.append(f"{share} % would be called none of these (asked: {rate} %); the figures above call each a class")
    if "covered" in told:
        share, rate = _percent(told["covered"]), _percent(told["coverage"])
        size = f"{told['set_size']:.2f} classes on average"
        lines.append(f"{share} % have their class in the set (asked: {rate} %), of {size}")
    if "cost" in told:
        lines.append(
            f"mean cost {told['cost']:.3g} with {_percent(told['accuracy_by_cost'])} % right, answered by costs; "
            f"{told['cost_of_likeliest']:.3g} by the likeliest class, as in the figures above"
        )
    return ["\n".join(lines)] if lines else []


def _multilabel_text(result: MultiLabelModelEvaluation) -> str:
    classes = sorted(result.model.classes, key=lambda one: one.f1)[:WORST]
    rows = [
        (one.name, one.count, _percent(one.average_precision or 0.0), _percent(one.precision), _percent(one.recall))
        for one in classes
    ]
    left = len(result.model.classes) - len(rows)
    more = f"\nand {left} classes with a better F1; metrics.json has all" if left else ""
    head = _scores(result.scores, "multi-label")
    body = table(["class", "pictures", "average precision %", "precision %", "recall %"], rows)
    return f"{result.n_test} pictures of {result.data}, several labels each\n\n{head}\n\n{body}{more}"


def _scores(scores: Mapping[str, Evaluation | MultiLabelEvaluation], task: Task) -> str:
    from clipadapter.metrics import metrics_shown

    metrics = metrics_shown("terminal", task)
    rows = [
        (name, *(metric.round(found.metrics[key] or 0.0) for key, metric in metrics.items()))
        for name, found in scores.items()
    ]
    return table(["", *(metric.heading for metric in metrics.values())], rows)


def _classes(found: Evaluation) -> str:
    classes = sorted(found.classes, key=lambda one: one.f1) if len(found.classes) > WORST else found.classes
    rows = [
        (one.name, one.count, _percent(one.precision), _percent(one.recall), _percent(one.f1))
        for one in classes[:WORST]
    ]
    more = len(found.classes) - len(rows)
    left = f"\nand {more} classes with a better F1; metrics.json has all" if more else ""
    return table(["class", "pictures", "precision %", "recall %", "F1 %"], rows) + left


def _percent(share: float) -> float:
    return round(100 * share, 1)
