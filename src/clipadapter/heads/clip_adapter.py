"""CLIP-Adapter: a bottleneck after a frozen tower, blended with its input.

Paper: Gao et al., IJCV 2023, https://arxiv.org/abs/2110.04544, equations 1 to 6.
The default is the paper's adapter under a recipe of our own, chosen on small sets of many kinds: see docs/studies.md.
Ours are: the residual ratio is chosen from the shots (`clipadapter.heads.residual_ratio`), where the paper searched it
for each data set; features are centred before the adapter, and trained with noise, at half of the encoder's logit
scale, in 200 steps of AdamW.
`ClipAdapter.paper` is the recipe that the paper states, `ClipAdapter.official` that of the released code.
With multi-label pictures (ours) the loss is binary cross-entropy, at the bias that zero-shot has for such shots.
With unequal shots the default adjusts logits in training (`heads.label_loss`), which is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from clipadapter.errors import InputError, brief
from clipadapter.functional import unit
from clipadapter.heads.base import Preset, SupportSet
from clipadapter.heads.folds import hyperparameter_folds
from clipadapter.heads.label_loss import LabelLossHead, class_counts
from clipadapter.heads.losses import LabelLoss, Loss
from clipadapter.heads.multilabel import add_bias, mean_bias, sigmoid_bias
from clipadapter.heads.parameters import NOT_NEGATIVE, POSITIVE, at_least
from clipadapter.heads.registry import register_head
from clipadapter.heads.residual_ratio import (
    CANDIDATE_RATIOS,
    TRAINED_MODES,
    check_ratio,
    choose_ratio,
    empty_loss_table,
    expected_ratio,
    gate_inputs,
    held_out_loss_table,
    initial_gate,
    initial_ratio,
    ratio_from_gate,
    residual_part,
    some_rows,
)
from clipadapter.heads.softmax_regression import MAX_LOGITS
from clipadapter.heads.training import LossFunction, ScheduledHead, TrainConfig, coop_epochs, gather_views, train
from clipadapter.heads.warm_start import WarmStart, find_warm_start
from clipadapter.parallel import parallel_map


class Adapter(nn.Module):
    """Two linear layers with a residual connection around them, for image features f or class text W.

        A(f) = ReLU(f W1) W2                  equation 1; equation 2 is the same with W for f
        f* = ratio A(f) + (1 - ratio) f       equation 3, ratio alpha; equation 4 with W for f, ratio beta

    Args:
        down: (h, d), W1 transposed.
        up: (d, h), W2 transposed.
        down_bias: (h,), or None.
        up_bias: (d,), or None.
        final_relu: a second ReLU after W2, as in the released code.
    """

    def __init__(
        self,
        down: Tensor,
        up: Tensor,
        down_bias: Tensor | None = None,
        up_bias: Tensor | None = None,
        final_relu: bool = False,
    ) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.down_bias = None if down_bias is None else nn.Parameter(down_bias)
        self.up_bias = None if up_bias is None else nn.Parameter(up_bias)
        self.final_relu = final_relu
        self.centre: Tensor | None = None  # (d,) is subtracted from the input (ours)

    def forward(self, x: Tensor) -> Tensor:
        """A(x) of rows (n, d)."""
        adapted = linear(self._hidden(x), self.up, self.up_bias)  # (n, d)
        return adapted.relu() if self.final_relu else adapted

    @staticmethod
    def blend(x: Tensor, adapted: Tensor, ratio: Tensor | float) -> Tensor:
        """The residual connection: (n, d) rows and their adapted form, with the weight of the ADAPTED one.

        >>> Adapter.blend(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.25)
        tensor([[0.7500, 0.2500]])
        """
        return ratio * adapted + (1 - ratio) * x

    def _hidden(self, x: Tensor) -> Tensor:
        return linear(x, self.down, self._input_bias()).relu()  # (n, h)

    def _input_bias(self) -> Tensor | None:
        """W1 (x - centre) + bias is W1 x + this: the centre costs no pass over (n, d)."""
        if self.centre is None:
            return self.down_bias
        shift = -(self.down @ self.centre)
        return shift if self.down_bias is None else self.down_bias + shift

    def blend_up_to_length(self, x: Tensor, ratio: Tensor | float) -> Tensor:
        """`blend` of x and its adapted form up to a positive factor, on which cosines do not depend.

        If the ratio is a number the factor is ``1 / (1 - ratio)``: the blend is then part of the product with W2, and
        costs no further pass over (n, d).

        >>> adapter = Adapter(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]]))
        >>> adapter.blend_up_to_length(torch.tensor([[1.0, 0.0]]), 0.25).detach()
        tensor([[1.0000, 0.3333]])
        """
        if self.final_relu or isinstance(ratio, Tensor) or ratio == 1:
            return self.blend(x, self(x), ratio)
        return self._add_up_to_length(x, self._hidden(x), ratio / (1 - ratio))

    def _add_up_to_length(self, x: Tensor, hidden: Tensor, relative: float) -> Tensor:
        """The rows plus ``relative`` times their adapted form."""
        start = x if self.up_bias is None else torch.add(x, self.up_bias, alpha=relative)
        return torch.addmm(start, hidden, self.up.T, alpha=relative)

    def loss_with_gradients(
        self, x: Tensor, ratio: float, loss: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        """A loss of `blend_up_to_length`, and its gradients for the parameters in their order, by formula.

        Args:
            x: (n, d) rows.
            ratio: weight of the adapted rows, below 1. The adapter has no second ReLU.
            loss: the value for blended rows (n, d), and its gradient (n, d) for them.

        >>> adapter = Adapter(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]]))
        >>> x = torch.tensor([[1.0, 0.0]])
        >>> value, gradients = adapter.loss_with_gradients(x, 0.5, lambda blend: (blend.sum(), torch.ones(1, 2)))
        >>> [gradient.tolist() for gradient in gradients]
        [[[1.0, 0.0]], [[1.0], [1.0]]]
        """
        assert ratio < 1 and not self.final_relu
        relative = ratio / (1 - ratio)
        with torch.no_grad():
            hidden = self._hidden(x)
            value, blend_gradient = loss(self._add_up_to_length(x, hidden, relative))
            up_gradient = (blend_gradient.T @ hidden).mul_(relative)
            hidden_gradient = (blend_gradient @ self.up).mul_(hidden > 0).mul_(relative)
            bias_gradient = hidden_gradient.sum(dim=0)
            down_gradient = hidden_gradient.T @ x
            if self.centre is not None:
                down_gradient.addr_(bias_gradient, self.centre, alpha=-1)
            gradients = [down_gradient, up_gradient]
            if self.down_bias is not None:
                gradients.append(bias_gradient)
            if self.up_bias is not None:
                gradients.append(relative * blend_gradient.sum(dim=0))
        return value, gradients

    @classmethod
    def initial(
        cls,
        d: int,
        hidden: int,
        generator: torch.Generator,
        dtype: torch.dtype,
        *,
        bias: bool = False,
        zero: bool = False,
        final_relu: bool = False,
    ) -> Adapter:
        """Start of training: uniform in plus or minus 1 / sqrt(fan in), torch's default for linear layers.

        With `zero` the last layer starts at zero. Draws come from the generator, where ``nn.Linear`` takes torch's own.
        """

        def uniform(*shape: int, fan_in: int) -> Tensor:
            return (torch.rand(*shape, generator=generator, dtype=dtype) * 2 - 1) / math.sqrt(fan_in)

        down, up = uniform(hidden, d, fan_in=d), uniform(d, hidden, fan_in=hidden)
        down_bias = uniform(hidden, fan_in=d) if bias else None
        up_bias = uniform(d, fan_in=hidden) if bias else None
        adapter = cls(down, up, down_bias, up_bias, final_relu)
        if zero:
            with torch.no_grad():
                for last in (adapter.up, adapter.up_bias):
                    if last is not None:
                        last.zero_()
        return adapter

    @classmethod
    def of_head(cls, head: object, dtype: torch.dtype) -> Adapter | None:
        """The adapter whose tensors a fitted head has as ``down_``, ``up_`` and so on; None if it has none."""
        tensors = {name: getattr(head, f"{name}_", None) for name in ADAPTER_TENSORS}
        if tensors["down"] is None:
            return None
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items() if tensor is not None}
        adapter = cls(**tensors, final_relu=getattr(head, "final_relu", False))  # type: ignore[arg-type]
        return adapter.requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """The parameters that there are, by name, without their gradients."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def fold_centre(self) -> Adapter:
        """The same function, with the centre as part of the first layer's bias.

        >>> adapter = Adapter(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]]))
        >>> adapter.centre = torch.tensor([2.0, 5.0])
        >>> adapter.fold_centre().down_bias.tolist()
        [-2.0]
        """
        with torch.no_grad():
            tensors = {**self.tensors(), "down_bias": self._input_bias()}
        folded = Adapter(**tensors, final_relu=self.final_relu)  # type: ignore[arg-type]
        return folded.requires_grad_(self.down.requires_grad)


