"""The figure of a suite about features: where test pictures lie before and after an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipadapter.bench.bundle import views_for_head
from clipadapter.bench.bundle_files import load_bundle
from clipadapter.bench.methods import seeded
from clipadapter.bench.plan import FitSpec
from clipadapter.bench.projection import adapted_features, draw_projection
from clipadapter.bench.suite import make_head
from clipadapter.errors import InputError

MOST = 2000
"""Test pictures drawn at most, evenly taken: t-SNE of more takes minutes, and nobody sees them."""


def draw_moved(specs: Sequence[FitSpec], data: str, folder: Path) -> list[Path]:
    """Draw the features of the test part before and after each head that adapts them, at the most shots, first seed.

    Args:
        specs: fits on one bundle.
        data: name of the data set, for titles and files.
        folder: for the PNG files.

    Returns:
        The files; heads that leave features as they are have none.
    """
    most = max(spec.shots for spec in specs)
    files = []
    for spec in (spec for spec in specs if spec.shots == most and spec.seed == specs[0].seed):
        bundle = load_bundle(spec.bundle)
        part = bundle.test(bundle.names[0], spec.rows).features
        part = part.take(np.unique(np.linspace(0, len(part) - 1, min(len(part), MOST)).astype(int)))
        head = seeded(make_head(spec.variant), spec.seed)
        own = views_for_head(head, bundle.shots(spec.rows))
        head.fit(own.X, own.y, text=bundle.text)
        try:
            after = adapted_features(head, part.plain)
        except InputError:  # a head that does not move features
            continue
        title = f"{data}: {len(part)} test pictures before and after {spec.variant.title}, {most} shots a class"
        path = folder / f"{data}-{spec.variant.title}.png".replace("/", "-")
        files.append(draw_projection(part.plain, after, part.y, part.class_names, path, title, seed=spec.seed))
    return files
