"""SVL-Adapter: a small network on a second encoder's features, blended with zero-shot CLIP.

Paper: Pantazis et al., BMVC 2022, https://arxiv.org/abs/2210.03794; the second encoder there is SimCLR trained on the
pictures of the task without their labels.
Differs from the paper: ``blend="auto"``, its SVL* without a validation set, takes zero-shot's confidence on the shots,
not on the test pictures; `star_blend` gives what the released code took. The second encoder's features are brought to
one length, so that one learning rate suits any encoder. An incomplete last batch is left out. `SvlAdapter.official`
does both as the released code does. A class without shots is not pushed down.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import linear

from clipadapter.heads.base import OneOf, SupportSet, Within, at_least, register_head
from clipadapter.heads.trained_head import TrainedHead, draw_linear
from clipadapter.utils.functional import cosine_logits, unit

TENSORS = ("down_", "down_bias_", "up_", "up_bias_")


def star_blend(features: Tensor, text: Tensor, scale: float, raw: bool = False) -> float:
    """Weight of the network in SVL*: one minus the mean of zero-shot's highest probability over pictures.

    The released code took the test pictures, without their labels, and with RN50 the features as they came (``raw``),
    which makes zero-shot look surer than it is. To repeat its figures, give what this returns as ``blend``. The
    features (m, d) are those of the first encoder.

    >>> features, text = torch.tensor([[3.0, 0.0]]), torch.eye(2)
    >>> round(star_blend(features, text, 1.0), 3), round(star_blend(features, text, 1.0, raw=True), 3)
    (0.269, 0.047)
    """
    logits = scale * features @ text.T if raw else cosine_logits(features, text, scale)
    return 1 - float(logits.softmax(dim=1).amax(dim=1).mean())


@register_head("svl-adapter", version=2, paper="https://arxiv.org/abs/2210.03794")
class SvlAdapter(TrainedHead):
    """Two-layer network on a second encoder's features, and zero-shot logits on the first's.

    The network reads the block ``ENCODER/final`` of the second encoder; without one, ``final`` of the first.

    Args:
        blend: weight of the network beside zero-shot, 0 (zero-shot) to 1; "auto" takes one minus the mean of
            zero-shot's highest probability on the shots.
        hidden: width between the two layers.
        input_norm: True to bring the second encoder's features to one length, the root of their width; False to take
            them raw.
        lr: learning rate of Adam.
        epochs: passes over the shots.
        drop_last: leave out the last batch of an epoch if it is incomplete; False to train on it, as the released code
            does. With 33 to 63 shots and batches of 32, True makes half as many steps.
        seed: of initialisation and shuffling.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.9], [0.9, 1.0]])
    >>> X = [[1.0, 1.0, 5.0, 0.0, 1.0], [1.0, 1.0, 0.0, 5.0, 1.0]]
    >>> blocks = [("final", 2), ("simclr:tower/final", 3)]
    >>> SvlAdapter(blend=0.9).fit(X, ["cat", "dog"], text=text, blocks=blocks).predict(X)
    array(['cat', 'dog'], dtype='<U3')

    Fidelity: verified: `SvlAdapter.official` and `star_blend` give the network and the logits of the authors' code. The
    default takes the blend from the shots, brings features to one length and adjusts logits for unequal shots.
    """

    supports_warm_start = True
    training = {"optimizer": "adam", "schedule": "constant"}
    warm_start_share = 0.75
    class_rows = ("up_", "up_bias_")
    reads = "second-encoder"
    recipes = {"official": {"input_norm": False, "drop_last": False, "logit_adjustment": 0.0}}
    """The recipe of the authors' released code: raw features of the second encoder, incomplete batches too. Blend was
    the first of the best of 0, 0.05 ... 1 on up to four validation shots per class, or `star_blend`."""

    blend: Annotated[float | str, Within(0, 1), OneOf("auto")] = "auto"
    hidden: Annotated[int, at_least(1)] = 256
    input_norm: bool = True
    epochs: int = 50
    batch_size: int = 32
    drop_last: bool = True

    def _fit(self, shots: SupportSet) -> None:
        self.weight_, self.scale_, auto = shots.class_text, shots.scale, self.blend == "auto"
        self.blend_ = star_blend(shots.final_views[:, 0], self.weight_, self.scale_) if auto else float(self.blend)
        self.present_ = shots.counts > 0  # (c,)
        inputs = self._second(shots.views)  # (n, v, k)
        start = dict(zip(TENSORS, self._initial(inputs.shape[2], shots.n_classes, inputs.dtype), strict=True))
        vars(self).update(start)  # which `_network` reads
        self._learn(shots, inputs, start, self._network)

    def _initial(self, k: int, c: int, dtype: torch.dtype) -> list[Tensor]:
        """The start of the layers for features of width k."""
        draw = partial(draw_linear, generator=torch.Generator().manual_seed(self.seed), dtype=dtype)
        h = self.hidden
        return [draw((h, k), k), draw((h,), k), draw((c, h), h), draw((c,), h)]

    def _network(self, x: Tensor) -> Tensor:
        """(m, k) to (m, c)."""
        down, down_bias, up, up_bias = (getattr(self, name).to(x.dtype) for name in TENSORS)
        return linear(linear(x, down, down_bias).relu(), up, up_bias)

    def _text_logits(self, X: Tensor) -> Tensor:
        return (1 - self.blend_) * cosine_logits(X[:, : self.weight_.shape[1]], self.weight_.to(X.dtype), self.scale_)

    def _logits(self, X: Tensor) -> Tensor:
        adapted = self._network(self._second(X))
        if not self.present_.all():
            # The network was not trained on classes without shots: each gets the mean likelihood of the others.
            trained = adapted[:, self.present_]
            mean = trained.logsumexp(dim=1, keepdim=True) - math.log(trained.shape[1])
            adapted = torch.where(self.present_, adapted, mean)
        return self.blend_ * adapted + self._text_logits(X)

    def _second(self, X: Tensor) -> Tensor:
        """The columns (..., k) that the network reads, of raw features (..., d)."""
        second = X[..., self.weight_.shape[1] :] if X.shape[-1] > self.weight_.shape[1] else X
        return math.sqrt(second.shape[-1]) * unit(second) if self.input_norm else second
