"""Find which labelled pictures are shots of a model already, so that no picture counts twice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier.inputs import Label
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet

MAX_RELATIVE_DISTANCE = 1e-3
"""Distance between two features of one picture, relative to their length. Backends and precisions differ by less."""
MIN_CANDIDATE_COSINE = 1 - 1e-4
"""Pairs above this cosine are compared exactly. At the distance above, the cosine is more than 0.9999995."""
ROWS_PER_BLOCK = 1024
MAX_LISTED_SOURCES = 20
"""Pictures that the history names; all are counted."""
ConflictRule = Literal["refuse", "replace", "merge"]
"""If a picture is a shot with another label: refuse it, replace the label, or add to the labels (multi-label)."""


@dataclass(frozen=True, eq=False)
class Deduplicated:
    """Labelled pictures, separated into new ones and shots."""

    added: FeatureSet  # pictures that are no shots
    labels: dict[int, Label]  # new labels of shots, by row of the support set
    facts: dict[str, Any]  # counts and sources, for the history


def deduplicate(support: FeatureSet, examples: FeatureSet, rule: ConflictRule) -> Deduplicated:
    """Separate labelled pictures into new ones and ones that are shots already."""
    is_multilabel, sources = support.targets is not None, examples.provenance["sources"]
    duplicates = find_duplicates(support.final, examples.final)
    new_labels, new_rows, n_known = dict[int, Label](), list[int](), 0
    for i, same in enumerate(find_duplicates(examples.final, examples.final)):
        label, first = set(examples.class_names_of(i)), min([i, *same])
        if first != i:
            if set(examples.class_names_of(first)) != label:
                raise InputError(f"{sources[i]} and {sources[first]} are one picture, but have two labels: give one")
            continue
        old_labels = [set(support.class_names_of(row)) for row in duplicates[i]]
        if rule == "refuse" and old_labels and label not in old_labels:
            raise InputError(
                f"{sources[i]} is a shot of '{', '.join(sorted(old_labels[0])) or 'no class'}' already, so it can't "
                f"be added to '{', '.join(sorted(label))}': correct it with correct(...), 'clipadapter correct', or "
                "leave it out"
            )
        if not old_labels:
            new_rows.append(i)
        changed = {}
        for row, old in zip(duplicates[i], old_labels, strict=True):
            new = old if rule == "refuse" else old | label if rule == "merge" else label
            if new != old:
                changed[row] = tuple(sorted(new)) if is_multilabel else next(iter(new))
        new_labels |= changed
        n_known += bool(old_labels) and not changed
    added_sources = [sources[i] for i in new_rows]
    added = replace(examples.take(new_rows), provenance={**examples.provenance, "sources": added_sources})
    listed = [sources[i] for i, rows in enumerate(duplicates) if not rows or new_labels.keys() & set(rows)]
    facts = {
        "pictures": len(new_rows),
        "relabelled": len(new_labels),
        "known": n_known,
        "sources": listed[:MAX_LISTED_SOURCES],
    }
    if examples.provenance["skipped"]:
        facts["skipped"] = len(examples.provenance["skipped"])
    return Deduplicated(added, new_labels, facts)


def find_duplicates(shots: NDArray[Any], features: NDArray[Any]) -> list[list[int]]:
    """For each of (m, d) features, the rows of (n, d) shots that are the same picture, up to rounding of backends.

    >>> find_duplicates(np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 2.0]]), np.array([[0.0, 2.0001], [1.0, 1.0]]))
    [[1, 2], []]
    """
    rows = np.asarray(shots, np.float32)
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    duplicates: list[list[int]] = []
    for start in range(0, len(features), ROWS_PER_BLOCK):
        block = np.asarray(features[start : start + ROWS_PER_BLOCK], np.float32)
        lengths = np.linalg.norm(block, axis=1)
        # One matrix product finds the candidates; only these few are subtracted, which float32 resolves better.
        is_candidate = block @ directions.T >= MIN_CANDIDATE_COSINE * lengths[:, None]
        for feature, length, candidates in zip(block, lengths, is_candidate, strict=True):
            positions = np.flatnonzero(candidates)
            distances = np.linalg.norm(rows[positions] - feature, axis=1)
            duplicates.append([int(i) for i in positions[distances <= MAX_RELATIVE_DISTANCE * length]])
    return duplicates
