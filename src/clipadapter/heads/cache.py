"""The cache of shots that Tip-Adapter and its relatives add to zero-shot CLIP (https://arxiv.org/abs/2207.09519)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from clipadapter.errors import InputError
from clipadapter.functional import unit
from clipadapter.heads._shots import SupportSet

BLOCK = 2**24
"""Affinities in memory at once."""

INITIAL_ALPHA: Mapping[str, float] = MappingProxyType(
    {
        "caltech101": 3.0,
        "oxford_pets": 1.17,
        "stanford_cars": 3.0,
        "oxford_flowers": 10.0,
        "food101": 1.17,
        "fgvc_aircraft": 5.0,
        "sun397": 1.17,
        "dtd": 2.0,
        "eurosat": 2.0,
        "ucf101": 3.0,
        "imagenet": 1.17,
    }
)
"""Tip-Adapter's alpha before its search, by data set."""

INITIAL_BETA = 1.0
"""Tip-Adapter's beta before its search, on every data set."""


def cache_keys(views: Tensor) -> Tensor:
    """The key of each shot: the mean of its raw views, at unit length.

    Args:
        views: (n, v, d) raw features.

    Returns:
        (n, d).

    >>> cache_keys(torch.tensor([[[3.0, 0.0], [0.0, 4.0]]]))
    tensor([[0.6000, 0.8000]])
    """
    return unit(views.mean(dim=1))


def class_sums(similarity: Tensor, labels: Tensor, n_classes: int, beta: float, share: Tensor | None = None) -> Tensor:
    """Affinities ``exp(-beta * (1 - similarity))``, summed over the shots of each class.

    Args:
        similarity: (n, m) of shots and queries.
        labels: (n,) class positions.
        n_classes: c.
        beta: sharpness.
        share: (n,) weight of each shot; None for 1.

    Returns:
        (m, c).

    >>> class_sums(torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([0, 0, 1]), 2, beta=50.0)
    tensor([[2.0000e+00, 1.9287e-22]])
    """
    affinity = torch.exp(-beta * (1 - similarity))
    return _by_class(affinity if share is None else affinity * share[:, None], labels, n_classes)


def _by_class(affinity: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """(n, m) to (m, c): the product with the one-hot labels, without that matrix, which is nearly all zeros."""
    sums = affinity.new_zeros(n_classes, affinity.shape[1])
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        # As ONNX, torch writes the other in a way that keeps but one of the rows of a class.
        return sums.scatter_add(0, labels[:, None].expand_as(affinity), affinity).T
    return sums.index_add(0, labels, affinity).T


def cache_logits(
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    n_classes: int,
    beta: float,
    share: Tensor | None = None,
    without_own: bool = False,
) -> Tensor:
    """What the cache says of each query: `class_sums` of the products of keys and queries, in blocks of queries.

    Args:
        queries: (m, d), unit rows.
        keys: (n, d).
        labels: (n,) class positions.
        n_classes: c.
        beta: sharpness.
        share: (n,) weight of each shot; None for 1.
        without_own: query i is the picture of key i, and is answered without that key.

    Returns:
        (m, c).
    """
    block = max(1, BLOCK // len(keys))
    if len(queries) <= block:  # in one go, which a graph can follow
        return _by_class(_affinity(queries, keys, beta, share, 0 if without_own else None), labels, n_classes)
    out = queries.new_empty(len(queries), n_classes)
    for start in range(0, len(queries), block):
        affinity = _affinity(queries[start : start + block], keys, beta, share, start if without_own else None)
        out[start : start + block] = _by_class(affinity, labels, n_classes)
    return out


def _affinity(queries: Tensor, keys: Tensor, beta: float, share: Tensor | None, own: int | None) -> Tensor:
    """(n, b) of queries (b, d), of which the i-th is answered without the key ``own + i``."""
    affinity = (keys @ queries.T).sub_(1).mul_(beta).exp_()  # in place: it is large
    if share is not None:
        affinity *= share[:, None]
    if own is not None:
        places = torch.arange(len(queries))
        affinity[own + places, places] = 0
    return affinity


def votes_of_others(shots: SupportSet, beta: float) -> Tensor:
    """What the cache says of each shot's plain picture without the shot itself: (n, c).

    Args:
        shots: all of them; few enough keep their cosines, so that the next beta costs less.
        beta: sharpness.
    """
    if len(shots.labels) ** 2 > BLOCK:
        keys, queries = cache_keys(shots.views), unit(shots.X)
        return cache_logits(queries, keys, shots.labels, shots.n_classes, beta, without_own=True)
    affinity = (shots.likeness - 1).mul_(beta).exp_().fill_diagonal_(0)
    return _by_class(affinity, shots.labels, shots.n_classes)


def check_not_negative(**parameters: float) -> None:
    """Refuse parameters that are negative or not finite, by name."""
    for name, value in parameters.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name} must be 0 or more and finite, but is {value}")


def grid_values(start: float, stop: float, steps: int) -> tuple[float, ...]:
    """Values of a search as published: equal steps from ``start``, without ``stop`` itself.

    >>> grid_values(0.0, 1.0, 4)
    (0.0, 0.25, 0.5, 0.75)
    """
    return tuple(i * (stop - start) / steps + start for i in range(steps))
