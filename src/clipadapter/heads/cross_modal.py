"""Cross-modal adaptation: class text as training samples beside the pictures of one linear classifier.

Paper: Lin et al., CVPR 2023, https://arxiv.org/abs/2301.06267.
Differs from the paper, where learning rate, weight decay, batch size and the moment to stop were searched on validation
shots: one recipe, all steps are run. Its text samples are single prompts; ours are the class text, one row per class.
Several prompts per class can stand among the shots, as rows of X, with ``text_share=0``: then each weighs as a picture.
Where there are more rows of text than a batch has pictures, each step draws as many of them as pictures.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from clipadapter.heads.base import SupportSet, Within, register_head
from clipadapter.heads.losses import label_loss
from clipadapter.heads.trained_head import TrainedHead
from clipadapter.utils.functional import unit


@register_head("cross-modal", version=2, paper="https://arxiv.org/abs/2301.06267")
class CrossModal(TrainedHead):
    """Linear classifier without bias, started at class text and trained on pictures and class text alike.

    Args:
        text_share: weight of the text samples in the loss; 0 trains on pictures alone.
        wise: weight of the zero-shot classifier in the mix with the trained one (WiSE-FT); 1 is zero-shot.
        weight_decay: decoupled for AdamW, L2 for Adam and SGD; towards zero, not towards the text.
        schedule: "cosine" or "constant".
        warmup_steps: first steps, in which the rate rises linearly from 1e-5.
        batch_size: pictures per step, and at most as many rows of text.
        seed: of shuffling and of the choice of views and text.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.5], [1.0, 1.1, 0.0]]
    >>> CrossModal().fit(X, ["dog", "cat"], text=text).predict(X)
    array(['dog', 'cat'], dtype='<U3')

    Fidelity: verified: `CrossModal.official` gives the weights and logits of the authors' code. The default is one
    recipe, where the authors searched on validation shots, and adjusts logits for unequal shots.
    """

    supports_warm_start = True
    warm_start_share = 0.65  # less than for other heads, since nothing else keeps the weights from growing
    class_rows = ("weight_",)
    temperature_prior = (1.0, 1.0, 0.9, 1.0, 1.3)
    recipes = {
        "official": {"lr": 1e-3, "weight_decay": 0.01, "steps": 12_800, "batch_size": 4, "logit_adjustment": 0.0}
    }
    """The authors' recipe at one point of their grid: 12,800 steps of 4 pictures and 4 rows of text."""

    text_share: Annotated[float, Within(0, 1)] = 0.5
    wise: Annotated[float, Within(0, 1)] = 0.0
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup_steps: int = 50
    epochs: int | None = None
    steps: int = 300

    def _fit(self, shots: SupportSet) -> None:
        weight, generator = shots.class_text.clone(), torch.Generator().manual_seed(self.seed)
        text, labels = self._text_rows(shots)
        text = shots.scale * unit(text)

        def total(loss: Tensor) -> Tensor:
            if not self.text_share:
                return loss
            rows, row_labels = text, labels
            if len(rows) > self.batch_size:
                chosen = torch.randperm(len(rows), generator=generator)[: self.batch_size]
                rows, row_labels = rows[chosen], row_labels[chosen]
            return (1 - self.text_share) * loss + self.text_share * label_loss(rows @ weight.T, row_labels)

        inputs, start = shots.scale * unit(shots.views), {"weight_": weight}
        can_continue = self.wise == 0  # a mix can't be taken apart
        self._learn(shots, inputs, start, lambda x: x @ weight.T, total, can_continue=can_continue)
        self.weight_, self.scale_ = (1 - self.wise) * weight + self.wise * shots.class_text, shots.scale

    def _logits(self, X: Tensor) -> Tensor:
        return self.scale_ * unit(X) @ self.weight_.T.to(X.dtype)

    def _text_rows(self, shots: SupportSet) -> tuple[Tensor, Tensor]:
        """Text samples (r, d) and their class positions (r,)."""
        return shots.class_text, torch.arange(shots.n_classes)
