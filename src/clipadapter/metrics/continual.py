"""Metrics of continual learning: accuracy on tasks before, while and after they are learned one by one.

Transfer, Average and Last as Zheng et al. define them (ZSCL, ICCV 2023, https://arxiv.org/abs/2303.06628), forgetting
after Chaudhry et al. (ECCV 2018, https://arxiv.org/abs/1801.10112), forward transfer after Lopez-Paz and Ranzato (GEM,
NeurIPS 2017, https://arxiv.org/abs/1706.08840). Their model starts from random weights; a model that reads class text
starts from zero-shot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError


@dataclass(frozen=True)
class ContinualMetrics:
    """Metrics of T tasks, in the unit of the accuracies: T values by metric, None for a task that has none.

    "transfer": mean accuracy on the task before it is learned; the first task has none. "average": mean accuracy on the
    task over all times. "last": accuracy on the task after the last one is learned. "forgetting": best accuracy on the
    task since it was learned, the end left out, minus that at the end; the last task has none. "forward_transfer":
    accuracy on the task just before it is learned, minus that before anything was learned; the first task has none.
    """

    per_task: Mapping[str, tuple[float | None, ...]]

    def mean(self, metric: str) -> float | None:
        """Mean over the tasks that have the metric; None if there is none."""
        values = [value for value in self.per_task[metric] if value is not None]
        return float(np.mean(values)) if values else None


def continual_metrics(accuracy: ArrayLike, before: ArrayLike | None = None) -> ContinualMetrics:
    """Transfer, Average, Last, forgetting and forward transfer.

    Cells are counted by their position. RAIL's released code treats an accuracy of exactly 0 as a missing cell, so its
    Transfer differs if every prediction for a task is wrong. Row t, column i of ``accuracy`` (T, T) is that on task i
    after task t. ``before`` (T,) is that before anything was learned; without it there is no forward transfer.

    >>> metrics = continual_metrics([[80, 50, 30], [70, 90, 40], [60, 85, 95]])
    >>> metrics.per_task["transfer"], metrics.mean("transfer"), metrics.mean("last"), metrics.mean("forgetting")
    ((None, 50.0, 35.0), 42.5, 80.0, 12.5)
    """
    cells = _numbers(accuracy, "the accuracies")
    if cells.ndim != 2 or cells.shape[0] != cells.shape[1] or not cells.size:
        raise InputError(
            f"the accuracies have shape {cells.shape}, but must be (T, T) with T of 1 or more: row t, column i is the "
            "accuracy on task i after task t"
        )
    if not np.isfinite(cells).all():
        t, i = np.argwhere(~np.isfinite(cells))[0].tolist()
        raise InputError(
            f"the accuracy on task {i} after task {t} is {cells[t, i]}: measure every task after every task, those "
            "not yet learned too"
        )
    tasks = range(len(cells))
    forward: list[float | None] = [None] * len(tasks[1:])
    if before is not None:
        first = _numbers(before, "the accuracies before the first task")
        if first.shape != (len(cells),) or not np.isfinite(first).all():
            raise InputError(f"the accuracies before the first task must be {len(cells)} finite numbers, one per task")
        forward = [float(cells[i - 1, i] - first[i]) for i in tasks[1:]]
    return ContinualMetrics(
        {
            "transfer": (None, *(float(cells[:i, i].mean()) for i in tasks[1:])),
            "average": tuple(cells.mean(axis=0).tolist()),
            "last": tuple(cells[-1].tolist()),
            "forgetting": (*(float(cells[i:-1, i].max() - cells[-1, i]) for i in tasks[:-1]), None),
            "forward_transfer": (None, *forward),
        }
    )


def _numbers(values: ArrayLike, name: str) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} are no matrix of numbers: {error}; give one number for each") from error
