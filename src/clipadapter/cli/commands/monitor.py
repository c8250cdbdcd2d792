"""``clipadapter monitor``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from clipadapter.cli import options
from clipadapter.cli.declarations import argument, cli_command, option, options_of
from clipadapter.cli.inputs import is_model_file, list_pictures
from clipadapter.cli.options import PLOT_SUFFIXES, Count, Fraction
from clipadapter.cli.output import Output, table
from clipadapter.cli.outputs import begins_with, check_output_file, force_option
from clipadapter.errors import InputError
from clipadapter.utils.files import path_without_links, printable

if TYPE_CHECKING:
    from clipadapter.monitor import DriftReport

DRIFT_EXIT_CODE = 3  # exit code if there is drift
MAX_LISTED_CLASSES = 10  # classes in the table; JSON has all


@dataclass(frozen=True)
class CheckOptions:
    """How the checks are made."""

    window: Count | None = option("--window N", "Pictures per window; by default a twelfth of the stream.")
    reject: Fraction | None = option("--reject RATE", 'Rate of "none of these"; by default as the model, or 0.05.')
    alpha: Fraction = option("--alpha RATE", "Probability of a false alarm over all checks.", default=0.01)
    skip: tuple[Literal["covariate-shift", "label-shift", "ood-rate"], ...] = option(
        "--skip", "Check to leave out. May be repeated."
    )


@cli_command("clipadapter monitor model/ today/ --reference usual/ --plot drift.png || mail ...")
def command(
    out: Output,
    model: Path = argument(),
    stream: Path = argument(),
    reference: Path | None = option(
        "--reference", "Pictures of the usual situation; by default the shots of the model."
    ),
    usual: tuple[str, ...] = option("--usual CLASS=SHARE", "Usual frequency of a class; by default as in the shots."),
    by: Literal["time", "name"] = option(
        "--by",
        "Order of the stream: by the time a photo was taken or its file was written, or by name.",
        default="time",
    ),
    last: Count | None = option("--last N", "Only the last N pictures of the stream."),
    checks: CheckOptions = options_of(CheckOptions),
    plot: Path | None = option("--plot", "PNG, PDF or SVG file to write: the stream over time."),
    history: Path | None = option("--history", "File (.jsonl) to which each run adds a line of JSON."),
    force: bool = force_option,
    seed: int = options.seed_option,
    encoder: options.ModelEncoderOptions = options_of(options.ModelEncoderOptions),
) -> None:
    """Detect drift: test whether the pictures in STREAM have the distribution that MODEL was made for.

    MODEL is a folder written by fit, or a file written by export (then --reference is needed). Three checks are run:
    whether the pictures look as usual, whatever their classes; whether each class is as frequent as usual; and whether
    more pictures are none of the classes than usual.

    For cron: the exit code is 0 if nothing changed, 3 if something did, 1 if the run failed, 2 if the command line is
    wrong.
    """
    from clipadapter.monitor import detect_drift, sort_pictures

    check_output_file(plot, "plot of monitor", "monitor", suffixes=PLOT_SUFFIXES, force=force)
    check_output_file(
        history, "history of monitor", lambda path: begins_with(path, b'{"when": '), stream, suffixes=(".jsonl",)
    )
    reference_priors = _parse_shares(usual)
    opened: Any = encoder.open_exported(model) if is_model_file(model) else encoder.load(model, progress=out.progress)
    paths, times = sort_pictures(list_pictures(stream), by)
    if last is not None:
        paths, times = paths[-last:], None if times is None else times[-last:]
    report = detect_drift(
        opened,
        paths,
        reference=None if reference is None else list_pictures(reference),
        reference_priors=reference_priors,
        times=times,
        seed=seed,
        **vars(checks),
    )
    out.skipped(report.skipped)
    result = report.to_dict()
    files = [report.plot(plot)] if plot is not None else []
    if history is not None:
        history = path_without_links(history.parent, history.name)  # a link could lead to a file of another program
        history.parent.mkdir(parents=True, exist_ok=True)
        record = {"when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "stream": str(stream), **result}
        with history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    out.result(result, _format_report(report, stream), files)
    if report.has_drift:
        click.get_current_context().exit(DRIFT_EXIT_CODE)


def _parse_shares(texts: Sequence[str]) -> dict[str, float]:
    """Shares by class from texts such as ``CLASS=SHARE``."""
    shares = {}
    for text in texts:
        name, _, share = text.rpartition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise InputError(f"{text!r} is not a share of a class: give CLASS=SHARE, such as ok=0.9") from None
        if not name or not 0 <= shares[name] <= 1:
            raise InputError(f"{text!r} is not a share of a class: give a number from 0 to 1, such as ok=0.9")
    return shares


def _format_report(report: DriftReport, stream: Path) -> str:
    from clipadapter.monitor import CHECKS

    kind = "shots of the model" if report.reference == "shots" else "usual pictures"
    copies = f" ({report.n_repeated} more are copies)" if report.n_repeated else ""
    checks = []
    for check in report.checks:
        p_values = ("" if p is None else f"{p:.2g}" for p in (check.p_value, check.corrected_p_value))
        changed = "yes" if check.is_significant else "no"
        checks.append(
            (CHECKS[check.check], *p_values, f"not tested: {check.message}" if check.p_value is None else changed)
        )
    classes = sorted(report.classes, key=lambda prior: -abs(prior.current - prior.reference))[:MAX_LISTED_CLASSES]
    priors = [
        (one.name, f"{100 * one.reference:.1f}", f"{100 * one.current:.1f}", _format_interval(one.low, one.high))
        for one in classes
    ]
    parts = [
        f"{report.n_pictures} pictures of {stream}{copies}, compared with {report.n_reference} {kind}",
        printable(report.summary()),
        table(["", "p", "p of all checks", "changed"], checks),
        table(["class", "usual %", "now %", "95 %"], priors),
    ]
    if not report.alpha_is_exact:
        parts.append(
            "the reference is the shots, which are few and no random sample: false alarms may be several times as "
            "frequent as --alpha says, and --reference FOLDER is better"
        )
    if not report.is_reliable:
        parts.append("the frequencies can't be trusted: they assume that pictures of a class look as usual")
    if not report.knows_confusions:
        parts.append(
            "the intervals take the model's probabilities to be right: no shots could be held out to see its confusions"
        )
    if (rate := report.ood_rate) is not None:
        current = f"{100 * rate.current:.1f} % ({_format_interval(rate.low, rate.high)})"
        parts.append(
            f"none of the classes: {current}, target {100 * rate.target:g} %, usually {100 * rate.reference:.1f} %"
        )
    return "\n\n".join(parts)


def _format_interval(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"
