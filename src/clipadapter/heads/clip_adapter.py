"""CLIP-Adapter: a bottleneck after a frozen tower, blended with what went in.

Paper: Gao et al., IJCV 2023, https://arxiv.org/abs/2110.04544, equations 1 to 6.
Differs from the paper, where the residual ratio was searched per data set: the default ratio is chosen on held-out
shots. Differs from the released code where the parameters say so; `ClipAdapter.official` is that code's recipe.
With several labels a picture (ours) the loss is binary cross-entropy, at the bias that zero-shot has for such shots.
"""

from __future__ import annotations

import math
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.functional import unit
from clipadapter.heads._base import Head, Shots
from clipadapter.heads._bottleneck import Adapted, Bottleneck, Mix, blend, check_ratio, unadapted, weaken
from clipadapter.heads._continued import Earlier, earlier
from clipadapter.heads._objective import STRENGTHS, Objective
from clipadapter.heads._registry import register_head
from clipadapter.heads._several import bias_of_others, shot_folds, sigmoid_bias, with_bias
from clipadapter.heads._training import Recipe, drawn, minimise, side_by_side

BRANCHES = ("visual", "text", "both")
TENSORS = ("down", "up", "down_bias", "up_bias")
AUTO = 0.4
"""Ratio that "auto" trains with, the middle of what the paper found best (0.2 to 0.6); the blend is then weakened."""
KEPT = 0.75
"""Of what an earlier fit learned."""
ENOUGH = 256
"""Held-out shots that the ratio is chosen by: folds beyond these are not fitted, since more would not tell more."""


