"""BDC-Adapter: likeness to class prototypes by Brownian distance covariance, beside a one-layer residual net.

Paper: Zhang et al., BMVC 2023, https://arxiv.org/abs/2309.01256; the BDC matrix as in Xie et al., CVPR 2022,
https://arxiv.org/abs/2204.04567. The authors' code is not public: this is BDC-Adapter in style, not a reproduction.
From the papers: B(x), the double-centred matrix of the distances between the d channels of a picture, here of one
observation each, so |x_i - x_j|; prototypes of such matrices; and a second prediction by a one-layer multi-modal net.
Ours: all else. With P_k the mean over the shots of class k of B / ||B||, and R a d x d matrix that starts at zero,

    bdc_k(x) = <B(x), P_k> / (||B(x)|| ||P_k||),
    logits = s unit(x + x R) T' + alpha exp(-beta (1 - bdc_k(x)))

R is trained on the shots and on the class text as one more shot of each class. bdc is a distance correlation, squared.
A class without a shot gets the mean of the others' exponentials: its text decides.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from clipadapter.errors import InputError
from clipadapter.heads.base import NOT_NEGATIVE, Head, SupportSet, register_head
from clipadapter.heads.losses import Loss, trained_cosines
from clipadapter.heads.trained_head import TrainedHead
from clipadapter.utils.functional import unit

SHOTS_PER_GROUP = 16  # shots of a class whose distances are summed at once
PAIRS_PER_BLOCK, DISTANCES_PER_TILE = 1 << 12, 1 << 19
"""Pairs of channels per block, and values in an array of the distances of queries: 2 MB, which fit the processor's
cache."""
MAX_PROTOTYPE_VALUES = 1 << 22  # values in an array of prototypes, for any number of classes
MAX_GRAPH_VALUES = 1 << 28  # values of prototypes in an exported graph: 1 GiB
ROWS_PER_SORT = 1024  # rows that are sorted at a time, in float64


@register_head("bdc-adapter", version=2, paper="https://arxiv.org/abs/2309.01256")
class BdcAdapter(TrainedHead):
    """Distance correlation to class prototypes, beside a residual layer on picture features trained with text.

    Exact, in memory of n d numbers: the d x d matrix of a prototype is computed in each prediction, a few rows at a
    time. That takes n d^2 / 2 steps for up to 2^24 / (d + c) queries, so predict many at once.

    Args:
        alpha: weight of the prototypes, in logits; 0 is the residual net alone.
        beta: sharpness of the likeness to the prototypes.
        lr: highest learning rate of the residual net.
        weight_decay: of AdamW, decoupled.
        epochs: passes over shots and text; None for as many as make ``steps`` steps; 0 is zero-shot beside the
            prototypes.
        steps: fewest optimizer steps if ``epochs`` is None.
        seed: of the shuffling.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.0, 0.0], [1.0, 1.1, 0.0, 1.0]]
    >>> BdcAdapter().fit(X, ["cat", "dog"], text=text).predict(X)
    array(['cat', 'dog'], dtype='<U3')

    Fidelity: partial: The Brownian distance covariance is as published. The rest is ours, because no code of the
    authors is public.
    """

    picture_features = ("rows_",)
    training = {"optimizer": "adamw", "min_epochs": 1}
    planned_epochs = Head.planned_epochs  # it takes no view of its own in each epoch: text is among the rows
    temperature_prior = (1.1, 1.2, 1.0, 1.2, 1.6)

    alpha: float = 20.0
    beta: Annotated[float, NOT_NEGATIVE] = 1.0
    lr: float = 1e-4
    weight_decay: float = 0.01
    epochs: Annotated[int | None, NOT_NEGATIVE] = None
    steps: int = 250

    def _fit(self, shots: SupportSet) -> None:
        order = shots.labels.argsort(stable=True)
        self.labels_, self.counts_ = shots.labels[order], shots.counts
        rows = unit(unit(shots.views[order]).mean(dim=1))
        _, length = _sums_and_length(rows)
        # Distances are as long as their features: scaled so, a shot's matrix weighs 1 / n_k in the mean.
        self.rows_ = rows / (length * self.counts_[self.labels_])[:, None]
        self.weight_, self.scale_ = shots.class_text, shots.scale
        views = unit(shots.views)
        inputs = torch.cat([views, shots.class_text[:, None].expand(-1, views.shape[1], -1)])
        residual = torch.zeros(inputs.shape[2], inputs.shape[2], dtype=inputs.dtype)

        def logits(x: Tensor) -> Tensor:
            return shots.scale * trained_cosines(torch.addmm(x, x, residual), shots.class_text)

        self._learn(shots, inputs, {"residual_": residual}, logits)

    def _loss_of(self, shots: SupportSet, rows: Tensor) -> Loss:
        """That of all shots, which the rows always are, and of the class text after them."""
        every = torch.arange(len(shots.views))
        return replace(super()._loss_of(shots, every), labels=torch.cat([shots.labels, torch.arange(shots.n_classes)]))

    def _logits(self, X: Tensor) -> Tensor:
        x = unit(X)
        moved = unit(torch.addmm(x, x, self.residual_.to(X.dtype)))
        logits = self.scale_ * moved @ self.weight_.to(X.dtype).T
        if self.alpha == 0:
            return logits
        present = self.counts_ > 0
        correlated = correlations_as_graph if torch.jit.is_tracing() else correlations  # type: ignore[attr-defined]
        affinities = (self.beta * (correlated(x, self.rows_.to(X.dtype), self.labels_, len(self.counts_)) - 1)).exp()
        mean = (affinities * present).sum(dim=1, keepdim=True) / int(present.sum())
        return logits + self.alpha * torch.where(present, affinities, mean)

    def _numbers_per_row(self) -> int:
        # Not one for each shot: rows are compared with prototypes, which are made anew for each block of rows.
        return self.n_features_in_ + len(self.classes_)


def _sums_and_length(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row's distances |x_i - x_j|: their sums over j (n, d), and the length of the centred matrix (n,).

    Among the sorted x, the sum of distances for the one of rank r is x (2 r + 2 - d) + total - 2 (sum up to x).
    """
    d = x.shape[1]
    rank = 2.0 * torch.arange(1, d + 1, dtype=torch.float64) - d
    every_sums, every_length = [], []
    for rows in x.split(ROWS_PER_SORT):
        ordered, order = rows.double().sort(dim=1)
        running_sum = ordered.cumsum(dim=1)
        sums = torch.empty_like(ordered).scatter_(1, order, ordered * rank + running_sum[:, -1:] - 2 * running_sum)
        squares = 2 * d * ordered.square().sum(dim=1) - 2 * running_sum[:, -1].square()
        every_sums.append(sums.to(x.dtype))
        every_length.append(_centred(squares, sums).sqrt().clamp_min(torch.finfo(x.dtype).tiny).to(x.dtype))
    return torch.cat(every_sums), torch.cat(every_length)


