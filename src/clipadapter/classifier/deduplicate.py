"""Labelled pictures that come to a fitted model: which are shots already, and which are new."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier.inputs import Label
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet

SAME = 1e-3
"""Distance between two features of one picture, as a share of their length; cosines are then above 0.9999995."""
NAMED = 20
"""Pictures that are named; all are counted."""
NEAR = 1e-4
"""Cosines that are looked at closely are above one less this."""
BLOCK = 1024
How = Literal["add", "relabel", "besides"]


@dataclass(frozen=True, eq=False)
class Arrived:
    """Pictures, sorted.

    Args:
        more: those that are no shots.
        labels: what shots are from now on, by row.
        facts: of this, for the history.
    """

    more: FeatureSet
    labels: dict[int, Label]
    facts: dict[str, Any]


def arrived(support: FeatureSet, found: FeatureSet, how: How) -> Arrived:
    """Tell shots from new pictures.

    Args:
        support: the shots.
        found: the pictures, with their labels.
        how: what becomes of a shot that has another label: "add" refuses it, "relabel" gives it the new one,
            "besides" lets it keep those that it has, where there may be several.

    Raises:
        InputError: if a picture is a shot of another class and may not be one of this, or comes twice with two labels.
    """
    several, sources = support.targets is not None, found.provenance["sources"]
    twins, labels, new = same_pictures(support.plain, found.plain), dict[int, Label](), list[int]()
    known = 0
    for i, first in enumerate(first_of(found.plain)):
        has = set(found.names_of(i))
        if first != i:
            if set(found.names_of(first)) != has:
                raise InputError(f"{sources[i]} and {sources[first]} are one picture, but have two labels: give one")
            continue
        had = [set(support.names_of(row)) for row in twins[i]]
        if how == "add" and had and has not in had:
            raise InputError(
                f"{sources[i]} is a shot of '{', '.join(sorted(had[0])) or 'no class'}' already, so it can't be added "
                f"to '{', '.join(sorted(has))}': correct it with correct(...), 'clipadapter correct', or leave it out"
            )
        if not had:
            new.append(i)
        meant = [own if how == "add" else own | has if how == "besides" else has for own in had]
        changed = {row: label for row, own, label in zip(twins[i], had, meant, strict=True) if label != own}
        labels |= {row: tuple(sorted(label)) if several else next(iter(label)) for row, label in changed.items()}
        known += bool(had) and not changed
    more = replace(found.take(new), provenance={**found.provenance, "sources": [sources[i] for i in new]})
    named = [sources[i] for i, rows in enumerate(twins) if not rows or labels.keys() & set(rows)]
    facts = {"pictures": len(new), "relabelled": len(labels), "known": known, "sources": named[:NAMED]}
    if found.provenance["skipped"]:
        facts["skipped"] = len(found.provenance["skipped"])
    return Arrived(more, labels, facts)


def same_pictures(shots: NDArray[Any], features: NDArray[Any]) -> list[list[int]]:
    """The shots that each picture is: those whose feature is the same but for the rounding of backends.

    Args:
        shots: (n, d) features.
        features: (m, d) features.

    >>> same_pictures(np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 2.0]]), np.array([[0.0, 2.0001], [1.0, 1.0]]))
    [[1, 2], []]
    """
    rows = np.asarray(shots, np.float32)
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    found: list[list[int]] = []
    for start in range(0, len(features), BLOCK):
        part = np.asarray(features[start : start + BLOCK], np.float32)
        lengths = np.linalg.norm(part, axis=1)
        near = part @ directions.T >= (1 - NEAR) * lengths[:, None]
        for row, length, candidates in zip(part, lengths, near, strict=True):
            places = np.flatnonzero(candidates)
            off = np.linalg.norm(rows[places] - row, axis=1)
            found.append([int(place) for place in places[off <= SAME * length]])
    return found


def first_of(features: NDArray[Any]) -> list[int]:
    """The first picture (m,) that is the same as each: itself, unless it comes twice."""
    return [min([i, *rows]) for i, rows in enumerate(same_pictures(features, features))]
