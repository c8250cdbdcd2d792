"""CLIP-Adapter: a bottleneck after a frozen tower, blended with what went in.

Paper: Gao et al., IJCV 2023, https://arxiv.org/abs/2110.04544, equations 1 to 6.
Differs from the paper, where the residual ratio was searched per data set: the default ratio is chosen on held-out
shots. Differs from the released code where the parameters say so; `ClipAdapter.official` is that code's recipe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.functional import unit
from clipadapter.heads._base import Head, Shots
from clipadapter.heads._bottleneck import Bottleneck, blend, weaken
from clipadapter.heads._folds import held_out_folds, most_can_be_held_out
from clipadapter.heads._registry import register_head
from clipadapter.heads._training import Recipe, minimise

BRANCHES = ("visual", "text", "both")
TENSORS = ("down", "up", "down_bias", "up_bias")
AUTO = 0.4
"""Ratio that "auto" trains with, the middle of what the paper found best (0.2 to 0.6); the blend is then weakened."""
AFFORDABLE = 5_000_000_000
"""Multiplications of one pass over the shots, about 350 classes x 16 shots x 1024-d, above which "auto" trains on one
fold only: the shots held out in it are thousands, and more of them would not tell more."""
STRENGTHS = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.65, 0.75, 0.85, 1.0)


@dataclass
class _Adapted:
    """A trained adapter: bottlenecks by branch and the ratios it was trained with."""

    visual: Bottleneck | None
    text: Bottleneck | None
    alpha: float
    beta: float


@register_head("clip-adapter", paper="https://arxiv.org/abs/2110.04544")
class ClipAdapter(Head):
    """Bottleneck adapters on picture features, class text, or both, trained by cross-entropy.

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
        folds: number of folds for "auto"; with very many shots and classes only the first of them is looked at.
        seed: of initialisation, shuffling and folds.
        progress: show a bar on stderr while training.

    >>> from clipadapter.heads import ClassText
    >>> text = ClassText(["cat", "dog"], [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    >>> X = [[1.0, 0.9, 0.0, 0.0], [1.0, 1.1, 0.0, 1.0]]
    >>> ClipAdapter(alpha=0.5).fit(X, ["cat", "dog"], text=text).predict(X)
    array(['cat', 'dog'], dtype='<U3')
    """

    needs_text = True

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
        strength = self._strength(shots) if "auto" in self._ratios() else 1.0
        trained = self._train(shots, torch.arange(len(shots.labels)), self.progress)
        self.alpha_ = weaken(trained.alpha, strength) if self.alpha == "auto" else trained.alpha
        self.beta_ = weaken(trained.beta, strength) if self.beta == "auto" else trained.beta
        self.scale_, self.weight_ = shots.scale, self._weight(shots.text, trained, self.beta_)
        for name in TENSORS:
            setattr(self, f"{name}_", getattr(trained.visual, name, None))

    def _for_text(self, text: Tensor, scale: float) -> None:
        if self.branch != "visual":
            raise InputError(f"the text branch knows only its own classes: branch is {self.branch!r}, not 'visual'")
        self.weight_, self.scale_ = text, scale

    def _logits(self, X: Tensor) -> Tensor:
        tensors = {name: getattr(self, f"{name}_", None) for name in TENSORS}
        visual = None
        if tensors["down"] is not None:
            visual = Bottleneck(**{name: tensor.to(X.dtype) for name, tensor in tensors.items() if tensor is not None})
        return self.scale_ * self._feature(X, visual, self.alpha_) @ self.weight_.to(X.dtype).T

    def _feature(self, X: Tensor, visual: Bottleneck | None, alpha: Tensor | float) -> Tensor:
        """Raw (n, d) features to blended ones."""
        if visual is None:
            return unit(X)
        x = unit(X) if self.input_norm else X
        return blend(x, visual(x, self.final_relu), alpha, self.output_norm)

    def _weight(self, text: Tensor, trained: _Adapted, beta: Tensor | float) -> Tensor:
        """Class weights (c, d), adapted if the text branch is on."""
        if trained.text is None:
            return text
        return blend(text, trained.text(text, self.final_relu), beta, self.output_norm)

    def _ratios(self) -> list[float | str]:
        """The ratios in use: those of the branches that are on."""
        used = {"visual": [self.alpha], "text": [self.beta], "both": [self.alpha, self.beta]}
        return used[self.branch]

    def _check(self) -> None:
        if self.branch not in BRANCHES:
            raise InputError(f"branch must be one of {', '.join(BRANCHES)}, but is {self.branch!r}")
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if value in ("auto", "learned"):
                continue
            if isinstance(value, str) or not 0 <= value <= 1:
                raise InputError(f"{name} must be 0 to 1, 'learned' or 'auto', but is {value!r}")
        if self.zero_init and self.final_relu:
            raise InputError("zero_init with final_relu never trains: the gradient of a ReLU at zero is zero")

    def _train(self, shots: Shots, rows: Tensor, progress: bool = False) -> _Adapted:
        """Adapters fitted to some of the shots."""
        assert shots.text is not None
        views, labels, text = shots.views[rows], shots.labels[rows], shots.text
        d, dtype = views.shape[2], views.dtype
        generator = torch.Generator().manual_seed(self.seed)
        visual = self._initial(d, generator, dtype) if self.branch != "text" else None
        textual = self._initial(d, generator, dtype) if self.branch != "visual" else None
        trained = _Adapted(visual, textual, 0.0, 0.0)
        # A learned ratio starts at the paper's 0.2, as the logit of a sigmoid.
        odds = {
            name: torch.tensor(math.log(0.2 / 0.8), dtype=dtype, requires_grad=True)
            for name, value in (("alpha", self.alpha), ("beta", self.beta))
            if value == "learned"
        }

        def ratio(name: str, value: float | str) -> Tensor | float:
            return odds[name].sigmoid() if value == "learned" else AUTO if value == "auto" else float(value)

        def loss(batch: Tensor, view: Tensor) -> Tensor:
            features = self._feature(views[batch, view], visual, ratio("alpha", self.alpha))
            weight = self._weight(text, trained, ratio("beta", self.beta))
            return torch.nn.functional.cross_entropy(shots.scale * features @ weight.T, labels[batch])

        parameters = [*odds.values()]
        for adapter in (visual, textual):
            parameters += [] if adapter is None else [p.requires_grad_() for p in adapter.tensors().values()]
        cost = sum(parameter.numel() for parameter in parameters) + text.numel()
        self.loss_ = minimise(parameters, loss, len(rows), views.shape[1], self._recipe(progress), cost)
        for parameter in parameters:
            parameter.requires_grad_(False)
        trained.alpha, trained.beta = float(ratio("alpha", self.alpha)), float(ratio("beta", self.beta))
        return trained

    def _width(self, d: int) -> int:
        return self.hidden if self.hidden is not None else max(1, int(d / self.reduction))

    def _initial(self, d: int, generator: torch.Generator, dtype: torch.dtype) -> Bottleneck:
        start = Bottleneck.initial(d, self._width(d), self.bias, generator, dtype)
        if self.zero_init:
            start.up.zero_()
            if start.up_bias is not None:
                start.up_bias.zero_()
        return start

    def _recipe(self, progress: bool) -> Recipe:
        return Recipe(
            self.optimizer,
            self.lr,
            self.momentum,
            self.weight_decay,
            self.schedule,
            self.warmup_epochs,
            self.epochs,
            self.steps,
            self.batch_size,
            self.seed,
            progress,
        )

    def _strength(self, shots: Shots) -> float:
        """How much of the ratio trained with to keep, from the shots alone."""
        assert shots.text is not None
        splits = held_out_folds(shots.labels, self.folds, self.seed)
        if not most_can_be_held_out(shots.labels):
            # One shot a class: no shot can be spared. Zero-shot never saw the shots, so its confidence in their
            # labels is an honest estimate of how far to trust it. The square root is ours: found on other data.
            zero_shot = (shots.scale * unit(shots.X) @ shots.text.T).softmax(dim=1)
            return math.sqrt(1.0 - float(zero_shot[torch.arange(len(shots.labels)), shots.labels].mean()))
        n, d = shots.X.shape
        if n * d * (2 * self._width(d) + shots.n_classes) > AFFORDABLE:
            splits = splits[:1]
        losses = torch.zeros(len(STRENGTHS))
        for train, held in splits:
            trained = self._train(shots, train)
            for i, strength in enumerate(STRENGTHS):
                alpha = weaken(trained.alpha, strength) if self.alpha == "auto" else trained.alpha
                beta = weaken(trained.beta, strength) if self.beta == "auto" else trained.beta
                features = self._feature(shots.X[held], trained.visual, alpha)
                logits = shots.scale * features @ self._weight(shots.text, trained, beta).T
                losses[i] += torch.nn.functional.cross_entropy(logits, shots.labels[held], reduction="sum")
        return float(torch.softmax(-losses, dim=0) @ torch.tensor(STRENGTHS))
