"""Runs a suite: features once, then every fit without a record, on a launcher. A stopped call can be repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.bundle_files import ARRAYS, save_bundle
from clipadapter.bench.launchers import Job, Launcher
from clipadapter.bench.methods import package_digest
from clipadapter.bench.plan import Entry, FitSpec, Plan, Rows, value_of
from clipadapter.bench.protocols import create_protocol
from clipadapter.bench.records import RecordFolder
from clipadapter.bench.run import Run, digest, library_versions
from clipadapter.bench.sources import Source
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.bench.worker import planned_runs, work
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import InputError

Tracker = Callable[[Run], None]
Facts = tuple[str, str, Prompts]
"""(data, encoder, prompts) as the person named them."""


@dataclass
class Outcome:
    """What `run_suite` did.

    Args:
        plan: all that was asked for.
        made: runs that were made now.
        there: runs that had a record already.
        failed: runs among those made that failed.
        seconds: how long the fits took, from the first to the last.
        figures: pictures of features, if the suite is about them.
        keys: of the records that were asked for now; the plan also has those of earlier calls.
    """

    plan: Plan
    made: int = 0
    there: int = 0
    failed: int = 0
    seconds: float = 0.0
    figures: list[Path] = field(default_factory=list)
    keys: frozenset[str] = frozenset()


@dataclass
class _PlannedFit:
    """A job's task, and the records that it will give."""

    task: FitSpec
    keys: list[str]
    entries: list[Entry] = field(default_factory=list)


def run_suite(
    suite: Suite,
    sources: Sequence[Source | str],
    encoders: Mapping[str, FewShotClassifier],
    out: Path,
    launcher: Launcher,
    *,
    rows: Rows | None = None,
    trackers: Sequence[Tracker] = (),
    oracle: bool = False,
    progress: bool = False,
) -> Outcome:
    """Make every run of a suite that has no record yet.

    Args:
        suite: the study.
        sources: data sets; a text is ``features:FOLDER``, whose encoder made them already.
        encoders: by the name that tables show; makes features and class text.
        out: folder of records; see `RecordFolder`. Features go to ``features/``, the plan to ``plans/``.
        launcher: where fits are made.
        rows: rows of the first data set to take in place of a draw, by (shots, seed).
        trackers: called with each run that was made.
        oracle: also record what choosing the parameter that varies on the test part would have given, marked so.
        progress: show bars on stderr.

    Raises:
        InputError: if a data set does not go with the protocol, or the folder can't be written.
        DataError: if data can't be read.
    """
    records = RecordFolder(out)
    records.migrate()
    works: list[_PlannedFit] = []
    for bundle, fits, facts in create_protocol(suite.protocol).bundles(suite, sources, encoders, rows):
        folder = save_bundle(bundle, out / "features" / _name(bundle))
        works += [_work_of(suite, task, given, facts) for task, given in fits(str(folder.absolute()))]
        # What a worker reads, and a fit's copies of it.
        launcher.memory = max(launcher.memory, 3 * (folder / ARRAYS).stat().st_size)
    plan = Plan(suite=suite, entries=[entry for one in works for entry in one.entries]).merged(out)
    plan.save(out)
    records.complete_log()
    done = {run.key for run in records.read() if run.error is None}
    open_ = [one for one in works if not set(one.keys) <= done]
    there = sum(len(one.keys) for one in works) - sum(len(one.keys) for one in open_)
    outcome = Outcome(plan, there=there, keys=frozenset(key for one in works for key in one.keys))
    start = time.perf_counter()
    jobs = [Job(i, one.task.model_dump_json()) for i, one in enumerate(open_)]
    with (
        closing(launcher.run(work, jobs)) as results,
        tqdm(total=len(jobs), desc="fits", unit="fit", disable=not progress) as bar,
    ):
        for result in results:
            runs = _runs(open_[result.job.number], result.result, result.error)
            try:
                records.write(runs)
            except InputError as error:
                kept = f"{outcome.made} runs were made and are kept"
                raise InputError(f"{error}. {kept}: the same call goes on from there, once there is space") from error
            for run in runs:
                outcome.made += 1
                outcome.failed += run.error is not None
                for tracker in trackers:
                    tracker(run)
            bar.set_postfix_str(f"{runs[0].head}, {runs[0].shots} shots", refresh=False)
            bar.update()
    outcome.seconds = time.perf_counter() - start
    if oracle:
        outcome.plan = _with_oracle(suite, [entry for one in works for entry in one.entries], records, out)
    if suite.figure == "projection":
        outcome.figures = _figures(works, out / "figures" / suite.name)
    return outcome


