"""CLIP-Adapter: two linear layers after a frozen tower, blended with their input.

Paper: Gao et al., IJCV 2023, https://arxiv.org/abs/2110.04544. Of unit picture features f and unit class text W,

    A(f) = ReLU(f W1) W2                         (1), and (2) with W for f
    f* = alpha A(f) + (1 - alpha) f              (3)
    W* = beta A(W) + (1 - beta) W                (4)
    p_i = softmax_i(s cos(f*, W*_i))             (5), with the encoder's logit scale s
    loss = mean of -log p_label over the shots   (6)

Branch "visual" trains the layers of f, "text" those of W, "both" both. `ClipAdapter.official` is the released code,
`ClipAdapter.paper` the recipe of the paper. The default is ours, chosen on small sets of many kinds (docs/studies.md):

- Training: 200 steps of AdamW and at least 20 epochs of shuffled batches of 256 shots, of each shot a view drawn anew.
  The rate falls from 2e-3 to 0 along a cosine. The scale s is halved, Gaussian noise is added to the features, and the
  mean of the classes' mean features is subtracted before W1.
- The ratio (alpha, beta, or one for both) is trained with at 0.4, and chosen after: the posterior mean under a normal
  prior, whose mean grows with the loss of zero-shot on the shots, and the likelihood of the shots by adapters of three
  folds that did not see them, each ratio at its best temperature. `heads/residual_ratio.py` has the formulas.
- Unequal shots adjust the logits in training (`heads/label_loss.py`). With multi-label pictures the loss is binary
  cross-entropy, at the bias that zero-shot has for such shots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize
from typing_extensions import Self

from clipadapter.errors import InputError, brief
from clipadapter.functional import unit
from clipadapter.heads.base import Preset, SupportSet
from clipadapter.heads.label_loss import class_counts
from clipadapter.heads.losses import LabelLoss, Loss
from clipadapter.heads.multilabel import add_bias, mean_bias, sigmoid_bias
from clipadapter.heads.out_of_fold import join_folds
from clipadapter.heads.parameters import check_not_negative, check_positive
from clipadapter.heads.registry import register_head
from clipadapter.heads.residual_ratio import CANDIDATE_RATIOS, RatioChoice, check_ratio, draw_folds, some_rows
from clipadapter.heads.trained_head import TrainedHead, draw_linear
from clipadapter.heads.training import ScheduleParameters, TrainConfig, coop_epochs, gather_views, train
from clipadapter.heads.warm_start import WarmStart, find_warm_start

RATIOS = {"visual": ("alpha",), "text": ("beta",), "both": ("alpha", "beta")}
"""The ratios of each branch."""
TRAINING_RATIO = 0.4
"""Ratio that "auto" trains with: the middle of the best range in the paper (0.2 to 0.6)."""
COMMON: Preset = {"alpha": 0.2, "centre": False, "noise": 0, "temperature": 1, "batch_size": 32, "logit_adjustment": 0}
"""What the paper and the released code have in common, and the default does not."""
SGD: Preset = {"optimizer": "sgd", "weight_decay": 5e-4, "schedule": "cosine-epoch", "warmup_epochs": 1}
OFFICIAL: Preset = {**COMMON, **SGD, "final_relu": True, "epochs": "coop"}
PAPER: Preset = {**COMMON, "optimizer": "adam", "lr": 1e-5, "schedule": "constant", "epochs": 200}


class Layers(NamedTuple):
    """The linear layers of one branch."""

    down: Tensor  # (h, d), W1 transposed
    up: Tensor  # (d, h), W2 transposed
    centre: Tensor  # (d,), subtracted from the inputs; zeros for the paper's formula


@register_head(
    "clip-adapter",
    version=6,
    paper="https://arxiv.org/abs/2110.04544",
    fidelity="verified: `ClipAdapter.official` gives the outputs of the authors' code, which has fixed ratios and one "
    "branch. The default recipe and the choice of the ratio are ours. `ClipAdapter.paper` is written from the paper.",
)
@dataclass(eq=False, repr=False, kw_only=True)
class ClipAdapter(TrainedHead, ScheduleParameters):
    """Bottleneck adapters on picture features, class text, or both, trained by cross-entropy.

    A warm start keeps the ratio that "auto" chose. The text branch starts from the beginning.

    Args:
        branch: "visual", "text" or "both".
        alpha: weight of the adapted picture feature, 0 (zero-shot) to 1. "auto" trains at 0.4 and takes the ratio from
            0 to 1 that suits the shots: the one that zero-shot's likelihood on them suggests, corrected by the
            likelihood of held-out shots, each at its best temperature.
        beta: the same for class text.
        reduction: bottleneck width is d divided by this.
        centre: subtract the mean of the shots' features before the adapter, each class weighing the same.
        noise: standard deviation of Gaussian noise on each component of the unit-length features in training.
        temperature: what the encoder's logit scale is divided by in training; not used for multi-label pictures.
        final_relu: a second ReLU at the end of the adapter.
        epochs: passes over the shots; None for as many as make ``steps`` steps, and at least 20; "coop" for what CoOp's
            scripts take: 50 at one shot per class, 100 at two to five, 200 above.
        steps: fewest optimizer steps if ``epochs`` is None. There are at least 20 epochs too, or fewer at a higher rate
            where these cost more than 10^12 multiplications forwards, as 10,000 classes x 4 shots do.
        seed: of initialisation, shuffling, noise and folds.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.0, 0.0], [1.0, 1.1, 0.0, 1.0]]
    >>> ClipAdapter(alpha=0.5).fit(X, ["cat", "dog"], text=text).predict(X)
    array(['cat', 'dog'], dtype='<U3')
    """

    needs_text = supports_warm_start = multilabel = True
    warm_start_share = 0.75
    max_cost = 1_000_000_000_000
    temperature_prior = (2.5, 2.5, 2.5, 2.2, 1.8)
    presets = {
        name: {**PAPER, "alpha": ratio}
        for name, ratio in (("imagenet", 0.2), ("caltech101", 0.2), ("dtd", 0.6), ("eurosat", 0.6))
    }
    preset_note = (
        "`ClipAdapter.paper` with the ratio that was best in the paper's search, which names no validation set. The "
        "ratios of ImageNet and DTD are in a table. Of Caltech-101 the text says about 0.2, of EuroSAT 0.6 to 0.8, of "
        "which the lower end is taken."
    )

    branch: str = "visual"
    alpha: float | str = "auto"
    beta: float | str = "auto"
    reduction: float = 4
    centre: bool = True
    noise: float = 0.03
    temperature: float = 2.0
    final_relu: bool = False
    optimizer: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.0
    batch_size: int = 256
    schedule: str = "cosine"
    epochs: int | str | None = None
    steps: int = 200

    def adapt(self, x: Tensor, layers: Layers) -> Tensor:
        """A(x) of rows (n, d), equations 1 and 2; the released code has a second ReLU."""
        hidden = linear(x, layers.down, -(layers.down @ layers.centre)).relu()  # ReLU((x - centre) W1)
        adapted = linear(hidden, layers.up)
        return adapted.relu() if self.final_relu else adapted

    def blend(self, x: Tensor, layers: Layers | None, ratio: Tensor | float) -> Tensor:
        """Equations 3 and 4 at unit length: rows (n, d) and their adapted form, which has the ratio as its weight."""
        return x if layers is None else normalize(ratio * self.adapt(x, layers) + (1 - ratio) * x, dim=1)

    def cosines(self, f: Tensor, text: Tensor, layers: Mapping[str, Any], alpha: float, beta: float) -> Tensor:
        """(n, c) cosines of equation 5, of unit picture features (n, d) and unit class text (c, d)."""
        weights = self.blend(text, layers.get("text"), beta)
        return self.blend(f, layers.get("visual"), alpha) @ weights.T

    def _fit(self, shots: SupportSet) -> None:
        assert shots.text is not None
        self._choose_gce_q(shots)
        rows = torch.arange(len(shots.views))
        some = some_rows(rows, shots.n_classes, self.seed)
        zero_shot = shots.scale * unit(shots.X[some]) @ shots.text.T
        self.bias_ = None if shots.targets is None else sigmoid_bias(shots.take(some), zero_shot)
        warm_start = find_warm_start(self, shots, self.warm_start_share) if self.branch == "visual" else None
        # The ratios of an earlier fit, or of the fit to all shots of which this one leaves some out, are reused.
        known = self._full_fit if warm_start is None else warm_start.head
        is_open = known is None and "auto" in [getattr(self, name) for name in RATIOS[self.branch]]
        folds = ratio_folds(shots, self.seed) if is_open else []
        trained = self._train_on_each(shots, [rows, *(train_rows for train_rows, _ in folds)], warm_start)
        (layers, self.loss_), *_ = trained
        ratios, self._own_out_of_fold = self._ratios(), None
        if known is not None:
            ratios = self._ratios(known.alpha_, known.beta_)
        elif is_open:
            logits_at = [partial(self._logits_of_shots, shots, each) for each, _ in trained]
            choice = RatioChoice(shots, add_bias(self, zero_shot), some, folds, logits_at[1:], self._log_prior)
            ratios = self._ratios(choice.ratio())
            self._own_out_of_fold = choice.out_of_fold(logits_at[0])
        self._store(shots, layers, *ratios)

    def _train(
        self, shots: SupportSet, rows: Tensor, bar: Any, warm_start: WarmStart | None = None
    ) -> tuple[dict[str, Layers], float]:
        """The layers of the branches that are on, trained on some of the shots, and the loss of the last step."""
        assert shots.text is not None
        text, views = shots.text, unit(shots.views[rows])
        generator = torch.Generator().manual_seed(self.seed)  # of W1, W2 and the noise; `train` has another one
        layers = self._start(shots, rows, generator, warm_start)
        loss_of = Loss.of_support_set(shots, rows, self._loss_with_chosen_q(class_counts(shots, rows)))
        scale = shots.scale / (self.temperature if shots.targets is None else 1.0)

        def loss(batch: Tensor, view: Tensor) -> Tensor:
            f = gather_views(views, batch, view)
            if self.noise:
                f = f + self.noise * torch.randn(f.shape, generator=generator, dtype=f.dtype)
            return loss_of(add_bias(self, scale * self.cosines(f, text, layers, *self._ratios())), batch)

        parameters = [tensor.requires_grad_() for each in layers.values() for tensor in (each.down, each.up)]
        config, row_cost = self._train_config(shots.labels[rows], text.shape), self._row_cost(*text.shape)
        config = config if warm_start is None else warm_start.shorten(config, len(rows))
        last_loss = train(parameters, loss, len(rows), views.shape[1], config, row_cost=row_cost, bar=bar)
        for tensor in parameters:
            tensor.requires_grad_(False)
        return layers, last_loss

    def _start(
        self, shots: SupportSet, rows: Tensor, generator: torch.Generator, warm_start: WarmStart | None
    ) -> dict[str, Layers]:
        """The layers before the first step: torch's default for linear layers, or between these and an earlier fit's."""
        assert shots.text is not None
        d, dtype = shots.text.shape[1], shots.text.dtype
        h, layers = max(1, int(d / self.reduction)), {}
        for branch in {"both": ("visual", "text")}.get(self.branch, (self.branch,)):
            down = draw_linear(h, d, fan_in=d, generator=generator, dtype=dtype)
            up = draw_linear(d, h, fan_in=h, generator=generator, dtype=dtype)
            centre = class_mean(shots, rows) if branch == "visual" else shots.text.mean(dim=0)
            layers[branch] = Layers(down, up, centre if self.centre else torch.zeros_like(centre))
        if warm_start is not None:
            down, up, centre = layers["visual"]
            layers["visual"] = Layers(warm_start.shrink("down_", down), warm_start.shrink("up_", up), centre)
        return layers

    def _ratios(self, alpha: float = TRAINING_RATIO, beta: float | None = None) -> tuple[float, float]:
        """Alpha and beta, with these numbers where they are "auto"; one number is for both."""
        beta = alpha if beta is None else beta
        return alpha if self.alpha == "auto" else float(self.alpha), beta if self.beta == "auto" else float(self.beta)

    def _logits_of_shots(self, shots: SupportSet, layers: dict[str, Layers], ratio: float, rows: Tensor) -> Tensor:
        assert shots.text is not None
        cosines = self.cosines(unit(shots.X[rows]), shots.text, layers, *self._ratios(ratio))
        return add_bias(self, shots.scale * cosines)

    def _store(self, shots: SupportSet, layers: dict[str, Layers], alpha: float, beta: float) -> None:
        assert shots.text is not None
        self.alpha_, self.beta_, self.scale_ = alpha, beta, shots.scale
        self.weight_ = self.blend(shots.text, layers.get("text"), beta)
        self.down_, self.up_, self.centre_ = layers.get("visual", (None, None, None))

    def _layers(self, dtype: torch.dtype) -> Layers | None:
        """The fitted layers of picture features."""
        tensors = (self.down_, self.up_, self.centre_)
        return None if self.down_ is None else Layers(*(tensor.to(dtype) for tensor in tensors))

    def _logits(self, X: Tensor) -> Tensor:
        features = self.blend(unit(X), self._layers(X.dtype), self.alpha_)
        return add_bias(self, self.scale_ * features @ self.weight_.T.to(X.dtype))

    def _text_logits(self, X: Tensor) -> Tensor | None:
        if self.branch != "visual":
            return None
        # The part of equation 3 that does not come from the adapter.
        x, layers = unit(X), self._layers(X.dtype)
        length = (self.alpha_ * self.adapt(x, layers) + (1 - self.alpha_) * x).norm(dim=1, keepdim=True)
        return self.scale_ * (1 - self.alpha_) * x / length.clamp_min(1e-12) @ self.weight_.T.to(X.dtype)

    def _for_text(self, text: Tensor, scale: float) -> None:
        if self.branch != "visual":
            raise InputError(f"the text branch knows only its own classes: branch is '{self.branch}', not 'visual'")
        self.weight_, self.scale_, self.bias_ = text, scale, mean_bias(self, len(text))

    def _train_config(self, labels: Tensor, text_shape: tuple[int, ...] | None = None) -> TrainConfig:
        epochs = coop_epochs(labels) if self.epochs == "coop" else self.epochs
        return self._limit_cost(TrainConfig.from_estimator(self, epochs=epochs), len(labels), text_shape)

    def _row_cost(self, c: int, d: int) -> int:
        """Multiplications of the forward pass of one row: those of the adapters, and with c class weights."""
        return (2 if self.branch == "both" else 1) * 2 * d * max(1, int(d / self.reduction)) + c * d
