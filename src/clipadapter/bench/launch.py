"""Runs a suite: features once, then every fit whose records are not all successful, on a launcher.

A stopped call can be repeated: successful fits are not repeated, failed ones are made again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.bundle_files import ARRAYS_FILE, save_bundle
from clipadapter.bench.launchers import Job, Launcher
from clipadapter.bench.methods import package_digest
from clipadapter.bench.plan import Entry, FitSpec, Plan, PlannedFit, get_varied_value
from clipadapter.bench.protocols import create_protocol
from clipadapter.bench.protocols.base import BundleOfFits, SuiteInputs
from clipadapter.bench.records import RecordFolder
from clipadapter.bench.run import Run, digest, library_versions
from clipadapter.bench.sources import Source
from clipadapter.bench.suite import Suite
from clipadapter.bench.worker import plan_runs, run_task
from clipadapter.classifier import FewShotClassifier
from clipadapter.devices import check_device
from clipadapter.errors import InputError
from clipadapter.files import path_without_links
from clipadapter.formatting import format_count
from clipadapter.heads import head_info

WORKER_BYTES_PER_BUNDLE_BYTE = 3
"""Estimated memory of a worker: the arrays of its bundle once as they are read, and about two copies in a fit."""


@dataclass
class SuiteResult:
    """What `run_suite` did.

    Args:
        plan: all planned records.
        n_made: number of runs that were made by this call; those of failed fits were made again.
        n_existing: number of runs that were not made, because all records of their fit are successful.
        n_failed: how many of the runs made failed.
        seconds: from the first fit to the last.
        figures: plots of features, if the suite has any.
        keys: of the records of this call; the plan also has those of earlier calls.
    """

    plan: Plan
    n_made: int = 0
    n_existing: int = 0
    n_failed: int = 0
    seconds: float = 0.0
    figures: list[Path] = field(default_factory=list)
    keys: frozenset[str] = frozenset()


@dataclass
class _FitWithEntries:
    """A fit, and the entries of the plan for the records that it will give."""

    spec: FitSpec
    entries: list[Entry]

    @property
    def keys(self) -> list[str]:
        return [entry.key for entry in self.entries]


def run_suite(
    suite: Suite,
    sources: Sequence[Source | str],
    encoders: Mapping[str, FewShotClassifier],
    out: Path,
    launcher: Launcher,
    *,
    device: str | None = None,
    progress: bool = False,
    plot_formats: Sequence[str] = ("png",),
) -> SuiteResult:
    """Make every fit of a suite that has a missing or failed record.

    Args:
        suite: the suite.
        sources: data sets; a text is ``features:FOLDER``, for which no encoder is needed.
        encoders: by their name in tables; they compute features and class text.
        out: folder of records; see `RecordFolder`. Features go to ``features/``, the plan to ``plans/``.
        launcher: runs the fits.
        device: where methods that train through a text tower compute, such as "cpu", "cuda" or "auto"; see
            `devices.check_device`. "cuda" stands for all GPUs of this machine, "cuda:1" for the second one; None for
            that of the launcher. Other heads compute on the CPU, and encoders have a device of their own.
        progress: show bars on stderr.
        plot_formats: of plots of features, if the suite has any: "png", "pdf", "svg".

    Raises:
        InputError: if a data set does not suit the protocol, the folder can't be written, or the device can't be used.
        DataError: if data can't be read.
    """
    if device is not None:
        launcher.device = check_device(device)
    launcher.check()
    records = RecordFolder(out)
    fits: list[_FitWithEntries] = []
    for group in create_protocol(suite.protocol).bundles(SuiteInputs(suite, sources, encoders)):
        folder = save_bundle(group.bundle, out / "features" / _hash_bundle(group.bundle))
        fits += [_with_entries(suite, group, fit) for fit in group.plan(str(folder.absolute()))]
        launcher.memory = max(launcher.memory, WORKER_BYTES_PER_BUNDLE_BYTE * (folder / ARRAYS_FILE).stat().st_size)
    if not any(head_info(planned.spec.variant.head).cls.needs_tower for planned in fits):
        launcher.device = "cpu"  # one fit for each core, not for each GPU
    plan = Plan(suite=suite, entries=[entry for planned in fits for entry in planned.entries]).with_earlier_entries(out)
    plan.save(out)
    records.append_missing_to_log()
    finished = {run.key for run in records.read() if run.error is None}
    missing = [planned for planned in fits if not set(planned.keys) <= finished]
    n_existing = sum(len(planned.keys) for planned in fits) - sum(len(planned.keys) for planned in missing)
    outcome = SuiteResult(plan, n_existing=n_existing, keys=frozenset(key for planned in fits for key in planned.keys))
    start = time.perf_counter()
    for planned in missing:
        planned.spec = planned.spec.model_copy(update={"device": launcher.device})
    jobs = [Job(i, planned.spec.model_dump_json()) for i, planned in enumerate(missing)]
    jobs.sort(key=lambda job: -missing[job.number].spec.shots)  # long fits first: at the end no worker waits for one
    with (
        closing(launcher.run(run_task, jobs)) as results,
        tqdm(total=len(jobs), desc="fits", unit="fit", disable=not progress) as bar,
    ):
        for result in results:
            runs = _read_result(missing[result.job.number], result.result, result.error)
            try:
                records.write(runs)
            except InputError as error:
                hint = f"{outcome.n_made} runs were made and are stored"
                raise InputError(f"{error}. {hint}: free some space and repeat the call") from error
            for run in runs:
                outcome.n_made += 1
                outcome.n_failed += run.error is not None
            bar.set_postfix_str(f"{runs[0].head}, {format_count(runs[0].shots, 'shot')}", refresh=False)
            bar.update()
    outcome.seconds = time.perf_counter() - start
    if suite.figure == "projection":
        outcome.figures = _draw_features(fits, path_without_links(out, "figures", suite.name), plot_formats)
    return outcome


def _draw_features(fits: Sequence[_FitWithEntries], folder: Path, plot_formats: Sequence[str]) -> list[Path]:
    """Plots of the features of each bundle."""
    from clipadapter.bench.projection import draw_adapted_features

    bundles: dict[str, list[_FitWithEntries]] = {}
    for fit in fits:
        bundles.setdefault(fit.spec.bundle, []).append(fit)
    return [
        path
        for bundle_fits in bundles.values()
        for path in draw_adapted_features(
            [fit.spec for fit in bundle_fits], bundle_fits[0].entries[0].data, folder, plot_formats
        )
    ]


def _hash_bundle(bundle: Bundle) -> str:
    """The name of a folder: a hash of everything in the bundle."""
    every = range(len(bundle.support)) if bundle.rows is None else [int(row) for row in bundle.rows]
    parts = [
        data.digest + bundle.text_digest(name) + data.protocol
        for name in bundle.names
        for data in (bundle.data(name, every),)
    ]
    return digest([bundle.encoder.fingerprint, *bundle.names, *map(str, every), *parts])


def _with_entries(suite: Suite, group: BundleOfFits, fit: PlannedFit) -> _FitWithEntries:
    title, value = fit.spec.variant.title, get_varied_value(suite, fit.spec.variant)
    entries = [
        Entry(
            key=key,
            label=title,
            prompts=group.prompts.label,
            data=group.data,
            encoder=group.encoder,
            test=test,
            value=value,
        )
        for key, test in fit.records
    ]
    return _FitWithEntries(fit.spec, entries)


def _read_result(fit: _FitWithEntries, result: list[str] | None, error: str | None) -> list[Run]:
    """The records of a worker; if it died, records with that reason."""
    if result is not None:
        runs = [Run.model_validate_json(text) for text in result]
        same_code = all((run.versions, run.code) == (library_versions(), package_digest()) for run in runs)
        if not same_code or [run.key for run in runs] != fit.keys:
            raise InputError(
                "a worker has other library versions, or other code, than this process: "
                f"there {runs[0].versions}, code {runs[0].code[:12]}; install the same on every node"
            )
        return runs
    from clipadapter.bench.bundle_files import load_bundle

    runs = plan_runs(load_bundle(fit.spec.bundle), fit.spec)
    return [run.model_copy(update={"error": f"LauncherError: {error}"}) for run in runs]
