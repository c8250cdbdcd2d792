"""CLIP-Adapter: a bottleneck after a frozen tower, blended with what went in.

Paper: Gao et al., IJCV 2023, https://arxiv.org/abs/2110.04544, equations 1 to 6.
The default is the paper's adapter under a recipe of our own, chosen on small sets of many kinds: see docs/studies.md.
Ours are: the residual ratio is chosen by the shots (`residual_ratio`), where the paper searched it for each data set; features
are centred before the adapter, and trained with noise, at half of the encoder's logit scale, in 200 steps of AdamW.
`ClipAdapter.paper` is the recipe that the paper states, `ClipAdapter.official` that of the released code.
With several labels a picture (ours) the loss is binary cross-entropy, at the bias that zero-shot has for such shots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.functional import unit
from clipadapter.heads._base import Head, Preset, SupportSet
from clipadapter.heads._bottleneck import Bottleneck, Mix, attended, blend, check_ratio, gated, unadapted
from clipadapter.heads._continued import Earlier, earlier
from clipadapter.heads._registry import register_head
from clipadapter.heads._several import bias_of_others, shot_folds, sigmoid_bias, with_bias
from clipadapter.heads.losses import Objective
from clipadapter.heads.residual_ratio import RATIOS, choose_ratio, expected_ratio, loss_table, no_losses
from clipadapter.heads.training import Recipe, coop_epochs, drawn, minimise, side_by_side

BRANCHES = ("visual", "text", "both")
TENSORS = ("down", "up", "down_bias", "up_bias")
TRAINED = ("learned", "dynamic")
"""Ratios that gradient steps change, beside the adapter."""
TRAINING_RATIO = 0.4
"""Ratio that "auto" trains with, the middle of what the paper found best (0.2 to 0.6)."""
START_RATIO = 0.2
"""Where a learned and a dynamic ratio start: the ratio of the released code."""
AS_WRITTEN: Preset = {"alpha": START_RATIO, "centre": False, "noise": 0.0, "temperature": 1.0, "batch_size": 32}
"""What the paper and the released code have in common, and the default has not."""
OFFICIAL: Preset = MappingProxyType(
    {
        **AS_WRITTEN,
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
PAPER: Preset = MappingProxyType({**AS_WRITTEN, "optimizer": "adam", "lr": 1e-5, "schedule": "constant", "epochs": 200})
"""What the paper sets otherwise than the defaults."""
KEPT = 0.75
"""Of what an earlier fit learned."""
ENOUGH = 256
"""Held-out shots that the ratio is chosen by: folds beyond these are not fitted, since more would not tell more."""


@dataclass(frozen=True)
class Trained:
    """Trained adapters of the branches that are on.

    Args:
        visual: on picture features, or None.
        text: on class text, or None.
        alpha: ratio of the first; of a dynamic one the mean over the shots.
        beta: ratio of the second; of a dynamic one the mean over the classes.
        alpha_gate: (1 + 2d,) what a dynamic alpha is computed by, else None.
        beta_gate: (1 + d,) likewise.
        loss: of the last step.
    """

    visual: Bottleneck | None
    text: Bottleneck | None
    alpha: float
    beta: float
    alpha_gate: Tensor | None
    beta_gate: Tensor | None
    loss: float


@register_head(
    "clip-adapter",
    paper="https://arxiv.org/abs/2110.04544",
    fidelity="verified: `ClipAdapter.official` gives the outputs of the authors' code, which has fixed ratios and one "
    "branch. The default recipe and the choice of the ratio are ours. `ClipAdapter.paper` is written from the paper.",
)
class ClipAdapter(Head):
    """Bottleneck adapters on picture features, class text, or both, trained by cross-entropy.

    A fit from an earlier one keeps the ratio that "auto" found; a "learned" or "dynamic" one, and the branches of class
    text, begin anew.

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
        temperature: what the encoder's logit scale is divided by in training; not used with several labels a picture.
        final_relu: a second ReLU at the end of the adapter.
        output_norm: scale the blended feature to unit length.
        bias: give both linear layers a bias that is trained.
        zero_init: start the last layer at zero, so that training starts exactly at zero-shot.
        optimizer: "adamw", "adam" or "sgd".
        lr: highest learning rate.
        momentum: of SGD.
        weight_decay: decoupled for AdamW, L2 for Adam and SGD.
        schedule: "cosine", "cosine-epoch" (the rate changes once an epoch) or "constant".
        warmup_epochs: epochs at a constant 1e-5 before the schedule starts.
        epochs: passes over the shots; None for as many as make ``steps`` steps, and at least 20; "coop" for what CoOp's
            scripts take: 50 at one shot a class, 100 at two to five, 200 above.
        steps: fewest optimizer steps if ``epochs`` is None.
        batch_size: shots a step.
        folds: number of folds for "auto", of which no more are fitted than hold out 256 shots together.
        seed: of initialisation, shuffling, noise and folds.
        progress: show a bar on stderr while training.

    >>> from clipadapter.heads import TextFeatures
    >>> text = TextFeatures(["cat", "dog"], [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.0, 0.0], [1.0, 1.1, 0.0, 1.0]]
    >>> ClipAdapter(alpha=0.5).fit(X, ["cat", "dog"], text=text).predict(X)
    array(['cat', 'dog'], dtype='<U3')
    """

    needs_text = True
    warm = True
    multilabel = True
    usual_temperatures = (1.5, 1.5, 1.7, 1.6, 1.4)
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

    def __init__(
        self,
        branch: str = "visual",
        reduction: float = 4,
        hidden: int | None = None,
        alpha: float | str = "auto",
        beta: float | str = "auto",
        input_norm: bool = True,
        centre: bool = True,
        noise: float = 0.03,
        temperature: float = 2.0,
        final_relu: bool = False,
        output_norm: bool = True,
        bias: bool = False,
        zero_init: bool = False,
        optimizer: str = "adamw",
        lr: float = 2e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        schedule: str = "cosine",
        warmup_epochs: int = 0,
        epochs: int | str | None = None,
        steps: int = 200,
        batch_size: int = 256,
        folds: int = 3,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.branch = branch
        self.reduction = reduction
        self.hidden = hidden
        self.alpha = alpha
        self.beta = beta
        self.input_norm = input_norm
        self.centre = centre
        self.noise = noise
        self.temperature = temperature
        self.final_relu = final_relu
        self.output_norm = output_norm
        self.bias = bias
        self.zero_init = zero_init
        self.optimizer = optimizer
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup_epochs = warmup_epochs
        self.epochs = epochs
        self.steps = steps
        self.batch_size = batch_size
        self.folds = folds
        self.seed = seed
        self.progress = progress

    @classmethod
    def official(cls, **changes: Any) -> Self:
        """The recipe of the authors' released code: visual branch, ratio 0.2, two ReLUs, raw input, SGD as in CoOp.

        That code is for ImageNet alone, and CoOp's scripts take 50 epochs for it at any number of shots:
        ``official(epochs=50)``.

        Args:
            changes: parameters to set otherwise.
        """
        return cls(**{**OFFICIAL, **changes})

    @classmethod
    def paper(cls, **changes: Any) -> Self:
        """The recipe that the paper states: visual branch, bottleneck d / 4, learning rate 1e-5, batches of 32.

        With Adam and 200 epochs. The paper leaves open: the optimizer, betas and schedule (Adam is the reading under
        which 1e-5 trains at all; the rate is constant here), whether the adapter's input has unit length (here it
        does; without biases it makes no difference), and how the ratio was chosen: it gives the best of a search for
        each data set, and names no validation set. ImageNet's 0.2 is taken here; `preset` has the others.

        Args:
            changes: parameters to set otherwise.
        """
        return cls(**{**PAPER, **changes})

    def planned_epochs(self, labels: Tensor) -> int:
        """See `Head.planned_epochs`."""
        return self._recipe(False, labels).passes(len(labels))

    def _fit(self, shots: SupportSet) -> None:
        self._check()
        assert shots.text is not None
        n, d = shots.X.shape
        everything = torch.arange(n)
        zero_shot = shots.scale * unit(shots.X) @ shots.text.T
        # Neither a trained ratio nor class text's adapter is kept in a form that training could go on from.
        visual = self.branch == "visual" and self.alpha not in TRAINED
        before = earlier(self, shots, KEPT) if visual else None
        self.bias_ = None if shots.targets is None else sigmoid_bias(shots, zero_shot)
        chosen = self._whole if before is None else before.head
        searched = "auto" in self._ratios() and chosen is None
        splits = self._splits(shots) if searched else []
        fits = [partial(self._train, shots, everything, self.progress, before)]
        fits += [partial(self._train, shots, train, False) for train, _ in splits]
        trained, *parts = side_by_side(fits, min(self.batch_size, n) * self._width(d) * d)
        if searched:
            table = sum((self._held_out_losses(shots, *part) for part in zip(parts, splits, strict=True)), no_losses())
            expected = expected_ratio(zero_shot, Objective.of(shots, everything, self.bias_))
            trained = self._at(trained, choose_ratio(table, expected))
        elif chosen is not None:
            trained = self._at(trained, chosen.alpha_, chosen.beta_)
        self._store(shots, trained)

    def _at(self, trained: Trained, alpha: float, beta: float | None = None) -> Trained:
        """With other ratios where they are "auto"; one number is for both."""
        return replace(
            trained,
            alpha=alpha if self.alpha == "auto" else trained.alpha,
            beta=(alpha if beta is None else beta) if self.beta == "auto" else trained.beta,
        )

    def _store(self, shots: SupportSet, trained: Trained) -> None:
        assert shots.text is not None
        self.loss_, self.scale_ = trained.loss, shots.scale
        self.alpha_, self.beta_ = trained.alpha, trained.beta
        self.alpha_gate_ = trained.alpha_gate
        self.weight_ = self._text_of(trained, shots.text)
        for name in TENSORS:
            setattr(self, f"{name}_", getattr(trained.visual, name, None))

    def _for_text(self, text: Tensor, scale: float) -> None:
        if self.branch != "visual":
            raise InputError(f"the text branch knows only its own classes: branch is {self.branch!r}, not 'visual'")
        self.weight_, self.scale_ = text, scale
        self.bias_ = bias_of_others(self, len(text))

    def _text_logits(self, X: Tensor) -> Tensor | None:
        return self._scores(X, unadapted) if self.branch == "visual" else None

    def _logits(self, X: Tensor) -> Tensor:
        return with_bias(self, self._scores(X, blend))

    def _scores(self, X: Tensor, mix: Mix) -> Tensor:
        visual, weight = Bottleneck.learned(self, X.dtype), self.weight_.to(X.dtype)
        x = self._input(X, visual)
        gate: Tensor | None = getattr(self, "alpha_gate_", None)
        alpha = self.alpha_ if gate is None else gated(gate.to(X.dtype), attended(unit(X), weight, self.scale_))
        mixed = self._blended(x, self._adapted(x, visual), alpha, mix)
        return self.scale_ * mixed @ weight.T

    def _input(self, X: Tensor, visual: Bottleneck | None) -> Tensor:
        """What is adapted, and blended with, of raw (..., d) features."""
        return unit(X) if self.input_norm or visual is None else X

    def _adapted(self, x: Tensor, adapter: Bottleneck | None) -> Tensor | None:
        return None if adapter is None else adapter(x, self.final_relu)

    def _blended(self, x: Tensor, adapted: Tensor | None, ratio: Tensor | float, mix: Mix = blend) -> Tensor:
        """(n, d) features or class weights."""
        return x if adapted is None else mix(x, adapted, ratio, self.output_norm)

    def _ratios(self) -> list[float | str]:
        """The ratios in use: those of the branches that are on."""
        used = {"visual": [self.alpha], "text": [self.beta], "both": [self.alpha, self.beta]}
        return used[self.branch]

    def _check(self) -> None:
        if self.branch not in BRANCHES:
            raise InputError(f"branch must be one of {', '.join(BRANCHES)}, but is {self.branch!r}")
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            check_ratio(name, value)
        if not self.noise >= 0:
            raise InputError(f"noise must be 0 or more, but is {self.noise}")
        if not self.temperature > 0:
            raise InputError(f"temperature must be positive, but is {self.temperature}")
        if self.zero_init and self.final_relu:
            raise InputError("zero_init with final_relu never trains: the gradient of a ReLU at zero is zero")

    def _text_of(self, trained: Trained, text: Tensor) -> Tensor:
        """(c, d) class weights: adapted class text, if its branch is on."""
        beta = trained.beta if trained.beta_gate is None else gated(trained.beta_gate, text)
        return self._blended(text, self._adapted(text, trained.text), beta)

    def _held_out_losses(self, shots: SupportSet, trained: Trained, split: tuple[Tensor, Tensor]) -> Tensor:
        """(r, t) losses of the shots that a fit did not see, at each ratio and temperature."""
        assert shots.text is not None
        held = split[1]
        x = self._input(shots.X[held], trained.visual)
        adapted, gate = self._adapted(x, trained.visual), trained.alpha_gate
        logits = []
        for ratio in RATIOS:
            fit = self._at(trained, ratio)
            weight = self._text_of(fit, shots.text)
            alpha = fit.alpha if gate is None else gated(gate, attended(unit(x), weight, shots.scale))
            logits.append(shots.scale * self._blended(x, adapted, alpha) @ weight.T)
        return loss_table(logits, Objective.of(shots, held, self.bias_))

    def _train(self, shots: SupportSet, rows: Tensor, progress: bool, before: Earlier | None = None) -> Trained:
        assert shots.text is not None
        text, scale = shots.text, shots.scale
        objective = Objective.of(shots, rows, self.bias_, 1.0 if shots.targets is not None else self.temperature)
        d, dtype = text.shape[1], text.dtype
        generator = torch.Generator().manual_seed(self.seed)
        visual = self._initial(d, generator, dtype) if self.branch != "text" else None
        textual = self._initial(d, generator, dtype) if self.branch != "visual" else None
        recipe = self._recipe(progress, shots.labels[rows])
        inputs = self._input(shots.views[rows], visual)
        around = self._centre(inputs[:, 0], shots, rows), (text.mean(dim=0) if self.centre else None)
        if self.bias:  # then it is where the bias starts, which is trained
            visual = None if visual is None else visual.around(around[0])
            textual = None if textual is None else textual.around(around[1])
            around = None, None
        if before is not None and visual is not None:
            visual = Bottleneck(**{name: before.whole(f"{name}_", first) for name, first in visual.tensors().items()})
            recipe = before.shorter(recipe, len(rows))
        alpha_gate = _gate_of(self.alpha, 2 * d, dtype) if visual is not None else None
        beta_gate = _gate_of(self.beta, d, dtype) if textual is not None else None

        def loss(batch: Tensor, view: Tensor) -> Tensor:
            x = drawn(inputs, batch, view)
            if self.noise:
                noise = torch.randn(x.shape, generator=generator, dtype=dtype)
                x = torch.addcmul(x, noise, x.norm(dim=1, keepdim=True), value=self.noise)
            beta = _start(self.beta) if beta_gate is None else gated(beta_gate, text)
            weight = self._blended(text, self._adapted(text, textual and textual.around(around[1])), beta)
            if visual is None:
                return objective.of_cosines(x, weight, batch)
            adapter = visual.around(around[0])
            alpha = _start(self.alpha) if alpha_gate is None else gated(alpha_gate, attended(unit(x), weight, scale))
            if self.output_norm:
                return objective.of_cosines(adapter.blended(x, alpha, self.final_relu), weight, batch)
            x = blend(x, adapter(x, self.final_relu), alpha, renormalise=False)
            return objective.of_products(x, weight, batch)

        parameters = [gate for gate in (alpha_gate, beta_gate) if gate is not None]
        for adapter in (visual, textual):
            parameters += [] if adapter is None else [p.requires_grad_() for p in adapter.tensors().values()]
        cost = sum(parameter.numel() for parameter in parameters) + text.numel()
        last = minimise(parameters, loss, len(rows), inputs.shape[1], recipe, cost)
        for parameter in parameters:
            parameter.requires_grad_(False)
        visual, textual = (b and b.around(c) for b, c in zip((visual, textual), around, strict=True))
        trained = Trained(visual, textual, _start(self.alpha), _start(self.beta), alpha_gate, beta_gate, last)
        return self._with_numbers(trained, unit(inputs[:, 0]), text, scale)

    def _with_numbers(self, trained: Trained, x: Tensor, text: Tensor, scale: float) -> Trained:
        """Trained ratios as numbers: a learned one as it is, a dynamic one as its mean over shots (n, d) or classes."""
        alpha_gate, beta_gate = trained.alpha_gate, trained.beta_gate
        if beta_gate is not None:
            trained = replace(trained, beta=float(gated(beta_gate, text).mean()))
        if alpha_gate is not None:
            inputs = attended(x, self._text_of(trained, text), scale)
            trained = replace(trained, alpha=float(gated(alpha_gate, inputs).mean()))
        return replace(
            trained,
            alpha_gate=alpha_gate if self.alpha == "dynamic" else None,
            beta_gate=beta_gate if self.beta == "dynamic" else None,
        )

    def _centre(self, x: Tensor, shots: SupportSet, rows: Tensor) -> Tensor | None:
        """(d,) mean of features (n, d) in which each class weighs the same; None if nothing is to be subtracted."""
        if not self.centre:
            return None
        if shots.targets is not None:
            return x.mean(dim=0)
        labels = shots.labels[rows]
        shares = 1 / torch.bincount(labels)[labels].to(x.dtype)
        return shares @ x / shares.sum()

    def _width(self, d: int) -> int:
        return self.hidden if self.hidden is not None else max(1, int(d / self.reduction))

    def _initial(self, d: int, generator: torch.Generator, dtype: torch.dtype) -> Bottleneck:
        return Bottleneck.initial(d, self._width(d), self.bias, generator, dtype, self.zero_init)

    def _recipe(self, progress: bool, labels: Tensor) -> Recipe:
        names = {field.name for field in fields(Recipe)} & vars(self).keys() - {"progress", "epochs"}
        epochs = self.epochs
        if isinstance(epochs, str):
            if epochs != "coop":
                raise InputError(f"epochs must be a number, None or 'coop', but is {epochs!r}")
            epochs = coop_epochs(labels)
        return Recipe(**{name: getattr(self, name) for name in names}, epochs=epochs, progress=progress)

    def _splits(self, shots: SupportSet) -> list[tuple[Tensor, Tensor]]:
        """Shots to train on and shots to judge by; none if most classes have one shot."""
        splits = shot_folds(shots, self.folds, self.seed)
        seen = torch.tensor([len(held) for _, held in splits]).cumsum(0)
        return splits[: 1 + int((seen < ENOUGH).sum())]


def _start(ratio: float | str) -> float:
    """The ratio that training begins with; a number stays."""
    return TRAINING_RATIO if ratio == "auto" else START_RATIO if isinstance(ratio, str) else float(ratio)


def _gate_of(ratio: float | str, width: int, dtype: torch.dtype) -> Tensor | None:
    """What a ratio is trained by, at its start: the logit of a learned one, or that and a linear map; else None."""
    if ratio not in TRAINED:
        return None
    gate = torch.zeros(1 + (width if ratio == "dynamic" else 0), dtype=dtype)
    gate[0] = math.log(START_RATIO / (1 - START_RATIO))
    return gate.requires_grad_()
