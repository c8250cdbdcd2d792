"""Cross-modal adaptation: class text as training samples beside the pictures of one linear classifier.

Paper: Lin et al., CVPR 2023, https://arxiv.org/abs/2301.06267.
Differs from the paper, where learning rate, weight decay, batch size and the moment to stop were searched on validation
shots: one recipe, all steps are run. Its text samples are single prompts; ours are the class text, one row per class.
Several prompts per class can stand among the shots, as rows of X, with ``text_share=0``: then each weighs as a picture.
Where there are more rows of text than a batch has pictures, each step draws as many of them as pictures.
With unequal shots the default adjusts logits in training (`heads.label_loss`), which is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clipadapter.errors import InputError, brief
from clipadapter.functional import unit
from clipadapter.heads.base import SupportSet
from clipadapter.heads.label_loss import LabelLossHead
from clipadapter.heads.losses import CROSS_ENTROPY
from clipadapter.heads.registry import register_head
from clipadapter.heads.training import TrainConfig, TrainedHead, gather_views, train
from clipadapter.heads.warm_start import STEPS_SHARE, find_warm_start

WARM_START_SHARE = 0.65
"""Share of what an earlier fit learned that a warm start keeps: less than for other heads, since nothing else keeps the
weights from growing."""


@register_head(
    "cross-modal",
    version=2,
    paper="https://arxiv.org/abs/2301.06267",
    fidelity="verified: `CrossModal.official` gives the weights and logits of the authors' code. The default is one "
    "recipe, where the authors searched on validation shots, and adjusts logits for unequal shots.",
)
@dataclass(eq=False, repr=False, kw_only=True)
class CrossModal(LabelLossHead, TrainedHead):
    """Linear classifier without bias, started at class text and trained on pictures and class text alike.

    Args:
        text_share: weight of the text samples in the loss; 0 trains on pictures alone.
        wise: weight of the zero-shot classifier in the mix with the trained one (WiSE-FT); 1 is zero-shot.
        optimizer: "adamw", "adam" or "sgd".
        momentum: of SGD.
        weight_decay: decoupled for AdamW, L2 for Adam and SGD; towards zero, not towards the text.
        schedule: "cosine" or "constant".
        warmup_steps: first steps, in which the rate rises linearly from 1e-5.
        epochs: passes over the shots; None for as many as make ``steps`` steps, and at least 20.
        steps: fewest optimizer steps if ``epochs`` is None.
        batch_size: pictures per step, and at most as many rows of text.
        seed: of shuffling and of the choice of views and text.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.5], [1.0, 1.1, 0.0]]
    >>> CrossModal().fit(X, ["dog", "cat"], text=text).predict(X)
    array(['dog', 'cat'], dtype='<U3')
    """

    needs_text = True
    supports_warm_start = True
    temperature_prior = (1.0, 1.0, 0.9, 1.0, 1.3)
    recipes = {
        "official": {"lr": 1e-3, "weight_decay": 0.01, "steps": 12_800, "batch_size": 4, "logit_adjustment": 0.0}
    }
    """The authors' recipe at one point of their grid: 12,800 steps of 4 pictures and 4 rows of text."""

    text_share: float = 0.5
    wise: float = 0.0
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup_steps: int = 50
    epochs: int | None = None
    steps: int = 300

    def planned_epochs(self, labels: Tensor, text_shape: tuple[int, int] | None = None) -> int:
        """See `Head.planned_epochs`."""
        return self._train_config().count_epochs(len(labels))

    def _fit(self, shots: SupportSet) -> None:
        assert shots.text is not None
        rows, row_labels = self._text_rows(shots)
        rows, views = shots.scale * unit(rows), shots.scale * unit(shots.views)
        weight, config = shots.text.clone(), self._train_config()
        warm_start = (
            find_warm_start(self, shots, WARM_START_SHARE, weight_=weight) if self.wise == 0 else None
        )  # a mix can't be taken apart
        if warm_start is not None:
            weight, config = warm_start.shrink_rows("weight_", weight), warm_start.shorten(config, len(views))
            config = replace(config, warmup_steps=round(STEPS_SHARE * self.warmup_steps))
        generator, label_loss = torch.Generator().manual_seed(self.seed), self._label_loss(shots)

        def loss(batch: Tensor, view: Tensor) -> tuple[Tensor, list[Tensor]]:
            x = gather_views(views, batch, view)
            value, gradient = label_loss.with_gradient(x @ weight.T, shots.labels[batch])
            if self.text_share == 0:
                return value, [gradient.T @ x]
            z, z_labels = rows, row_labels
            if len(rows) > self.batch_size:
                chosen = torch.randperm(len(rows), generator=generator)[: self.batch_size]
                z, z_labels = rows[chosen], row_labels[chosen]
            text_value, text_gradient = CROSS_ENTROPY.with_gradient(z @ weight.T, z_labels)
            share = self.text_share
            total = torch.addmm(text_gradient.T @ z, gradient.T, x, beta=share, alpha=1 - share)
            return (1 - share) * value + share * text_value, [total]

        n, n_views = shots.views.shape[:2]
        self.loss_ = train([weight], loss, n, n_views, config, row_cost=2 * weight.numel())
        self.weight_ = (1 - self.wise) * weight + self.wise * shots.text
        self.scale_ = shots.scale

    def _logits(self, X: Tensor) -> Tensor:
        return self.scale_ * unit(X) @ self.weight_.T.to(X.dtype)

    def _text_rows(self, shots: SupportSet) -> tuple[Tensor, Tensor]:
        """Text samples (r, d) and their class positions (r,)."""
        assert shots.text is not None
        return shots.text, torch.arange(shots.n_classes)

    def check_parameters(self) -> None:
        """See `Head.check_parameters`."""
        super().check_parameters()
        for name in ("text_share", "wise"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be 0 to 1, but is {brief(getattr(self, name))}")

    def _train_config(self) -> TrainConfig:
        return TrainConfig.from_estimator(self)
