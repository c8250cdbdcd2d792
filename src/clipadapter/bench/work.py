"""What a worker process does: one fit, from features on disk to records."""

from __future__ import annotations

import os
from functools import lru_cache

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.bundle_files import load_bundle
from clipadapter.bench.plan import Task, make_head
from clipadapter.bench.protocol import perform, planned, seeded
from clipadapter.bench.run import Run

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@lru_cache(maxsize=2)
def _bundle(folder: str) -> Bundle:
    return load_bundle(folder)


def work(task: str) -> list[str]:
    """Fit and measure; plain JSON in and out, so that any engine can carry it.

    Args:
        task: a `Task` as JSON.

    Returns:
        A `Run` as JSON for each test part; what goes wrong is in the records.
    """
    asked = Task.model_validate_json(task)
    bundle = _bundle(asked.bundle)
    head = seeded(make_head(asked.variant), asked.seed)
    runs = planned(bundle, asked.variant.title, head, asked.shots, asked.seed, asked.rows)
    try:
        done = perform(bundle, head, runs)
    except Exception as error:  # what no head is to blame for, such as no row left to test on, is a record too
        done = failed(runs, error)
    return [run.model_dump_json() for run in done]


def failed(runs: list[Run], error: BaseException) -> list[Run]:
    """The same records with the reason why there is no figure."""
    return [run.model_copy(update={"error": f"{type(error).__name__}: {error}"}) for run in runs]


def set_threads(number: int) -> None:
    """Let this process compute on so many threads; before torch is imported if possible."""
    for name in THREADS:
        os.environ[name] = str(number)
    import torch

    torch.set_num_threads(number)
