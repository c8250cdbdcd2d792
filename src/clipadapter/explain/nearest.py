"""The shots that are most similar to a picture, and what they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.features import FeatureSet
from clipadapter.utils.prediction import unit_rows

Array = NDArray[Any]
CHUNK_ROWS = 1024


def nearest_rows(queries: Array, rows: Array, count: int) -> tuple[Array, Array]:
    """(m, k) rows with the largest cosine to each query, the nearest first, and these cosines; k is at most n.

    >>> nearest_rows(np.array([[2.0, 0.0]]), np.array([[0.0, 1.0], [0.6, 0.8], [3.0, 0.0]]), 2)
    (array([[2, 1]]), array([[1. , 0.6]]))
    """
    k = min(count, len(rows))
    nearest, cosines = np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k))
    units = unit_rows(rows).T
    for start in range(0, len(queries) if k else 0, CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        similarity = np.clip(unit_rows(queries[part]) @ units, -1, 1)
        nearest[part] = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        cosines[part] = np.take_along_axis(similarity, nearest[part], axis=1)
    return nearest, cosines


def name_shot(support: FeatureSet, i: int) -> tuple[str, bool]:
    """The path of a shot's picture and True; or, if that is not known, such as "shot 3 of cat" and False."""
    sources = support.provenance.get("sources") or ()
    source = str(sources[i]) if len(sources) == len(support) else ""
    # A picture that was given as pixels has a name too, but no file of that name.
    if Path(source).suffix or (source and Path(source).is_file()):
        return source, True
    number = i + 1 if support.targets is not None else support.y[: i + 1].count(support.y[i])
    return f"shot {number} of {label_of(support, i)}", False


def label_of(support: FeatureSet, i: int) -> str:
    """The class of a shot; several are separated by commas."""
    return ", ".join(support.class_names_of(i)) or "none of the classes"
