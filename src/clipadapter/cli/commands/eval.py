"""``clipadapter eval``, ``report`` and ``explain``: are the answers of a model right, and why does it give one?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter import bench, metrics, persistence
from clipadapter.cli import inputs, options
from clipadapter.cli.declarations import argument, cli_command, flag, option, options_of
from clipadapter.cli.options import PLOT_SUFFIXES, CountFromZero, File, Fraction
from clipadapter.cli.output import Output, table
from clipadapter.cli.outputs import check_output_file, check_output_folder, force_option
from clipadapter.data import Dataset
from clipadapter.errors import ImageError
from clipadapter.runtime.engines.formats import is_exported
from clipadapter.utils.files import explain_missing, mark, printable, write_atomically
from clipadapter.utils.formatting import format_count

if TYPE_CHECKING:
    from clipadapter.bench.evaluation import ModelEvaluation
    from clipadapter.report import Report

MIN_UNBIASED_SHOTS = 8  # shots per class from which cross-validation was at most two points too low on development sets
VALIDATION_BIAS = (
    f"below {MIN_UNBIASED_SHOTS} shots per class these figures are pessimistic, since each fold is fitted to fewer "
    "shots: with 2 shots per class accuracy was 3 (auto) to 8 points (linear-probe) too low on small development sets"
)
curve_option = option(
    "--curve/--no-curve", "Also fit to fewer of the shots of the model: a learning curve.", default=True
)


@cli_command("clipadapter eval model/ test/ --out report/")
def command(
    out: Output,
    model: Path = argument(),
    data: Path | None = argument(),
    split: str | None = options.split_option,
    folder: Path | None = option("--out", "Folder for the results; by default MODEL-eval beside MODEL."),
    original: Path | None = option("--parity MODEL", "Compare an exported file with the model it comes from."),
    record: bool = flag("--record", "Also write the figures into MODEL and its card."),
    curve: bool = curve_option,
    seeds: int = options.seeds_option,
    folds: int = options.folds_option,
    class_names: File | None = options.class_names_option,
    title: str = options.title_option,
    plot_formats: tuple[str, ...] = options.plot_format_option,
    encoder: options.ModelEncoderOptions = options_of(options.ModelEncoderOptions),
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
    target = folder if folder is not None else inputs.path_beside(model, "-eval")
    plots = (f"{name}.{kind}" for name in ("confusion", "learning-curve") for kind in plot_formats)
    check_output_folder(target, "eval", "metrics.json", *plots)
    is_file = is_exported(model) and model.is_file()
    if original is not None and not is_file:
        raise click.UsageError("--parity needs an exported file as MODEL")
    if is_file and (data is None or record):
        raise click.UsageError(f"{model.name} is an exported file: give DATA, and leave out --record")
    if data is None and (split is not None or class_names is not None or record):
        raise click.UsageError("--split, --class-names and --record need DATA")
    if record:
        check_output_folder(model)
    if data is None:
        validation = bench.cross_validate_model(encoder.load(model, progress=out.progress), folds)
        out.result(validation.to_dict(), _validation_text(validation), validation.write(target, title, plot_formats))
        return
    dataset = inputs.open_dataset(data, split, "test", class_names)
    if is_file:
        _measure_file(model, dataset, original, target, encoder, out)
        return
    classifier = encoder.load(model, progress=out.progress)
    result = bench.evaluate_model(classifier, dataset, curve=curve, seeds=range(1, seeds + 1), progress=out.progress)
    warn_about(result, out)
    files = result.write(target, title, plot_formats)
    recorded = persistence.record_evaluation(model, result.to_dict()) if record else []
    if len(recorded) == 1:
        out.note(f"the card of {model} was written by a person and is not changed")
    out.result(result.to_dict(), describe_evaluation(result), [*files, *recorded])


def _measure_file(
    path: Path, dataset: Dataset, original: Path | None, target: Path, encoder: options.ModelEncoderOptions, out: Output
) -> None:
    """Measure an exported file, and compare it with its model if that is given."""
    predictor = encoder.open_exported(path)
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.runtime.export.evaluation import describe_parity, evaluate_file

    model = None if original is None else FewShotClassifier.load(original)
    result, parity = evaluate_file(predictor, dataset, model)
    out.skipped(list(result.skipped))
    facts, text = {"file": str(path), "precision": predictor.precision, **result.to_dict()}, str(result)
    del facts["among_shots"]  # the file does not have the shots
    if parity is not None:
        facts["parity"] = parity
        text += f"\n\ncompared with {original}: {describe_parity(parity)}"
    out.result(
        facts,
        text,
        [write_atomically(target / "metrics.json", json.dumps({"written_by": mark("eval"), **facts}, indent=1) + "\n")],
    )


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
    from clipadapter.classifier.evaluation import describe_decisions, format_tables

    evaluation, decisions = result.evaluations[0], result.facts.get("decisions", {})
    head = f"{result.n_test} pictures of {result.data}" + (", several labels each" if result.is_multilabel else "")
    parts = [*describe_decisions(decisions), *format_tables(evaluation)]
    return "\n\n".join([head, _scores(result), *parts])


def _validation_text(result: ModelEvaluation) -> str:
    """The scores, the interval of the accuracy, and its bias if there are few shots."""
    from clipadapter.classifier.evaluation import format_tables

    head = (
        f"cross-validation over {result.folds} folds of the {result.n_test} pictures that the model was fitted to: "
        "each is classified by a head fitted to the other folds; the model itself is not measured"
    )
    low, high = (f"{100 * end:.1f}" for end in result.accuracy_interval)
    interval = f"accuracy of this head: {low} to {high} % (Wilson's 95 % interval for {result.n_test} pictures)"
    if result.n_test / len(result.facts["shots"]) < MIN_UNBIASED_SHOTS:
        interval += f"\n{VALIDATION_BIAS}"
    return "\n\n".join([head, _scores(result), interval, format_tables(result.evaluations[0])[0]])


def _scores(result: ModelEvaluation) -> str:
    shown = metrics.metrics_shown("terminal", "multilabel" if result.is_multilabel else "single-label")
    rows = [
        (name, *(metric.format(evaluation.metrics[key]) for key, metric in shown.items()))
        for name, evaluation in zip(result.scores, result.evaluations, strict=True)
    ]
    return table(["", *(metric.heading for metric in shown.values())], rows)


@cli_command("clipadapter report model/ test/ --out report.html")
def report(
    out: Output,
    model: Path = argument(),
    data: Path = argument(),
    split: str | None = options.split_option,
    path: Path | None = option("--out", "Page to write; by default MODEL-report.html beside MODEL."),
    force: bool = force_option,
    outliers: Path | None = option("--outliers", 'Pictures of none of the classes, to measure "none of these".'),
    reject: Fraction | None = option("--reject RATE", 'Rate of "none of these"; by default as the model, or 0.05.'),
    coverage: Fraction | None = option(
        "--coverage RATE", "Rate of the sets of classes; by default as the model, or 0.9."
    ),
    curve: bool = curve_option,
    doctor: bool = option(
        "--doctor/--no-doctor", "Find problems in the pictures, as 'clipadapter doctor' does.", default=True
    ),
    seeds: int = options.seeds_option,
    seed: int = options.seed_option,
    class_names: File | None = options.class_names_option,
    encoder: options.ModelEncoderOptions = options_of(options.ModelEncoderOptions),
) -> None:
    """Write one HTML page about MODEL, measured on the labelled pictures in DATA.

    The page has metrics with 95 % intervals, compared with zero-shot and a linear probe, the learning curve, the
    classes, the confusions, calibration, accuracy by rejection rate, the worst mistakes with the shots that explain
    them, a map of the features, the findings of the doctor, and provenance. It loads no other file.

    Without --split the split "test" is used if there is one, else all pictures.
    """
    from clipadapter.report import make_report

    target = path if path is not None else inputs.path_beside(model, "-report.html")
    check_output_file(target, "page of report", "report", data, suffixes=options.PAGE_SUFFIXES, force=force)
    dataset = inputs.open_dataset(data, split, "test", class_names)
    result = make_report(
        encoder.load(model, progress=out.progress),
        dataset,
        outliers=() if outliers is None else inputs.list_pictures(outliers),
        reject=reject,
        coverage=coverage,
        curve=curve,
        seeds=range(1, seeds + 1),
        doctor=doctor,
        seed=seed,
        progress=out.progress,
    )
    warn_about(result.evaluation, out)
    if doctor and result.doctor.why_not_run:
        out.note(f"the doctor was not run: {result.doctor.why_not_run}")
    out.result(result.to_dict(), _report_text(result), [result.write(target)])


def _report_text(result: Report) -> str:
    others = metrics.metrics_shown("terminal", "single-label")
    del others["accuracy"]
    rows = []
    for name, system in result.metrics_by_model.items():
        accuracy = system.metrics["accuracy"]
        low, high = accuracy.low or 0.0, accuracy.high or 0.0
        lead = "" if system.accuracy_lead is None else f"{100 * system.accuracy_lead.value:+.1f}"
        interval = f"{100 * accuracy.value:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        rows.append(
            (name, interval, lead, *(metric.format(system.metrics[key].value) for key, metric in others.items()))
        )
    head = ["", "accuracy % (95 %)", "model is ahead by", *(metric.heading for metric in others.values())]
    return f"{result.evaluation.n_test} pictures of {result.evaluation.data}\n\n{table(head, rows)}"


@cli_command("clipadapter explain model/ photo.jpg --out why.png")
def explain(
    out: Output,
    model: Path = argument(),
    photo: Path = argument(),
    path: Path | None = option("--out FILE.png", "PNG, PDF or SVG file to draw."),
    force: bool = force_option,
    class_name: str | None = option("--class NAME", "Class to explain; by default the predicted one."),
    neighbours: CountFromZero = option("--neighbours K", "How many of the nearest shots to list.", default=5),
    encoder: options.ModelEncoderOptions = options_of(options.ModelEncoderOptions),
) -> None:
    """Explain the prediction of MODEL for PHOTO.

    Prints by how much the predicted class leads the next one, how much of that comes from the class text and how much
    from the shots, how much from each block of features if the model reads several, and which shots are most similar to
    the picture, by cosine. --out draws these shots, and a map of where in the picture the class is seen. --class
    explains another class: why it was not predicted.

    A model that was fitted with --quality best and uses the block rare-patches also says where the picture differs most
    from its rest, such as at a small defect. --out draws a map of that.
    """
    check_output_file(path, "plot of explain", "explain", photo, suffixes=PLOT_SUFFIXES, force=force)
    if inputs.is_missing(photo):
        raise ImageError(str(photo), f"no such file{explain_missing(photo)}")
    from clipadapter.explain import explain  # imports torch, so only after the checks

    explanation = explain(encoder.load(model), photo, class_name=class_name, neighbours=neighbours)
    for note in explanation.notes:
        if path is not None or "heat map" not in note:  # without --out none is drawn
            out.note(note)
    files = None if path is None else [explanation.plot(path)]
    lines = [*map(printable, (explanation.prediction.source, *explanation.sentences()))]
    for header, rows in explanation.tables():
        lines += ["", table(header, rows)]
    out.result(explanation.to_dict(), "\n".join(lines), files)
