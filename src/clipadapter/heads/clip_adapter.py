"""CLIP-Adapter: two linear layers after a frozen tower, blended with their input.

Paper: Gao et al., IJCV 2023, https://arxiv.org/abs/2110.04544. Of unit picture features f and unit class text W,

    A(f) = ReLU(f W1) W2                         (1), and (2) with W for f
    f* = alpha A(f) + (1 - alpha) f              (3)
    W* = beta A(W) + (1 - beta) W                (4)
    p_i = softmax_i(s cos(f*, W*_i))             (5), with the encoder's logit scale s
    loss = mean of -log p_label over the shots   (6)

`ClipAdapter.official` is the released code, `ClipAdapter.paper` the recipe of the paper. The default is ours, chosen on
small sets of many kinds (docs/studies.md):

- Training: 200 steps of AdamW, and at least 20 epochs, in shuffled batches of 256 shots; fewer shots are one batch. Of
  each shot a view is drawn anew. The rate falls from 2e-3 to 0 along a cosine. A training of more than `max_cost`
  multiplications has fewer epochs at a higher rate. The scale s is halved, Gaussian noise is added to the features, and
  the mean of the classes' mean features is subtracted before W1. Unequal shots adjust the logits (`heads/losses.py`).
- The ratio (alpha, beta, or one for both) is trained with at 0.4, and chosen after: the posterior mean under a normal
  prior, whose mean grows with the loss of zero-shot on the shots, and the likelihood of the shots by adapters of three
  folds that did not see them, each ratio at its best temperature. `heads/residual_ratio.py` has the formulas.
- Multi-label pictures have binary cross-entropy as loss, at the bias that zero-shot has for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from clipadapter.heads.base import NOT_NEGATIVE, POSITIVE, OneOf, SupportSet, Within, register_head
from clipadapter.heads.clip_adapter_recipes import OFFICIAL, PAPER, PRESET_NOTE, PRESETS
from clipadapter.heads.losses import Loss, add_bias, class_mean, mean_bias, sigmoid_bias
from clipadapter.heads.out_of_fold import hyperparameter_folds, join_folds, mean_shots_per_class
from clipadapter.heads.residual_ratio import choose_ratio, expected_ratio, held_out_loss_table, limit_rows, zero_shot_of
from clipadapter.heads.trained_head import TrainedHead, TrainingPart, draw_linear, find_warm_start, minimise
from clipadapter.heads.training import ScheduleParameters, coop_epochs, gather_views
from clipadapter.utils.functional import unit

TRAINING_RATIO = 0.4  # ratio that "auto" trains with: the middle of the best range in the paper (0.2 to 0.6)
BRANCHES = {"visual": ["visual"], "text": ["text"], "both": ["visual", "text"]}  # the parts of each
FOLDS, SUFFICIENT_SHOTS = 3, 256  # folds that choose the ratio; none is fitted after so many held-out shots


class Layers(NamedTuple):
    """The linear layers of one branch, whose inputs have a centre subtracted: zeros for the paper's formula."""

    down: Tensor  # (h, d), W1 transposed
    up: Tensor  # (d, h), W2 transposed
    centre: Tensor  # (d,)


