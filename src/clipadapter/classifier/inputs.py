"""Inputs of `FewShotClassifier`: labelled pictures, their views and the feature store."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from clipadapter.data import Dataset, label_matrix
from clipadapter.data.images import ImageSource, source_name
from clipadapter.data.load import load_labelled
from clipadapter.data.pictures import Pictures, list_pictures
from clipadapter.encoders import EncoderInfo
from clipadapter.errors import DataError, InputError, brief
from clipadapter.features import PER_EPOCH, Extraction, FeatureSet, FeatureStore, PerEpochViews, ViewSpec
from clipadapter.heads import Head, head_info, list_heads
from clipadapter.heads.estimator import clone
from clipadapter.utils.formatting import check_names, describe_unreadable, format_count

Label = str | Collection[str]  # class name of a picture, or all its class names
Skipped = tuple[int, str, str]  # position, name and reason of an unreadable picture


def read_labelled(
    images: Pictures, labels: Sequence[Label] | None, default_split: str
) -> tuple[list[ImageSource], Sequence[Label], Dataset | None]:
    """Pictures and labels that are given as such or as a data set, and the data set."""
    if isinstance(images, FeatureSet):
        raise InputError("features and their labels go to fit_features or evaluate_features, but pictures are needed")
    if labels is None:
        if isinstance(images, str | Path):
            dataset, _ = load_labelled(images, default=default_split, one_class=default_split == "test")
        elif isinstance(images, Dataset):
            dataset = images
        else:
            raise InputError("labels are missing: give (images, labels), or a folder with one folder per class")
        return list(dataset.paths), dataset.label_sets if dataset.multilabel else dataset.labels, dataset
    pictures = list_pictures(images)
    if isinstance(labels, str):
        labels = [labels]
    if len(pictures) != len(labels):
        raise InputError(f"{format_count(len(pictures), 'picture')} but {format_count(len(labels), 'label')}")
    for label in labels:
        check_names(label if is_multilabel([label]) else [label])
    return pictures, labels, images if isinstance(images, Dataset) else None


def is_multilabel(labels: Sequence[Label]) -> bool:
    """Whether any label is a list, tuple or set of class names."""
    return any(isinstance(label, list | tuple | set | frozenset) for label in labels)


def label_names(label: Label) -> Collection[str]:
    """All class names of one picture."""
    return label if isinstance(label, list | tuple | set | frozenset) else (str(label),)


def collect_class_names(labels: Sequence[Label]) -> list[str]:
    """All class names in the labels, sorted."""
    return sorted({str(name) for label in labels for name in label_names(label)})


def check_any_readable(rows: Sequence[int], skipped: Sequence[Skipped], count: int) -> None:
    """Check that at least one of so many pictures could be read."""
    if not len(rows):
        reasons = "; ".join(f"{name}: {reason}" for _, name, reason in skipped[:3])
        raise DataError(f"{describe_unreadable(count)}: {reasons or 'there are none'}")


def open_store(cache: str | Path | None) -> AbstractContextManager[FeatureStore | None]:
    """Open the feature store that ``cache`` of `FewShotClassifier` names; None if it is None."""
    return nullcontext() if cache is None else FeatureStore(None if cache == "auto" else cache)


def build_feature_set(
    extraction: Extraction,
    images: Sequence[ImageSource],
    labels: Sequence[Label],
    class_names: Sequence[str],
    views: ViewSpec,
    info: EncoderInfo,
) -> FeatureSet:
    """Join extracted features with their labels; the provenance records the encoder and the skipped pictures."""
    check_any_readable(extraction.rows, extraction.skipped, len(images))
    provenance = {
        "encoder": info.name,
        "fingerprint": info.fingerprint,
        "skipped": [(name, reason) for _, name, reason in extraction.skipped],
        "rows": list(extraction.rows),
        "sources": [source_name(images[i]) for i in extraction.rows],
        "computed": extraction.computed,
        "views": views.count,
        **({"crop": views.crop} if views.count > 1 else {}),
    }
    X = extraction.features if views.count > 1 else extraction.features[:, 0]
    readable = [labels[i] for i in extraction.rows]
    if not is_multilabel(labels):
        return FeatureSet(X, tuple(map(str, readable)), tuple(class_names), provenance, blocks=info.blocks)
    targets = label_matrix([label_names(label) for label in readable], class_names)
    return FeatureSet(X, (), tuple(class_names), provenance, targets, info.blocks)


def parse_views(views: int | str | ViewSpec | PerEpochViews, seed: int) -> ViewSpec | PerEpochViews:
    """Convert ``views`` of `FewShotClassifier` to a `ViewSpec` or `PerEpochViews`."""
    if isinstance(views, ViewSpec | PerEpochViews):
        return views
    if views == PER_EPOCH:
        return PerEpochViews(ViewSpec(seed=seed))
    if isinstance(views, str):
        raise InputError(f"views must be a number, 'per-epoch', a ViewSpec or PerEpochViews, but is {brief(views)}")
    return ViewSpec(count=views, seed=seed)


def plan_views(
    views: ViewSpec | PerEpochViews,
    head: Head,
    grid: Mapping[str, Sequence[Any]] | None,
    labels: Sequence[Label],
    class_names: Sequence[str],
    text_dim: int,
) -> ViewSpec:
    """The views of each shot; "per-epoch": the plain picture, and one view for each epoch that the head will train.

    Of a grid the value with the most epochs counts.
    """
    if isinstance(views, ViewSpec):
        return views
    if is_multilabel(labels) and not head.multilabel:
        return views.for_epochs(0)  # `fit` refuses these labels and says which heads take them
    if is_multilabel(labels):
        class_positions = torch.full((len(labels),), -1)
    else:
        position = {name: i for i, name in enumerate(class_names)}
        class_positions = torch.tensor([position[str(label)] for label in labels if str(label) in position])
    own_grid = {name: values for name, values in (grid or {}).items() if name in head.get_params(deep=False)}
    points = itertools.product(*own_grid.values())
    candidates = [clone(head).set_params(**dict(zip(own_grid, point, strict=True))) for point in points]
    text_shape = (len(class_names), text_dim)
    epochs = [each.planned_epochs(class_positions, text_shape) for each in candidates]
    known = [number for number in epochs if number is not None]
    if not known:
        have = [name for name in list_heads() if head_info(name).cls.planned_epochs is not Head.planned_epochs]
        raise InputError(
            f"{type(head).__name__} has no epochs to make views for: give a number of views, "
            f"such as views=10 (--views 10), or use one of these heads: {', '.join(have)}"
        )
    return views.for_epochs(max(known))
