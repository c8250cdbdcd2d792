"""ZS-LP: a cosine classifier that starts at the class text.

Paper: Silva-Rodriguez et al., CVPR 2024, https://arxiv.org/abs/2312.12730.
Differs from the paper, where class weights started at un-normalised text vectors: ours arrive unit-length and are
scaled to a length by ``text_norm``, because the size of a step is relative to it. A class without a shot keeps its
text.
Differs from the released code, which trains on 20 augmented views as rows: here each step draws a view of each picture.
"""

from __future__ import annotations

from dataclasses import field

from torch import Tensor

from clipadapter.heads.base import SupportSet, register_head
from clipadapter.heads.trained_head import TextResidualHead
from clipadapter.utils.functional import unit


@register_head("zs-lp", version=2, paper="https://arxiv.org/abs/2312.12730")
class ZsLp(TextResidualHead):
    """Linear probe that starts at zero-shot: cosine logits, cross-entropy, no penalty.

    Args:
        text_norm: length of class text at the start, one number or one per class; "auto" for a tenth of the encoder's
            logit scale, about 10 with CLIP as in the paper.
        lr: highest learning rate of SGD.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.5], [1.0, 1.1, 0.0]]
    >>> ZsLp().fit(X, ["dog", "cat"], text=text).predict(X)
    array(['dog', 'cat'], dtype='<U3')

    Fidelity: verified: `ZsLp.official` gives the weights and logits of the authors' code. The default differs in the
    length of class text, draws one view of each picture per step and adjusts logits for unequal shots.
    """

    temperature_prior = (0.9, 0.81, 0.74, 0.9, 1.1)
    training = {"optimizer": "sgd"}
    recipes = {"official": {"schedule": "cosine-epoch", "warmup_epochs": 1, "epochs": 300, "logit_adjustment": 0.0}}
    """The authors' recipe: 300 epochs however many steps they are, the first at a rate of 1e-5."""
    # At the end the loss is so small that a quarter of the steps adds little.
    warm_start_share = 0.95
    class_rows = ("moved_",)

    moved_: Tensor = field(init=False)  # (c, d) what training added to class text

    lr: float = 0.1
    epochs: int | None = None
    steps: int = 300

    def _fit(self, shots: SupportSet) -> None:
        self.weight_ = self._train_residual(shots) + self.moved_

    def _text_logits(self, X: Tensor) -> Tensor | None:
        text = (self.weight_ - self.moved_) / self.weight_.norm(dim=1, keepdim=True)
        return self.scale_ * unit(X) @ text.to(X.dtype).T
