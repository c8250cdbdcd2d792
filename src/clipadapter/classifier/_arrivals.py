"""Labelled pictures that come to a fitted model: which are shots already, and which are new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier._pictures import Label
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet

SAME = 1e-3
"""Distance between two features of one picture, as a share of their length; cosines are then above 0.9999995."""
NAMED = 20
"""Pictures that are named; all are counted."""
How = Literal["add", "relabel", "besides"]


@dataclass(frozen=True, eq=False)
class Arrived:
    """Pictures, sorted.

    Args:
        more: those that are no shots.
        labels: what shots are from now on, by row.
        known: how many are shots that have these labels already.
        facts: of this, for the history.
    """

    more: FeatureSet
    labels: dict[int, Label]
    known: int
    facts: dict[str, Any]


def arrived(support: FeatureSet, found: FeatureSet, how: How) -> Arrived:
    """Tell shots from new pictures.

    Args:
        support: the shots.
        found: the pictures, with their labels.
        how: what becomes of a shot that has another label: "add" refuses it, "relabel" gives it the new one,
            "besides" lets it keep those that it has, where there may be several.

    Raises:
        InputError: if a picture is a shot of another class, and may not be one of this.
    """
    places, sources = same_shots(support, found.plain), found.provenance["sources"]
    labels: dict[int, Label] = {}
    for i, place in enumerate(places):
        if place < 0:
            continue
        had, has = set(support.names_of(place)), set(found.names_of(i))
        has |= had if how == "besides" else set()
        if had == has:
            labels.pop(place, None)
        elif how == "add":
            raise InputError(
                f"{sources[i]} is a shot of '{', '.join(sorted(had)) or 'no class'}' already, so it can't be added to "
                f"'{', '.join(sorted(has))}': correct it with correct(...), 'clipadapter correct', or leave it out"
            )
        else:
            labels[place] = next(iter(has)) if support.targets is None else tuple(sorted(has))
    new = [i for i, place in enumerate(places) if place < 0]
    own = [sources[i] for i in new]
    more = replace(found.take(new), provenance={**found.provenance, "sources": own})
    known = len(places) - len(new) - len(labels)
    named = [sources[i] for i, place in enumerate(places) if place < 0 or place in labels]
    facts = {"pictures": len(new), "relabelled": len(labels), "known": known, "sources": named[:NAMED]}
    skipped = found.provenance["skipped"]
    if skipped:
        facts["skipped"] = [list(one) for one in skipped[:NAMED]]
    return Arrived(more, labels, known, facts)


def same_shots(support: FeatureSet, features: NDArray[Any]) -> Sequence[int]:
    """Which shot each picture is, -1 for none: one whose feature is the same but for the rounding of engines.

    Args:
        support: the shots.
        features: (m, d) of the pictures.
    """
    if not len(support):
        return [-1] * len(features)
    found = []
    for row in np.asarray(features, np.float32):
        off = np.linalg.norm(support.plain - row, axis=1)
        nearest = int(off.argmin())
        found.append(nearest if off[nearest] <= SAME * np.linalg.norm(row) else -1)
    return found
