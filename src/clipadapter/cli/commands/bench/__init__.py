"""``clipadapter bench``: the studies of the papers by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipadapter.bench.suite_files import check_study, list_planned_suites, list_suites, read_suite
from clipadapter.cli.commands.bench.run import folder_option, run
from clipadapter.cli.commands.bench.speed import speed
from clipadapter.cli.declarations import argument, cli_command, command_group, flag, option
from clipadapter.cli.inputs import check_output_folder
from clipadapter.cli.options import FOLDER, plot_format_option, title_option
from clipadapter.cli.output import Output, facts, table
from clipadapter.utils.files import printable


@cli_command("", name="list")
def list_(out: Output) -> None:
    """List the suites of this package."""
    suites = [{"name": name, "protocol": "few-shot", **read_suite(name)[1]} for name in list_suites()]
    rows = [[suite["name"], suite["protocol"], _count_heads(suite), suite["title"]] for suite in suites]
    out.result(suites, table(["suite", "protocol", "heads", "about"], rows))


def _count_heads(suite: Mapping[str, Any]) -> str:
    """Count the heads with their parameters that a suite states; "all" stands for those of `clipadapter heads`."""
    counts = [
        sum(map(len, head.get("vary", {0: [0]}).values())) for head in suite["heads"] if not isinstance(head, str)
    ]
    count = sum(counts) + sum(head != "all" for head in suite["heads"] if isinstance(head, str))
    if "all" not in suite["heads"]:
        return str(count)
    return f"all and {count}" if count else "all"


@cli_command("")
def status(out: Output, suite: str | None = argument(required=False), folder: Path = folder_option) -> None:
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
    title: str = title_option,
    plot_formats: tuple[str, ...] = plot_format_option,
) -> None:
    """Write the tables and plots of a suite: Markdown, CSV, LaTeX and one HTML page."""
    check_study(folder, suite)
    from clipadapter.bench import load_study, write_report  # imports torch, so only after the check

    study = load_study(folder, suite)
    files = write_report(
        study, check_output_folder(folder), published=published, plot_formats=plot_formats, title=title
    )
    record = {"suite": suite, "files": [str(path) for path in files]}
    out.result(record, facts([(path.suffix[1:], path) for path in files]))


@cli_command("")
def compare(
    out: Output,
    first: Path = argument(type=FOLDER),
    second: Path = argument(type=FOLDER),
    suite: str = option("--suite", "Suite that both folders have.", required=True),
) -> None:
    """Compare two folders of records, cell by cell, with confidence intervals over the same draws."""
    from clipadapter.bench import compare_studies, load_study

    text = compare_studies(load_study(first, suite), load_study(second, suite))
    out.result({"suite": suite, "text": text}, text)


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
