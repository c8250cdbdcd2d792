"""``clipadapter bench run``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from clipadapter.cli.commands.bench.streams import (
    amount,
    check_there,
    shots_or_all,
    stream_facts,
    stream_result,
    streams_changed,
)
from clipadapter.cli.comparing import check_out
from clipadapter.cli.options import FILE, FOLDER, output_options
from clipadapter.cli.output import Output, facts
from clipadapter.errors import DataError, InputError
from clipadapter.parsing import read_json

if TYPE_CHECKING:
    from clipadapter.bench import Estimate, Suite
    from clipadapter.bench.launch import SuiteResult
    from clipadapter.classifier import FewShotClassifier

EXAMPLE = "Example: clipadapter bench run residual-ratio --data pictures/ --encoder lite --seeds 3"
OUT = Path("clipadapter-bench")
MANY = 60


@click.command(epilog=EXAMPLE)
@click.argument("suite")
@click.option("--data", "-d", multiple=True, metavar="NAME|PATH", help="Data set; may be given many times.")
@click.option("--encoder", "-e", multiple=True, metavar="URI", help="Encoder; may be given many times.")
@click.option("--heads", metavar="NAME,...", help="Only these of the suite's heads.")
@click.option("--shots", metavar="N,...", callback=shots_or_all, help="Other shots; of streams also all.")
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Seeds 1 to N, in place of the suite's.")
@click.option("--order", help="Of the tasks of a stream: given, classes (drawn) or seed (all drawn).")
@click.option("--per-task", type=click.IntRange(0), metavar="N", help="About so many classes in a task of a stream.")
@click.option("--out", "folder", type=FOLDER, default=OUT, show_default=True, help="Folder of the records.")
@click.option("--root", type=FOLDER, help="Folder of the named data sets; see 'clipadapter data list'.")
@click.option("--descriptions", type=FILE, help="JSON file with sentences by class, for suites that compare them.")
@click.option("--rows", type=FILE, help='JSON file with rows in place of draws: {"SHOTS-SEED": [0, 7, ...], ...}.')
@click.option("--launcher", default="local", show_default=True, help="Where fits are made: local or ray.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Fits at once; as many as fit without it.")
@click.option("--track", multiple=True, metavar="NAME", help="Also tell tensorboard, mlflow or wandb.")
@click.option("--device", default="cpu", show_default=True, metavar="DEVICE", help="Of the encoder.")
@click.option("--oracle", is_flag=True, help="Also tell what choosing the varied parameter on the test part gives.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be done, and what it would cost.")
@output_options
def run(
    suite: str,
    data: tuple[str, ...],
    encoder: tuple[str, ...],
    heads: str | None,
    shots: list[int] | None,
    seeds: int | None,
    order: str | None,
    per_task: int | None,
    folder: Path,
    root: Path | None,
    descriptions: Path | None,
    rows: Path | None,
    launcher: str,
    workers: int | None,
    track: tuple[str, ...],
    device: str,
    oracle: bool,
    dry_run: bool,
    out: Output,
) -> None:
    """Run SUITE: a name of 'bench list', or a TOML file.

    Features are computed once and kept. A run that has a record in --out is not made again; one that failed is tried
    again. Ctrl-C loses the fits that are being made, no others.

    In a stream (x-tail, mtil, class-incremental) all data sets are tasks that are learned one after the other.
    """
    from clipadapter.bench import FEATURES, estimate, load_suite, open_source, run_suite
    from clipadapter.bench.launchers import create_launcher
    from clipadapter.bench.trackers import create_tracker
    from clipadapter.features import PER_EPOCH

    study = streams_changed(_changed(load_suite(suite), heads, shots, seeds), order, per_task)
    specs = data or tuple(study.data)
    if not specs:
        raise InputError("no data set was named: give --data NAME or --data FOLDER; 'clipadapter data list' has names")
    towers = encoder or tuple(study.encoders) or ("auto",)
    cost = estimate(study, specs, len(towers), root=root)
    if dry_run:
        out.result(_cost_data(study, specs, towers, cost), _cost_text(study, towers, cost))
        return
    if study.is_stream:
        check_there(suite, cost)
    if study.views == PER_EPOCH:
        out.note(f"views: {_pictures(cost)}; {_encoding_time(cost)}")
    check_out(folder)
    trackers = [create_tracker(name, folder) for name in track]
    sources = [spec if spec.startswith(FEATURES) else open_source(spec, root) for spec in specs]
    pictures = any(not isinstance(source, str) for source in sources)
    models = _models(towers, device, descriptions, out) if pictures else {}
    found = run_suite(
        study,
        sources,
        models,
        folder,
        create_launcher(launcher, workers=workers),
        rows=None if rows is None else read_rows(rows),
        trackers=trackers,
        oracle=oracle,
        progress=out.progress,
    )
    result = stream_result(study, found, folder) if study.is_stream else ({}, "")
    out.result({**_found_data(found, folder), **result[0]}, result[1] + _found_text(found, study, folder))


def _changed(suite: Suite, heads: str | None, shots: list[int] | None, seeds: int | None) -> Suite:
    """The suite with what the command line changes."""
    changes: dict[str, object] = {}
    if heads is not None:
        wanted = {name.strip() for name in heads.split(",") if name.strip()}
        changes["heads"] = [v.head for v in suite.all_variants() if v.title == v.head and v.head in wanted]
        changes["variants"] = [v for v in suite.variants if {v.head, v.title} & wanted]
        changes["vary"] = [one for one in suite.vary if one.head in wanted]
        if not any(changes.values()):
            known = ", ".join(sorted({variant.head for variant in suite.all_variants()}))
            raise InputError(f"suite '{suite.name}' has no head called {heads}; it has: {known}")
    if shots is not None:
        changes["shots"] = shots
    if seeds is not None:
        changes["seeds"] = list(range(1, seeds + 1))
    return suite.model_copy(update=changes)


def _models(towers: Sequence[str], device: str, descriptions: Path | None, out: Output) -> dict[str, FewShotClassifier]:
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import read_descriptions

    found = read_descriptions(descriptions) if descriptions else None
    # Full precision: what a study finds must not hang on the machine it was run on.
    return {
        name: FewShotClassifier(name, descriptions=found, device=device, precision="fp32", progress=out.progress)
        for name in towers
    }


def read_rows(path: Path) -> dict[tuple[int, int], list[int]]:
    """Rows by (shots, seed) from a JSON file.

    Raises:
        DataError: if it is no such file.
    """
    expected = 'expected {"SHOTS-SEED": [row, ...], ...} such as {"16-1": [0, 7]}'
    found = read_json(path, expected)
    if not isinstance(found, dict) or not found:
        raise DataError(f"{path}: {expected}")
    for key, rows in found.items():
        if not re.fullmatch("[0-9]{1,9}-[0-9]{1,9}", key):
            raise DataError(f"{path}: {expected}, but a key is {key[:80]!r}")
        if not isinstance(rows, list) or not all(type(row) is int and 0 <= row < 1 << 63 for row in rows):
            raise DataError(f"{path}: {expected}, but those of {key!r} are no list of whole numbers from 0")
    return {(int(key.partition("-")[0]), int(key.partition("-")[2])): rows for key, rows in found.items()}


def _cost_data(suite: Suite, specs: Sequence[str], towers: Sequence[str], cost: Estimate) -> dict[str, object]:
    return {
        "suite": suite.name,
        "heads": [variant.title for variant in suite.all_variants()],
        "shots": suite.shots,
        "seeds": suite.seeds,
        "data": [vars(size) for size in cost.sizes],
        "encoders": list(towers),
        "fits": cost.fits,
        "pictures": cost.pictures,
        "fit_seconds": round(cost.fit_seconds, 1),
        "encode_seconds": round(cost.encode_seconds, 1),
    }


def _cost_text(suite: Suite, towers: Sequence[str], cost: Estimate) -> str:
    titles = [variant.title for variant in suite.all_variants()]
    lines = [
        ("suite", f"{suite.name}: {suite.title}"),
        ("heads", f"{len(titles)}: {', '.join(titles)}"),
        *stream_facts(suite, cost),
        ("shots", ", ".join(map(amount, suite.shots))),
        ("seeds", ", ".join(map(str, suite.seeds))),
        ("encoders", ", ".join(towers)),
        ("streams" if suite.is_stream else "fits", cost.fits),
        ("pictures", _pictures(cost)),
        ("fitting", f"about {_time(cost.fit_seconds)} on two cores"),
        ("encoding", _encoding_time(cost)),
    ]
    for size in cost.sizes:
        there = "ready" if size.ready else "NOT ON DISK"
        known = f"{size.classes} classes, {size.train:,} + {size.test:,} pictures" if size.classes else "size not known"
        lines.append(("data", f"{size.spec}: {known}, {there}"))
    missing = [size.missing for size in cost.sizes if not size.ready]
    return "\n".join([facts(lines), *(["", *dict.fromkeys(missing)] if missing else [])])


def _pictures(cost: Estimate) -> str:
    return f"{cost.pictures:,} to encode, if none was before"


def _encoding_time(cost: Estimate) -> str:
    return f"about {_time(cost.encode_seconds)} at 25 pictures a second; a GPU takes a tenth or less"


def _time(seconds: float) -> str:
    """Such as 40 s, 12 min, 3.5 h."""
    if seconds < MANY:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < MANY * 60 else f"{seconds / 3600:.1f} h"


def _found_data(found: SuiteResult, folder: Path) -> dict[str, object]:
    return {
        "suite": found.plan.suite.name,
        "made": found.made,
        "there": found.there,
        "failed": found.failed,
        "seconds": round(found.seconds, 3),
        "folder": str(folder),
        "figures": [str(path) for path in found.figures],
    }


def _found_text(found: SuiteResult, suite: Suite, folder: Path) -> str:
    rate = f", {found.made / found.seconds:.1f} a second" if found.made and found.seconds else ""
    what = "streams" if suite.is_stream else "runs"
    text = f"{found.made} {what} made in {_time(found.seconds)}{rate}; {found.there} were there already"
    if found.failed:
        text += f"\n{found.failed} failed: see 'clipadapter bench status {suite.name} --out {folder}'"
    text += "".join(f"\nwrote {path}" for path in found.figures)
    return f"{text}\nnow: clipadapter bench report {suite.name} --out {folder}"