@register_head(
    "clip-adapter",
    version=6,
    paper="https://arxiv.org/abs/2110.04544",
    published_with={"centre": False, "noise": 0.0, "temperature": 1.0, "logit_adjustment": 0.0},
)
class ClipAdapter(TrainedHead, ScheduleParameters):
    """Bottleneck adapters on picture features, class text, or both. A warm start keeps the ratio that "auto" chose.

    Args:
        branch: "visual", "text" or "both".
        alpha: weight of the adapted picture feature, 0 (zero-shot) to 1; "auto" trains at 0.4, and chooses it after.
        beta: the same for class text.
        reduction: bottleneck width is d divided by this.
        centre: subtract the mean of the shots' features before the adapter, each class weighing the same.
        noise: standard deviation of Gaussian noise on each component of the unit-length features in training.
        temperature: what the encoder's logit scale is divided by in training; not used for multi-label pictures.
        final_relu: a second ReLU at the end of the adapter.
        epochs: passes over the shots; None for as many as make ``steps`` steps, and at least 20; "coop" for those of
            CoOp's scripts: 50 at one shot per class, 100 at two to five, 200 above.
        seed: of initialisation, shuffling, noise and folds.

    >>> from clipadapter.testing import toy_features
    >>> X, y, text = toy_features()
    >>> ClipAdapter(alpha=0.5).fit(X, y, text=text).predict(X[:1])
    array(['cat'], dtype='<U3')

    Fidelity: verified: `ClipAdapter.official` gives the outputs of the authors' code, which has fixed ratios and one
    branch. The default recipe and the choice of the ratio are ours. `ClipAdapter.paper` is written from the paper.
    """

    supports_warm_start = multilabel = True
    warm_start_share, max_cost = 0.75, 10**12
    named_epochs = {"coop": lambda labels: coop_epochs(mean_shots_per_class(labels))}
    temperature_prior = (2.5, 2.5, 2.5, 2.2, 1.8)
    recipes = {"official": OFFICIAL, "paper": PAPER}
    presets, preset_note = PRESETS, PRESET_NOTE

    branch: Annotated[str, OneOf("visual", "text", "both")] = "visual"
    alpha: Annotated[float | str, Within(0, 1), OneOf("auto")] = "auto"
    beta: Annotated[float | str, Within(0, 1), OneOf("auto")] = "auto"
    reduction: Annotated[float, POSITIVE] = 4
    centre: bool = True
    noise: Annotated[float, NOT_NEGATIVE] = 0.03
    temperature: Annotated[float, POSITIVE] = 2.0
    final_relu: bool = False
    optimizer: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.0
    epochs: Annotated[int | str | None, NOT_NEGATIVE, OneOf("coop")] = None
    steps: int = 200

    def adapt(self, x: Tensor, layers: Layers) -> Tensor:
        """A(x) of rows (n, d), equations 1 and 2; the released code has a second ReLU."""
        hidden = linear(x, layers.down, -(layers.down @ layers.centre)).relu()  # ReLU((x - centre) W1)
        adapted = linear(hidden, layers.up)
        return adapted.relu() if self.final_relu else adapted

    def mix(self, x: Tensor, layers: Layers, ratio: Tensor | float) -> Tensor:
        """Equations 3 and 4: rows (n, d) and their adapted form."""
        return ratio * self.adapt(x, layers) + (1 - ratio) * x

    def blend(self, x: Tensor, layers: Layers | None, ratio: Tensor | float) -> Tensor:
        """`mix` at unit length; x itself where the branch is off."""
        return x if layers is None else normalize(self.mix(x, layers, ratio))

    def cosines(self, f: Tensor, text: Tensor, layers: Mapping[str, Any], ratios: Mapping[str, Any]) -> Tensor:
        """(n, c) cosines of equation 5, of unit picture features (n, d) and unit class text (c, d)."""
        weights = self.blend(text, layers.get("text"), ratios["text"])
        return self.blend(f, layers.get("visual"), ratios["visual"]) @ weights.T

    def _fit(self, shots: SupportSet) -> None:
        some, zero_shot = zero_shot_of(shots, self.seed)
        self.bias_ = None if shots.targets is None else sigmoid_bias(shots.take(some), zero_shot)
        warm_start = find_warm_start(self, shots, self.warm_start_share) if self.branch == "visual" else None
        # The ratios of an earlier fit, or of the fit to all shots of which this one leaves some out, are reused.
        known = self._full_fit if warm_start is None else warm_start.head
        auto = TRAINING_RATIO if known is None else self._ratio_of(known)
        own = {"visual": [self.alpha], "text": [self.beta], "both": [self.alpha, self.beta]}[self.branch]
        is_open = known is None and "auto" in own
        folds = hyperparameter_folds(shots, FOLDS, self.seed, SUFFICIENT_SHOTS) if is_open else []
        parts = [torch.arange(len(shots.views)), *(train_rows for train_rows, _ in folds)]
        fits, (self.loss_, *_) = zip(*self._train_on_each(shots, parts, warm_start), strict=True)
        if is_open:
            expected = expected_ratio(add_bias(self, zero_shot), Loss.of_support_set(shots, some))
            tables = [self._losses_by_ratio(shots, fits[i], held_out) for i, (_, held_out) in enumerate(folds, 1)]
            auto = choose_ratio(tables, expected)
            # A fold has the ratio that the others choose: by its own shots, they would look better than new pictures.
            by_fit = [auto, *(choose_ratio(tables[:i] + tables[i + 1 :], expected) for i in range(len(folds)))]
            logits = partial(self._logits_of_shots, shots)
            self._own_out_of_fold = join_folds(shots, folds, lambda i, rows: logits(fits[i], rows, by_fit[i]))
        self._store(shots, fits[0], self._ratios(auto))

    def _train(self, shots: SupportSet, part: TrainingPart) -> tuple[dict[str, Layers], float]:
        """The layers of the branches, trained on some of the shots, and the loss of the last step."""
        views, text = unit(shots.views[part.rows]), shots.class_text
        generator = torch.Generator().manual_seed(self.seed)  # of the start and the noise; `train` has another one
        layers = self._start(shots, part, generator)
        loss_of = self._loss_of(shots, part.rows)
        scale = shots.scale / (self.temperature if shots.targets is None else 1)

        def loss(batch: Tensor, view: Tensor) -> Tensor:
            f = gather_views(views, batch, view)
            if self.noise:
                f = f + self.noise * torch.randn(f.shape, generator=generator, dtype=f.dtype)
            f = normalize(f) if self.branch == "text" else f  # else after the blend
            return loss_of(add_bias(self, scale * self.cosines(f, text, layers, self._ratios())), batch)

        matrices = [matrix for each in layers.values() for matrix in each[:2]]
        return layers, minimise(matrices, loss, views, part, row_cost=self._row_cost(*text.shape))

    def _start(self, shots: SupportSet, part: TrainingPart, generator: torch.Generator) -> dict[str, Layers]:
        """The layers before the first step: drawn, and in a warm start mixed with those of the earlier fit."""
        text, layers = shots.class_text, {}
        d, h = text.shape[1], max(1, int(text.shape[1] / self.reduction))
        for branch in BRANCHES[self.branch]:
            down, up = (draw_linear(shape, shape[1], generator, text.dtype) for shape in ((h, d), (d, h)))
            if part.warm_start is not None:
                down, up = part.warm_start.shrink("down_", down), part.warm_start.shrink("up_", up)
            centre = text.mean(dim=0) if branch == "text" else class_mean(shots, part.rows)
            layers[branch] = Layers(down, up, centre if self.centre else torch.zeros_like(centre))
        return layers

    def _ratios(self, auto: float = TRAINING_RATIO) -> dict[str, float]:
        """The ratio of each part: alpha and beta, or this number where they are "auto"."""
        return {part: auto if r == "auto" else float(r) for part, r in (("visual", self.alpha), ("text", self.beta))}

    def _ratio_of(self, known: Any) -> Any:
        """The ratio that a fit of the same head chose. A branch that is off has none."""
        alpha, beta = (getattr(known, name, None) for name in ("alpha_", "beta_"))
        return alpha if beta is None or (alpha is not None and self.alpha == "auto") else beta

    def _logits_of_shots(self, shots: SupportSet, layers: Any, rows: Tensor, auto: float) -> Tensor:
        cosines = self.cosines(unit(shots.X[rows]), shots.class_text, layers, self._ratios(auto))
        return add_bias(self, shots.scale * cosines)

    def _losses_by_ratio(self, shots: SupportSet, layers: Any, rows: Tensor) -> Tensor:
        """(r, t) losses of shots that a fit did not see, at each candidate ratio and temperature."""
        rows = limit_rows(rows, shots, self.seed)
        return held_out_loss_table(partial(self._logits_of_shots, shots, layers, rows), self._loss_of(shots, rows))

    def _store(self, shots: SupportSet, layers: Mapping[str, Any], ratios: Mapping[str, float]) -> None:
        self.alpha_: Any = ratios["visual"] if "visual" in layers else None
        self.beta_: Any = ratios["text"] if "text" in layers else None
        self.scale_, self.weight_ = shots.scale, self.blend(shots.class_text, layers.get("text"), ratios["text"])
        self.down_, self.up_, self.centre_ = layers.get("visual", (None, None, None))

    def _adapter(self, dtype: torch.dtype) -> Layers | None:
        """The learned layers of picture features, if there are any."""
        learned: list[Any] = [getattr(self, f"{name}_", None) for name in Layers._fields]  # a saved model has no None
        return None if learned[0] is None else Layers(*(tensor.to(dtype) for tensor in learned))

    def _logits(self, X: Tensor) -> Tensor:
        features = self.blend(unit(X), self._adapter(X.dtype), getattr(self, "alpha_", None) or 0.0)
        return add_bias(self, self.scale_ * features @ self.weight_.T.to(X.dtype))

    def _text_logits(self, X: Tensor) -> Tensor | None:
        x, adapter = unit(X), self._adapter(X.dtype)
        if self.branch != "visual" or adapter is None:
            return None
        length = self.mix(x, adapter, self.alpha_).norm(dim=1, keepdim=True)
        return self.scale_ * (1 - self.alpha_) * x / length.clamp_min(1e-12) @ self.weight_.T.to(X.dtype)

    def _for_text(self, text: Tensor, scale: float) -> None:
        if self.branch != "visual":
            super()._for_text(text, scale)
        self.weight_, self.scale_, self.bias_ = text, scale, mean_bias(self, len(text))

    def _row_cost(self, c: int, d: int) -> int:
        return len(BRANCHES[self.branch]) * 2 * d * max(1, int(d / self.reduction)) + c * d
