"""Formulas that several methods share, as pure functions of tensors.

Letters: n shots, m queries, c classes, d feature width, v views.
"""

from __future__ import annotations

import torch
from torch import Tensor

ABSENT_LOGIT = -1e4
"""Logit of a class without shots and text: finite, so that it can be saved, and never the largest."""


def unit(x: Tensor) -> Tensor:
    """Rows scaled to Euclidean length one; a row of zeros stays zero.

    Args:
        x: (..., d).

    Returns:
        (..., d), same dtype.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    norm = x.norm(dim=-1, keepdim=True)
    return x / norm.clamp_min(torch.finfo(x.dtype).tiny)


def cosine_logits(features: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """Scaled cosine between each feature and each class weight.

    Args:
        features: (m, d), any length.
        weight: (c, d), any length.
        scale: CLIP's ``exp(logit_scale)``.

    Returns:
        Logits (m, c).

    >>> cosine_logits(torch.tensor([[2.0, 0.0]]), torch.eye(2), scale=10.0)
    tensor([[10.,  0.]])
    """
    return scale * unit(features) @ unit(weight).T


def ensemble(embeddings: Tensor) -> Tensor:
    """One unit vector from several prompts of one class: normalise, mean, normalise.

    Args:
        embeddings: (p, d) raw text embeddings of p prompts.

    Returns:
        (d,) of length one (Radford et al. 2021, section 3.1.4).

    >>> ensemble(torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
    tensor([0.7071, 0.7071])
    """
    return unit(unit(embeddings).mean(dim=0))
