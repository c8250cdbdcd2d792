"""Runs a suite: features once, then every fit whose records are not all successful, on a launcher.

A stopped call can be repeated: successful fits are not repeated, failed ones are made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from clipadapter.bench.bundle import BUNDLE_FILE, Bundle, load_bundle, save_bundle
from clipadapter.bench.fits import Fit, attempt
from clipadapter.bench.launcher import Launcher
from clipadapter.bench.plan import Entry, Plan
from clipadapter.bench.protocols.base import BundleOfDraws, Protocol, create_protocol
from clipadapter.bench.run import Run, digest, records_file
from clipadapter.bench.schedule import Outcome, make_missing, plan_fits
from clipadapter.bench.sources import AnySource, open_source
from clipadapter.bench.suite import Suite, make_head
from clipadapter.classifier import FewShotClassifier
from clipadapter.encoders import create_encoder, open_text_tower
from clipadapter.errors import DataError, InputError
from clipadapter.utils.devices import check_device, describe_device
from clipadapter.utils.files import folder_without_links, path_without_links
from clipadapter.utils.towers import TextTower

WORKER_BYTES_PER_BUNDLE_BYTE = 3
"""Estimated memory of a worker: the arrays of its bundle once as they are read, and about two copies in a fit."""


def run_suite(
    suite: Suite,
    sources: Sequence[AnySource | str],
    encoders: Mapping[str, FewShotClassifier],
    out: Path,
    launcher: Launcher,
    *,
    progress: bool = False,
    plot_formats: Sequence[str] = ("png",),
) -> Outcome:
    """Make every fit of a suite that has a missing or failed record.

    Args:
        suite: the suite.
        sources: data sets, opened or as `open_source` takes them; ``features:FOLDER`` needs no encoder.
        encoders: by their name in tables; they compute features and class text.
        out: folder of ``runs.jsonl``. Features go to ``features/``, the plan to ``plans/``.
        launcher: runs the fits.
        progress: show bars on stderr.
        plot_formats: of plots of features, if the suite has any: "png", "pdf", "svg".

    Raises:
        InputError: if a data set does not suit the protocol, the folder can't be written, or the device can't be used.
        DataError: if data can't be read.
    """
    launcher = replace(launcher, device=check_device(launcher.device))
    records, features = records_file(out), folder_without_links(out, "features", error=DataError)
    protocol, fits = create_protocol(suite.protocol, suite.options), []
    opened = [open_source(source) if isinstance(source, str) else source for source in sources]
    for group in protocol.bundles(suite, opened, encoders):
        folder = save_bundle(group.bundle, features / _hash_bundle(group.bundle))
        fits += _plan_fits(suite, protocol, group, folder.absolute())
        launcher.memory = max(launcher.memory, WORKER_BYTES_PER_BUNDLE_BYTE * (folder / BUNDLE_FILE).stat().st_size)
    if not any(fit.head.needs_tower for fit in fits):
        launcher.device = "cpu"  # one fit for each core, not for each GPU
    Plan(suite=suite, entries=[entry for fit in fits for entry in fit.entries]).save(out)

    work = partial(run_fit, protocol=protocol, device=launcher.device)
    fits.sort(key=lambda fit: -fit.runs[0].shots)  # long fits first: at the end no worker waits for one
    outcome = make_missing(fits, work, records, launcher, progress)
    if suite.figure == "projection":
        from clipadapter.bench.projection import draw_adapted_features

        # Of each bundle: with the most shots, which come first, and the first seed.
        max_shots, seed, folder = fits[0].runs[0].shots, suite.seeds[0], path_without_links(out, "figures", suite.name)
        drawn = [fit for fit in fits if (fit.runs[0].shots, fit.runs[0].seed) == (max_shots, seed)]
        outcome.figures = [path for fit in drawn for path in draw_adapted_features(fit, folder, plot_formats)]
    return outcome


def _plan_fits(suite: Suite, protocol: Protocol, group: BundleOfDraws, folder: Path) -> list[Fit]:
    """Every fit of a suite on some features."""
    for_data = (variant.for_data(group.bundle.support_name) for variant in suite.all_variants())
    variants = {variant.title: variant for variant in for_data}
    heads = {title: make_head(variant) for title, variant in variants.items()}
    common = {"data": group.data, "encoder": group.encoder, "prompts": group.prompts.label}

    def entry(run: Run, test: str) -> Entry:
        facts = {"key": run.key, "label": run.head, "shots": run.shots, "seed": run.seed}
        return Entry.model_validate({**facts, **common, "test": test, "value": variants[run.head].value})

    return [
        replace(fit, folder=folder, entries=list(map(entry, fit.runs, fit.tests)))
        for fit in plan_fits(protocol, group.bundle, heads, group.draws)
    ]


def _hash_bundle(bundle: Bundle) -> str:
    """The name of a folder: a hash of everything in the bundle."""
    every = range(len(bundle.support)) if bundle.rows is None else [int(row) for row in bundle.rows]
    data = {name: bundle.data(name, every) for name in bundle.names}
    parts = [own.digest + bundle.text_digest(name) + own.protocol for name, own in data.items()]
    return digest([bundle.encoder.fingerprint, *bundle.names, *map(str, every), *parts])


@lru_cache(maxsize=2)
def _load_bundle(folder: Path, device: str) -> Bundle:
    """The bundle, whose class text can open the text tower of its encoder on a device."""
    bundle = load_bundle(folder)
    tower = partial(_tower, bundle.encoder.name, bundle.encoder.fingerprint, device)
    tests = {
        name: part if part.text is None else replace(part, text=part.text.with_tower(tower))
        for name, part in bundle.tests.items()
    }
    return replace(bundle, text=bundle.text.with_tower(tower), tests=tests)


@lru_cache(maxsize=1)
def _tower(name: str, fingerprint: str, device: str) -> TextTower:
    encoder = create_encoder(name, device)
    if encoder.info.fingerprint != fingerprint:
        raise InputError(f"the encoder {name} is not the one that made these features: run the suite from its pictures")
    return open_text_tower(encoder)


def run_fit(fit: Fit, protocol: Protocol, device: str) -> list[Run]:
    """Fit and measure: a record for each test part. Only a method that trains through a text tower uses the device."""
    # Also failures outside of the head are recorded, such as no row left to test on.
    runs = attempt(fit.runs, lambda: protocol.measure(_load_bundle(fit.folder, device), fit.head, fit.runs))
    if fit.head.needs_tower:
        described = {"device": describe_device(device)}
        runs = [run.model_copy(update={"machine": run.machine.model_copy(update=described)}) for run in runs]
    return runs