ADAPTER_TENSORS = ("down", "up", "down_bias", "up_bias")
BRANCHES = ("visual", "text", "both")
PUBLISHED_RATIO = 0.2
"""Ratio of the released code, and the best on ImageNet in the paper."""
COMMON_TO_PAPER_AND_CODE: Preset = {
    "alpha": PUBLISHED_RATIO,
    "centre": False,
    "noise": 0.0,
    "temperature": 1.0,
    "batch_size": 32,
    "logit_adjustment": 0.0,
}
"""What the paper and the released code have in common, and the default does not."""
OFFICIAL: Preset = MappingProxyType(
    {
        **COMMON_TO_PAPER_AND_CODE,
        "input_norm": False,
        "final_relu": True,
        "optimizer": "sgd",
        "lr": 2e-3,
        "weight_decay": 5e-4,
        "schedule": "cosine-epoch",
        "warmup_epochs": 1,
        "epochs": "coop",
    }
)
"""What the released code sets otherwise than the defaults."""
PAPER: Preset = MappingProxyType(
    {**COMMON_TO_PAPER_AND_CODE, "optimizer": "adam", "lr": 1e-5, "schedule": "constant", "epochs": 200}
)
"""What the paper sets otherwise than the defaults."""
WARM_START_SHARE = 0.75
"""Share of what an earlier fit learned that a warm start keeps."""
SUFFICIENT_SHOTS_FOR_RATIO = 256
"""Held-out shots that suffice to choose the ratio: no fold is fitted beyond these."""
MAX_TRAINING_COST = 1_000_000_000_000
"""Multiplications of the forward passes of one training if ``epochs`` is None: with more, epochs are fewer than 20 at
a higher rate, but all ``steps``. At 10,000 classes x 4 shots x 512 columns they are 4 epochs, or 628 steps."""


