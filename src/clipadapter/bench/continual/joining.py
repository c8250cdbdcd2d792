"""Joins the data sets of a stream: their features in one matrix, and one class text over all class names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.plan import Rows
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures


@dataclass(frozen=True, eq=False)
class DataSetFeatures:
    """A data set of a stream.

    Args:
        name: its name in tables.
        support: features that shots are drawn from.
        test: test part.
        text: text of its classes.
        rows: (n,) for each row of the support, its row in the data set.
        n_rows: number of rows of the data set.
        draws: drawn rows of the data set by (shots, seed).
    """

    name: str
    support: FeatureSet
    test: FeatureSet
    text: TextFeatures
    rows: NDArray[np.int64]
    n_rows: int
    draws: Rows


@dataclass(frozen=True, eq=False)
class JoinedDataSets:
    """The data sets of a stream as one.

    Args:
        bundle: a test part for each data set.
        classes: labels of each data set, as in the bundle.
        draws: drawn rows of each data set by (shots, seed), as rows of the joined data set.
    """

    bundle: Bundle
    classes: Mapping[str, tuple[str, ...]]
    draws: Mapping[str, Rows]


def join_data_sets(data_sets: Sequence[DataSetFeatures], same_names: Literal["share", "apart"]) -> JoinedDataSets:
    """Join several data sets.

    Args:
        data_sets: the data sets; rows of the joined data set are numbered in this order.
        same_names: see `orders.StreamRules`.

    Raises:
        InputError: if two data sets have the same name, or their features come from different encoders.
    """
    names = [data_set.name for data_set in data_sets]
    if len(set(names)) < len(names):
        raise InputError(f"data sets of a stream need different names, but are called {', '.join(names)}")
    _check_goes_together([data_set.support for data_set in data_sets])
    label_counts = Counter(label for data_set in data_sets for label in data_set.text.labels)
    data_sets = [
        _renamed(data_set, {label for label, count in label_counts.items() if count > 1}, same_names)
        for data_set in data_sets
    ]
    text = _text_of_all([data_set.text for data_set in data_sets])
    starts = np.cumsum([0, *(data_set.n_rows for data_set in data_sets)])
    bundle = Bundle(
        join_features([data_set.support for data_set in data_sets], text.labels),
        text,
        {data_set.name: TestPart(join_features([data_set.test], text.labels)) for data_set in data_sets},
        np.concatenate([data_set.rows + start for data_set, start in zip(data_sets, starts, strict=False)]),
    )
    draws = {
        data_set.name: {key: [int(start) + row for row in rows] for key, rows in data_set.draws.items()}
        for data_set, start in zip(data_sets, starts, strict=False)
    }
    return JoinedDataSets(bundle, {data_set.name: data_set.text.labels for data_set in data_sets}, draws)


def join_features(sets: Sequence[FeatureSet], class_names: Sequence[str]) -> FeatureSet:
    """Concatenate the rows of several sets.

    Raises:
        InputError: if they come from different encoders, or differ in width, views or crop scale.
    """
    _check_goes_together(sets)
    first = sets[0]
    provenance = dict(first.provenance)
    templates = [template for features in sets for template in features.provenance.get("templates", ())]
    if templates:
        provenance["templates"] = tuple(dict.fromkeys(templates))
    if len(sets) > 1:
        provenance["data"] = " + ".join(str(features.provenance.get("data", "unnamed")) for features in sets)
    y = tuple(label for features in sets for label in features.y)
    return FeatureSet(
        np.concatenate([features.X for features in sets]), y, tuple(class_names), provenance, blocks=first.blocks
    )


def _check_goes_together(sets: Sequence[FeatureSet]) -> None:
    first = sets[0]
    for other in sets[1:]:
        if other.X.shape[1:] != first.X.shape[1:] or other.blocks != first.blocks:
            raise InputError(f"features of one stream must have one shape, but are {first.X.shape}, {other.X.shape}")
        fingerprints = [features.provenance.get("fingerprint") for features in (first, other)]
        if fingerprints[0] != fingerprints[1]:
            raise InputError("the data sets of a stream need features of one encoder, but have those of several")
        crops = [str(features.provenance.get("crop", "tip")) for features in (first, other)]
        if first.X.ndim == 3 and crops[0] != crops[1]:
            raise InputError(f"the data sets of a stream need views of one crop scale, but have {' and '.join(crops)}")


def _renamed(data_set: DataSetFeatures, shared_labels: set[str], same_names: str) -> DataSetFeatures:
    """The data set; its name follows those of its labels that other data sets have, too."""
    if same_names == "share" or not shared_labels & set(data_set.text.labels):
        return data_set
    new_labels = {
        label: f"{label} ({data_set.name})" if label in shared_labels else label for label in data_set.text.labels
    }
    text = data_set.text
    labels = tuple(new_labels[label] for label in text.labels)
    sets = [
        replace(features, y=tuple(new_labels[label] for label in features.y), class_names=labels)
        for features in (data_set.support, data_set.test)
    ]
    renamed = TextFeatures.of_stored_rows(
        labels, text.embeddings, text.logit_scale, text.logit_bias, text.tower, prompts=text.prompts
    )
    return replace(data_set, support=sets[0], test=sets[1], text=renamed)


def _text_of_all(texts: Sequence[TextFeatures]) -> TextFeatures:
    """Text of all classes; a class of several data sets gets the mean of its unit vectors."""
    rows_by_label: dict[str, list[NDArray[np.float32]]] = {}
    for text in texts:
        for label, row in zip(text.labels, text.embeddings, strict=True):
            if label not in text.absent:
                rows_by_label.setdefault(label, []).append(row)
            else:
                rows_by_label.setdefault(label, [])
    width = texts[0].embeddings.shape[1]
    embeddings = np.array(
        [
            np.mean(label_rows, axis=0) if label_rows else np.full(width, np.nan)
            for label_rows in rows_by_label.values()
        ],
        texts[0].embeddings.dtype,
    )
    first = texts[0]
    joined = TextFeatures(list(rows_by_label), embeddings, first.logit_scale, first.logit_bias, first.tower)
    if all(text.prompts is None for text in texts):
        return joined
    prompts: dict[str, list[NDArray[np.float32]]] = {label: [] for label in rows_by_label}
    for text in texts:
        for label, rows in zip(text.labels, text.prompt_rows, strict=True):
            prompts[label].append(rows)
    return joined.with_prompts([np.concatenate(parts) for parts in prompts.values()])
