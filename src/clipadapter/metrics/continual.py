"""Metrics of continual learning: accuracy on tasks before, while and after they are learned one by one.

Transfer, Average and Last as Zheng et al. define them (ZSCL, ICCV 2023, https://arxiv.org/abs/2303.06628), forgetting
after Chaudhry et al. (ECCV 2018, https://arxiv.org/abs/1801.10112), forward transfer after Lopez-Paz and Ranzato (GEM,
NeurIPS 2017, https://arxiv.org/abs/1706.08840). Their model starts from random weights; a model that reads class text
starts from zero-shot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


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


def continual_metrics(accuracy: Sequence[Sequence[float]], before: Sequence[float] | None = None) -> ContinualMetrics:
    """Transfer, Average, Last, forgetting and forward transfer.

    Cells are counted by their position. RAIL's released code treats an accuracy of exactly 0 as a missing cell, so its
    Transfer differs if every prediction for a task is wrong. Row t, column i of ``accuracy`` (T, T) is that on task i
    after task t. ``before`` (T,) is that before anything was learned; without it there is no forward transfer.

    >>> metrics = continual_metrics([[80, 50, 30], [70, 90, 40], [60, 85, 95]])
    >>> metrics.per_task["transfer"], metrics.mean("transfer"), metrics.mean("last"), metrics.mean("forgetting")
    ((None, 50.0, 35.0), 42.5, 80.0, 12.5)
    """
    cells = np.asarray(accuracy, dtype=np.float64)
    tasks = range(len(cells))
    forward = [None if before is None else float(cells[i - 1, i] - before[i]) for i in tasks[1:]]
    return ContinualMetrics(
        {
            "transfer": (None, *(float(cells[:i, i].mean()) for i in tasks[1:])),
            "average": tuple(cells.mean(axis=0).tolist()),
            "last": tuple(cells[-1].tolist()),
            "forgetting": (*(float(cells[i:-1, i].max() - cells[-1, i]) for i in tasks[:-1]), None),
            "forward_transfer": (None, *forward),
        }
    )
