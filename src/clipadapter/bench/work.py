"""What a worker process does: one fit, from features on disk to records."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache, partial

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.bundle_files import load_bundle
from clipadapter.bench.methods import seeded
from clipadapter.bench.plan import FitSpec, make_head
from clipadapter.bench.protocol import perform, planned
from clipadapter.bench.run import Run
from clipadapter.bench.streams import perform_stream, planned_stream
from clipadapter.encoders import create_encoder, open_text_tower
from clipadapter.errors import InputError
from clipadapter.towers import TextTower

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@lru_cache(maxsize=2)
def _bundle(folder: str) -> Bundle:
    return load_bundle(folder)


@lru_cache(maxsize=2)
def _with_towers(folder: str) -> Bundle:
    """The same, its class text with what opens the text tower of the encoder that made it."""
    bundle = _bundle(folder)
    tower = partial(_tower, bundle.encoder.name, bundle.encoder.fingerprint)
    tests = {
        name: part if part.text is None else replace(part, text=part.text.with_tower(tower))
        for name, part in bundle.tests.items()
    }
    return replace(bundle, text=bundle.text.with_tower(tower), tests=tests)


@lru_cache(maxsize=1)
def _tower(name: str, fingerprint: str) -> TextTower:
    encoder = create_encoder(name)
    if encoder.info.fingerprint != fingerprint:
        raise InputError(f"the encoder {name} is not the one that made these features: run the suite from its pictures")
    return open_text_tower(encoder)


def work(spec: str) -> list[str]:
    """Fit and measure; plain JSON in and out, so that any launcher can carry it.

    Args:
        spec: a `FitSpec` as JSON.

    Returns:
        A `Run` as JSON for each test part; what goes wrong is in the records.
    """
    fit_spec = FitSpec.model_validate_json(spec)
    head = seeded(make_head(fit_spec.variant), fit_spec.seed)
    bundle = _with_towers(fit_spec.bundle) if head.needs_tower else _bundle(fit_spec.bundle)
    runs = planned_runs(bundle, fit_spec)
    try:
        done = perform(bundle, head, runs) if fit_spec.stream is None else [perform_stream(bundle, head, runs[0])]
    except Exception as error:  # what no head is to blame for, such as no row left to test on, is a record too
        done = failed(runs, error)
    return [run.model_dump_json() for run in done]


def planned_runs(bundle: Bundle, spec: FitSpec) -> list[Run]:
    """The records that a spec will give, before it is done."""
    head = seeded(make_head(spec.variant), spec.seed)
    facts = (bundle, spec.variant.title, head, spec.shots, spec.seed, spec.rows)
    return planned(*facts) if spec.stream is None else [planned_stream(*facts, spec.stream)]


def failed(runs: list[Run], error: BaseException) -> list[Run]:
    """The same records with the reason why there is no figure."""
    return [run.model_copy(update={"error": f"{type(error).__name__}: {error}"}) for run in runs]


def set_threads(number: int) -> None:
    """Let this process compute on so many threads; before torch is imported if possible."""
    for name in THREADS:
        os.environ[name] = str(number)
    import torch

    torch.set_num_threads(number)