def _with_oracle(suite: Suite, entries: list[Entry], records: RecordFolder, out: Path) -> Plan:
    """The plan with what choosing on the test part gives; these records too are made once."""
    found = oracle_runs(suite, entries, {run.key: run for run in records.read()})
    there = records.keys()
    records.write(run for _, run in found if run.key not in there)
    plan = Plan(suite=suite, entries=[*entries, *(entry for entry, _ in found)]).merged(out)
    plan.save(out)
    return plan


def _figures(works: Sequence[_PlannedFit], folder: Path) -> list[Path]:
    """Pictures of the features of each bundle."""
    from clipadapter.bench.projection import draw_moved

    bundles: dict[str, list[_PlannedFit]] = {}
    for one in works:
        bundles.setdefault(one.task.bundle, []).append(one)
    return [
        path
        for own in bundles.values()
        for path in draw_moved([one.task for one in own], own[0].entries[0].data, folder)
    ]


def _name(bundle: Bundle) -> str:
    """A folder's name that stands for all that is in the bundle."""
    every = range(len(bundle.support)) if bundle.rows is None else [int(row) for row in bundle.rows]
    parts = [
        data.digest + bundle.text_digest(name) + data.protocol
        for name in bundle.names
        for data in (bundle.data(name, every),)
    ]
    return digest([bundle.encoder.fingerprint, *bundle.names, *map(str, every), *parts])


def _work_of(suite: Suite, task: FitSpec, given: Sequence[tuple[str, str]], facts: Facts) -> _PlannedFit:
    data, encoder, prompts = facts
    shared = {"label": task.variant.title, "prompts": prompts.label, "data": data, "encoder": encoder}
    value = value_of(suite, task.variant)
    return _PlannedFit(
        task, [key for key, _ in given], [Entry(key=key, test=test, value=value, **shared) for key, test in given]
    )


def _runs(one: _PlannedFit, result: list[str] | None, error: str | None) -> list[Run]:
    """Records from what a worker gave; from one that died, records that say so."""
    if result is not None:
        runs = [Run.model_validate_json(text) for text in result]
        same_code = all((run.versions, run.code) == (library_versions(), package_digest()) for run in runs)
        if not same_code or [run.key for run in runs] != one.keys:
            raise InputError(
                "a worker has other library versions, or other code, than this process: "
                f"there {runs[0].versions}, code {runs[0].code[:12]}; install the same on every node"
            )
        return runs
    from clipadapter.bench.bundle_files import load_bundle

    runs = planned_runs(load_bundle(one.task.bundle), one.task)
    return [run.model_copy(update={"error": f"LauncherError: {error}"}) for run in runs]


def oracle_runs(suite: Suite, entries: Sequence[Entry], runs: Mapping[str, Run]) -> list[tuple[Entry, Run]]:
    """For each parameter that a suite varies, and each draw, the run of the value that was best on the test part.

    Args:
        suite: the study.
        entries: what it asked for.
        runs: records by key; what is missing or failed is left out.

    Returns:
        Copies of these records, with ``flags.oracle`` and a label that says so, and their entries.
    """
    names = {one.head: one.parameter for one in suite.vary}
    groups: dict[tuple[object, ...], list[tuple[Entry, Run]]] = {}
    for entry in entries:
        run = runs.get(entry.key)
        if entry.value is None or run is None or run.metrics is None:
            continue
        place = (entry.data, entry.encoder, entry.prompts, entry.test, run.method, run.shots, run.seed)
        groups.setdefault(place, []).append((entry, run))
    found = []
    for group in groups.values():
        entry, run = max(group, key=lambda pair: pair[1].metrics.accuracy if pair[1].metrics else 0.0)
        label = f"{names[run.method]} chosen on the test part"
        flags = run.flags.model_copy(update={"oracle": True})
        copy = run.model_copy(update={"head": label, "flags": flags})
        found.append((entry.model_copy(update={"key": copy.key, "label": label, "value": None}), copy))
    return found
