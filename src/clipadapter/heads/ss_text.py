"""SS-Text: class text moved towards the shots by the closed-form solution of a linearised loss.

Paper: Silva-Rodriguez et al., MICCAI 2025, https://arxiv.org/abs/2506.17500. With unit text t_k, unit features f and
n shots in all, of which n_k are of class k:

    w_k = t_k + s / (n lambda_k) sum of f over the shots of class k,    logits = s cos(x, w_k)

The plus variant also moves each vector away from the others: w_k - unit(2 w_k - mean of w).
Differs from the released code in the default of lambda; `SsText.official` has the one of that code.
A class without a shot keeps its text vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from clipadapter.heads.base import Head, SupportSet
from clipadapter.heads.parameters import ANY_NUMBER, OneOf
from clipadapter.heads.registry import register_head
from clipadapter.utils.functional import cosine_logits, unit

ANCHORS = ("class", "shots", "confidence")


@register_head(
    "ss-text",
    paper="https://arxiv.org/abs/2506.17500",
    fidelity="verified: `SsText.official` gives the logits of the authors' code. The default sets lambda in another "
    "way.",
)
@dataclass(eq=False, repr=False, kw_only=True)
class SsText(Head):
    """Closed-form class vectors from text and shots, for equal and unequal shots.

    Args:
        anchor: lambda_k, the strength that keeps a class near its text: "class" for 1 / n_k, "shots" for 1 / n,
            "confidence" for the mean zero-shot probability of the class for its shots, or a number.
        repel: True for the plus variant.
        floor: least lambda_k, as in the released code.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.0], [1.0, 1.1, 1.0]]
    >>> SsText().fit(X, ["cat", "dog"], text=text).predict([[1.0, 0.98, 1.0]])
    array(['dog'], dtype='<U3')
    """

    needs_text = True
    temperature_prior = (1.5, 1.2, 1.0, 1.0, 1.0)
    recipes = {"official": {"anchor": "shots"}}
    """What the released code calls SS-Text; with ``anchor="class", repel=True`` what it calls SS-Text+."""

    anchor: Annotated[str | float, OneOf(*ANCHORS), ANY_NUMBER] = "class"
    repel: bool = False
    floor: float = 1e-3

    def _fit(self, shots: SupportSet) -> None:
        sums, _ = _sums(shots)
        confidence, _ = self._confidence(shots)
        weight = shots.class_text + self._pull(shots, shots.counts, len(shots.labels), confidence)[:, None] * sums
        self.weight_ = weight - unit(2 * weight - weight.mean(dim=0)) if self.repel else weight
        self.scale_ = shots.scale

    def _logits(self, X: Tensor) -> Tensor:
        return self.scale_ * unit(X) @ unit(self.weight_.to(X.dtype)).T

    def _leave_one_out(self, shots: SupportSet) -> Tensor | None:
        n, labels, x = len(shots.labels), shots.labels, unit(shots.X)
        if n == 1:
            return None
        sums, rows = _sums(shots)
        confidence, own = self._confidence(shots)
        # First all classes with all shots, but n - 1 as their number; then each shot's own class without the shot.
        weight = shots.class_text + self._pull(shots, shots.counts, n - 1, confidence)[:, None] * sums
        remaining = shots.counts[labels] - 1
        # Mean over the other shots of the class.
        left_out_confidence = confidence[labels] + (confidence[labels] - own) / remaining.clamp_min(1)
        pull = self._pull(shots, remaining, n - 1, left_out_confidence)
        moved = shots.class_text[labels] + pull[:, None] * (sums[labels] - rows)
        dots, squares = x @ weight.T, weight.square().sum(dim=1).expand(n, -1).clone()  # both (n, c)
        at = torch.arange(n)
        dots[at, labels], squares[at, labels] = (x * moved).sum(dim=1), moved.square().sum(dim=1)
        if self.repel:
            mean = weight.mean(dim=0) + (moved - weight[labels]) / shots.n_classes  # (n, d), without each shot
            to_mean = mean @ weight.T
            to_mean[at, labels] = (mean * moved).sum(dim=1)
            # Expand x (w - u) and |w - u|^2 with u = unit(2 w - mean), so that no (n, c, d) tensor is needed.
            length = (4 * squares - 4 * to_mean + mean.square().sum(dim=1, keepdim=True)).sqrt()  # of 2 w - mean
            dots = dots - (2 * dots - (x * mean).sum(dim=1, keepdim=True)) / length
            squares = squares - 2 * (2 * squares - to_mean) / length + 1
        return shots.scale * dots / squares.sqrt()

    def _confidence(self, shots: SupportSet) -> tuple[Tensor, Tensor]:
        """Zero-shot probability of the true class: its mean by class (c,), and that of each shot (n,)."""
        probabilities = cosine_logits(shots.X, shots.class_text, shots.scale).softmax(dim=1)
        own = probabilities[torch.arange(len(shots.labels)), shots.labels]
        total = torch.zeros(shots.n_classes, dtype=own.dtype).index_add_(0, shots.labels, own)
        return total / shots.counts.clamp_min(1), own

    def _pull(self, shots: SupportSet, counts: Tensor, n: int, confidence: Tensor) -> Tensor:
        """Factors s / (n lambda_k) of the sums of the shots; 0 for a class without shots."""
        if isinstance(self.anchor, str):
            lam = (1 / counts.clamp_min(1), torch.full_like(counts, 1 / n), confidence)[ANCHORS.index(self.anchor)]
        else:
            lam = torch.full_like(counts, self.anchor)
        return torch.where(counts > 0, shots.scale / (n * lam.clamp_min(self.floor)), 0.0)


def _sums(shots: SupportSet) -> tuple[Tensor, Tensor]:
    """Sums by class (c, d) of the shots' unit-length rows (n, d)."""
    rows = unit(shots.X)
    return torch.zeros(shots.n_classes, rows.shape[1], dtype=rows.dtype).index_add_(0, shots.labels, rows), rows
