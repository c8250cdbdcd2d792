"""APE's choice of channels (Zhu et al., ICCV 2023, https://arxiv.org/abs/2304.01195, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from clipadapter.errors import InputError


def class_similarity(text: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
    """How alike different classes are in each channel: the mean product of vectors of two classes.

    A class's vectors are its text and its keys. All pairs of classes weigh the same, whatever their numbers of shots.

    Args:
        text: (c, d) unit class text.
        keys: (n, d) unit rows.
        labels: (n,) class positions.

    Returns:
        (d,).

    >>> class_similarity(torch.eye(2), torch.tensor([[0.6, 0.8]]), torch.tensor([0]))
    tensor([0.0000, 0.4000])
    """
    c = len(text)
    counts = 1 + torch.bincount(labels, minlength=c).to(text.dtype)
    means = text.index_add(0, labels, keys) / counts[:, None]  # (c, d)
    # The sum over pairs of different classes is the square of the sum less the squares: no loop over pairs.
    pairs = means.sum(dim=0).square() - means.square().sum(dim=0)
    return pairs / (c * (c - 1))


def choose_channels(
    text: Tensor, keys: Tensor, labels: Tensor, fraction: float, similarity_weight: float, variance_weight: float
) -> Tensor:
    """Channels in which classes are unlike each other and class text varies, the best first.

    Args:
        text: (c, d) unit class text.
        keys: (n, d) unit rows.
        labels: (n,) class positions.
        fraction: of the channels to keep, above 0 and up to 1.
        similarity_weight: of the similarity of classes, which counts against a channel.
        variance_weight: of the variance of class text over the classes.

    Returns:
        (q,) positions.

    >>> text = torch.tensor([[0.8, 0.0, 0.6], [0.8, 0.6, 0.0]])
    >>> choose_channels(text, text, torch.tensor([0, 1]), 0.67, 0.5, 0.5)
    tensor([1, 2])
    """
    if not 0 < fraction <= 1:
        raise InputError(f"channels must be a fraction above 0 and up to 1, but is {fraction}")
    similarity = class_similarity(text, keys, labels)
    criterion = variance_weight * text.var(dim=0) - similarity_weight * similarity  # unbiased variance
    return criterion.argsort(descending=True, stable=True)[: max(1, round(fraction * text.shape[1]))]