def _centred(squares: Tensor, sums: Tensor) -> Tensor:
    """Sum of squares after double centring, from that before (n,) and the row sums (n, d)."""
    d = sums.shape[1]
    return (squares - 2 / d * sums.square().sum(dim=1) + sums.sum(dim=1).square() / d**2).clamp_min(0)


def correlations(x: Tensor, rows: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Cosine (m, c) between the centred distance matrix of each query (m, d) and the sum of those of a class.

    The rows (n, d) are shots in the order of their classes (n,), each as long as it should weigh. A class without a
    shot has 0.
    """
    m, d = x.shape
    # Shots of one class, at most SHOTS_PER_GROUP together and padded with zeros: (g, d, shots), of classes (g,).
    counts = torch.bincount(labels)
    size = min(SHOTS_PER_GROUP, int(counts.max()))
    position = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels]  # of a shot within its class
    per_class = (counts + size - 1) // size
    groups = torch.zeros(int(per_class.sum()), d, size, dtype=rows.dtype)
    groups[(per_class.cumsum(0) - per_class)[labels] + position // size, :, position % size] = rows
    classes = torch.arange(len(counts)).repeat_interleave(per_class)
    _, length = _sums_and_length(x)
    row_sums, _ = _sums_and_length(rows)
    by_class = torch.zeros(n_classes, d, dtype=torch.float64).index_add_(0, labels, row_sums.double())
    mean = (by_class / d).to(x.dtype)
    products, squares = torch.zeros(m, n_classes, dtype=x.dtype), torch.zeros(n_classes, dtype=torch.float64)
    strip = max(1, min(PAIRS_PER_BLOCK, MAX_PROTOTYPE_VALUES // max(len(groups), n_classes)) // d)
    for start in range(0, d, strip):
        stop = min(start + strip, d)
        upper = torch.ones(stop - start, d - start, dtype=x.dtype).triu(1)  # each pair of channels once
        distances = torch.cdist(groups[:, start:stop], groups[:, start:], p=1) * upper
        prototypes = torch.zeros(n_classes, *upper.shape, dtype=x.dtype).index_add_(0, classes, distances)
        squares += prototypes.square().sum(dim=(1, 2)).double()
        # One centred side is enough for the product, and of prototypes there are fewer than of queries.
        prototypes.sub_(mean[:, start:stop, None]).sub_(mean[:, None, start:]).add_(mean.mean(dim=1)[:, None, None])
        weight = prototypes.mul_(upper).flatten(1).T
        tile_rows = max(1, DISTANCES_PER_TILE // upper.numel())
        for queries, sums in zip(x.split(tile_rows), products.split(tile_rows), strict=True):
            distances = (queries[:, start:stop, None] - queries[:, None, start:]).abs_()
            sums.addmm_(distances.flatten(1), weight)
    prototype_length = _centred(2 * squares, by_class).sqrt().to(x.dtype)
    return 2 * products / (length[:, None] * prototype_length).clamp_min(torch.finfo(x.dtype).tiny)


def correlations_as_graph(x: Tensor, rows: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """`correlations` for a trace: the prototypes' matrices are constants of the graph, d^2 / 2 numbers per class."""
    r, y = rows.double().numpy(), labels.numpy()
    d = r.shape[1]
    left, right = np.triu_indices(d, 1)  # each pair of channels once
    # So many more that they can be cut into parts: a runtime may add up a long row number by number.
    n_padding = -len(left) % PAIRS_PER_BLOCK
    left, right = (np.concatenate([side, np.zeros(n_padding, np.int64)]) for side in (left, right))
    if n_classes * len(left) > MAX_GRAPH_VALUES:
        size = n_classes * len(left) / 2**28
        raise InputError(
            f"BdcAdapter compares with a matrix of {d} x {d} for each of {n_classes} classes, {size:.1f} GiB as a "
            "graph: use another head"
        )
    prototypes, length = np.zeros((n_classes, len(left))), np.zeros(n_classes)
    for k in np.unique(y):
        matrix = np.asarray(sum(np.abs(row[:, None] - row) for row in r[y == k]))
        matrix -= matrix.mean(axis=0)
        matrix -= matrix.mean(axis=1, keepdims=True)
        prototypes[k], length[k] = matrix[left, right], np.linalg.norm(matrix)
    prototypes[:, len(left) - n_padding :] = 0
    weight = 2 * prototypes / np.maximum(length, 1e-300)[:, None]
    in_parts = weight.astype(np.float32).reshape(n_classes, -1, PAIRS_PER_BLOCK)
    parts = torch.from_numpy(in_parts).permute(1, 2, 0)  # (p, PAIRS_PER_BLOCK, c)
    of_one = torch.from_numpy(weight.sum(axis=1)).to(x.dtype)
    ordered, _ = x.sort(dim=1)
    rank = 2.0 * torch.arange(1, d + 1, dtype=x.dtype) - d
    running_sum = ordered.cumsum(dim=1)
    # The means of each channel's distances, in some order.
    sums = (ordered * rank + running_sum[:, -1:] - 2 * running_sum) / d
    mean = sums.mean(dim=1, keepdim=True)
    # What all distances have in common is taken out first: in float32 little would be left of the small rest.
    pairs = (x[:, torch.from_numpy(left)] - x[:, torch.from_numpy(right)]).abs() - mean
    pairs = pairs.unflatten(1, (-1, PAIRS_PER_BLOCK)).transpose(0, 1)  # (p, m, PAIRS_PER_BLOCK)
    product = (pairs @ parts.to(x.dtype)).sum(dim=0) + mean * of_one
    squares = pairs.square().sum(dim=2).sum(dim=0)[:, None]
    own = 2 * squares + (d - 2 * n_padding) * mean.square() - 2 * d * (sums - mean).square().sum(dim=1, keepdim=True)
    return product / own.clamp_min(0).sqrt().clamp_min(torch.finfo(x.dtype).tiny)
