"""Other ways to the residual ratio of CLIP-Adapter: trained beside the layers, or learned on one shot of each class.

Papers: Gao et al., IJCV 2023, https://arxiv.org/abs/2110.04544 (a trained ratio), and HOSO-Adapter,
https://arxiv.org/abs/2603.04341. HOSO is written from a short description: the ratio is learned on one held-out shot
per class, and the layers are trained on the other shots, so that neither sees the shots of the other. Ours are the
recipe, that of `clip-adapter`, and how the ratio is learned: not by gradient steps, but from the likelihood of the
held-out shots, as `clip-adapter` does (`clipadapter.heads.residual_ratio`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Tensor

from clipadapter.heads.base import OneOf, SupportSet, register_head
from clipadapter.heads.clip_adapter import ClipAdapter
from clipadapter.heads.losses import Loss, add_bias
from clipadapter.heads.out_of_fold import hold_out_one_per_class
from clipadapter.heads.residual_ratio import choose_ratio, expected_ratio, zero_shot_of
from clipadapter.heads.trained_head import find_warm_start
from clipadapter.utils.functional import unit

START_RATIO = 0.2  # where a trained ratio starts: that of the released code


@register_head("clip-adapter-trained-ratio", paper="https://arxiv.org/abs/2110.04544", compare=False)
class ClipAdapterTrainedRatio(ClipAdapter):
    """CLIP-Adapter whose ratios are trained by the same gradient steps as its layers.

    Args:
        ratio: "learned" trains one number for each branch; "dynamic" a function of the picture and of the class text,
            the paper's Q(f, W): the sigmoid of a linear map, the simplest that trains.

    >>> from clipadapter.testing import toy_features
    >>> X, y, text = toy_features()
    >>> bool((ClipAdapterTrainedRatio().fit(X, y, text=text).predict(X) == y).all())
    True

    Fidelity: partial: That the ratio is trained beside the layers is as published. The paper does not publish the
    architecture of its Q(f, W), and the recipe is ours.
    """

    supports_warm_start = False
    recipes = presets = {}

    ratio: Annotated[str, OneOf("learned", "dynamic")] = "learned"
    alpha: float | str = field(default=START_RATIO, init=False)
    beta: float | str = field(default=START_RATIO, init=False)

    def cosines(self, f: Tensor, text: Tensor, layers: Mapping[str, Any], ratios: Mapping[str, Any]) -> Tensor:
        """See `ClipAdapter.cosines`; the ratios are those of the gates."""
        ratios = {"visual": 0.0, "text": 0.0}
        if "text" in layers:
            ratios["text"] = ratio_from_gate(layers["text gate"][0], text)
        if "visual" in layers:
            weights = self.blend(text, layers.get("text"), ratios["text"])
            ratios["visual"] = ratio_from_gate(layers["visual gate"][0], gate_inputs(unit(f), weights, self.scale_))
        return super().cosines(f, text, layers, ratios)

    def _fit(self, shots: SupportSet) -> None:
        self.scale_ = shots.scale
        super()._fit(shots)

    def _start(self, shots: SupportSet, *others: Any) -> dict[str, Any]:
        layers: dict[str, Any] = super()._start(shots, *others)
        for branch, width in (("visual", 2 * shots.class_text.shape[1]), ("text", shots.class_text.shape[1])):
            if branch in layers:
                gate = shots.class_text.new_zeros(1 + (width if self.ratio == "dynamic" else 0))
                gate[0] = math.log(START_RATIO / (1 - START_RATIO))
                layers[f"{branch} gate"] = (gate,)
        return layers

    def _store(self, shots: SupportSet, layers: Mapping[str, Any], ratios: Mapping[str, Any]) -> None:
        text, ratios, self.alpha_gate_ = shots.class_text, dict(ratios), None
        if "text" in layers:
            ratios["text"] = ratio_from_gate(layers["text gate"][0], text)
        super()._store(shots, layers, ratios)
        if "text" in layers:
            self.beta_ = float(torch.as_tensor(ratios["text"]).mean())
        if "visual" in layers:
            gate = layers["visual gate"][0]
            self.alpha_ = float(ratio_from_gate(gate, gate_inputs(unit(shots.X), self.weight_, shots.scale)).mean())
            self.alpha_gate_ = gate if self.ratio == "dynamic" else None

    def _logits(self, X: Tensor) -> Tensor:
        gate = getattr(self, "alpha_gate_", None)
        if gate is None:
            return super()._logits(X)
        x, weights = unit(X), self.weight_.to(X.dtype)
        alpha = ratio_from_gate(gate.to(X.dtype), gate_inputs(x, weights, self.scale_))
        return add_bias(self, self.scale_ * self.blend(x, self._adapter(X.dtype), alpha) @ weights.T)

    def _text_logits(self, X: Tensor) -> Tensor | None:
        return None if self.ratio == "dynamic" else super()._text_logits(X)


def gate_inputs(x: Tensor, text: Tensor, scale: float) -> Tensor:
    """Input (n, 2d) of the paper's Q(f, W): features (n, d), and their mean class text under zero-shot's probabilities.

    With the mean of the class text (c, d) the input has one width for any number of classes.
    """
    return torch.cat([x, (scale * x @ text.T).softmax(dim=1) @ text], dim=1)


def ratio_from_gate(gate: Tensor, inputs: Tensor) -> Tensor:
    """A ratio (n, 1) as a function of inputs (n, k): the sigmoid of a linear map.

    The gate (1 + k,) has the constant first; a gate (1,) is a ratio that is one number, without inputs.
    """
    return (gate[0] + inputs @ gate[1:] if len(gate) > 1 else gate).sigmoid().view(-1, 1)


@register_head("hoso", version=6, paper="https://arxiv.org/abs/2603.04341")
class Hoso(ClipAdapter):
    """A bottleneck adapter on picture features whose blending ratio is learned on shots the adapter does not see.

    If every class has a single shot, all are trained on, and the ratio is the one that zero-shot's likelihood suggests.
    A fit from an earlier one keeps its ratio.

    Args:
        seed: of the held-out shots, initialisation, noise and shuffling.

    >>> from clipadapter.testing import toy_features
    >>> X, y, text = toy_features()
    >>> bool((Hoso().fit(X, y, text=text).predict(X) == y).all())
    True

    Fidelity: partial: Written from a short description of the method. That the ratio is learned on one held-out shot
    per class is as published. How it is learned, and the recipe, are ours.
    """

    multilabel = False
    recipes = presets = {}

    branch: str = field(default="visual", init=False)
    alpha: float | str = field(default="auto", init=False)
    beta: float | str = field(default="auto", init=False)

    def _fit(self, shots: SupportSet) -> None:
        self.bias_ = None
        train_rows, held_out = hold_out_one_per_class(shots.labels, self.seed)
        warm_start = find_warm_start(self, shots, self.warm_start_share)
        [(layers, self.loss_)] = self._train_on_each(shots, [train_rows], warm_start)
        if warm_start is not None:  # the earlier adapter may have been fitted to the shots that are held out now
            ratio = warm_start.head.alpha_
        else:
            tables = [self._losses_by_ratio(shots, layers, held_out)] if len(held_out) else []
            rows, zero_shot = zero_shot_of(shots, self.seed)
            ratio = choose_ratio(tables, expected_ratio(zero_shot, Loss.of_support_set(shots, rows)))
        self._store(shots, layers, self._ratios(ratio))
