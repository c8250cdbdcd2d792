"""The work of a worker process: one fit, from features on disk to records."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache, partial

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.bundle_files import load_bundle
from clipadapter.bench.fitting import record_failure
from clipadapter.bench.methods import clone_with_seed
from clipadapter.bench.plan import FitSpec
from clipadapter.bench.protocols import create_protocol
from clipadapter.bench.run import Run
from clipadapter.bench.suite import make_head
from clipadapter.devices import describe_device
from clipadapter.encoders import create_encoder, open_text_tower
from clipadapter.errors import InputError
from clipadapter.heads import Head
from clipadapter.towers import TextTower

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@lru_cache(maxsize=2)
def _bundle(folder: str) -> Bundle:
    return load_bundle(folder)


@lru_cache(maxsize=2)
def _with_towers(folder: str, device: str) -> Bundle:
    """The bundle, whose class text can open the text tower of its encoder on a device."""
    bundle = _bundle(folder)
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


def run_task(task: str) -> list[str]:
    """Fit and measure. Arguments and results are JSON, so that any launcher can pass them.

    Args:
        task: a `FitSpec` as JSON.

    Returns:
        A `Run` as JSON for each test part; failures are in the records, too.
    """
    spec = FitSpec.model_validate_json(task)
    protocol, head = create_protocol(spec.protocol), _head(spec)
    bundle = _with_towers(spec.bundle, spec.device) if head.needs_tower else _bundle(spec.bundle)
    runs = protocol.plan_runs(spec, bundle, head)
    try:
        finished = protocol.perform(spec, bundle, head, runs)
    except Exception as error:  # also failures outside of the head, such as no row left to test on
        finished = [record_failure(run, error) for run in runs]
    if head.needs_tower:
        device = {"device": describe_device(spec.device)}
        finished = [run.model_copy(update={"machine": run.machine.model_copy(update=device)}) for run in finished]
    return [run.model_dump_json() for run in finished]


def plan_runs(bundle: Bundle, spec: FitSpec) -> list[Run]:
    """The records of a fit, before it is made."""
    return create_protocol(spec.protocol).plan_runs(spec, bundle, _head(spec))


def _head(spec: FitSpec) -> Head:
    return clone_with_seed(make_head(spec.variant), spec.seed)


def set_gpu(number: str) -> None:
    """Let this process see one GPU, which it then calls "cuda"; before anything is computed on a GPU.

    ``torch.cuda.set_device`` would do so for one thread only.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = number


def set_threads(number: int) -> None:
    """Set the number of threads of this process; if possible before torch is imported."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(number)
    import torch

    torch.set_num_threads(number)
