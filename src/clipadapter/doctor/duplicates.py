"""One picture that lies in several places: equal bytes, or alike by features and by perceptual hash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clipadapter.data.dataset import format_list
from clipadapter.doctor.findings import Finding, Picture
from clipadapter.doctor.image_quality import Look

NEIGHBOURS = 12
"""How many of a picture's nearest are looked at: bounds memory where hundreds are alike, such as frames of a film."""
CELLS = 1 << 23
"""Cosines that are held at a time."""
RULES = ((0.75, 10), (0.85, 16), (0.95, 22))
"""(cosine of centred features at least, bits of 64 that differ at most); any of them makes a pair."""
MIRROR = (0.85, 8)
"""The same for a mirrored picture."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest pictures of each.

    Args:
        index: (n, k) positions, nearest first.
        cosine: (n, k) of centred features.
    """

    index: NDArray[np.int64]
    cosine: NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """Two pictures that are one.

    Args:
        first: position.
        second: position, greater.
        how: "equal files", "nearly equal" or "mirrored".
        cosine: of their centred features.
    """

    first: int
    second: int
    how: str
    cosine: float


def neighbours(X: NDArray[np.float32], k: int = NEIGHBOURS) -> Neighbours:
    """The k nearest of each picture by cosine of features about their mean, block by block.

    Encoders differ in how alike all pictures are to them (CLIP's cosines hardly fall below a half); about the mean,
    strangers are near 0 for each.

    Args:
        X: (n, d) raw features.
        k: at most n - 1 are given.

    >>> neighbours(np.array([[1, 0], [0.9, 0.1], [-1, 0], [-1, 0.1]], np.float32), 1).index.ravel()
    array([1, 0, 3, 2])
    """
    units = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
    units = units - units.mean(axis=0)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    n = len(X)
    k = min(k, n - 1)
    index, cosine = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    block = max(1, CELLS // n)
    for start in range(0, n if k else 0, block):
        rows = np.arange(start, min(start + block, n))
        similar = units[rows] @ units.T  # (b, n)
        similar[np.arange(len(rows)), rows] = -2
        best = np.argpartition(similar, n - k, axis=1)[:, n - k :]
        near = np.take_along_axis(similar, best, axis=1)
        order = np.argsort(-near, axis=1, kind="stable")
        index[rows], cosine[rows] = np.take_along_axis(best, order, axis=1), np.take_along_axis(near, order, axis=1)
    return Neighbours(index, cosine)


def pairs(looks: Sequence[Look], near: Neighbours) -> list[Pair]:
    """All pairs that are one picture; of files that are equal, each with the next.

    Args:
        looks: of n pictures.
        near: the same pictures.
    """
    seen: dict[bytes, list[int]] = {}
    for i, look in enumerate(looks):
        seen.setdefault(look.digest, []).append(i)
    found = [Pair(a, b, "equal files", 1.0) for rows in seen.values() for a, b in pairwise(rows)]
    floor = min(cosine for cosine, _ in (*RULES, MIRROR))
    done: set[tuple[int, int]] = set()
    for i, place in zip(*np.nonzero(near.cosine >= floor), strict=True):
        a, b = sorted((int(i), int(near.index[i, place])))
        if (a, b) in done or looks[a].digest == looks[b].digest:
            continue
        done.add((a, b))
        cosine = float(near.cosine[i, place])
        how = _alike(looks[a], looks[b], cosine)
        if how:
            found.append(Pair(a, b, how, min(cosine, 1.0)))
    return found


def _alike(a: Look, b: Look, cosine: float) -> str | None:
    differ = (a.code ^ b.code).bit_count()
    if any(cosine >= least and differ <= most for least, most in RULES):
        return "nearly equal"
    if cosine >= MIRROR[0] and (a.code ^ b.mirrored).bit_count() <= MIRROR[1]:
        return "mirrored"
    return None


def twins(pictures: Sequence[Picture], found: Sequence[Pair]) -> Iterator[Finding]:
    """A finding for each group of pictures that are one: severe if they differ in label or part.

    Args:
        pictures: n.
        found: pairs of their positions.
    """
    for members, own in _groups(len(pictures), found):
        group = tuple(pictures[i] for i in members)
        several_labels = len({picture.label for picture in group}) > 1
        several_parts = len({picture.split for picture in group}) > 1
        weakest = min(own, key=lambda pair: pair.cosine)
        how = weakest.how if weakest.how == "equal files" else f"{weakest.how}, cosine {weakest.cosine:.3f}"
        words = f"{' = '.join(picture.name for picture in group[:4])}"
        if len(group) > 4:
            words = f"{len(group)} pictures: {format_list((picture.name for picture in group), 4)}"
        labels = tuple(sorted({picture.label for picture in group if picture.label is not None}))
        if several_labels:
            yield Finding("conflict", weakest.cosine, f"{words} ({how})", group, labels)
        if several_parts:
            yield Finding("leak", weakest.cosine, f"{words} ({how})", group, labels)
        if not several_labels and not several_parts:
            yield Finding("duplicate", weakest.cosine, f"{words} ({how})", group, labels)


def _groups(n: int, found: Sequence[Pair]) -> Iterator[tuple[list[int], list[Pair]]]:
    """Positions that hang together, rising, and the pairs that tie them."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not found:
        return
    ends = np.array([(pair.first, pair.second) for pair in found])
    graph = coo_matrix((np.ones(len(found)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    _, component = connected_components(graph, directed=False)
    members: dict[int, list[int]] = {}
    for i in sorted(set(ends.ravel().tolist())):
        members.setdefault(int(component[i]), []).append(i)
    ties: dict[int, list[Pair]] = {}
    for pair in found:
        ties.setdefault(int(component[pair.first]), []).append(pair)
    for name, rows in members.items():
        yield rows, ties[name]
