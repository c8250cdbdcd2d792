"""Formulas that several methods share, as pure functions of tensors.

Letters: n shots, m queries, c classes, d feature width, v views.
"""

from __future__ import annotations

import torch
from torch import Tensor

ABSENT_LOGIT = -1e4  # logit of a class without shots and text: finite, so that it can be saved, and never the largest


def unit(x: Tensor) -> Tensor:
    """Rows (..., d) scaled to Euclidean length one; a row of zeros stays zero."""
    norm = x.norm(dim=-1, keepdim=True)
    return x / norm.clamp_min(torch.finfo(x.dtype).tiny)


def cosine_logits(features: Tensor, weight: Tensor, scale: float = 1.0) -> Tensor:
    """Logits (m, c): scaled cosines between features (m, d) and class weights (c, d), both of any length."""
    return scale * unit(features) @ unit(weight).T


def solve_ridge(matrix: Tensor, right: Tensor, ridge: Tensor | float) -> Tensor:
    """``(matrix + diag(ridge))^-1 right`` of a positive semi-definite matrix, of which the lower triangle is read.

    The diagonal of the matrix is overwritten.
    """
    matrix.diagonal().add_(ridge)
    return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))


def ensemble(embeddings: Tensor) -> Tensor:
    """One unit vector (d,) from embeddings (p, d) of prompts of a class (Radford et al. 2021, section 3.1.4)."""
    return unit(unit(embeddings).mean(dim=0))
