"""HOSO-Adapter: a CLIP-Adapter whose ratio is learned on one held-out shot of each class.

Paper: https://arxiv.org/abs/2603.04341.
Written from the method's short description: the ratio is learned on one held-out shot a class while the adapter trains
on the others. Ours are therefore how it is learned (both at once, each step of the ratio on held-out shots under the
adapter of that step, at a rate of its own), its start at CLIP-Adapter's 0.2, which also is what stays if no class can
spare a shot, and the recipe, that of `clip-adapter`. Differs from `clip-adapter`: that trains on all shots, at a fixed
ratio, and weakens it afterwards by what folds said.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipadapter.errors import InputError
from clipadapter.functional import unit
from clipadapter.heads._base import Head, Shots
from clipadapter.heads._bottleneck import Bottleneck, blend, unadapted
from clipadapter.heads._continued import earlier
from clipadapter.heads._cosine_error import cosine_error
from clipadapter.heads._registry import register_head
from clipadapter.heads._training import Recipe, drawn, minimise

KEPT = 0.75
"""Of what an earlier fit learned."""
RATIO_RATE = 20.0
"""How much faster the logit of the ratio moves than a weight, which alone would hardly leave its start: in 250 steps it
can get from 0.2 to about 0.75 or 0.02, the range in which best ratios were published."""


@register_head(
    "hoso",
    paper="https://arxiv.org/abs/2603.04341",
    fidelity="partial: Written from a short description of the method. That the ratio is learned on one held-out "
    "shot per class is as published. How it is learned, where it starts and the recipe are ours.",
)
class Hoso(Head):
    """A bottleneck adapter on picture features whose blending ratio is learned on shots the adapter does not see.

    A fit from an earlier one keeps its ratio.

    Args:
        reduction: bottleneck width is d divided by this.
        alpha: weight of the adapted feature at the start, between 0 and 1; it stays if every class has a single shot.
        lr: highest learning rate of AdamW, which falls as a cosine.
        epochs: passes over the shots that are trained on; None for as many as make ``steps`` steps, and at least 20.
        steps: fewest optimizer steps if ``epochs`` is None.
        batch_size: shots a step, and as many held-out ones.
        seed: of the held-out shots, initialisation and shuffling.
        progress: show a bar on stderr while training.

    >>> from clipadapter.heads import ClassText
    >>> text = ClassText(["cat", "dog"], [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.0, 0.0], [1.0, 1.1, 0.0, 1.0]]
    >>> Hoso().fit(X, ["cat", "dog"], text=text).alpha_
    0.2
    """

    needs_text = True
    warm = True
    usual_temperatures = (1.1, 1.2, 1.0, 1.0, 2.4)

    def __init__(
        self,
        reduction: float = 4,
        alpha: float = 0.2,
        lr: float = 1e-3,
        epochs: int | None = None,
        steps: int = 250,
        batch_size: int = 256,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.reduction = reduction
        self.alpha = alpha
        self.lr = lr
        self.epochs = epochs
        self.steps = steps
        self.batch_size = batch_size
        self.seed = seed
        self.progress = progress

    def _fit(self, shots: Shots) -> None:
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha must be between 0 and 1, but is {self.alpha}")
        assert shots.text is not None
        text, scale = shots.text, shots.scale
        train, held = hold_out_one(shots.labels, self.seed)
        views, labels = unit(shots.views[train]), shots.labels[train]
        spared, targets = unit(shots.X[held]), shots.labels[held]
        d = views.shape[2]
        generator = torch.Generator().manual_seed(self.seed)
        adapter = Bottleneck.initial(d, max(1, int(d / self.reduction)), False, generator, views.dtype)
        before = earlier(self, shots, KEPT, down_=adapter.down, up_=adapter.up)
        alpha, recipe = self.alpha, self._recipe()
        if before is not None:
            adapter = Bottleneck(before.whole("down_", adapter.down), before.whole("up_", adapter.up))
            # The ratio stays: the earlier adapter may have seen the shots that are held out now.
            alpha, recipe, held = before.head.alpha_, before.shorter(recipe, len(train)), held[:0]
        weights = [adapter.down.requires_grad_(), adapter.up.requires_grad_()]
        start = math.log(alpha / (1 - alpha))
        moved = torch.zeros((), dtype=views.dtype, requires_grad=len(held) > 0)

        def error(mixed: Tensor, target: Tensor) -> Tensor:
            return cosine_error(mixed, text, target, scale)

        def loss(batch: Tensor, view: Tensor) -> Tensor:
            ratio = (start + RATIO_RATE * moved).sigmoid()
            x = drawn(views, batch, view)
            # Of each term only one part has a gradient: the adapter never learns from a held-out shot, nor the ratio
            # from one that the adapter has seen.
            seen = error(adapter.blended(x, float(ratio.detach())), labels[batch])
            if len(held) == 0:
                return seen
            some = (batch % len(held)).unique()  # as shuffled as the batch is
            with torch.no_grad():
                adapted = adapter(spared[some])
            return seen + error(blend(spared[some], adapted, ratio, renormalise=False), targets[some])

        parameters = [*weights, moved] if len(held) else weights
        cost = sum(weight.numel() for weight in weights) + text.numel()
        self.loss_ = minimise(parameters, loss, len(train), views.shape[1], recipe, cost)
        self.down_, self.up_ = (weight.requires_grad_(False) for weight in weights)
        learned = 1 / (1 + math.exp(-start - RATIO_RATE * float(moved.detach())))
        self.alpha_ = learned if len(held) else float(alpha)
        self.weight_, self.scale_ = text, scale

    def _for_text(self, text: Tensor, scale: float) -> None:
        self.weight_, self.scale_ = text, scale

    def _text_logits(self, X: Tensor) -> Tensor:
        x = unit(X)
        adapter = Bottleneck(self.down_.to(X.dtype), self.up_.to(X.dtype))
        return self.scale_ * unadapted(x, adapter(x), self.alpha_) @ self.weight_.to(X.dtype).T

    def _logits(self, X: Tensor) -> Tensor:
        x = unit(X)
        adapter = Bottleneck(self.down_.to(X.dtype), self.up_.to(X.dtype))
        return self.scale_ * blend(x, adapter(x), self.alpha_) @ self.weight_.to(X.dtype).T

    def _recipe(self) -> Recipe:
        return Recipe(
            optimizer="adamw",
            lr=self.lr,
            momentum=0.0,
            weight_decay=0.0,
            schedule="cosine",
            warmup_epochs=0,
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
            progress=self.progress,
        )


def hold_out_one(labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows to train on and held-out rows: one at random of each class that has two or more.

    Args:
        labels: (n,) class positions.
        seed: of the draw.

    >>> [len(rows) for rows in hold_out_one(torch.tensor([0, 0, 0, 1, 1, 2]))]
    [4, 2]
    """
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) > 1:
            held[rows[torch.randint(len(rows), (1,), generator=generator)]] = True
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()
