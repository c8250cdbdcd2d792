"""Selection of feature channels by APE (Zhu et al., ICCV 2023, https://arxiv.org/abs/2304.01195, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def interclass_similarity(text: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
    """Similarity of different classes in each channel: the mean product of a vector of one class and one of another.

    The vectors of a class are its text (c, d) and its keys (n, d). All pairs of classes have the same weight, whatever
    their numbers of shots.

    >>> interclass_similarity(torch.eye(2), torch.tensor([[0.6, 0.8]]), torch.tensor([0]))
    tensor([0.0000, 0.4000])
    """
    c = len(text)
    counts = 1 + torch.bincount(labels, minlength=c).to(text.dtype)
    means = text.index_add(0, labels, keys) / counts[:, None]  # (c, d)
    # The sum over pairs of different classes is the square of the sum minus the squares: no loop over pairs.
    pairs = means.sum(dim=0).square() - means.square().sum(dim=0)
    return pairs / (c * (c - 1))


def select_channels(
    text: Tensor, keys: Tensor, labels: Tensor, fraction: float, similarity_weight: float, variance_weight: float
) -> Tensor:
    """Channels (q,) with a low interclass similarity and a high variance of class text, the best first.

    Of unit class text (c, d) and unit rows (n, d) with class positions (n,); ``fraction`` of the channels is kept.

    >>> text = torch.tensor([[0.8, 0.0, 0.6], [0.8, 0.6, 0.0]])
    >>> select_channels(text, text, torch.tensor([0, 1]), 0.67, 0.5, 0.5)
    tensor([1, 2])
    """
    similarity = interclass_similarity(text, keys, labels)
    criterion = variance_weight * text.var(dim=0) - similarity_weight * similarity  # unbiased variance
    return criterion.argsort(descending=True, stable=True)[: max(1, round(fraction * text.shape[1]))]
