"""Zero-shot CLIP: cosines between image features and class text, times the encoder's logit scale.

Paper: Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020, section 3.1.
With multi-label images: a sigmoid of each class's logit and the encoder's bias, as SigLIP was trained (Zhai et al.,
ICCV 2023, https://arxiv.org/abs/2303.15343). For an encoder without a bias, such as CLIP, a bias of each class is
fitted to the shots: that is ours, and all that this head learns from them.
"""

from __future__ import annotations

from torch import Tensor

from clipadapter.heads.base import Head, SupportSet, register_head
from clipadapter.heads.losses import add_bias, mean_bias, sigmoid_bias
from clipadapter.utils.functional import cosine_logits


@register_head("zero-shot", paper="https://arxiv.org/abs/2103.00020")
class ZeroShot(Head):
    """Class text alone; the shots are not used, except for the bias of each class with multi-label images.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0], [0.0, 1.0]])
    >>> ZeroShot().fit([[1.0, 0.1]], ["cat"], text=text).predict([[0.2, 3.0]])
    array(['dog'], dtype='<U3')

    Fidelity: paper: The cosine to class text times the logit scale, as in the paper. With several labels per picture,
    the bias of each class is ours.
    """

    needs_text = multilabel = True
    temperature_prior = (0.9, 0.9, 0.9, 0.9, 1.1)

    def _fit(self, shots: SupportSet) -> None:
        self.weight_, self.scale_ = shots.class_text, shots.scale
        self.bias_ = None if shots.targets is None else sigmoid_bias(shots, self._text_logits(shots.X))

    def _for_text(self, text: Tensor, scale: float) -> None:
        self.weight_, self.scale_ = text, scale
        self.bias_ = mean_bias(self, len(text))

    def _text_logits(self, X: Tensor) -> Tensor:
        return cosine_logits(X, self.weight_.to(X.dtype), self.scale_)

    def _logits(self, X: Tensor) -> Tensor:
        return add_bias(self, self._text_logits(X))
