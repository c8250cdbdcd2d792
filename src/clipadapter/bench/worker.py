"""The work of a worker process: one fit, from features on disk to records."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.bundle_files import load_bundle
from clipadapter.bench.fits import Fit, attempt
from clipadapter.bench.protocols.base import Protocol
from clipadapter.bench.run import Run
from clipadapter.encoders import create_encoder, open_text_tower
from clipadapter.errors import InputError
from clipadapter.utils.devices import describe_device
from clipadapter.utils.towers import TextTower

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@lru_cache(maxsize=2)
def _bundle(folder: Path) -> Bundle:
    return load_bundle(folder)


@lru_cache(maxsize=2)
def _with_towers(folder: Path, device: str) -> Bundle:
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


def run_fit(fit: Fit, protocol: Protocol, device: str) -> list[Run]:
    """Fit and measure: a record for each test part. Failures are in the records, too.

    A method that trains through a text tower computes on the device.
    """

    def make() -> list[Run]:
        bundle = _with_towers(fit.folder, device) if fit.head.needs_tower else _bundle(fit.folder)
        return protocol.measure(bundle, fit.head, fit.runs)

    # Also failures outside of the head are recorded, such as no row left to test on.
    runs = attempt(fit.runs, make)
    if fit.head.needs_tower:
        described = {"device": describe_device(device)}
        runs = [run.model_copy(update={"machine": run.machine.model_copy(update=described)}) for run in runs]
    return runs


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
