"""Zero-shot CLIP: the cosine between a picture and each class's text, times the model's scale.

Paper: Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020, section 3.1.
"""

from __future__ import annotations

from torch import Tensor

from clipadapter.functional import cosine_logits
from clipadapter.heads._base import Head, Shots
from clipadapter.heads._registry import register_head


@register_head("zero-shot", paper="https://arxiv.org/abs/2103.00020")
class ZeroShot(Head):
    """Class text alone; the shots are not looked at.

    >>> from clipadapter.heads import ClassText
    >>> text = ClassText(["cat", "dog"], [[1.0, 0.0], [0.0, 1.0]])
    >>> ZeroShot().fit([[1.0, 0.1]], ["cat"], text=text).predict([[0.2, 3.0]])
    array(['dog'], dtype='<U3')
    """

    needs_text = True

    def _fit(self, shots: Shots) -> None:
        assert shots.text is not None
        self.weight_, self.scale_ = shots.text, shots.scale

    def _for_text(self, text: Tensor, scale: float) -> None:
        self.weight_, self.scale_ = text, scale

    def _logits(self, X: Tensor) -> Tensor:
        return cosine_logits(X, self.weight_.to(X.dtype), self.scale_)
