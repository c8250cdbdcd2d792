"""The figure of a suite about features: where test pictures lie before and after an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipadapter.bench.bundle import own_views
from clipadapter.bench.bundle_files import load_bundle
from clipadapter.bench.plan import Task, make_head
from clipadapter.bench.projection import adapted_features, draw_projection
from clipadapter.bench.protocol import seeded
from clipadapter.errors import InputError

MOST = 2000
"""Test pictures drawn at most, evenly taken: t-SNE of more takes minutes, and nobody sees them."""


def draw_moved(tasks: Sequence[Task], data: str, folder: Path) -> list[Path]:
    """Draw the features of the test part before and after each head that adapts them, at the most shots, first seed.

    Args:
        tasks: fits on one bundle.
        data: name of the data set, for titles and files.
        folder: for the PNG files.

    Returns:
        The files; heads that leave features as they are have none.
    """
    most = max(task.shots for task in tasks)
    files = []
    for task in (task for task in tasks if task.shots == most and task.seed == tasks[0].seed):
        bundle = load_bundle(task.bundle)
        part = bundle.test(bundle.names[0], task.rows).features
        part = part.take(np.unique(np.linspace(0, len(part) - 1, min(len(part), MOST)).astype(int)))
        head = seeded(make_head(task.variant), task.seed)
        own = own_views(head, bundle.shots(task.rows))
        head.fit(own.X, own.y, text=bundle.text)
        try:
            after = adapted_features(head, part.plain)
        except InputError:  # a head that does not move features
            continue
        title = f"{data}: {len(part)} test pictures before and after {task.variant.title}, {most} shots a class"
        path = folder / f"{data}-{task.variant.title}.png".replace("/", "-")
        files.append(draw_projection(part.plain, after, part.y, part.class_names, path, title, seed=task.seed))
    return files