@register_head(
    "clip-adapter",
    paper="https://arxiv.org/abs/2110.04544",
    fidelity="verified: `ClipAdapter.official` gives the outputs of the authors' code. By default shots set the ratio.",
)
class ClipAdapter(Head):
    """Bottleneck adapters on picture features, class text, or both, trained by cross-entropy.

    A fit from an earlier one keeps the ratio that "auto" found. A "learned" ratio and text branches start anew.

    Args:
        branch: "visual", "text" or "both".
        reduction: bottleneck width is d divided by this.
        hidden: bottleneck width itself; overrides ``reduction``.
        alpha: weight of the adapted picture feature, 0 (zero-shot) to 1; "learned" trains it jointly; "auto" trains at
            0.4 and then weakens it, by the likelihood of held-out shots under weaker ratios, or, if most classes have
            one shot, by the probability that zero-shot misplaces on the shots.
        beta: the same for class text.
        input_norm: True to feed the adapter unit-length features, False raw ones.
        final_relu: a second ReLU at the end of the adapter.
        output_norm: scale the blended feature to unit length.
        bias: give both linear layers a bias.
        zero_init: start the last layer at zero, so that training starts exactly at zero-shot.
        optimizer: "adamw", "adam" or "sgd".
        lr: highest learning rate.
        momentum: of SGD.
        weight_decay: decoupled for AdamW, L2 for Adam and SGD.
        schedule: "cosine", "cosine-epoch" (the rate changes once an epoch) or "constant".
        warmup_epochs: epochs at a constant 1e-5 before the schedule starts.
        epochs: passes over the shots; None for as many as make ``steps`` steps, and at least 20.
        steps: fewest optimizer steps if ``epochs`` is None.
        batch_size: shots a step.
        folds: number of folds for "auto", of which no more are fitted than hold out 256 shots together.
        seed: of initialisation, shuffling and folds.
        progress: show a bar on stderr while training.

    >>> from clipadapter.heads import ClassText
    >>> text = ClassText(["cat", "dog"], [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.0, 0.0], [1.0, 1.1, 0.0, 1.0]]
    >>> ClipAdapter(alpha=0.5).fit(X, ["cat", "dog"], text=text).predict(X)
    array(['cat', 'dog'], dtype='<U3')
    """

    needs_text = True
    warm = True
    multilabel = True
    usual_temperatures = (0.81, 1.0, 1.0, 1.1, 1.5)

    def __init__(
        self,
        branch: str = "visual",
        reduction: float = 4,
        hidden: int | None = None,
        alpha: float | str = "auto",
        beta: float | str = "auto",
        input_norm: bool = True,
        final_relu: bool = False,
        output_norm: bool = True,
        bias: bool = False,
        zero_init: bool = False,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        schedule: str = "cosine",
        warmup_epochs: int = 0,
        epochs: int | None = None,
        steps: int = 250,
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

        Args:
            changes: parameters to set otherwise.
        """
        recipe: dict[str, Any] = {
            "alpha": 0.2,
            "input_norm": False,
            "final_relu": True,
            "optimizer": "sgd",
            "lr": 2e-3,
            "weight_decay": 5e-4,
            "schedule": "cosine-epoch",
            "warmup_epochs": 1,
            "epochs": 200,
            "batch_size": 32,
        }
        return cls(**{**recipe, **changes})

    def _fit(self, shots: Shots) -> None:
        self._check()
        assert shots.text is not None
        everything = torch.arange(len(shots.labels))
        zero_shot = shots.scale * unit(shots.X) @ shots.text.T
        # Neither a learned ratio nor class text's adapter is kept in a form that training could go on from.
        visual = self.branch == "visual" and self.alpha != "learned"
        before = earlier(self, shots, KEPT) if visual else None
        self.bias_ = None if shots.targets is None else sigmoid_bias(shots, zero_shot)
        chosen = self._whole if before is None else before.head
        splits = self._splits(shots) if "auto" in self._ratios() and chosen is None else []
        # No fit waits for what another says, since a strength weakens what was trained.
        fits = [partial(self._fitted, shots, everything, None)]
        if before is not None:
            fits = [partial(self._train, shots, everything, self.progress, before)]
        fits += [partial(self._fitted, shots, train, held) for train, held in splits]
        n, d = shots.X.shape
        trained, *judged = side_by_side(fits, min(self.batch_size, n) * self._width(d) * d)
        objective = Objective.of(shots, everything, self.bias_)
        strength = objective.strength([fit.losses for fit in judged], zero_shot) if "auto" in self._ratios() else 1.0
        self.alpha_ = weaken(trained.alpha, strength) if self.alpha == "auto" else trained.alpha
        self.beta_ = weaken(trained.beta, strength) if self.beta == "auto" else trained.beta
        if chosen is not None:
            self.alpha_ = chosen.alpha_ if self.alpha == "auto" else self.alpha_
            self.beta_ = chosen.beta_ if self.beta == "auto" else self.beta_
        self.loss_, self.scale_ = trained.loss, shots.scale
        self.weight_ = self._blended(shots.text, self._adapted(shots.text, trained.text), self.beta_)
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
        visual = Bottleneck.learned(self, X.dtype)
        x = self._input(X, visual)
        mixed = self._blended(x, self._adapted(x, visual), self.alpha_, mix)
        return self.scale_ * mixed @ self.weight_.to(X.dtype).T

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
        if self.zero_init and self.final_relu:
            raise InputError("zero_init with final_relu never trains: the gradient of a ReLU at zero is zero")

    def _fitted(self, shots: Shots, rows: Tensor, held: Tensor | None) -> Adapted:
        """Adapters fitted to some of the shots, judged by others if there are any."""
        trained = self._train(shots, rows, self.progress and held is None)
        if held is None:
            return trained
        assert shots.text is not None
        x, text = self._input(shots.X[held], trained.visual), shots.text
        of_x, of_text = self._adapted(x, trained.visual), self._adapted(text, trained.text)
        for i, strength in enumerate(STRENGTHS):
            alpha = weaken(trained.alpha, strength) if self.alpha == "auto" else trained.alpha
            beta = weaken(trained.beta, strength) if self.beta == "auto" else trained.beta
            logits = shots.scale * self._blended(x, of_x, alpha) @ self._blended(text, of_text, beta).T
            trained.losses[i] = Objective.of(shots, held, self.bias_).total(logits)
        return trained

    def _train(self, shots: Shots, rows: Tensor, progress: bool, before: Earlier | None = None) -> Adapted:
        assert shots.text is not None
        text, objective = shots.text, Objective.of(shots, rows, self.bias_)
        d, dtype = text.shape[1], text.dtype
        generator = torch.Generator().manual_seed(self.seed)
        visual = self._initial(d, generator, dtype) if self.branch != "text" else None
        textual = self._initial(d, generator, dtype) if self.branch != "visual" else None
        recipe = self._recipe(progress)
        if before is not None and visual is not None:
            visual = Bottleneck(**{name: before.whole(f"{name}_", first) for name, first in visual.tensors().items()})
            recipe = before.shorter(recipe, len(rows))
        inputs = self._input(shots.views[rows], visual)
        # A learned ratio starts at the paper's 0.2, as the logit of a sigmoid.
        odds = {
            name: torch.tensor(math.log(0.2 / 0.8), dtype=dtype, requires_grad=True)
            for name, value in (("alpha", self.alpha), ("beta", self.beta))
            if value == "learned"
        }

        def ratio(name: str, value: float | str) -> Tensor | float:
            return odds[name].sigmoid() if value == "learned" else AUTO if value == "auto" else float(value)

        def loss(batch: Tensor, view: Tensor) -> Tensor:
            x = drawn(inputs, batch, view)
            weight = self._blended(text, self._adapted(text, textual), ratio("beta", self.beta))
            if visual is not None:
                alpha = ratio("alpha", self.alpha)
                if self.output_norm:
                    return objective.of_cosines(visual.blended(x, alpha, self.final_relu), weight, batch)
                x = blend(x, visual(x, self.final_relu), alpha, renormalise=False)
            return objective.of_products(x, weight, batch)

        parameters = [*odds.values()]
        for adapter in (visual, textual):
            parameters += [] if adapter is None else [p.requires_grad_() for p in adapter.tensors().values()]
        cost = sum(parameter.numel() for parameter in parameters) + text.numel()
        last = minimise(parameters, loss, len(rows), inputs.shape[1], recipe, cost)
        for parameter in parameters:
            parameter.requires_grad_(False)
        ratios = float(ratio("alpha", self.alpha)), float(ratio("beta", self.beta))
        return Adapted(visual, textual, *ratios, last, torch.zeros(len(STRENGTHS)))

    def _width(self, d: int) -> int:
        return self.hidden if self.hidden is not None else max(1, int(d / self.reduction))

    def _initial(self, d: int, generator: torch.Generator, dtype: torch.dtype) -> Bottleneck:
        return Bottleneck.initial(d, self._width(d), self.bias, generator, dtype, self.zero_init)

    def _recipe(self, progress: bool) -> Recipe:
        names = {field.name for field in fields(Recipe)} & self.get_params(deep=False).keys() - {"progress"}
        return Recipe(**{name: getattr(self, name) for name in names}, progress=progress)

    def _splits(self, shots: Shots) -> list[tuple[Tensor, Tensor]]:
        """Shots to train on and shots to judge by; none if most classes have one shot."""
        splits = shot_folds(shots, self.folds, self.seed)
        seen = torch.tensor([len(held) for _, held in splits]).cumsum(0)
        return splits[: 1 + int((seen < ENOUGH).sum())]
