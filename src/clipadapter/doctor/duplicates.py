"""Duplicates: pictures with equal files, or similar both by features and by perceptual hash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from clipadapter.doctor.findings import Finding, Picture
from clipadapter.doctor.image_quality import MIN_CONTRAST, ImageMeasures
from clipadapter.heads import transductive
from clipadapter.utils.formatting import format_list

MAX_NEIGHBOURS = 12
"""Nearest pictures that are compared; limits memory if hundreds are similar, such as frames of a video."""
NEAR_DUPLICATE_RULES = ((0.75, 10), (0.85, 16), (0.95, 22))
"""(minimum cosine of centred features, maximum number of different bits of 64); each of them makes a pair."""
MAX_BITS_OF_COPIES = 2
"""Different bits of 64 up to which two pictures are copies, whatever their features: those of a copy that was saved
smaller or compressed more may be far away. Pictures with little contrast are left out, since their hashes are noise."""
MIRRORED_RULE = (0.85, 8)
"""The same for a mirrored picture."""
MAX_LISTED_NAMES = 4


@dataclass(frozen=True)
class Neighbours:
    """The nearest pictures of each picture."""

    index: NDArray[np.int64]  # (n, k) positions, nearest first
    cosine: NDArray[np.float32]  # (n, k) of centred features


@dataclass(frozen=True)
class DuplicatePair:
    """Two copies of one picture."""

    first: int  # position
    second: int  # position, greater
    relation: str  # "equal files", "equal hash", "nearly equal" or "mirrored"
    similarity: float  # cosine of their centred features; for an equal hash the share of equal bits


def nearest_neighbours(X: NDArray[np.float32], k: int = MAX_NEIGHBOURS) -> Neighbours:
    """The k nearest pictures of each by the cosine of centred features (n, d).

    The features are centred because encoders differ in the similarity of unrelated pictures. (Few cosines of CLIP are
    below a half.) Cosines of centred features of unrelated pictures are near 0 for every encoder.
    """
    units = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
    units = units - units.mean(axis=0)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    rows = torch.from_numpy(units)
    cosine, index = transductive.nearest_neighbours(rows, rows, k, exclude_self=True)
    return Neighbours(index.numpy(), cosine.numpy())


def find_duplicate_pairs(measures: Sequence[ImageMeasures], neighbours: Neighbours) -> list[DuplicatePair]:
    """All pairs of duplicates; of several equal files, each with the next."""
    by_digest: dict[bytes, list[int]] = {}
    for i, image in enumerate(measures):
        by_digest.setdefault(image.digest, []).append(i)
    pairs = [DuplicatePair(a, b, "equal files", 1.0) for rows in by_digest.values() for a, b in pairwise(rows)]
    min_cosine = min(cosine for cosine, _ in (*NEAR_DUPLICATE_RULES, MIRRORED_RULE))
    compared: set[tuple[int, int]] = set()
    for i, rank in zip(*np.nonzero(neighbours.cosine >= min_cosine), strict=True):
        a, b = sorted((int(i), int(neighbours.index[i, rank])))
        if (a, b) in compared or measures[a].digest == measures[b].digest:
            continue
        compared.add((a, b))
        cosine = float(neighbours.cosine[i, rank])
        if relation := _relation(measures[a], measures[b], cosine):
            pairs.append(DuplicatePair(a, b, relation, min(cosine, 1.0)))
    related = {(pair.first, pair.second) for pair in pairs}
    return pairs + [pair for pair in _pairs_of_equal_hash(measures) if (pair.first, pair.second) not in related]


def _pairs_of_equal_hash(measures: Sequence[ImageMeasures]) -> Iterator[DuplicatePair]:
    """Pairs of files whose hashes differ in `MAX_BITS_OF_COPIES` at most: of one part more than that, one is equal."""
    files = {image.digest: i for i, image in reversed(list(enumerate(measures))) if image.contrast >= MIN_CONTRAST}
    compared: set[tuple[int, int]] = set()
    for part in range(MAX_BITS_OF_COPIES + 1):
        mask = sum(1 << bit for bit in range(part, 64, MAX_BITS_OF_COPIES + 1))
        by_part: dict[int, list[int]] = {}
        for i in sorted(files.values()):
            by_part.setdefault(measures[i].hash & mask, []).append(i)
        for a, b in (pair for rows in by_part.values() for pair in combinations(rows, 2)):
            different_bits = (measures[a].hash ^ measures[b].hash).bit_count()
            if different_bits <= MAX_BITS_OF_COPIES and (a, b) not in compared:
                compared.add((a, b))
                yield DuplicatePair(a, b, "equal hash", 1 - different_bits / 64)


def _relation(a: ImageMeasures, b: ImageMeasures, cosine: float) -> str | None:
    different_bits = (a.hash ^ b.hash).bit_count()
    if any(cosine >= min_cosine and different_bits <= max_bits for min_cosine, max_bits in NEAR_DUPLICATE_RULES):
        return "nearly equal"
    min_cosine, max_bits = MIRRORED_RULE
    if cosine >= min_cosine and (a.hash ^ b.mirrored_hash).bit_count() <= max_bits:
        return "mirrored"
    return None


def group_duplicates(pictures: Sequence[Picture], pairs: Sequence[DuplicatePair]) -> Iterator[Finding]:
    """A finding for each group of duplicates. It is severe if they differ in label or split."""
    for members, group_pairs in _connected_components(len(pictures), pairs):
        group = tuple(pictures[i] for i in members)
        weakest = min(group_pairs, key=lambda pair: pair.similarity)
        has_cosine = weakest.relation in ("nearly equal", "mirrored")
        relation = f"{weakest.relation}, cosine {weakest.similarity:.3f}" if has_cosine else weakest.relation
        names = " = ".join(picture.name for picture in group)
        if len(group) > MAX_LISTED_NAMES:
            names = f"{len(group)} pictures: {format_list((picture.name for picture in group), MAX_LISTED_NAMES)}"
        labels = tuple(sorted({picture.label for picture in group if picture.label is not None}))
        kinds = []
        if len({picture.label for picture in group}) > 1:
            kinds.append("conflict")
        if len({picture.split for picture in group}) > 1:
            kinds.append("leak")
        for kind in kinds or ["duplicate"]:
            yield Finding(kind, weakest.similarity, f"{names} ({relation})", group, labels)


def _connected_components(n: int, pairs: Sequence[DuplicatePair]) -> Iterator[tuple[list[int], list[DuplicatePair]]]:
    """Positions that are connected by pairs, in increasing order, and these pairs."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not pairs:
        return
    edges = np.array([(pair.first, pair.second) for pair in pairs])
    graph = coo_matrix((np.ones(len(pairs)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    _, component = connected_components(graph, directed=False)
    members: dict[int, list[int]] = {}
    for i in sorted(set(edges.ravel().tolist())):
        members.setdefault(int(component[i]), []).append(i)
    component_pairs: dict[int, list[DuplicatePair]] = {}
    for pair in pairs:
        component_pairs.setdefault(int(component[pair.first]), []).append(pair)
    for key, rows in members.items():
        yield rows, component_pairs[key]
