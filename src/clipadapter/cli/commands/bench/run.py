"""``clipadapter bench run``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clipadapter.bench.suite_files import read_suite
from clipadapter.cli.declarations import argument, cli_command, flag, option
from clipadapter.cli.inputs import check_output_folder
from clipadapter.cli.options import (
    COUNT,
    ENCODER_URI,
    FILE,
    FOLDER,
    Parsed,
    device_option,
    find_device,
    max_pixels_option,
    parse_counts,
    plot_format_option,
)
from clipadapter.cli.output import Fact, Output, note_kept
from clipadapter.errors import DataError, InputError
from clipadapter.utils.files import quote_path
from clipadapter.utils.formatting import format_seconds

if TYPE_CHECKING:
    from clipadapter.bench import Suite
    from clipadapter.bench.costs import Estimate
    from clipadapter.bench.fits import Outcome

folder_option = option("--out", "Folder of the records.", type=FOLDER, default="clipadapter-bench")


def parse_shots(text: str) -> list[int]:
    """Return the numbers of a text such as ``4,16,all``, sorted.

    >>> parse_shots("16,4"), len(parse_shots("16,all"))
    ([4, 16], 2)
    """
    from clipadapter.bench.suite import ALL

    texts = [part.strip() for part in text.split(",")]
    numbers = [part for part in texts if part != "all"]
    counts = list(parse_counts(",".join(numbers))) if numbers else []
    return [*counts, ALL] if "all" in texts else counts


@cli_command(
    "clipadapter bench run residual-ratio --data pictures/ --encoder lite --seeds 3",
    first="--data --encoder --heads --shots --seeds --out --workers --device --dry-run --json",
)
def run(
    out: Output,
    suite: str = argument(),
    data: tuple[str, ...] = option(
        "-d, --data NAME|PATH",
        "Data set, or features:FOLDER with feature shards or a bundle. May be repeated.",
        multiple=True,
    ),
    encoder: tuple[str, ...] = option(
        "-e, --encoder URI", "Encoder. May be repeated.", type=ENCODER_URI, multiple=True
    ),
    heads: str | None = option("--heads NAME,...", "Only these heads of the suite."),
    shots: list[int] | None = option(
        "--shots N,...", "Numbers of shots in place of the suite's; for streams also all.", type=Parsed(parse_shots)
    ),
    seeds: int | None = option("--seeds N", "Seeds 1 to N in place of the suite's.", type=COUNT),
    order: str | None = option(
        "--order", "Order of the tasks of a stream: given, classes (classes drawn) or seed (all drawn)."
    ),
    per_task: int | None = option(
        "--per-task N", "Approximate number of classes per task of a stream.", type=click.IntRange(0)
    ),
    folder: Path = folder_option,
    root: Path | None = option("--root", "Folder of the named data sets, see 'clipadapter data list'.", type=FOLDER),
    descriptions: Path | None = option(
        "--descriptions", "JSON file with sentences by class, for suites that compare them.", type=FILE
    ),
    workers: int | None = option(
        "--workers N",
        "Parallel fits; by default as many as memory and cores allow, with --device cuda one for each GPU.",
        type=COUNT,
    ),
    device: str = device_option,
    plot_formats: tuple[str, ...] = plot_format_option,
    dry_run: bool = flag("--dry-run", "Only print what would be done, its cost, and why it can't be done."),
    max_pixels: int = max_pixels_option,
) -> None:
    """Run SUITE: a name of 'bench list', or a TOML file, whose fields are in docs/studies.md.

    Features are computed once and stored. A run that has a record in --out is not repeated, unless it failed. Ctrl-C
    loses only the fits that are running.

    In a stream (x-tail, mtil, class-incremental) all data sets are tasks that are learned one after the other.
    """
    read_suite(suite)  # a wrong name or path is refused before torch is imported
    from clipadapter.bench import load_suite, run_suite
    from clipadapter.bench.costs import estimate, find_problems
    from clipadapter.bench.launcher import Launcher
    from clipadapter.bench.sources import FeatureSource
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import read_descriptions
    from clipadapter.features import PER_EPOCH

    study = _change_streams(_change_suite(load_suite(suite), heads, shots, seeds), order, per_task)
    specs = data or tuple(study.data)
    if not specs:
        raise InputError(
            "there is no data set: give --data NAME or --data FOLDER. 'clipadapter data list' lists the names"
        )
    encoders = encoder or tuple(study.encoders) or ("auto",)
    sentences = read_descriptions(descriptions) if descriptions else None
    check_output_folder(folder)
    device = find_device(device)
    cost = estimate(study, specs, encoders, root=root)
    problems = find_problems(study, cost, encoders, has_descriptions=sentences is not None)
    if dry_run:
        text = "\n".join(["problems:", *problems]) if problems else ""
        out.facts([*_cost_facts(study, encoders, cost), Fact("problems", problems)], text)
    elif study.is_stream:
        _check_data_sets(suite, cost)
    if problems:
        listed = f"{len(problems)} problems, see above" if dry_run and len(problems) > 1 else "; ".join(problems)
        raise InputError(f"suite '{study.name}' can't run: {listed}")
    if dry_run:
        return
    if study.views == PER_EPOCH:
        out.note(f"views: {_pictures_text(cost)}; {_encoding_time(cost)}")
    models = {}
    for name in encoders if not all(isinstance(source, FeatureSource) for source in cost.sources) else ():
        # Full precision, since the results of a study must not depend on the machine.
        models[name] = FewShotClassifier(
            name, quality="fast", descriptions=sentences, device=device, precision="fp32", progress=out.progress
        )
    note_kept(
        f"the records of finished fits are in {folder}, and features in the feature store; the same command runs only "
        "what is missing"
    )
    outcome = run_suite(
        study,
        cost.sources,
        models,
        folder,
        Launcher(workers, device=device),
        device=device,
        plot_formats=plot_formats,
        progress=out.progress,
    )
    from clipadapter.bench import load_study
    from clipadapter.bench.report import study_data, study_text

    done = load_study(folder, study.name).select({run.key for run in outcome.runs})
    record = {
        "suite": study.name,
        "fitted": outcome.n_made,
        "existing": outcome.n_existing,
        "failed": outcome.n_failed,
        "seconds": round(outcome.seconds, 3),
        "folder": str(folder),
        "figures": [str(path) for path in outcome.figures],
        **study_data(done),
    }
    out.result(record, f"{study_text(done)}\n\n{_outcome_text(outcome, study, folder)}")
    if outcome.n_failed:
        click.get_current_context().exit(1)


def _change_suite(suite: Suite, heads: str | None, shots: list[int] | None, seeds: int | None) -> Suite:
    """Return the suite with the changes of the command line."""
    changes: dict[str, object] = {}
    if heads is not None:
        selected = {name.strip() for name in heads.split(",") if name.strip()}
        variants = suite.all_variants()
        known = {name for variant in variants for name in (variant.head, variant.title)}
        if unknown := sorted(selected - known):
            listed = ", ".join(sorted({variant.head for variant in variants}))
            raise InputError(f"suite '{suite.name}' has no head called {', '.join(unknown)}; its heads: {listed}")
        changes["heads"] = [variant for variant in variants if {variant.head, variant.title} & selected]
    if shots is not None:
        changes["shots"] = shots
    if seeds is not None:
        changes["seeds"] = list(range(1, seeds + 1))
    return suite.model_copy(update=changes)


def _cost_facts(suite: Suite, encoders: Sequence[str], cost: Estimate) -> list[Fact]:
    from clipadapter.bench.suite import ALL

    titles = [variant.title for variant in suite.all_variants()]
    states = []
    for size in cost.sizes:
        known = f"{size.classes} classes, {size.train:,} + {size.test:,} pictures" if size.classes else "unknown size"
        states.append(f"{size.spec}: {known}, {'ready' if size.ready else 'NOT ON DISK'}")
    return [
        Fact("suite", suite.name, f"{suite.name}: {suite.title}"),
        Fact("heads", titles, f"{len(titles)}: {', '.join(titles)}"),
        *_stream_facts(suite, cost),
        Fact("shots", suite.shots, ", ".join("all" if shots == ALL else str(shots) for shots in suite.shots)),
        Fact("seeds", suite.seeds, ", ".join(map(str, suite.seeds))),
        Fact("encoders", list(encoders), ", ".join(encoders)),
        Fact("fits", cost.fits, str(cost.fits), "streams" if suite.is_stream else ""),
        Fact("pictures", cost.pictures, _pictures_text(cost)),
        Fact(
            "fit_seconds",
            round(cost.fit_seconds, 1),
            f"about {format_seconds(cost.fit_seconds)} on two cores",
            "fitting",
        ),
        Fact("encode_seconds", round(cost.encode_seconds, 1), _encoding_time(cost), "encoding"),
        Fact("data", [vars(size) for size in cost.sizes]),
        *(Fact("", text=state, name="data") for state in states),
    ]


def _pictures_text(cost: Estimate) -> str:
    return f"{cost.pictures:,} to encode, if no feature is stored"


def _encoding_time(cost: Estimate) -> str:
    return f"about {format_seconds(cost.encode_seconds)} at 25 pictures a second; a GPU takes a tenth or less"


def _outcome_text(outcome: Outcome, suite: Suite, folder: Path) -> str:
    rate = f", {outcome.n_made / outcome.seconds:.1f} a second" if outcome.n_made and outcome.seconds else ""
    noun = "stream" if suite.is_stream else "run"
    text = f"{outcome.n_made} {noun}{'s' * (outcome.n_made != 1)} finished in {format_seconds(outcome.seconds)}{rate}"
    text += f"; {outcome.n_existing} were in the records"
    if outcome.n_failed:
        command = f"clipadapter bench status {suite.name} --out {quote_path(folder)}"
        text += f"\n{outcome.n_failed} of them failed; why: {command}"
    text += "".join(f"\nwrote {path}" for path in outcome.figures)
    return f"{text}\nnext: clipadapter bench report {suite.name} --out {quote_path(folder)}"


# ---- Streams of tasks ----


def _change_streams(suite: Suite, order: str | None, per_task: int | None) -> Suite:
    """Return the suite with the changes of the command line to its streams."""
    from clipadapter.bench.protocols import create_protocol
    from clipadapter.bench.suite import ALL, ORDERS
    from clipadapter.utils.registry import unknown

    if not suite.is_stream:
        if ALL in suite.shots and not create_protocol(suite.protocol).accepts_all_shots:
            raise InputError(f"protocol '{suite.protocol}' has no shots 'all': leave --shots all out")
        options = [name for name, value in (("--order", order), ("--per-task", per_task)) if value is not None]
        if options:
            raise InputError(f"suite '{suite.name}' has no stream of tasks: leave {' and '.join(options)} out")
        return suite
    changes: dict[str, Any] = {} if per_task is None else {"classes_per_task": per_task}
    if order is not None:
        if order not in ORDERS:
            raise unknown("order", order, list(ORDERS))
        changes["orders"] = [ORDERS[order]]
    return suite.model_copy(update={"stream": suite.stream.model_copy(update=changes)})


def _check_data_sets(suite_name: str, cost: Estimate) -> None:
    """Refuse a stream, before any work, if one of its data sets is not on disk."""
    missing = [size.spec for size in cost.sizes if not size.ready]
    if not missing:
        return
    available = [size.spec for size in cost.sizes if size.ready]
    options = " ".join(f"--data {quote_path(name)}" for name in available or ("FIRST", "SECOND"))
    others = (
        f"A stream of the others: clipadapter bench run {suite_name} {options}"
        if available
        else f"A stream of your own folders of pictures: clipadapter bench run {suite_name} {options} --order given"
    )
    raise DataError(
        f"{len(missing)} of the {len(cost.sizes)} data sets of this stream are not on disk: {', '.join(missing)}. "
        f"See where to put them: clipadapter bench run {suite_name} --dry-run. {others}"
    )


def _stream_facts(suite: Suite, cost: Estimate) -> list[Fact]:
    """Describe the tasks of a suite; empty if it has no stream."""
    from clipadapter.bench.suite import count_tasks

    if not suite.is_stream:
        return []
    count = sum(count_tasks(size.classes, suite.stream.classes_per_task) for size in cost.sizes)
    known = "known" if suite.stream.task_known else "not known"
    rule = f"learned one after the other; all are measured after each; the task of a test picture is {known}"
    orders = ", ".join(suite.stream.title(order) for order in suite.stream.orders)
    return [Fact("", text=f"{count}, {rule}", name="tasks"), Fact("", text=orders, name="order")]
