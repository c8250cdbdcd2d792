"""The training loop of heads that are fitted by gradient steps on cached features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from clipadapter.errors import InputError

OPTIMIZERS = ("adamw", "adam", "sgd")
MIN_EPOCHS = 20
SMALL = 50_000_000
"""Multiplications a step, below which a second thread gains nothing."""
SCHEDULES = ("cosine", "cosine-epoch", "constant")


@dataclass(frozen=True)
class Recipe:
    """How gradient steps are made.

    Args:
        optimizer: "adamw", "adam" or "sgd".
        lr: highest learning rate.
        momentum: of SGD.
        weight_decay: decoupled for AdamW, L2 for Adam and SGD.
        schedule: "cosine" falls to zero step by step, "cosine-epoch" epoch by epoch, "constant" stays.
        warmup_epochs: first epochs at a constant rate of 1e-5, as in CoOp's recipe.
        epochs: passes over the shots; None for as many as make ``steps``, and at least 20.
        steps: optimizer steps if ``epochs`` is None.
        batch_size: rows a step; a last incomplete batch is left out, each epoch shuffles anew.
        seed: of the shuffling and of the choice of views.
        progress: show a bar on stderr.
        eps: of Adam and AdamW, added to the root of the second moment.
    """

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    warmup_epochs: int
    epochs: int | None
    steps: int
    batch_size: int
    seed: int
    progress: bool
    eps: float = 1e-8

    def __post_init__(self) -> None:
        for name, value, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if value not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, but is {value!r}")
        for name in ("lr", "steps", "batch_size"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, but is {getattr(self, name)}")

    def rate(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Learning rate of one step."""
        epoch = step // steps_per_epoch
        if epoch < self.warmup_epochs:
            return min(self.lr, 1e-5)
        if self.schedule == "constant":
            return self.lr
        smooth = step / (steps_per_epoch * epochs)
        done = smooth if self.schedule == "cosine" else (epoch - self.warmup_epochs) / epochs
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


def minimise(
    parameters: Sequence[Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    n: int,
    n_views: int,
    recipe: Recipe,
    cost: int = 0,
) -> float:
    """Change parameters in place so that a loss over rows falls.

    Args:
        parameters: leaves that require a gradient.
        loss: of row numbers (b,) and, for each, the number of a view (b,), to a scalar.
        n: rows to train on.
        n_views: views of each row; one is drawn for each row and step.
        recipe: how.
        cost: multiplications a row in one forward pass; small steps run on one thread.

    Returns:
        The loss of the last step.

    Raises:
        InputError: if the loss is no longer finite.
    """
    batch = min(recipe.batch_size, n)
    steps_per_epoch = n // batch
    enough = max(MIN_EPOCHS, math.ceil(recipe.steps / steps_per_epoch))
    epochs = enough if recipe.epochs is None else recipe.epochs
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = _optimizer(parameters, recipe)
    value = torch.zeros(())
    bar = tqdm(total=epochs, desc="training", unit="epoch", disable=not recipe.progress, leave=False)
    with bar, few_threads(batch * cost):
        for epoch in range(epochs):
            order = torch.randperm(n, generator=generator) if batch < n else torch.arange(n)
            for i in range(steps_per_epoch):
                rows = order[i * batch : (i + 1) * batch]
                views = torch.randint(n_views, (batch,), generator=generator) if n_views > 1 else torch.zeros_like(rows)
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(epoch * steps_per_epoch + i, steps_per_epoch, epochs)
                optimizer.zero_grad()
                value = loss(rows, views)
                value.backward()
                optimizer.step()
            bar.update()
            if not torch.isfinite(value):
                raise InputError(
                    f"training diverged in epoch {epoch + 1}: the loss is {value.item()}; try a smaller lr"
                )
    return float(value.detach())


@contextmanager
def few_threads(work: int) -> Iterator[None]:
    """One thread for steps so small that threads would wait for each other, which beside other programs costs much."""
    before = torch.get_num_threads()
    if work < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _optimizer(parameters: Sequence[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            foreach=False,
        )
    adam = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    # Fused: one pass over the weights a step instead of ten, which is most of the time at few shots.
    return adam(parameters, lr=recipe.lr, eps=recipe.eps, weight_decay=recipe.weight_decay, fused=True)
