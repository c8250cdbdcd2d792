"""Gaussians of classes without pictures, made of their text and other classes' pictures (GDA's base-to-new mode)."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-12
"""Trace below which there is no variance to speak of; the pseudo-inverse of the released code is then zero."""
TEXT_COPIES = 16
"""How many pictures a text stands for, as published."""


def made_up(views: Tensor, text: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Means and shared precision of classes that are known by their text alone.

    A class's mean is that of the views nearest to its text and of copies of the text; its covariance is that of these
    views about the text. The precision is the mean of the classes' own, each shrunk as `Gda.official` does.

    Args:
        views: (r, d) unit features of pictures of other classes.
        text: (c, d) unit class text, float64.
        neighbours: k, views to take for each class; fewer if there are not so many.

    Returns:
        (c, d) and (d, d), float64.

    >>> made_up(torch.eye(2), torch.eye(2).double(), neighbours=1)[0]
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    (c, d), k = text.shape, min(neighbours, len(views))
    means, precision = torch.empty_like(text), torch.zeros(d, d, dtype=text.dtype)
    for i, own in enumerate(text):
        near = views[(views @ own.to(views.dtype)).topk(k).indices].double()  # (k, d)
        means[i] = (near.sum(dim=0) + TEXT_COPIES * own) / (k + TEXT_COPIES)
        off = near - own
        trace = float(off.square().sum()) / max(k - 1, 1)
        if trace > SMALLEST:
            inner = off @ off.T  # (k, k): Woodbury's identity, as k is mostly far smaller than d
            inner.diagonal().add_(trace)
            precision += (torch.eye(d, dtype=text.dtype) - off.T @ torch.linalg.solve(inner, off)) * (d / (c * trace))
    return means, precision
