"""RLA: a linear map on picture features that starts at the identity and is kept near it.

Paper: Fahes et al., https://arxiv.org/abs/2410.05270 (ProLIP), which compares with this regularised linear adapter.
Differs from the paper, whose encoders all have a logit scale of 100: by default the penalty is one on the change of the
logits, so that it means the same at any scale. Where classes have unequal shots, its "shots a class" is their mean over
the classes that have any. Steps take 256 pictures at most where the released code takes all, and each draws a view of
each picture where that code takes the views in turn; `Rla.official` does as the code does.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.functional import unit
from clipadapter.heads._base import Head, Shots
from clipadapter.heads._registry import register_head
from clipadapter.heads._training import Recipe, minimise

CLIP_SCALE = 100.0
"""Logit scale of the encoders that the paper's penalty was made for."""


@register_head("rla", paper="https://arxiv.org/abs/2410.05270")
class Rla(Head):
    """Zero-shot on features ``M f``; M is trained by cross-entropy plus ``penalty * ||M - I||_F^2``.

    Args:
        penalty: strength of the pull of M to the identity; "1/n" for one over the number of shots a class, as in the
            paper; "auto" for the same times (logit scale / 100) squared, which with CLIP is one.
        lr: highest learning rate of Adam, whose epsilon is 1e-4 as in the released code.
        schedule: "cosine", "cosine-epoch" (the rate changes once an epoch) or "constant".
        steps: optimizer steps; the last pass over the shots is completed.
        batch_size: shots a step; None for all.
        cycle_views: use view 1, 2 ... and 0 in turn for all pictures of a step, in place of a drawn one of each.
        seed: of shuffling and of the choice of views.
        progress: show a bar on stderr while training.

    >>> from clipadapter.heads import ClassText
    >>> text = ClassText(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.5], [0.9, 1.0, 0.0]]
    >>> Rla().fit(X, ["cat", "dog"], text=text).predict(X)
    array(['cat', 'dog'], dtype='<U3')
    """

    needs_text = True

    def __init__(
        self,
        penalty: float | str = "auto",
        lr: float = 1e-3,
        schedule: str = "cosine",
        steps: int = 300,
        batch_size: int | None = 256,
        cycle_views: bool = False,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.penalty = penalty
        self.lr = lr
        self.schedule = schedule
        self.steps = steps
        self.batch_size = batch_size
        self.cycle_views = cycle_views
        self.seed = seed
        self.progress = progress

    @classmethod
    def official(cls, **changes: Any) -> Self:
        """The recipe of the authors' released code: 300 full-batch steps through the views in turn.

        Args:
            changes: parameters to set otherwise.
        """
        return cls(**{"penalty": "1/n", "batch_size": None, "cycle_views": True, **changes})

    def _fit(self, shots: Shots) -> None:
        assert shots.text is not None
        text, n_views, d = shots.text, shots.views.shape[1], shots.views.shape[2]
        self.penalty_ = self._strength(shots)
        # M - I: the penalty is its square, and it stays exact where M is near the identity.
        shift = torch.zeros(d, d, dtype=text.dtype, requires_grad=True)
        turn = 0

        def loss(batch: Tensor, view: Tensor) -> Tensor:
            nonlocal turn
            turn = (turn + 1) % n_views
            x = unit(shots.views[batch, turn if self.cycle_views else view])
            adapted = x + x @ shift.T
            # The bound is for a picture of zeros, at whose length unit() has no gradient.
            length = adapted.norm(dim=1, keepdim=True).clamp_min(1e-6)
            logits = shots.scale * adapted @ text.T / length
            return torch.nn.functional.cross_entropy(logits, shots.labels[batch]) + self.penalty_ * shift.square().sum()

        n = len(shots.labels)
        batch_size = n if self.batch_size is None else self.batch_size
        self.loss_ = minimise([shift], loss, n, n_views, self._recipe(n, batch_size), cost=d * d + text.numel())
        self.shift_, self.weight_, self.scale_ = shift.detach(), text, shots.scale

    def _for_text(self, text: Tensor, scale: float) -> None:
        self.weight_, self.scale_ = text, scale

    def _logits(self, X: Tensor) -> Tensor:
        x = unit(X)
        return self.scale_ * unit(x + x @ self.shift_.T.to(X.dtype)) @ self.weight_.T.to(X.dtype)

    def _strength(self, shots: Shots) -> float:
        if self.penalty in ("auto", "1/n"):
            reciprocal = float((shots.counts > 0).sum() / shots.counts.sum())
            return reciprocal * (shots.scale / CLIP_SCALE) ** 2 if self.penalty == "auto" else reciprocal
        if isinstance(self.penalty, str) or not self.penalty >= 0:
            raise InputError(f"penalty must be 'auto', '1/n' or a number from 0, but is {self.penalty!r}")
        return float(self.penalty)

    def _recipe(self, n: int, batch_size: int) -> Recipe:
        epochs = math.ceil(self.steps / (n // min(batch_size, n))) if batch_size > 0 else 1
        return Recipe(
            optimizer="adam",
            lr=self.lr,
            momentum=0.0,
            weight_decay=0.0,
            schedule=self.schedule,
            warmup_epochs=0,
            epochs=epochs,
            steps=self.steps,
            batch_size=batch_size,
            seed=self.seed,
            progress=self.progress,
            eps=1e-4,
        )
