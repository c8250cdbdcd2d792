"""Views for each epoch: how many a head needs, and how fast this machine encodes them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from sklearn.base import clone

from clipadapter.classifier._pictures import Label, several
from clipadapter.data.images import ImageSource
from clipadapter.errors import InputError
from clipadapter.features import PER_EPOCH, Extraction, PerEpochViews, ViewSpec
from clipadapter.heads import Head, head_info, list_heads

TIMED_PICTURES = 2
TIMED_VIEWS = 16
"""Augmented views of each timed picture: two pictures make one batch of the usual size."""
MIN_TIMED_VIEWS = 8
"""Below these the rest was in the store, and the time says nothing."""


def read_views(views: int | str | ViewSpec | PerEpochViews, seed: int) -> ViewSpec | PerEpochViews:
    """What ``views`` of `FewShotClassifier` means.

    Raises:
        InputError: if it is none of these.
    """
    if isinstance(views, ViewSpec | PerEpochViews):
        return views
    if views == PER_EPOCH:
        return PerEpochViews(ViewSpec(seed=seed))
    if isinstance(views, str):
        raise InputError(f"views must be a number, 'per-epoch', a ViewSpec or PerEpochViews, but is {views!r}")
    return ViewSpec(count=views, seed=seed)


def views_for(
    views: PerEpochViews,
    head: Head,
    labels: Sequence[Label],
    class_names: Sequence[str],
    grid: Mapping[str, Sequence[Any]] | None,
) -> ViewSpec:
    """The plain picture and a view for each epoch that a head will make.

    Args:
        views: which views.
        head: unfitted.
        labels: of the shots.
        class_names: all classes in order.
        grid: values to try, by parameter of the head; the most epochs of all combinations count.

    Raises:
        InputError: if the head makes no passes over the shots, or its parameters are wrong.
    """
    if several(labels) and not head.multilabel:
        return views.for_epochs(0)  # `fit` refuses these labels, and says which heads take them
    if several(labels):
        positions = torch.full((len(labels),), -1)
    else:
        place = {name: i for i, name in enumerate(class_names)}
        positions = torch.tensor([place[str(label)] for label in labels if str(label) in place])
    tried = {name: values for name, values in (grid or {}).items() if name in head.get_params(deep=False)}
    epochs = [
        clone(head).set_params(**dict(zip(tried, values, strict=True))).planned_epochs(positions)
        for values in itertools.product(*tried.values())
    ]
    known = [number for number in epochs if number is not None]
    if not known:
        raise InputError(
            f"{type(head).__name__} has no epochs that could each take a view of their own: give a number of views, "
            f"such as views=10 (--views 10), or take one of these heads: {', '.join(_heads_with_epochs())}"
        )
    return views.for_epochs(max(known))


def measure_rate(
    extract: Callable[[Sequence[ImageSource], ViewSpec], Extraction], images: Sequence[ImageSource], spec: ViewSpec
) -> float | None:
    """Views that are encoded per second, from the last pictures: of an interrupted run these are the ones to come.

    Args:
        extract: computes features, or takes them from the store.
        images: all pictures.
        spec: the views.

    Returns:
        None if the features of these pictures were in the store.
    """
    start = time.perf_counter()
    done = extract(images[-TIMED_PICTURES:], replace(spec, count=min(spec.count, 1 + TIMED_VIEWS)))
    seconds = time.perf_counter() - start
    return done.computed / seconds if done.computed >= MIN_TIMED_VIEWS else None


def _heads_with_epochs() -> list[str]:
    return [name for name in list_heads() if head_info(name).cls.planned_epochs is not Head.planned_epochs]
