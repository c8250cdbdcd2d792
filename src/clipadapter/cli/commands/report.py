"""``clipadapter report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter.cli.comparing import check_out, seeds_option
from clipadapter.cli.fit_options import Prompts, class_names_option
from clipadapter.cli.options import (
    FILE,
    FOLDER,
    Towers,
    check_page,
    model_options,
    open_dataset,
    output_options,
    seed_option,
    split_option,
)
from clipadapter.cli.output import Output, table
from clipadapter.cli.uncertainty_options import SHARE, Learned

if TYPE_CHECKING:
    from clipadapter.report import Report


@click.command(epilog="Example: clipadapter report model/ test/ --out report.html")
@click.argument("model", type=FOLDER)
@click.argument("data", type=FOLDER)
@split_option
@click.option("--out", "path", type=FILE, help="Page to write; MODEL-report.html beside MODEL without it.")
@click.option("--outliers", type=FOLDER, help='Pictures of none of the classes, to measure "none of these".')
@click.option("--reject", type=SHARE, metavar="RATE", help='Rate of "none of these"; the model\'s, or 0.05.')
@click.option("--coverage", type=SHARE, metavar="RATE", help="Rate of the sets of classes; the model's, or 0.9.")
@click.option("--curve/--no-curve", default=True, show_default=True, help="Fit on fewer of the model's shots too.")
@click.option("--doctor/--no-doctor", default=True, show_default=True, help="Look for what is wrong with pictures.")
@seeds_option
@seed_option
@class_names_option
@model_options
@output_options
def command(
    model: Path,
    data: Path,
    split: str | None,
    path: Path | None,
    outliers: Path | None,
    reject: float | None,
    coverage: float | None,
    curve: bool,
    doctor: bool,
    seeds: int,
    seed: int,
    class_names: Path | None,
    towers: Towers,
    out: Output,
) -> None:
    """Write one HTML page about MODEL, measured on the labelled pictures in DATA.

    Figures beside zero-shot and a linear probe with 95 % intervals, learning curve, classes, confusions to click,
    calibration, what refusing to answer buys, the worst mistakes with the shots that explain them, a map of the
    features, the doctor's findings, and where all of it comes from. The page asks for nothing else.

    Without --split the part "test" is taken if there is one, else everything.
    """
    from clipadapter.report import make_report

    check_page(path, data)
    dataset = Prompts(class_names=class_names).rename(open_dataset(data, split, default="test"))
    named = model if model.name not in ("", "..") else model.resolve()
    target = path if path is not None else named.with_name(f"{named.name}-report.html")
    check_out(target.parent)
    others = Learned(outliers=outliers).pictures() or ()
    found = make_report(
        towers.load(model, progress=out.progress),
        dataset,
        background=others,
        reject=reject,
        coverage=coverage,
        curve=curve,
        seeds=range(1, seeds + 1),
        doctor=doctor,
        seed=seed,
        progress=out.progress,
    )
    _tell(found, out)
    written = found.write(target)
    out.result({**found.to_dict(), "files": [str(written)]}, f"{_text(found)}\n\nwrote {written}")


def _tell(found: Report, out: Output) -> None:
    out.skipped(found.evaluation.skipped)
    if found.evaluation.among_shots:
        out.warn(
            f"{found.evaluation.among_shots} of {found.evaluation.n_test} test pictures are among the shots that the "
            "model was fitted with: the figures are better than they would be on new pictures"
        )
    if not found.rows.shots:
        out.warn("the model was saved without its shots (--no-support): no linear probe, curve or nearest shots")
    if found.findings.why and "--no-doctor" not in found.findings.why:
        out.note(f"the doctor looked for nothing: {found.findings.why}")


def _text(found: Report) -> str:
    from clipadapter.metrics import metrics_shown

    others = metrics_shown("terminal", "single-label")
    del others["accuracy"]
    rows = []
    for name, one in found.figures.items():
        share = one.metrics["accuracy"]
        low, high = share.low or 0.0, share.high or 0.0
        ahead = "" if one.accuracy_lead is None else f"{100 * one.accuracy_lead.value:+.1f}"
        accuracy = f"{100 * share.value:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        rows.append((name, accuracy, ahead, *(metric.round(one.metrics[key].value) for key, metric in others.items())))
    head = ["", "accuracy % (95 %)", "model is ahead by", *(metric.heading for metric in others.values())]
    return f"{found.evaluation.n_test} pictures of {found.evaluation.data}\n\n{table(head, rows)}"
