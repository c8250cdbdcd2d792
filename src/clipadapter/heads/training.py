"""The training loop of heads that are fitted by gradient steps on cached features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from clipadapter.errors import InputError
from clipadapter.heads._optimizers import adam, sgd
from clipadapter.memory import keep_freed_memory
from clipadapter.parallel import parallel_map

OPTIMIZERS = ("adamw", "adam", "sgd")
MIN_EPOCHS = 20
SMALL = 50_000_000
"""Multiplications a step, below which a second thread gains nothing."""
WORTH_A_THREAD = 2_000_000
"""Multiplications of a product, below which threads that run side by side wait for each other's Python."""
SCHEDULES = ("cosine", "cosine-epoch", "constant")

T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """How gradient steps are made.

    Args:
        optimizer: "adamw", "adam" or "sgd".
        lr: highest learning rate.
        momentum: of SGD.
        weight_decay: decoupled for AdamW, L2 for Adam and SGD.
        schedule: "cosine" falls to ``floor`` step by step, "cosine-epoch" epoch by epoch, "constant" stays.
        warmup_epochs: first epochs at a constant rate of 1e-5, as in CoOp's recipe.
        epochs: passes over the shots; None for as many as make ``steps``, and at least 20.
        steps: optimizer steps if ``epochs`` is None.
        batch_size: rows per step; each epoch shuffles anew.
        seed: of the shuffling and of the choice of views.
        progress: show a bar on stderr.
        eps: of Adam and AdamW, added to the root of the second moment.
        floor: learning rate that a cosine falls to; not above ``lr``.
        drop_last: leave out the last batch of an epoch if it is incomplete; False to train on it, as a smaller batch.
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
    floor: float = 0.0
    drop_last: bool = True

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

    def steps_per_epoch(self, n: int) -> int:
        """Steps of one pass over n rows. Fewer rows than a batch are one step."""
        batch = min(self.batch_size, n)
        return n // batch if self.drop_last else math.ceil(n / batch)

    def passes(self, n: int) -> int:
        """Passes over n rows."""
        enough = max(MIN_EPOCHS, math.ceil(self.steps / self.steps_per_epoch(n)))
        return enough if self.epochs is None else self.epochs

    def rate(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Learning rate of one step."""
        epoch = step // steps_per_epoch
        if epoch < self.warmup_epochs:
            return min(self.lr, 1e-5)
        if self.schedule == "constant":
            return self.lr
        smooth = step / (steps_per_epoch * epochs)
        done = smooth if self.schedule == "cosine" else (epoch - self.warmup_epochs) / epochs
        floor = min(self.floor, self.lr)
        return floor + (self.lr - floor) * 0.5 * (1 + math.cos(math.pi * done))


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
        n_views: views of each row. If there are more views than epochs, epoch e (from 0) takes view 1 + e of every
            row: each epoch has a view of its own, and the plain view 0 is not trained on. Otherwise one view is drawn
            for each row and step.
        recipe: how.
        cost: multiplications a row in one forward pass; small steps run on one thread.

    Returns:
        The loss of the last step.

    Raises:
        InputError: if the loss is no longer finite.
    """
    keep_freed_memory()
    batch = min(recipe.batch_size, n)
    steps_per_epoch = recipe.steps_per_epoch(n)
    epochs = recipe.passes(n)
    per_epoch = n_views > epochs and n_views > 1
    generator = torch.Generator().manual_seed(recipe.seed)
    take_step = _steps(parameters, recipe)
    value = torch.zeros(())
    bar = tqdm(total=epochs, desc="training", unit="epoch", disable=not recipe.progress, leave=False)
    with bar, few_threads(batch * cost):
        for epoch in range(epochs):
            order = torch.randperm(n, generator=generator) if batch < n else torch.arange(n)
            for i in range(steps_per_epoch):
                rows = order[i * batch : (i + 1) * batch]
                if per_epoch:
                    views = torch.full_like(rows, 1 + epoch)
                elif n_views > 1:
                    views = torch.randint(n_views, (len(rows),), generator=generator)
                else:
                    views = torch.zeros_like(rows)
                value = loss(rows, views)
                value.backward()
                take_step(recipe.rate(epoch * steps_per_epoch + i, steps_per_epoch, epochs))
            bar.update()
            if not torch.isfinite(value):
                raise InputError(
                    f"training diverged in epoch {epoch + 1}: the loss is {value.item()}; try a smaller lr"
                )
    return float(value.detach())


def coop_epochs(labels: Tensor) -> int:
    """Epochs of CoOp's scripts by the mean number of shots a class: 50 for 1, 100 for 2 and 4, 200 for 8 and 16.

    Numbers in between take those of the nearest; the scripts take 50 for ImageNet at any number of shots.

    Args:
        labels: (n,) class positions.

    >>> [coop_epochs(torch.arange(5).repeat(shots)) for shots in (1, 2, 4, 8, 16)]
    [50, 100, 100, 200, 200]
    """
    shots = len(labels) / len(labels.unique())
    return 50 if shots < 1.5 else 100 if shots < 6 else 200


def drawn(views: Tensor, rows: Tensor, view: Tensor) -> Tensor:
    """One view of each of some rows, as `minimise` draws them.

    Args:
        views: (n, v, d).
        rows: (b,) row numbers.
        view: (b,) numbers of views.

    Returns:
        (b, d), in a third of the time of ``views[rows, view]``.

    >>> drawn(torch.arange(6.0).view(3, 2, 1), torch.tensor([2, 0]), torch.tensor([0, 1])).flatten()
    tensor([4., 1.])
    """
    n_views = views.shape[1]
    return views.flatten(0, 1).index_select(0, rows if n_views == 1 else rows * n_views + view)


def side_by_side(tasks: Sequence[Callable[[], T]], work: int) -> list[T]:
    """Results of independent tasks in their order, at the same time on the threads that torch has here.

    A task must not depend on the others, nor on torch's global generator. Each has its share of the threads, one where
    there are as many tasks, so that results hang on the number of threads no more than those of one matrix product do.

    Args:
        tasks: what is to be done.
        work: multiplications of their small products; tasks whose time is Python's are done one after the other.

    >>> side_by_side([lambda: 1, lambda: 2], work=10**9)
    [1, 2]
    """
    workers = min(torch.get_num_threads(), len(tasks))
    if len(tasks) < 2:
        return [task() for task in tasks]
    if workers < 2 or work < WORTH_A_THREAD:
        with few_threads(0):
            return [task() for task in tasks]
    return parallel_map(tasks, workers)


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


def _steps(parameters: Sequence[Tensor], recipe: Recipe) -> Callable[[float], None]:
    if recipe.optimizer == "sgd":
        return sgd(parameters, weight_decay=recipe.weight_decay, momentum=recipe.momentum)
    decoupled = recipe.optimizer == "adamw"
    return adam(parameters, weight_decay=recipe.weight_decay, eps=recipe.eps, decoupled=decoupled)


def _optimizer(parameters: Sequence[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """The same as torch's own, whose state a tuner's checkpoint keeps."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            foreach=False,
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=recipe.lr, eps=recipe.eps, weight_decay=recipe.weight_decay, fused=True)
