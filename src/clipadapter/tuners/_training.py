"""The training loop of tuners: minutes to days of steps, so it shows its loss, can be killed, and goes on.

The steps are those of the heads' loop (`heads.training`): its recipe, its shuffling, its schedules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from clipadapter.errors import InputError
from clipadapter.heads.training import Recipe, _optimizer, few_threads
from clipadapter.tuners.checkpoint import Checkpoint

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of row numbers (b,) and, for each, the number of a view (b,)."""


@dataclass(frozen=True)
class HeldOut:
    """When to stop before the last epoch, and which epoch to keep.

    Args:
        loss: of rows that are not trained on.
        patience: epochs without a lower loss before training stops; the parameters of the lowest are kept.
    """

    loss: Callable[[], Tensor]
    patience: int

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise InputError(f"patience must be 1 epoch or more, or None, but is {self.patience}")


def train(
    parameters: Sequence[Tensor],
    loss: Loss,
    n: int,
    n_views: int,
    recipe: Recipe,
    *,
    checkpoint: Checkpoint,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
    held_out: HeldOut | None = None,
    generator: torch.Generator | None = None,
    cost: int = 0,
) -> float:
    """Change parameters in place so that a loss over rows falls.

    Killed and started again, it goes on from its checkpoint to the same parameters, bit for bit.

    Args:
        parameters: leaves that require a gradient.
        loss: of rows and views, to a scalar, or to whatever ``backward`` takes.
        n: rows to train on.
        n_views: views of each row; one is drawn for each row and step.
        recipe: how; without ``epochs``, as many as make ``steps``.
        checkpoint: where its state is kept until it is done.
        backward: puts the gradient of what ``loss`` gave into the parameters.
        held_out: stops early.
        generator: of the shuffling, the views, and whatever the loss draws from it; one from the recipe's seed if not
            given.
        cost: multiplications of a step; small steps run on one thread.

    Returns:
        The loss of the last step.

    Raises:
        InputError: if the loss is no longer finite.
    """
    batch = min(recipe.batch_size, n)
    per_epoch = recipe.steps_per_epoch(n)
    epochs = math.ceil(recipe.steps / per_epoch) if recipe.epochs is None else recipe.epochs
    if generator is None:
        generator = torch.Generator().manual_seed(recipe.seed)
    run = _Run(parameters, _optimizer(parameters, recipe), generator, n)
    start = run.resume(checkpoint)
    bar = tqdm(
        total=epochs * per_epoch, initial=start, desc="training", unit="step", disable=not recipe.progress, leave=False
    )
    with bar, few_threads(cost):
        for step in range(start, epochs * per_epoch):
            epoch, i = divmod(step, per_epoch)
            if i == 0 and held_out is not None and run.waited >= held_out.patience:
                break
            if i == 0 and batch < n:
                run.order = torch.randperm(n, generator=generator)
            rows = run.order[i * batch : (i + 1) * batch]
            size = (len(rows),)
            views = torch.randint(n_views, size, generator=generator) if n_views > 1 else torch.zeros_like(rows)
            run.take_step(loss(rows, views), backward, recipe.rate(step, per_epoch, epochs))
            bar.set_postfix(loss=f"{run.loss:.4g}", refresh=False)
            bar.update()
            if not math.isfinite(run.loss):
                checkpoint.remove()
                raise InputError(
                    f"training diverged in epoch {epoch + 1}: the loss is {run.loss}; try a smaller lr than {recipe.lr}"
                )
            if held_out is not None and i == per_epoch - 1:
                run.judge(held_out)
            if checkpoint.due:
                checkpoint.write(run.state(step + 1))
    run.keep_best()
    checkpoint.remove()
    return run.loss


class _Run:
    """All that changes while training goes on."""

    def __init__(
        self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, generator: torch.Generator, n: int
    ) -> None:
        self.parameters, self.optimizer, self.generator = parameters, optimizer, generator
        self.order = torch.arange(n)
        self.loss = 0.0
        self.lowest, self.waited = math.inf, 0
        self.best: list[Tensor] = []

    def take_step(self, value: Tensor, backward: Callable[[Tensor], None], rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        backward(value)
        self.optimizer.step()
        self.loss = float(value.detach().sum())

    def judge(self, held_out: HeldOut) -> None:
        """Keep the parameters if they are better than any before."""
        with torch.no_grad():
            found = float(held_out.loss())
        if found < self.lowest:
            self.lowest, self.waited = found, 0
            self.best = [parameter.detach().clone() for parameter in self.parameters]
        else:
            self.waited += 1

    def keep_best(self) -> None:
        if self.best:
            with torch.no_grad():
                for parameter, best in zip(self.parameters, self.best, strict=True):
                    parameter.copy_(best)

    def state(self, step: int) -> dict[str, Tensor]:
        """Everything by name, before the step of that number."""
        numbers = torch.tensor([step, self.loss, self.lowest, self.waited], dtype=torch.float64)
        state = {"numbers": numbers, "order": self.order, "generator": self.generator.get_state()}
        for i, parameter in enumerate(self.parameters):
            state[f"parameter.{i}"] = parameter
            for name, value in self.optimizer.state[parameter].items():
                if value is not None:
                    state[f"optimizer.{i}.{name}"] = value
        return state | {f"best.{i}": best for i, best in enumerate(self.best)}

    def resume(self, checkpoint: Checkpoint) -> int:
        """Become what a checkpoint has, and say which step comes next; 0 if there is none."""
        state = checkpoint.read(self.state(0))
        if state is None:
            return 0
        step, self.loss, self.lowest, waited = state["numbers"].tolist()
        self.waited, self.order = int(waited), state["order"]
        self.generator.set_state(state["generator"])
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters):
                parameter.copy_(state[f"parameter.{i}"])
                prefix = f"optimizer.{i}."
                for name, value in state.items():
                    if name.startswith(prefix):
                        place = "cpu" if value.ndim == 0 else parameter.device
                        self.optimizer.state[parameter][name.removeprefix(prefix)] = value.to(place)
        self.best = [state[f"best.{i}"].to(p.device) for i, p in enumerate(self.parameters) if f"best.{i}" in state]
        return int(step)
