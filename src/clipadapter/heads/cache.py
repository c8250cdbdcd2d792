"""The key-value cache of Tip-Adapter, which APE and the trained variants share.

Paper: Zhang et al., ECCV 2022, https://arxiv.org/abs/2207.09519. Keys are the features of the shots, values their
labels. The cache logits of a query x of unit length, its term beside the zero-shot logits (eq. 5), are

    A(x) L,    A(x) = exp(-beta (1 - x F'))

with keys F and one-hot labels L. A is written once, in `affinity_`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from clipadapter.functional import unit
from clipadapter.heads.support import SupportSet

MAX_AFFINITIES = 2**24
"""Affinities held in memory at a time: 64 MB in float32."""

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
    """The key of each shot: the mean of its raw views, scaled to unit length.

    Args:
        views: (n, v, d) raw features.

    Returns:
        (n, d).

    >>> cache_keys(torch.tensor([[[3.0, 0.0], [0.0, 4.0]]]))
    tensor([[0.6000, 0.8000]])
    """
    return unit(views.mean(dim=1))


def affinity_(cosines: Tensor, beta: float) -> Tensor:
    """Affinities ``exp(-beta * (1 - cos))``; overwrites the cosines, since these matrices are large.

    >>> affinity_(torch.tensor([1.0, 0.0]), beta=50.0)
    tensor([1.0000e+00, 1.9287e-22])
    """
    return cosines.sub_(1).mul_(beta).exp_()


def cache_logits(
    queries: Tensor,
    keys: Tensor,
    labels: Tensor,
    n_classes: int,
    beta: float,
    shot_weights: Tensor | None = None,
    leave_one_out: bool = False,
) -> Tensor:
    """Cache logits of queries, a block of queries at a time.

    Args:
        queries: (m, d), unit rows.
        keys: (n, d).
        labels: (n,) class positions.
        n_classes: c.
        beta: sharpness.
        shot_weights: (n,) factors of the affinities; None for 1.
        leave_one_out: query i is the image of key i, and key i is left out for it.

    Returns:
        (m, c).

    >>> cache_logits(torch.eye(2), torch.eye(2), torch.tensor([0, 0]), n_classes=2, beta=0.0)
    tensor([[2., 0.],
            [2., 0.]])
    """
    block = max(1, MAX_AFFINITIES // len(keys))
    if len(queries) <= block:  # without a loop, so that the function can be traced
        affinities = _weighted_affinities(queries, keys, beta, shot_weights, 0 if leave_one_out else None)
        return _sum_by_class(affinities, labels, n_classes)
    logits = queries.new_empty(len(queries), n_classes)
    for start in range(0, len(queries), block):
        part = queries[start : start + block]
        affinities = _weighted_affinities(part, keys, beta, shot_weights, start if leave_one_out else None)
        logits[start : start + block] = _sum_by_class(affinities, labels, n_classes)
    return logits


def cache_logits_of_cosines(
    cosines: Tensor, labels: Tensor, n_classes: int, beta: float, shot_weights: Tensor | None = None
) -> Tensor:
    """Cache logits from products of keys and queries, for training: gradients flow to cosines and weights.

    Args:
        cosines: (n, m) of keys and queries; overwritten.
        labels: (n,) class positions.
        n_classes: c.
        beta: sharpness.
        shot_weights: (n,) factors of the affinities; None for 1.

    Returns:
        (m, c).

    >>> cache_logits_of_cosines(torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([0, 0, 1]), 2, beta=50.0)
    tensor([[2.0000e+00, 1.9287e-22]])
    """
    affinities = affinity_(cosines, beta)
    if shot_weights is not None:
        affinities = affinities * shot_weights[:, None]  # not in place: exp's gradient needs its result
    return _sum_by_class(affinities, labels, n_classes)


def leave_one_out_cache_logits(shots: SupportSet, beta: float) -> Tensor:
    """Cache logits (n, c) of each shot's plain image, from the keys of all other shots.

    Args:
        shots: of a small support set the cosines are stored, so that a search over beta computes them once.
        beta: sharpness.
    """
    if len(shots.labels) ** 2 > MAX_AFFINITIES:
        keys, queries = cache_keys(shots.views), unit(shots.X)
        return cache_logits(queries, keys, shots.labels, shots.n_classes, beta, leave_one_out=True)
    affinities = affinity_(shots.likeness.clone(), beta).fill_diagonal_(0)
    return _sum_by_class(affinities, shots.labels, shots.n_classes)


def multilabel_cache_logits(
    queries: Tensor, keys: Tensor, targets: Tensor, beta: float, leave_one_out: bool = False
) -> Tensor:
    """Cache logits where a shot may have several labels: it counts for each of them.

    Args:
        queries: (m, d), any length.
        keys: (n, d), unit rows.
        targets: (n, c) ones and zeros.
        beta: sharpness.
        leave_one_out: query i is the image of key i, and key i is left out for it.

    Returns:
        (m, c).

    >>> multilabel_cache_logits(torch.eye(2), torch.eye(2), torch.tensor([[1.0, 1.0], [0.0, 1.0]]), beta=0.0)
    tensor([[1., 2.],
            [1., 2.]])
    """
    affinities = affinity_(unit(queries) @ keys.T, beta)  # (m, n)
    if leave_one_out:
        affinities.fill_diagonal_(0)
    return affinities @ targets


def _weighted_affinities(
    queries: Tensor, keys: Tensor, beta: float, shot_weights: Tensor | None, own: int | None
) -> Tensor:
    """(n, b) affinities of queries (b, d); unless ``own`` is None, key ``own + i`` is left out for query i."""
    affinities = affinity_(keys @ queries.T, beta)
    if shot_weights is not None:
        affinities *= shot_weights[:, None]
    if own is not None:
        columns = torch.arange(len(queries))
        affinities[own + columns, columns] = 0
    return affinities


def _sum_by_class(affinities: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """(n, m) to (m, c): the product with the one-hot labels, without that matrix of mostly zeros."""
    if torch.compiler.is_compiling():  # LiteRT has no sum by index
        one_hot = labels[:, None] == torch.arange(n_classes, device=labels.device)
        return affinities.T @ one_hot.to(affinities.dtype)
    sums = affinities.new_zeros(n_classes, affinities.shape[1])
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        # The ONNX graph that torch writes for index_add keeps only one of the rows of a class.
        return sums.scatter_add(0, labels[:, None].expand_as(affinities), affinities).T
    return sums.index_add(0, labels, affinities).T


def grid_values(start: float, stop: float, steps: int) -> tuple[float, ...]:
    """Values of a published grid search: equal steps from ``start``, without ``stop`` itself.

    >>> grid_values(0.0, 1.0, 4)
    (0.0, 0.25, 0.5, 0.75)
    """
    return tuple(i * (stop - start) / steps + start for i in range(steps))
