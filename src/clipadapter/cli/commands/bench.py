"""``clipadapter bench``: the studies of the papers by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from tqdm import tqdm

from clipadapter.bench.suite_files import check_study, list_planned_suites, list_suites, read_suite
from clipadapter.cli import options
from clipadapter.cli.declarations import argument, cli_command, command_group, flag, option, options_of
from clipadapter.cli.inputs import list_pictures
from clipadapter.cli.options import Count, CountFromZero, EncoderUri, File
from clipadapter.cli.output import Fact, Output, facts, note_kept, table
from clipadapter.cli.outputs import check_output_file, check_output_folder, check_records_folder
from clipadapter.errors import DataError, InputError
from clipadapter.utils.files import is_marked, printable, quote_path
from clipadapter.utils.formatting import format_seconds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipadapter.bench import Suite
    from clipadapter.bench.costs import Estimate
    from clipadapter.bench.schedule import Outcome
    from clipadapter.bench.speed import SpeedReport

# ---- Run a suite ----

folder_option = option("--out", "Folder of the records.", default="clipadapter-bench")


def parse_shots(text: str) -> list[int]:
    """Return the numbers of a text such as ``4,16,all``, sorted.

    >>> parse_shots("16,4"), len(parse_shots("16,all"))
    ([4, 16], 2)
    """
    from clipadapter.bench.suite import ALL

    texts = [part.strip() for part in text.split(",")]
    numbers = [part for part in texts if part != "all"]
    counts = list(options.parse_counts(",".join(numbers))) if numbers else []
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
    ),
    encoder: tuple[EncoderUri, ...] = option("-e, --encoder URI", "Encoder. May be repeated."),
    heads: str | None = option("--heads NAME,...", "Only these heads of the suite."),
    shots: list[int] | None = option(
        "--shots N,...",
        "Numbers of shots in place of the suite's; for streams also all.",
        type=options.Parsed(parse_shots),
    ),
    seeds: Count | None = option("--seeds N", "Seeds 1 to N in place of the suite's."),
    order: Literal["given", "classes", "seed"] | None = option(
        "--order NAME", "Order of the tasks of a stream: given, classes (classes drawn) or seed (all drawn)."
    ),
    per_task: CountFromZero | None = option("--per-task N", "Approximate number of classes per task of a stream."),
    folder: Path = folder_option,
    root: Path | None = option("--root", "Folder of the named data sets, see 'clipadapter data list'."),
    descriptions: File | None = option(
        "--descriptions", "JSON file with sentences by class, for suites that compare them."
    ),
    workers: Count | None = option(
        "--workers N",
        "Parallel fits; by default as many as memory and cores allow, with --device cuda one for each GPU.",
    ),
    device: str = options.device_option,
    plot_formats: tuple[str, ...] = options.plot_format_option,
    dry_run: bool = flag("--dry-run", "Only print what would be done, its cost, and why it can't be done."),
    max_pixels: int = options.max_pixels_option,
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
    from clipadapter.bench.sources import with_pictures
    from clipadapter.bench.suite import ORDERS
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import read_descriptions
    from clipadapter.features import PER_EPOCH

    stream: dict[str, Any] = {} if order is None else {"orders": [ORDERS[order]]}
    stream |= {} if per_task is None else {"classes_per_task": per_task}
    study = _change_suite(load_suite(suite), heads, shots, seeds, stream)
    specs = data or tuple(study.data)
    if not specs:
        raise InputError(
            "there is no data set: give --data NAME or --data FOLDER. 'clipadapter data list' lists the names"
        )
    encoders = encoder or tuple(study.encoders) or ("auto",)
    sentences = read_descriptions(descriptions) if descriptions else None
    check_records_folder(folder)
    device = options.find_device(device)
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
    note_kept(
        f"the records of finished fits are in {folder}, and features in the feature store; the same command runs only "
        "what is missing"
    )
    models = {}
    for name in encoders if with_pictures(cost.sources) else ():
        # Full precision, since the results of a study must not depend on the machine.
        models[name] = FewShotClassifier(
            name, quality="fast", descriptions=sentences, device=device, precision="fp32", progress=out.progress
        )
    launcher = Launcher(workers, device=device)
    outcome = run_suite(study, cost.sources, models, folder, launcher, plot_formats=plot_formats, progress=out.progress)
    _report_runs(outcome, study, folder, out)
    if outcome.n_failed:
        click.get_current_context().exit(1)


def _report_runs(outcome: Outcome, suite: Suite, folder: Path, out: Output) -> None:
    """Print the results of the runs, those that were in the records included, and what is next."""
    from clipadapter.bench import load_study
    from clipadapter.bench.report import study_data, study_text

    done = load_study(folder, suite.name).select({run.key for run in outcome.runs})
    record = {
        "suite": suite.name,
        "fitted": outcome.n_made,
        "existing": outcome.n_existing,
        "failed": outcome.n_failed,
        "seconds": round(outcome.seconds, 3),
        "folder": str(folder),
        "figures": [str(path) for path in outcome.figures],
        **study_data(done),
    }
    rate = f", {outcome.n_made / outcome.seconds:.1f} a second" if outcome.n_made and outcome.seconds else ""
    runs = f"{outcome.n_made} {'stream' if suite.is_stream else 'run'}{'s' * (outcome.n_made != 1)}"
    place = f"{suite.name} --out {quote_path(folder)}"
    lines = [
        f"{runs} finished in {format_seconds(outcome.seconds)}{rate}; {outcome.n_existing} were in the records",
        f"{outcome.n_failed} of them failed; why: clipadapter bench status {place}" if outcome.n_failed else "",
        *(f"wrote {path}" for path in outcome.figures),
        f"next: clipadapter bench report {place}",
    ]
    out.result(record, f"{study_text(done)}\n\n" + "\n".join(filter(None, lines)))


def _change_suite(
    suite: Suite, heads: str | None, shots: list[int] | None, seeds: int | None, stream: Mapping[str, Any]
) -> Suite:
    """Return the suite with the changes of the command line, of which `stream` has those to its streams."""
    from clipadapter.bench.protocols import protocol_rules
    from clipadapter.bench.suite import ALL

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
        if ALL in shots and not protocol_rules(suite.protocol).accepts_all_shots:
            raise InputError(f"protocol '{suite.protocol}' has no shots 'all': leave --shots all out")
        changes["shots"] = shots
    if seeds is not None:
        changes["seeds"] = list(range(1, seeds + 1))
    if stream and not suite.is_stream:
        raise InputError(f"suite '{suite.name}' has no stream of tasks: leave --order and --per-task out")
    return suite.model_copy(update={**changes, "stream": suite.stream.model_copy(update=stream)})


def _cost_facts(suite: Suite, encoders: Sequence[str], cost: Estimate) -> list[Fact]:
    from clipadapter.bench.suite import ALL, count_tasks

    titles = [variant.title for variant in suite.all_variants()]
    stream, states = list[Fact](), []
    if suite.is_stream:
        count = sum(count_tasks(size.classes, suite.stream.classes_per_task) for size in cost.sizes)
        known = "known" if suite.stream.task_known else "not known"
        rule = f"learned one after the other; all are measured after each; the task of a test picture is {known}"
        orders = ", ".join(suite.stream.title(order) for order in suite.stream.orders)
        stream = [Fact("", text=f"{count}, {rule}", name="tasks"), Fact("", text=orders, name="order")]
    for size in cost.sizes:
        known = f"{size.classes} classes, {size.train:,} + {size.test:,} pictures" if size.classes else "unknown size"
        states.append(f"{size.spec}: {known}, {'ready' if size.ready else 'NOT ON DISK'}")
    fitting = format_seconds(cost.fit_seconds)
    return [
        Fact("suite", suite.name, f"{suite.name}: {suite.title}"),
        Fact("heads", titles, f"{len(titles)}: {', '.join(titles)}"),
        *stream,
        Fact("shots", suite.shots, ", ".join("all" if shots == ALL else str(shots) for shots in suite.shots)),
        Fact("seeds", suite.seeds, ", ".join(map(str, suite.seeds))),
        Fact("encoders", list(encoders), ", ".join(encoders)),
        Fact("fits", cost.fits, str(cost.fits), "streams" if suite.is_stream else ""),
        Fact("pictures", cost.pictures, _pictures_text(cost)),
        Fact("fit_seconds", round(cost.fit_seconds, 1), f"about {fitting} on two cores", "fitting"),
        Fact("encode_seconds", round(cost.encode_seconds, 1), _encoding_time(cost), "encoding"),
        Fact("data", [vars(size) for size in cost.sizes]),
        *(Fact("", text=state, name="data") for state in states),
    ]


def _pictures_text(cost: Estimate) -> str:
    return f"{cost.pictures:,} to encode, if no feature is stored"


def _encoding_time(cost: Estimate) -> str:
    return f"about {format_seconds(cost.encode_seconds)} at 25 pictures a second; a GPU takes a tenth or less"


def _check_data_sets(suite_name: str, cost: Estimate) -> None:
    """Refuse a stream, before any work, if one of its data sets is not on disk."""
    if missing := [size.spec for size in cost.sizes if not size.ready]:
        others = [f"--data {quote_path(size.spec)}" for size in cost.sizes if size.ready]
        raise DataError(
            f"{len(missing)} of the {len(cost.sizes)} data sets of this stream are not on disk: {', '.join(missing)}. "
            f"See where to put them: clipadapter bench run {suite_name} --dry-run. A stream of others: clipadapter "
            f"bench run {suite_name} {' '.join(others or ['--data FIRST --data SECOND --order given'])}"
        )


# ---- What is in the records ----


@cli_command("", name="list")
def list_(out: Output) -> None:
    """List the suites of this package."""
    suites = [{"name": name, "protocol": "few-shot", **read_suite(name)[1]} for name in list_suites()]
    rows = [[suite["name"], suite["protocol"], _count_heads(suite), suite["title"]] for suite in suites]
    out.result(suites, table(["suite", "protocol", "heads", "about"], rows))


def _count_heads(suite: Mapping[str, Any]) -> str:
    """Count the heads with their parameters that a suite states; "all" stands for those of `clipadapter heads`."""
    count = sum(
        # without "vary" a table states one head
        1 if isinstance(head, str) else sum(map(len, head.get("vary", {0: [0]}).values()))
        for head in suite["heads"]
        if head != "all"
    )
    if "all" not in suite["heads"]:
        return str(count)
    return f"all and {count}" if count else "all"


@cli_command("")
def status(out: Output, suite: str | None = argument(), folder: Path = folder_option) -> None:
    """Show the progress of the suites in a folder."""
    names = [suite] if suite else list_planned_suites(folder)
    for name in names:
        check_study(folder, name)
    if not names:
        out.result([], f"{folder} has no runs yet")
        return
    from clipadapter.bench import load_study  # imports torch, so only after the checks

    studies = [load_study(folder, name) for name in names]
    counts = []
    for study in studies:
        planned, failed = len(study.entries), sum(run.error is not None for run in study.runs)
        done = len(study.runs) - failed
        row = {"planned": planned, "done": done, "failed": failed, "open": planned - len(study.runs)}
        counts.append({"suite": study.suite.name, **row})
    failures = [printable(f"{study.suite.name}: {text}") for study in studies for text in study.failures()]
    text = table(["suite", "planned", "done", "failed", "open"], [list(row.values()) for row in counts])
    out.result(counts, "\n".join([text, *failures]))


@cli_command("")
def report(
    out: Output,
    suite: str = argument(),
    folder: Path = folder_option,
    published: bool = flag("--published", "Add the published results beside the measured ones."),
    title: str = options.title_option,
    plot_formats: tuple[str, ...] = options.plot_format_option,
) -> None:
    """Write the tables and plots of a suite: Markdown, CSV, LaTeX and one HTML page."""
    check_study(folder, suite)
    reports = check_output_folder(
        folder / "reports", "bench", *(f"{suite}{end}" for end in (".md", ".tex", ".html", "-*"))
    )
    table = reports / f"{suite}.csv"  # has no place for a mark
    check_output_file(table, "table of bench report", lambda _: is_marked(table.with_suffix(".md"), "bench"))
    from clipadapter.bench import load_study, write_report  # imports torch, so only after the check

    study = load_study(folder, suite)
    files = write_report(study, folder, published=published, plot_formats=plot_formats, title=title)
    record = {"suite": suite, "files": [str(path) for path in files]}
    out.result(record, facts([(path.suffix[1:], path) for path in files]))


@cli_command("")
def compare(
    out: Output,
    first: Path = argument(),
    second: Path = argument(),
    suite: str = option("--suite", "Suite that both folders have.", required=True),
) -> None:
    """Compare two folders of records, cell by cell, with confidence intervals over the same draws."""
    from clipadapter.bench import compare_studies, load_study

    text = compare_studies(load_study(first, suite), load_study(second, suite))
    out.result({"suite": suite, "text": text}, text)


# ---- Speed ----


@cli_command("clipadapter bench speed pictures/ --encoder lite")
def speed(
    out: Output,
    pictures: Path | None = argument(),
    encoder: options.EncoderOptions = options_of(
        options.EncoderOptions, only=("uris", "device", "batch_size", "max_pixels")
    ),
    rounds: Count = option("--rounds N", "Number of measurements of each.", default=5),
    count: Count = option("--count N", "Number of pictures.", default=64),
) -> None:
    """Time all backends and precisions on this machine.

    Prints the limit of the processor (a matrix product); for each backend and precision the pictures per second, the
    fraction of the limit, and the similarity of the features to those in fp32; and the time to read a picture. Without
    PICTURES, random ones are used: then the speed is right, but the similarity is only a hint.
    """
    import numpy as np

    from clipadapter.bench.speed import measure_speed

    if pictures is None:
        small = np.random.default_rng(0).integers(0, 256, (count, 12, 16, 3), dtype=np.uint8)
        sources: Sequence[Path | NDArray[Any]] = [each.repeat(32, axis=0).repeat(32, axis=1) for each in small]
    else:  # spread evenly over the folder
        paths = list_pictures(pictures)
        sources = [paths[i * len(paths) // count] for i in range(count)] if len(paths) > count else paths
    if len(encoder.uris) > 1:
        raise InputError(f"bench speed times one encoder, but {len(encoder.uris)} are named: {', '.join(encoder.uris)}")
    (opened,) = encoder.open(out)
    with tqdm(bar_format="{desc}", disable=not out.progress, leave=False) as bar:
        result = measure_speed(
            opened, sources, batch_size=encoder.batch_size, rounds=rounds, on_step=bar.set_description_str
        )
    out.result({"encoder": opened.info.name, **asdict(result)}, _speed_text(result))


def _speed_text(result: SpeedReport) -> str:
    rows = []
    for each in result.speeds:
        share = "" if each.share is None else f"{each.share:.0%}"
        rates = f"{each.rate:.1f}", f"{each.rate / result.speeds[0].rate:.2f}", share
        cosines = f"{each.parity.mean_cosine:.5f}", f"{each.parity.min_cosine:.5f}"
        rows.append([each.backend, each.precision, *rates, *cosines, f"{each.ready:.1f}"])
    head = ["backend", "precision", "img/s", "ratio", "of limit", "mean cosine", "least", "ready in s"]
    limits = ", ".join(f"{name} {value:.0f}" for name, value in result.limits.items())
    about = {
        "matrix product, GFLOP/s": limits,
        "one picture, GFLOP": f"{result.gflop:.2f}",
        "reading one picture, ms": f"{result.decode:.1f}",
        "pictures": result.pictures,
    }
    return f"{facts(list(about.items()))}\n\n{table(head, rows)}"


command = command_group(
    "clipadapter bench list",
    """Run the studies of the papers: few-shot curves, ablations, shift, cost.

    A study is described by a suite: a short TOML file. The suites of this package have names; your own are paths. Every
    run is stored as one record and is not repeated unless it failed, so that a study can be
    stopped and continued at any time.
    """,
    run,
    speed,
    list_,
    status,
    report,
    compare,
)
