"""Pictures, some of which can't be read: features with their labels, and answers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sklearn.base import clone

from clipadapter.data import label_matrix
from clipadapter.data.images import ImageSource, source_name
from clipadapter.encoders import Encoder, EncoderInfo
from clipadapter.errors import DataError, InputError
from clipadapter.features import PER_EPOCH, Extraction, FeatureSet, FeatureStore, PerEpochViews, ViewSpec, extract
from clipadapter.heads import Head, head_info, list_heads
from clipadapter.prediction import Prediction, unreadable
from clipadapter.uncertainty import Answers

Skipped = tuple[int, str, str]
TASKS = ("auto", "single-label", "multilabel")
Label = str | Collection[str]
"""The class of a picture, or all its classes."""


@contextmanager
def open_store(cache: str | Path | None) -> Iterator[FeatureStore | None]:
    """The feature store that `FewShotClassifier` means by its ``cache``."""
    if cache is None:
        yield None
        return
    with FeatureStore(None if cache == "auto" else cache) as store:
        yield store


def extracted(
    encoder: Encoder,
    images: Sequence[ImageSource],
    views: ViewSpec,
    cache: str | Path | None,
    batch_size: int,
    progress: bool,
    strict: bool,
) -> Extraction:
    """Features of pictures, by way of the store that ``cache`` means; see `clipadapter.features.extract`."""
    with open_store(cache) as store:
        return extract(
            encoder, images, store=store, views=views, batch_size=batch_size, progress=progress, strict=strict
        )


def feature_set(
    found: Extraction,
    images: Sequence[ImageSource],
    labels: Sequence[Label],
    class_names: Sequence[str],
    views: ViewSpec,
    info: EncoderInfo,
) -> FeatureSet:
    """Features of labelled pictures; their provenance says what made them and what was skipped.

    Args:
        found: what was extracted.
        images: all pictures.
        labels: class name of each, or all its class names.
        class_names: all classes in order.
        views: which views were made.
        info: of the encoder.

    Raises:
        DataError: if no picture can be read.
    """
    check_any(found.rows, found.skipped, len(images))
    provenance = {
        "encoder": info.name,
        "fingerprint": info.fingerprint,
        "skipped": [(name, reason) for _, name, reason in found.skipped],
        "rows": list(found.rows),
        "sources": [source_name(images[i]) for i in found.rows],
        "computed": found.computed,
        "views": views.count,
        **({"crop": views.crop} if views.count > 1 else {}),
    }
    X = found.features if views.count > 1 else found.features[:, 0]
    kept = [labels[i] for i in found.rows]
    if not several(labels):
        return FeatureSet(X, tuple(map(str, kept)), tuple(class_names), provenance)
    targets = label_matrix([names_of(label) for label in kept], class_names)
    return FeatureSet(X, (), tuple(class_names), provenance, targets)


def several(labels: Sequence[Label]) -> bool:
    """Whether pictures come with several labels, or none: as names in a list, tuple or set.

    >>> several(["cat", "dog"]), several([("cat", "dog"), ()])
    (False, True)
    """
    return any(isinstance(label, list | tuple | set | frozenset) for label in labels)


def check_task(task: str, labels: Sequence[Label]) -> None:
    """Refuse labels that are not those of a task.

    Raises:
        InputError: if so, or there is no such task.
    """
    if task not in TASKS:
        raise InputError(f"the task is one of {', '.join(TASKS)}, not {task!r}")
    if task == "multilabel" and not several(labels):
        raise InputError("for task='multilabel' give all labels of each picture: [('cat', 'dog'), ('dog',), ()]")
    if task == "single-label" and several(labels):
        raise InputError("with several labels a picture the task is 'multilabel', or 'auto', not 'single-label'")


def all_names(labels: Sequence[Label]) -> list[str]:
    """All class names, sorted."""
    return sorted({str(name) for label in labels for name in names_of(label)})


def names_of(label: Label) -> Collection[str]:
    """All class names of a picture."""
    return label if isinstance(label, list | tuple | set | frozenset) else (str(label),)


def check_any(rows: Sequence[int], skipped: Sequence[Skipped], count: int) -> None:
    """Refuse pictures of which none can be read.

    Raises:
        DataError: if so; says why the first can't.
    """
    if not len(rows):
        reasons = "; ".join(f"{name}: {reason}" for _, name, reason in skipped[:3])
        raise DataError(f"none of the {count} pictures can be read: {reasons or 'there are none'}")


def answered(
    found: Extraction, images: Sequence[ImageSource], told: Answers | None, names: Sequence[str], top: int
) -> list[Prediction]:
    """An answer a picture, in their order; of those that can't be read, why.

    Args:
        found: what was extracted.
        images: all pictures.
        told: what is said of those that can be read.
        names: of the classes.
        top: how many classes to name.
    """
    reasons = {i: reason for i, _, reason in found.skipped}
    place = {row: i for i, row in enumerate(found.rows)}
    return [
        unreadable(source_name(image), reasons.get(i))
        if told is None or i not in place
        else told.prediction(place[i], source_name(image), names, top)
        for i, image in enumerate(images)
    ]


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