def make_noisy_gather(views: Tensor, noise: float, generator: torch.Generator) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that gathers views, as `gather_views` does, and adds Gaussian noise relative to their length.

    Args:
        views: (n, v, d).
        noise: standard deviation in each component, as a share of a row's length; 0 for none.
        generator: of the noise.
    """
    if noise == 0:
        return partial(gather_views, views)
    lengths = views.norm(dim=2, keepdim=True)

    def draw(rows: Tensor, view: Tensor) -> Tensor:
        x = gather_views(views, rows, view)
        unscaled = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return torch.addcmul(x, unscaled, gather_views(lengths, rows, view), value=noise, out=unscaled)

    return draw


@dataclass(frozen=True)
class TrainedAdapters:
    """Trained adapters of the branches that are on, and their ratios; a dynamic ratio is given as its mean."""

    visual: Adapter | None
    text: Adapter | None
    alpha: float
    beta: float
    alpha_gate: Tensor | None  # (1 + 2d,) parameters of a dynamic alpha
    beta_gate: Tensor | None  # (1 + d,) parameters of a dynamic beta
    loss: float  # of the last step


@register_head(
    "clip-adapter",
    version=5,
    paper="https://arxiv.org/abs/2110.04544",
    fidelity="verified: `ClipAdapter.official` gives the outputs of the authors' code, which has fixed ratios and one "
    "branch. The default recipe and the choice of the ratio are ours. `ClipAdapter.paper` is written from the paper.",
    published_with={"centre": False, "noise": 0.0, "temperature": 1.0, "logit_adjustment": 0.0},
)
@dataclass(eq=False, repr=False, kw_only=True)
class ClipAdapter(LabelLossHead, ScheduledHead):
    """Bottleneck adapters on picture features, class text, or both, trained by cross-entropy.

    A warm start keeps the ratio that "auto" chose. A "learned" or "dynamic" ratio, and the text branch, start from the
    beginning.

    Args:
        branch: "visual", "text" or "both".
        reduction: bottleneck width is d divided by this.
        hidden: bottleneck width itself; overrides ``reduction``.
        alpha: weight of the adapted picture feature, 0 (zero-shot) to 1. "auto" trains at 0.4 and takes the ratio from
            0 to 1 that suits the shots: the one that zero-shot's likelihood on them suggests, corrected by the
            likelihood of held-out shots, each at its best temperature. "learned" trains one number jointly with the
            adapter. "dynamic" trains a function of the picture and the class text, the paper's Q(f, W).
        beta: the same for class text; a "dynamic" one is a function of each class's text.
        input_norm: True to feed the adapter unit-length features, False raw ones.
        centre: subtract the mean of the shots' features before the adapter, each class weighing the same.
        noise: standard deviation of Gaussian noise that is added to each component of the features in training, as a
            share of their length.
        temperature: what the encoder's logit scale is divided by in training; not used for multi-label pictures.
        final_relu: a second ReLU at the end of the adapter.
        output_norm: scale the blended feature to unit length.
        bias: give both linear layers a bias that is trained.
        zero_init: start the last layer at zero, so that training starts exactly at zero-shot.
        optimizer: "adamw", "adam" or "sgd".
        weight_decay: decoupled for AdamW, L2 for Adam and SGD.
        epochs: passes over the shots; None for as many as make ``steps`` steps, and at least 20; "coop" for what CoOp's
            scripts take: 50 at one shot per class, 100 at two to five, 200 above.
        steps: fewest optimizer steps if ``epochs`` is None. There are at least 20 epochs too, or fewer at a higher rate
            where these cost more than 10^12 multiplications forwards, as 10,000 classes x 4 shots do.
        folds: number of folds for "auto", of which no more are fitted than hold out 256 shots together.
        seed: of initialisation, shuffling, noise and folds.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.0, 0.0], [1.0, 1.1, 0.0, 1.0]]
    >>> ClipAdapter(alpha=0.5).fit(X, ["cat", "dog"], text=text).predict(X)
    array(['cat', 'dog'], dtype='<U3')
    """

    needs_text = True
    supports_warm_start = True
    multilabel = True
    temperature_prior = (2.5, 2.5, 2.5, 2.2, 1.8)
    presets: ClassVar[Mapping[str, Preset]] = {
        "imagenet": {**PAPER, "alpha": 0.2},
        "caltech101": {**PAPER, "alpha": 0.2},
        "dtd": {**PAPER, "alpha": 0.6},
        "eurosat": {**PAPER, "alpha": 0.6},
    }
    preset_note = (
        "`ClipAdapter.paper` with the ratio that was best in the paper's search, which names no validation set. The "
        "ratios of ImageNet and DTD are in a table. Of Caltech-101 the text says about 0.2, of EuroSAT 0.6 to 0.8, of "
        "which the lower end is taken."
    )
    recipes = {"official": OFFICIAL, "paper": PAPER}
    """Official: visual branch, ratio 0.2, two ReLUs, raw input, SGD as in CoOp. The released code is for ImageNet only,
    and CoOp's scripts take 50 epochs for it at any number of shots: ``official(epochs=50)``.

    Paper: visual branch, bottleneck d / 4, learning rate 1e-5, batches of 32, with Adam and 200 epochs. It leaves
    open: the optimizer, betas and schedule (Adam is the reading under which 1e-5 trains at all; the rate is constant
    here), whether the adapter's input has unit length (here it does; without biases it makes no difference), and how
    the ratio was chosen: it gives the best of a search for each data set, and names no validation set. ImageNet's 0.2
    is taken here; `preset` has the others."""

    branch: str = "visual"
    reduction: Annotated[float, POSITIVE] = 4
    hidden: Annotated[int | None, at_least(1)] = None
    alpha: float | str = "auto"
    beta: float | str = "auto"
    input_norm: bool = True
    centre: bool = True
    noise: Annotated[float, NOT_NEGATIVE] = 0.03
    temperature: Annotated[float, POSITIVE] = 2.0
    final_relu: bool = False
    output_norm: bool = True
    bias: bool = False
    zero_init: bool = False
    optimizer: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.0
    epochs: int | str | None = None
    steps: int = 200
    folds: Annotated[int, at_least(2)] = 3

    def planned_epochs(self, labels: Tensor, text_shape: tuple[int, int] | None = None) -> int:
        """See `Head.planned_epochs`."""
        config, n = self._train_config(False, labels), len(labels)
        return (config if text_shape is None else self._limit_epochs(config, n, *text_shape)).count_epochs(n)

    def _fit(self, shots: SupportSet) -> None:
        self._choose_gce_q(shots)
        assert shots.text is not None
        n, d = shots.X.shape
        judged = all_rows = torch.arange(n)
        if shots.targets is None and n * shots.n_classes > MAX_LOGITS:
            judged = some_rows(all_rows, shots.n_classes, self.seed)
        zero_shot = shots.scale * unit(shots.X[judged]) @ shots.text.T
        # A trained ratio and the text adapter are not stored in a form that training could continue from.
        can_continue = self.branch == "visual" and self.alpha not in TRAINED_MODES
        warm_start = find_warm_start(self, shots, WARM_START_SHARE) if can_continue else None
        self.bias_ = None if shots.targets is None else sigmoid_bias(shots, zero_shot)
        # The ratio of an earlier fit, or of the fit to all shots of which this one leaves some out, is reused.
        ratio_source = self._full_fit if warm_start is None else warm_start.head
        active_ratios = {"visual": [self.alpha], "text": [self.beta], "both": [self.alpha, self.beta]}[self.branch]
        needs_choice = "auto" in active_ratios and ratio_source is None
        splits = self._splits(shots) if needs_choice else []
        fits = [partial(self._train, shots, all_rows, self.progress, warm_start)]
        fits += [partial(self._train, shots, train_rows, False) for train_rows, _ in splits]
        trained, *fold_adapters = parallel_map(fits, work=min(self.batch_size, n) * self._hidden_width(d) * d)
        if needs_choice:
            tables = [self._held_out_losses(shots, *fold) for fold in zip(fold_adapters, splits, strict=True)]
            expected = expected_ratio(zero_shot, Loss.of_support_set(shots, judged, self.bias_))
            trained = self._with_ratio(trained, choose_ratio(sum(tables, empty_loss_table()), expected))
        elif ratio_source is not None:
            trained = self._with_ratio(trained, ratio_source.alpha_, ratio_source.beta_)
        self._store(shots, trained)

    def _train(
        self, shots: SupportSet, rows: Tensor, progress: bool, warm_start: WarmStart | None = None
    ) -> TrainedAdapters:
        """Adapters trained on some of the shots."""
        assert shots.text is not None
        text, scale = shots.text, shots.scale
        temperature = self.temperature if shots.targets is None else 1.0
        label_loss = self._loss_with_chosen_q(class_counts(shots, rows))
        objective = Loss.of_support_set(shots, rows, self.bias_, temperature, label_loss)
        d, dtype = text.shape[1], text.dtype
        # Of the initial weights and the noise. `train` makes another one from the same seed, for batches and views.
        generator = torch.Generator().manual_seed(self.seed)
        config = self._train_config(progress, shots.labels[rows])
        config = config if warm_start is None else warm_start.shorten(config, len(rows))
        inputs = self._input(shots.views[rows])
        draw = make_noisy_gather(inputs, self.noise, generator)
        visual, textual = self._initial_adapters(shots, rows, inputs[:, 0], generator, warm_start)
        alpha_gate = initial_gate(self.alpha, 2 * d, dtype) if visual is not None else None
        beta_gate = initial_gate(self.beta, d, dtype) if textual is not None else None

        def loss_with_gradients(batch: Tensor, view: Tensor) -> tuple[Tensor, list[Tensor]]:
            assert visual is not None
            value_and_gradient = partial(objective.with_gradient, weight=text, rows=batch)
            return visual.loss_with_gradients(draw(batch, view), initial_ratio(self.alpha), value_and_gradient)

        def loss(batch: Tensor, view: Tensor) -> Tensor:
            x, weight = draw(batch, view), text
            if textual is not None:
                beta = initial_ratio(self.beta) if beta_gate is None else ratio_from_gate(beta_gate, text)
                weight = self._normalised(Adapter.blend(text, textual(text), beta))
            if visual is None:
                return objective.from_features(x, weight, batch)
            alpha: Tensor | float = initial_ratio(self.alpha)
            if alpha_gate is not None:
                alpha = ratio_from_gate(alpha_gate, gate_inputs(unit(x), weight, scale))
            if self.output_norm:  # then the length of the blend does not matter
                return objective.from_features(visual.blend_up_to_length(x, alpha), weight, batch)
            return objective.from_features(Adapter.blend(x, visual(x), alpha), weight, batch, normalise=False)

        parameters: list[Tensor] = [gate for gate in (alpha_gate, beta_gate) if gate is not None]
        for adapter in (visual, textual):
            parameters += [] if adapter is None else list(adapter.parameters())
        config = self._limit_epochs(config, len(rows), *text.shape)
        function: LossFunction = loss_with_gradients if self._has_gradient_formula(shots) else loss
        row_cost = self._row_cost(*text.shape)
        last_loss = train(parameters, function, len(rows), inputs.shape[1], config, row_cost=row_cost)
        for parameter in parameters:
            parameter.requires_grad_(False)
        # An adapter that is None, since its branch is off, stays None.
        visual, textual = (adapter and adapter.fold_centre() for adapter in (visual, textual))
        ratios = initial_ratio(self.alpha), initial_ratio(self.beta)
        trained = TrainedAdapters(visual, textual, *ratios, alpha_gate, beta_gate, last_loss)
        return self._with_mean_ratios(trained, unit(inputs[:, 0]), text, scale)

    def _has_gradient_formula(self, shots: SupportSet) -> bool:
        """Whether `Adapter.loss_with_gradients` computes the gradients of this recipe; others are differentiated."""
        is_plain = self.branch == "visual" and self.output_norm and not self.final_relu
        return is_plain and shots.targets is None and self.alpha not in (*TRAINED_MODES, 1)

    def _initial_adapters(
        self, shots: SupportSet, rows: Tensor, x: Tensor, generator: torch.Generator, warm_start: WarmStart | None
    ) -> tuple[Adapter | None, Adapter | None]:
        """The adapters of picture features (n, d) and of class text at the start of training; None if one is off."""
        assert shots.text is not None
        d, dtype = shots.text.shape[1], shots.text.dtype
        visual = self._initial(d, generator, dtype) if self.branch != "text" else None
        textual = self._initial(d, generator, dtype) if self.branch != "visual" else None
        if visual is not None:
            visual.centre = self._centre(x, shots, rows)
        if textual is not None:
            textual.centre = shots.text.mean(dim=0) if self.centre else None
        if self.bias:  # a bias that is trained starts at the centre; an adapter that is off stays None
            visual, textual = (adapter and adapter.fold_centre() for adapter in (visual, textual))
        if warm_start is not None and visual is not None:
            with torch.no_grad():
                for name, parameter in visual.named_parameters():
                    parameter.copy_(warm_start.shrink(f"{name}_", parameter.detach()))
        return visual, textual

    def _held_out_losses(self, shots: SupportSet, trained: TrainedAdapters, split: tuple[Tensor, Tensor]) -> Tensor:
        """(r, t) losses of the shots that a fit did not see, at each candidate ratio and temperature."""
        assert shots.text is not None
        held_out = some_rows(split[1], shots.n_classes, self.seed)
        prior = self._log_prior(class_counts(shots, held_out))
        loss = Loss.of_support_set(shots, held_out, self.bias_, label_loss=LabelLoss(prior))
        x, gate, logits = self._input(shots.X[held_out]), trained.alpha_gate, []
        adapted = None if trained.visual is None else trained.visual(x)
        for ratio in CANDIDATE_RATIOS:
            candidate = self._with_ratio(trained, ratio)
            weight = self._adapted_text(candidate, shots.text)
            alpha: Tensor | float = candidate.alpha
            if gate is not None:
                alpha = ratio_from_gate(gate, gate_inputs(unit(x), weight, shots.scale))
            features = x if adapted is None else self._normalised(Adapter.blend(x, adapted, alpha))
            logits.append(shots.scale * features @ weight.T)
        return held_out_loss_table(logits, loss)

    def _with_ratio(self, trained: TrainedAdapters, alpha: float, beta: float | None = None) -> TrainedAdapters:
        """With other ratios where they are "auto"; one number is for both."""
        return replace(
            trained,
            alpha=alpha if self.alpha == "auto" else trained.alpha,
            beta=(alpha if beta is None else beta) if self.beta == "auto" else trained.beta,
        )

    def _with_mean_ratios(self, trained: TrainedAdapters, x: Tensor, text: Tensor, scale: float) -> TrainedAdapters:
        """Trained ratios as numbers: a learned one as it is, a dynamic one as its mean over shots (n, d) or classes."""
        alpha_gate, beta_gate = trained.alpha_gate, trained.beta_gate
        if beta_gate is not None:
            trained = replace(trained, beta=float(ratio_from_gate(beta_gate, text).mean()))
        if alpha_gate is not None:
            inputs = gate_inputs(x, self._adapted_text(trained, text), scale)
            trained = replace(trained, alpha=float(ratio_from_gate(alpha_gate, inputs).mean()))
        return replace(
            trained,
            alpha_gate=alpha_gate if self.alpha == "dynamic" else None,
            beta_gate=beta_gate if self.beta == "dynamic" else None,
        )

    def _store(self, shots: SupportSet, trained: TrainedAdapters) -> None:
        assert shots.text is not None
        self.loss_, self.scale_ = trained.loss, shots.scale
        self.alpha_, self.beta_ = trained.alpha, trained.beta
        self.alpha_gate_ = trained.alpha_gate
        self.weight_ = self._adapted_text(trained, shots.text)
        tensors = {} if trained.visual is None else trained.visual.tensors()
        for name in ADAPTER_TENSORS:
            setattr(self, f"{name}_", tensors.get(name))

    def _logits(self, X: Tensor) -> Tensor:
        return add_bias(self, self._cosine_logits(X, Adapter.blend, normalise=self._normalised))

    def _text_logits(self, X: Tensor) -> Tensor | None:
        if self.branch != "visual":
            return None
        return self._cosine_logits(X, partial(residual_part, normalise=self.output_norm))

    def _cosine_logits(
        self,
        X: Tensor,
        combine: Callable[[Tensor, Tensor, Tensor | float], Tensor],
        normalise: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Scaled products of class weights and what `combine` makes of features, their adapted form and the ratio."""
        adapter, weight = Adapter.of_head(self, X.dtype), self.weight_.to(X.dtype)
        features = self._input(X)
        if adapter is not None:
            gate: Tensor | None = getattr(self, "alpha_gate_", None)
            alpha: Tensor | float = self.alpha_
            if gate is not None:
                alpha = ratio_from_gate(gate.to(X.dtype), gate_inputs(unit(X), weight, self.scale_))
            features = combine(features, adapter(features), alpha)
            features = features if normalise is None else normalise(features)
        return self.scale_ * features @ weight.T

    def _for_text(self, text: Tensor, scale: float) -> None:
        if self.branch != "visual":
            raise InputError(
                f"the text branch knows only its own classes: branch is {brief(self.branch)}, not 'visual'"
            )
        self.weight_, self.scale_ = text, scale
        self.bias_ = mean_bias(self, len(text))

    def _input(self, X: Tensor) -> Tensor:
        """Input of the adapter and of the blend, from raw (..., d) features."""
        return unit(X) if self.input_norm or self.branch == "text" else X

    def _normalised(self, blended: Tensor) -> Tensor:
        return unit(blended) if self.output_norm else blended

    def _adapted_text(self, trained: TrainedAdapters, text: Tensor) -> Tensor:
        """(c, d) class weights: adapted class text, if its branch is on."""
        if trained.text is None:
            return text
        beta = trained.beta if trained.beta_gate is None else ratio_from_gate(trained.beta_gate, text)
        return self._normalised(Adapter.blend(text, trained.text(text), beta))

    def _centre(self, x: Tensor, shots: SupportSet, rows: Tensor) -> Tensor | None:
        """(d,) mean of features (n, d) in which each class weighs the same; None if nothing is to be subtracted."""
        if not self.centre:
            return None
        if shots.targets is not None:
            return x.mean(dim=0)
        labels = shots.labels[rows]
        row_weights = 1 / torch.bincount(labels)[labels].to(x.dtype)
        return row_weights @ x / row_weights.sum()

    def _hidden_width(self, d: int) -> int:
        return self.hidden if self.hidden is not None else max(1, int(d / self.reduction))

    def _initial(self, d: int, generator: torch.Generator, dtype: torch.dtype) -> Adapter:
        options = {"bias": self.bias, "zero": self.zero_init, "final_relu": self.final_relu}
        return Adapter.initial(d, self._hidden_width(d), generator, dtype, **options)

    def _train_config(self, progress: bool, labels: Tensor) -> TrainConfig:
        epochs = coop_epochs(labels) if isinstance(self.epochs, str) else self.epochs
        return TrainConfig.from_estimator(self, epochs=epochs, progress=progress)

    def _limit_epochs(self, config: TrainConfig, n: int, c: int, d: int) -> TrainConfig:
        """With fewer epochs over n shots of c classes and d columns, if they cost more than `MAX_TRAINING_COST`."""
        max_epochs = MAX_TRAINING_COST // (n * self._row_cost(c, d))
        return config if self.epochs is not None else config.with_max_epochs(n, max_epochs)

    def _row_cost(self, c: int, d: int) -> int:
        """Multiplications of the forward pass of one row: those of the adapters, and with c class weights."""
        return (2 if self.branch == "both" else 1) * 2 * d * self._hidden_width(d) + c * d

    def _splits(self, shots: SupportSet) -> list[tuple[Tensor, Tensor]]:
        """Rows to train on and rows to judge by; none if most classes have one shot."""
        splits = hyperparameter_folds(shots, self.folds, self.seed)
        held_out_counts = torch.tensor([len(held_out) for _, held_out in splits]).cumsum(0)
        # One more than the folds that hold out too few: the fold that reaches the number is fitted too.
        return splits[: 1 + int((held_out_counts < SUFFICIENT_SHOTS_FOR_RATIO).sum())]

    def check_parameters(self) -> None:
        """See `Head.check_parameters`."""
        super().check_parameters()
        if self.branch not in BRANCHES:
            raise InputError(f"branch must be one of {', '.join(BRANCHES)}, but is {brief(self.branch)}")
        check_ratio("alpha", self.alpha)
        check_ratio("beta", self.beta)
        if isinstance(self.epochs, str) and self.epochs != "coop":
            raise InputError(f"epochs must be a number, None or 'coop', but is {brief(self.epochs)}")
        if self.zero_init and self.final_relu:
            raise InputError("zero_init with final_relu never trains: the gradient of a ReLU at zero is zero")
