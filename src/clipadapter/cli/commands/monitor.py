"""``clipadapter monitor``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.cli.options import FILE, FOLDER, Towers, check_page, model_options, output_options, seed_option
from clipadapter.cli.output import Output, table
from clipadapter.cli.uncertainty_options import SHARE
from clipadapter.errors import ArtifactError, DataError, InputError
from clipadapter.files import is_exported, why_no_model

if TYPE_CHECKING:
    from clipadapter.monitor import Drift

FOUND = 3
"""Exit code where something changed."""
NAMED = 10
"""Classes that are listed for a person; JSON has all."""


@click.command(epilog="Example: clipadapter monitor model/ today/ --reference usual/ --plot drift.png || mail ...")
@click.argument("model", type=FOLDER)
@click.argument("stream", type=FOLDER)
@click.option("--reference", type=FOLDER, help="Pictures of the usual situation; the model's shots without it.")
@click.option(
    "--usual", multiple=True, metavar="CLASS=SHARE", help="How frequent a class usually is; as the shots without it."
)
@click.option(
    "--by",
    type=click.Choice(["time", "name"]),
    default="time",
    show_default=True,
    help="Order of the stream: when a photo was taken or its file was written, or by name.",
)
@click.option("--last", type=click.IntRange(1), metavar="N", help="Only the last N pictures of the stream.")
@click.option("--window", type=click.IntRange(1), metavar="N", help="Pictures in a window; a twelfth without it.")
@click.option("--reject", type=SHARE, metavar="RATE", help='Rate of "none of these"; the model\'s, or 0.05.')
@click.option(
    "--alpha", type=SHARE, metavar="RATE", default=0.01, show_default=True, help="Chance of a false alarm, in all."
)
@click.option("--skip", type=click.Choice(["looks", "shares", "none"]), multiple=True, help="Leave a check out.")
@click.option("--plot", type=FILE, help="PNG file of what changed over time.")
@click.option("--history", type=FILE, help="File to which what was found is added, a line of JSON a run.")
@seed_option
@model_options
@output_options
def command(
    model: Path,
    stream: Path,
    reference: Path | None,
    usual: tuple[str, ...],
    by: str,
    last: int | None,
    window: int | None,
    reject: float | None,
    alpha: float,
    skip: tuple[str, ...],
    plot: Path | None,
    history: Path | None,
    seed: int,
    towers: Towers,
    out: Output,
) -> None:
    """Tell whether the pictures in STREAM are still such as MODEL was made for.

    MODEL is the folder that fit wrote, or a file that export wrote (then --reference is needed). Three things are
    asked: do the pictures look as usual, whatever their classes; is each class as frequent as usual; and are more of
    them none of the classes than usual.

    For cron: the exit code is 0 if nothing changed, 3 if something did, 1 if the run failed, 2 if the command line is
    wrong.
    """
    from clipadapter.monitor import in_order, watch

    for path, suffix in ((plot, ".png"), (history, "")):
        check_page(path, suffix=suffix)
    shares = _shares(usual)
    opened = _open(model, towers, out)
    paths, times = in_order(_pictures(stream), by)  # type: ignore[arg-type]
    if last is not None:
        paths, times = paths[-last:], None if times is None else times[-last:]
    found = watch(
        opened,
        paths,
        reference=None if reference is None else _pictures(reference),
        usual=shares,
        times=times,
        reject=reject,
        alpha=alpha,
        window=window,
        skip=skip,
        seed=seed,
    )
    out.skipped(found.skipped)
    if found.reference == "shots" and not usual and "shares" not in skip:
        out.note("what is usual is taken from the shots, chosen and few as they are: --reference FOLDER says it better")
    told = found.to_dict()
    written = [str(found.to_png(plot))] if plot is not None else []
    if history is not None:
        _remember(history, {"when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "stream": str(stream), **told})
    out.result({**told, "files": written}, "\n\n".join([_text(found, stream), *(f"wrote {name}" for name in written)]))
    if found.drift:
        click.get_current_context().exit(FOUND)


def _open(model: Path, towers: Towers, out: Output) -> Any:
    """The model in a folder, or in an exported file."""
    if not is_exported(model) or model.is_dir():
        if why := why_no_model(model):
            raise ArtifactError(f"{why}, or a file that 'clipadapter export' wrote")
        return towers.load(model, progress=out.progress)
    from clipadapter.runtime import Predictor

    if (towers.encoder, towers.device, towers.precision) != (None, "cpu", "auto"):
        raise InputError(
            f"{model.name} holds its encoder as it was exported, for the CPU: leave out --encoder, --device and "
            "--precision, or give the model's folder"
        )
    return Predictor(model, backend=towers.backend)


def _pictures(folder: Path) -> list[Path]:
    from clipadapter.data import list_images

    if not folder.is_dir():
        raise DataError(f"there is no folder '{folder}': give one with pictures")
    found = list_images(folder)
    if not found:
        raise DataError(f"there are no pictures in '{folder}'")
    return found


def _shares(given: tuple[str, ...]) -> dict[str, float]:
    """``CLASS=SHARE`` as shares by class."""
    found = {}
    for text in given:
        name, _, share = text.rpartition("=")
        try:
            found[name] = float(share)
        except ValueError:
            raise InputError(f"{text!r} is no usual share: say it as CLASS=SHARE, such as ok=0.9") from None
        if not name or not 0 <= found[name] <= 1:
            raise InputError(f"{text!r} is no usual share: it is between 0 and 1, such as ok=0.9")
    return found


def _remember(path: Path, told: dict[str, Any]) -> None:
    """Add a line; what stands in the file stays."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror}; give a place you may write to") from error


def _text(found: Drift, stream: Path) -> str:
    from clipadapter.monitor import CHECKS

    beside = "shots of the model" if found.reference == "shots" else "usual pictures"
    more = f" ({found.repeated} more are repeats)" if found.repeated else ""
    rows = [
        (
            CHECKS[one.check],
            "" if one.p is None else f"{one.p:.2g}",
            "" if one.corrected is None else f"{one.corrected:.2g}",
            "not tested: " + one.words if one.p is None else "yes" if one.found else "no",
        )
        for one in found.findings
    ]
    order = sorted(found.classes, key=lambda one: -abs(one.now - one.usual))[:NAMED]
    shares = [
        (one.name, *(f"{100 * value:.1f}" for value in (one.usual, one.now)), _interval(one.low, one.high))
        for one in order
    ]
    parts = [
        f"{found.pictures} pictures of {stream}{more}, beside {found.reference_pictures} {beside}",
        found.sentence(),
        table(["", "p", "p of all checks", "changed"], rows),
        table(["class", "usual %", "now %", "95 %"], shares),
    ]
    if found.none is not None:
        none = found.none
        told = f"{100 * none.now:.1f} % ({_interval(none.low, none.high)}), asked {100 * none.rate:g} %"
        parts.append(f"none of the classes: {told}, usually {100 * none.usual:.1f} %")
    return "\n\n".join(parts)


def _interval(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"
