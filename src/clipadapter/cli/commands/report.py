"""``clipadapter report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clipadapter.cli.commands.eval import warn_about
from clipadapter.cli.encoder_options import ModelEncoderOptions
from clipadapter.cli.fit_options import class_names_option, rename_classes
from clipadapter.cli.groups import cli_command
from clipadapter.cli.inputs import (
    check_output_file,
    check_output_folder,
    list_pictures,
    open_dataset,
    path_beside,
)
from clipadapter.cli.options import (
    FILE,
    FOLDER,
    FRACTION,
    argument,
    curve_option,
    option,
    options_of,
    seed_option,
    seeds_option,
    split_option,
)
from clipadapter.cli.output import Output, table

if TYPE_CHECKING:
    from clipadapter.report import Report


@cli_command("clipadapter report model/ test/ --out report.html")
def command(
    out: Output,
    model: Path = argument(type=FOLDER),
    data: Path = argument(type=FOLDER),
    split: str | None = split_option,
    path: Path | None = option("--out", type=FILE, help="Page to write; by default MODEL-report.html beside MODEL."),
    outliers: Path | None = option(
        "--outliers", type=FOLDER, help='Pictures of none of the classes, to measure "none of these".'
    ),
    reject: float | None = option(
        "--reject", type=FRACTION, metavar="RATE", help='Rate of "none of these"; by default as the model, or 0.05.'
    ),
    coverage: float | None = option(
        "--coverage",
        type=FRACTION,
        metavar="RATE",
        help="Rate of the sets of classes; by default as the model, or 0.9.",
    ),
    curve: bool = curve_option,
    doctor: bool = option(
        "--doctor/--no-doctor", default=True, help="Find problems in the pictures, as 'clipadapter doctor' does."
    ),
    seeds: int = seeds_option,
    seed: int = seed_option,
    class_names: Path | None = class_names_option,
    encoder: ModelEncoderOptions = options_of(ModelEncoderOptions),
) -> None:
    """Write one HTML page about MODEL, measured on the labelled pictures in DATA.

    The page has metrics with 95 % intervals, compared with zero-shot and a linear probe, the learning curve, the
    classes, the confusions, calibration, accuracy by rejection rate, the worst mistakes with the shots that explain
    them, a map of the features, the findings of the doctor, and provenance. It loads no other file.

    Without --split the split "test" is used if there is one, else all pictures.
    """
    from clipadapter.report import make_report

    check_output_file(path, data)
    dataset = rename_classes(open_dataset(data, split, default="test"), class_names)
    target = path if path is not None else path_beside(model, "-report.html")
    check_output_folder(target.parent)
    outlier_pictures = () if outliers is None else list_pictures(outliers)
    result = make_report(
        encoder.load(model, progress=out.progress),
        dataset,
        outliers=outlier_pictures,
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
    written = result.write(target)
    out.result({**result.to_dict(), "files": [str(written)]}, f"{_text(result)}\n\nwrote {written}")


def _text(result: Report) -> str:
    from clipadapter.metrics import metrics_shown

    others = metrics_shown("terminal", "single-label")
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
