"""The training loop of heads and tuners: `TrainConfig` says how steps are made, `train` makes them."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import inspect
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.heads.base import Head
from clipadapter.heads.parameters import NOT_NEGATIVE, POSITIVE, OneOf, check_bounds, declared_bounds
from clipadapter.utils.devices import full_float32
from clipadapter.utils.files import default_cache_dir, path_without_links, write_atomically
from clipadapter.utils.formatting import format_count
from clipadapter.utils.parallel import limit_threads
from clipadapter.utils.progress import BRIEF_SECONDS, measure_steps, progress_bar

CHECKPOINT_FORMAT = "2"
MAX_FREE_BYTES = 256 * 2**20  # freed memory that the process keeps at most
MAX_HEAP_BLOCK_BYTES = 32 * 2**20
"""Freed blocks above this size are returned to the system. This is the largest value that glibc accepts."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameter numbers of glibc's malloc.h
ALLOCATOR_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Environment variables that choose an allocator or its settings. If one is set, nothing is changed."""
MAX_RATE_FACTOR = 5.0
"""Largest factor of the learning rate where a training has fewer epochs: docs/decisions/0040 measured no larger one."""
MOMENTUM = 0.9  # of SGD, that of all published recipes here
WARMUP_LR = 1e-5  # learning rate of warm-up epochs, and the lowest of warm-up steps


@dataclass(frozen=True)
class TrainConfig:
    """How gradient steps are made."""

    optimizer: Annotated[str, OneOf("adamw", "adam", "sgd")]
    lr: Annotated[float, POSITIVE]  # the highest learning rate
    batch_size: Annotated[int, POSITIVE]  # rows per step; each epoch shuffles anew
    epochs: Annotated[int | None, NOT_NEGATIVE] = None  # None for as many as make `steps`, and at least `min_epochs`
    steps: Annotated[int, POSITIVE] = 1
    min_epochs: int = 20
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0  # decoupled for AdamW, L2 for Adam and SGD
    # "cosine" falls to `min_lr` step by step, "cosine-epoch" epoch by epoch.
    schedule: Annotated[str, OneOf("cosine", "cosine-epoch", "constant")] = "cosine"
    warmup_epochs: Annotated[int, NOT_NEGATIVE] = 0  # at a constant rate of 1e-5, as in CoOp's scripts
    # Steps in which the rate rises linearly from 1e-5. The cosine begins after them and has the length of all steps,
    # as in the code of cross-modal adaptation.
    warmup_steps: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8  # of Adam and AdamW
    whole_epochs: bool = True  # complete the last epoch; False to stop after `steps`, wherever in an epoch that is
    drop_last: bool = True  # leave out the last batch of an epoch if it is incomplete
    # With more views than epochs, epoch e (from 0) takes view 1 + e of every row. False to draw a view in any case.
    view_per_epoch: bool = True
    cycle_views: bool = False  # take view 1, 2 ... and 0 in turn, one for all rows of a step
    seed: int = 0  # of the shuffling and of the choice of views
    progress: bool = False  # show a bar on stderr

    @classmethod
    def from_estimator(cls, estimator: object, **changes: Any) -> Self:
        """The configuration of an estimator that has parameters of these names; ``changes`` are fields that differ."""
        # Not `hasattr`: a head looks up what it does not have in scikit-learn, whose import takes a second.
        absent = object()
        names = [
            each.name for each in fields(cls) if inspect.getattr_static(estimator, each.name, absent) is not absent
        ]
        return cls(**{**{name: getattr(estimator, name) for name in names}, **changes})

    def __post_init__(self) -> None:
        check_bounds(TrainConfig, vars(self))

    def steps_per_epoch(self, n: int) -> int:
        """Steps of one pass over n rows. Fewer rows than a batch are one step."""
        batch = min(self.batch_size, n)
        return n // batch if self.drop_last else math.ceil(n / batch)

    def count_epochs(self, n: int) -> int:
        """Passes over n rows."""
        if self.epochs is not None:
            return self.epochs
        return max(self.min_epochs, math.ceil(self.steps / self.steps_per_epoch(n)))

    def with_max_epochs(self, n: int, max_epochs: int) -> TrainConfig:
        """With fewer epochs over n rows if they are more than this, but with ``steps`` steps in any case.

        The learning rate of AdamW and Adam, whose steps are as long as the rate, rises by as much as the epochs fall,
        up to `MAX_RATE_FACTOR`: the parameters can go as far.

        >>> config = TrainConfig(optimizer="adamw", lr=0.1, steps=200, batch_size=10)
        >>> fewer = [config.with_max_epochs(1000, limit) for limit in (30, 10, 0)]
        >>> [(each.count_epochs(1000), each.lr) for each in fewer]
        [(20, 0.1), (10, 0.2), (2, 0.5)]
        """
        needed = math.ceil(self.steps / self.steps_per_epoch(n))
        epochs, fewer = self.count_epochs(n), max(needed, max_epochs)
        if epochs <= fewer:
            return self
        factor = 1.0 if self.optimizer == "sgd" else min(epochs / fewer, MAX_RATE_FACTOR)
        return replace(self, epochs=fewer, lr=self.lr * factor)

    def count_steps(self, n: int) -> int:
        """Optimizer steps of a training on n rows."""
        steps = self.count_epochs(n) * self.steps_per_epoch(n)
        return steps if self.whole_epochs else min(steps, self.steps)

    def describe(self, n: int) -> str:
        """What a training on n pictures does, in words."""
        return f"{format_count(self.count_steps(n), 'step')} of {format_count(min(self.batch_size, n), 'picture')}"

    def learning_rate(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Learning rate of one step, counted from 0."""
        steps = steps_per_epoch * epochs if self.whole_epochs else self.steps
        epoch = step // steps_per_epoch
        if epoch < self.warmup_epochs:
            return min(self.lr, WARMUP_LR)
        if step < self.warmup_steps:
            return max(min(self.lr, WARMUP_LR), self.lr * step / self.warmup_steps)
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "cosine":
            progress = (step - self.warmup_steps) / steps
        else:
            progress = (epoch - self.warmup_epochs) / epochs
        min_lr = min(self.min_lr, self.lr)
        return min_lr + (self.lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(eq=False, repr=False, kw_only=True)
class TrainingParameters(Head):
    """Base of the heads and tuners that are trained by gradient steps: the parameters that all of them have.

    A subclass declares a parameter again to give it another default. Its docstring describes it if it means more there.

    Args:
        lr: highest learning rate.
        batch_size: shots per step.
        seed: of shuffling and of the choice of views.
        progress: show a bar on stderr while training.
    """

    lr: float = 1e-3
    batch_size: int = 256
    seed: int = 0
    progress: bool = False

    def check_parameters(self) -> None:
        """See `Head.check_parameters`."""
        super().check_parameters()
        # A named number of epochs, or no size of a batch, becomes a number in the configuration.
        own = {name: vars(self)[name] for name in declared_bounds(TrainConfig) if name in vars(self)}
        numbers = {name: value for name, value in own.items() if isinstance(value, int | float)}
        choices = {name: own[name] for name in ("optimizer", "schedule") if name in own}
        check_bounds(TrainConfig, numbers | choices)


@dataclass(eq=False, repr=False, kw_only=True)
class ScheduleParameters(TrainingParameters):
    """Base of those whose learning rate follows a chosen schedule.

    Args:
        schedule: "cosine", "cosine-epoch" (the rate changes once an epoch) or "constant".
        warmup_epochs: epochs at a constant 1e-5 before the schedule starts.
    """

    schedule: str = "cosine"
    warmup_epochs: int = 0


LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A loss of a batch. It gets row numbers (b,) and the number of each row's view (b,)."""


def train(
    parameters: Sequence[Tensor],
    loss: LossFunction,
    n: int,
    n_views: int,
    config: TrainConfig,
    *,
    row_cost: int = 0,
    step_cost: int = 0,
    backward: Callable[[Tensor], None] = Tensor.backward,
    generator: torch.Generator | None = None,
    epoch_weights: Sequence[float] = (),
    checkpoint: Checkpoint | None = None,
    bar: Any = None,
) -> float:
    """Change parameters in place so that a loss over n rows falls; returns the loss of the last step.

    ``row_cost`` are the multiplications for one row of a batch in one forward pass, ``step_cost`` those of a step that
    do not depend on the size of a batch: small steps run on one thread. ``backward`` computes the gradients of the
    parameters from what ``loss`` returns. Shuffling and views come from the generator, by default one from the seed.
    With weights of the epochs, the parameters become the weighted sum of what they are after each epoch. With a
    checkpoint, a training that was killed continues to the same parameters, bit for bit. The bar is one that several
    trainings share.
    """
    keep_freed_memory()
    steps_per_epoch, epochs, steps = config.steps_per_epoch(n), config.count_epochs(n), config.count_steps(n)
    generator = generator or torch.Generator().manual_seed(config.seed)
    state = _TrainingState(parameters, config, generator, n, n_views, bool(epoch_weights))
    start = 0 if checkpoint is None else state.load(checkpoint.read(state.as_dict(0)))
    own_bar = training_bar(steps, shown=config.progress and bar is None, initial=start)
    bar = own_bar if bar is None else bar
    # Only the tuners, whose training may take hours, keep checkpoints; many fits of other heads make one model.
    estimate = measure_steps(steps - start if checkpoint is not None else 0, start)
    work = limit_threads(min(config.batch_size, n) * row_cost + step_cost)
    device = parameters[0].device.type
    # To read a number waits for a GPU: of one it is read once per epoch.
    reads_each_step = device == "cpu" or config.progress or checkpoint is not None
    with own_bar, work, full_float32(device):
        for step in range(start, steps):
            epoch, i = divmod(step, steps_per_epoch)
            value = loss(*state.draw_batch(epoch, i))
            backward(value)
            state.optimizer.step(config.learning_rate(step, steps_per_epoch, epochs))
            if reads_each_step or i == steps_per_epoch - 1 or step == steps - 1:
                # Not always a scalar: `loss` may return several terms that `backward` treats differently (ProGrad).
                state.loss = float(value.detach().sum())
            if config.progress:
                bar.set_postfix(loss=f"{state.loss:.4g}", refresh=False)
                bar.update()
            if not math.isfinite(state.loss):
                if checkpoint is not None:
                    checkpoint.remove()
                raise InputError(
                    f"training diverged in epoch {epoch + 1}: the loss is {state.loss}; try a smaller lr than "
                    f"{config.lr}"
                )
            if epoch_weights and i == steps_per_epoch - 1:
                state.add_epoch(epoch_weights[epoch])
            next(estimate, None)  # one step more
            if checkpoint is not None and checkpoint.due:
                checkpoint.write(state.as_dict(step + 1))
    if checkpoint is not None:
        checkpoint.finish(lambda: state.as_dict(steps))
    with torch.no_grad():
        for parameter, total in zip(parameters, state.epoch_sum, strict=False):  # there are none without weights
            parameter.copy_(total)
    return state.loss


class _TrainingState:
    """All that changes from step to step, in tensors that are changed in place."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        config: TrainConfig,
        generator: torch.Generator,
        n: int,
        n_views: int,
        sums_epochs: bool,
    ) -> None:
        self.parameters, self.config, self.generator = parameters, config, generator
        self.optimizer = Optimizer(config.optimizer, parameters, weight_decay=config.weight_decay, eps=config.eps)
        self.order, self.n_views, self.loss = torch.arange(n), n_views, 0.0
        self.view_per_epoch = config.view_per_epoch and n_views > max(config.count_epochs(n), 1)
        # The weighted sum of the parameters after each epoch.
        self.epoch_sum = [torch.zeros_like(parameter) for parameter in parameters if sums_epochs]

    def draw_batch(self, epoch: int, i: int) -> tuple[Tensor, Tensor]:
        """Numbers (b,) of the rows of step i of an epoch, and of their views. Steps are drawn in their order."""
        rows, n = self.order, len(self.order)
        size = min(self.config.batch_size, n)
        if size < n:
            if i == 0:
                self.order = torch.randperm(n, generator=self.generator)
            rows = self.order[i * size : (i + 1) * size]
        if self.n_views == 1:
            return rows, torch.zeros_like(rows)
        if self.config.cycle_views:
            return rows, torch.full_like(rows, (epoch * self.config.steps_per_epoch(n) + i + 1) % self.n_views)
        if self.view_per_epoch:
            return rows, torch.full_like(rows, 1 + epoch)
        return rows, torch.randint(self.n_views, rows.shape, generator=self.generator)

    def add_epoch(self, weight: float) -> None:
        """Add the parameters after an epoch to the weighted sum."""
        for total, parameter in zip(self.epoch_sum, self.parameters, strict=True):
            total += weight * parameter.detach()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        lists = {"parameter": self.parameters, "epoch_sum": self.epoch_sum, **self.optimizer.kept}
        named = {f"{name}.{i}": tensor for name, tensors in lists.items() for i, tensor in enumerate(tensors)}
        return {"order": self.order, **named}

    def as_dict(self, step: int) -> dict[str, Tensor]:
        """Everything by name, before the step of that number."""
        numbers = torch.tensor([step, self.loss], dtype=torch.float64)
        return {"numbers": numbers, "generator": self.generator.get_state(), **self.tensors()}

    def load(self, state: Mapping[str, Tensor] | None) -> int:
        """Load what `as_dict` returned, and return the next step; 0 for None."""
        if state is None:
            return 0
        step, self.loss = state["numbers"].tolist()
        self.generator.set_state(state["generator"])
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(state[name])
        return int(step)


class Optimizer:
    """Steps of "adamw", "adam" or "sgd" along the gradients of parameters; a parameter without a gradient stays.

    The functions of ``torch.optim`` without its classes: the first object of such a class in a process imports torch's
    compiler, 828 modules and 1.2 s of processor time with torch 2.13, where a fit of few shots takes 0.2 s.
    """

    def __init__(
        self, kind: str, parameters: Sequence[Tensor], *, weight_decay: float = 0.0, eps: float = 1e-8
    ) -> None:
        self.kind, self.parameters, self.weight_decay, self.eps = kind, parameters, weight_decay, eps
        # What is kept of each parameter from step to step, under torch's names.
        names = ("momentum_buffer",) if kind == "sgd" else ("exp_avg", "exp_avg_sq")
        self.kept = {name: [torch.zeros_like(each) for each in parameters] for name in names}
        if kind != "sgd":
            self.kept["step"] = [each.new_zeros(()) for each in parameters]

    def step(self, lr: float) -> None:
        """Change the parameters along their gradients, and clear the gradients."""
        moved = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        if not moved:
            return
        kept: list[Any] = [[values[i] for i in moved] for values in self.kept.values()]
        parameters = [self.parameters[i] for i in moved]
        gradients = [parameter.grad for parameter in parameters]
        function: Any = {"sgd": sgd, "adam": adam, "adamw": adamw}[self.kind]
        options: Any = {"lr": lr, "weight_decay": self.weight_decay, "maximize": False}
        if self.kind == "sgd":
            options |= {"momentum": MOMENTUM, "dampening": 0.0, "nesterov": False, "foreach": False}
        else:
            # The fused kernel makes one pass over the weights per step instead of ten.
            options |= {"beta1": 0.9, "beta2": 0.999, "eps": self.eps, "amsgrad": False, "fused": True}
            kept.insert(2, [])  # of AMSGrad, which is off
        with torch.no_grad():
            function(parameters, gradients, *kept, **options)
        for parameter in parameters:
            parameter.grad = None


class Checkpoint:
    """A file in the user's cache folder with the state of a long training, until it is done.

    The name of the file is the digest of all that the result depends on, so only the same training resumes from it. It
    is written at most once in so many seconds; None neither writes nor reads. ``keeps_end`` keeps the last state of a
    finished training, since more follows it: whoever does the rest removes it.
    """

    def __init__(self, digest: str, seconds: float | None, *, keeps_end: bool = False) -> None:
        self.path: Path = default_cache_dir() / "training" / f"{digest}.safetensors"
        self._seconds, self._keeps_end, self._last = seconds, keeps_end, time.monotonic()
        try:
            path_without_links(default_cache_dir(), "training", self.path.name)
        except InputError:  # a link is not followed, and a file is no folder: that costs time after a kill, not the fit
            self._seconds = None

    def read(self, like: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The state that was written; None if there is none, or it is truncated or altered.

        Or if it has not the tensors of ``like``, in the same shapes and types; others may be there.
        """
        if self._seconds is None or not self.path.exists():
            return None
        try:
            with safetensors.safe_open(str(self.path), framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                digest = (file.metadata() or {}).get("digest")
        except (OSError, safetensors.SafetensorError):
            return None
        fits = digest == _digest_of_state(state) and all(
            name in state and state[name].shape == value.shape and state[name].dtype == value.dtype
            for name, value in like.items()
        )
        return state if fits else None

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return self._seconds is not None and time.monotonic() - self._last >= self._seconds

    def write(self, state: Mapping[str, Tensor]) -> None:
        """Replace what is there by the state, whole or not at all."""
        arrays = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
        with contextlib.suppress(InputError):  # a folder that can't be written costs time after a kill, not the result
            write_atomically(self.path, safetensors.torch.save(arrays, {"digest": _digest_of_state(arrays)}))
        self._last = time.monotonic()

    def finish(self, state: Callable[[], Mapping[str, Tensor]]) -> None:
        """The training is done."""
        if not self._keeps_end:
            self.remove()
        elif self._seconds is not None:
            self.write(state())

    def remove(self) -> None:
        """Delete the file."""
        if self._seconds is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def digest_of(facts: Iterable[object]) -> str:
    """Hex digest of texts, numbers, tensors and arrays, of this package's version and torch's."""
    total = hashlib.blake2b(digest_size=16)
    for fact in (CHECKPOINT_FORMAT, version("clipadapter"), torch.__version__, *facts):
        if isinstance(fact, Tensor):
            total.update(f"{fact.dtype} {tuple(fact.shape)} ".encode())
            total.update(fact.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(fact, np.ndarray):
            total.update(f"{fact.dtype} {fact.shape} ".encode())
            total.update(np.ascontiguousarray(fact).data)
        else:
            total.update(f"{fact!r}\0".encode())
    return total.hexdigest()


def _digest_of_state(state: Mapping[str, Tensor]) -> str:
    return digest_of(fact for item in sorted(state.items()) for fact in item)


def digest_of_fit(head: Any, facts: Iterable[object], neutral: Collection[str] = ()) -> str:
    """Digest of a head's class and parameters, but for those that change its result by rounding at most, and facts."""
    left_out = ("progress", "checkpoint", *neutral)
    parameters = sorted((k, v) for k, v in head.get_params(deep=False).items() if k not in left_out)
    return digest_of([type(head).__name__, parameters, *facts])


@cache
def keep_freed_memory() -> bool:
    """Let glibc's allocator keep up to 256 MiB that was freed, for the whole process.

    A training step frees gradients of a few MiB. By default the allocator returns them to the system, and each step
    causes a thousand page faults: a third of the time of a fit of `ClipAdapter` to 10 classes and 1280 features.
    Nothing is changed if the environment has allocator settings, or with another C library than glibc.
    """
    if any(name in os.environ for name in ALLOCATOR_VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, Windows, musl
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    results = [mallopt(M_MMAP_THRESHOLD, MAX_HEAP_BLOCK_BYTES), mallopt(M_TRIM_THRESHOLD, MAX_FREE_BYTES)]
    return all(results)


def training_bar(steps: int, *, shown: bool, initial: int = 0) -> Any:
    """A progress bar of so many steps on stderr."""
    options: Any = {"desc": "training", "unit": "step", "leave": False, "delay": BRIEF_SECONDS}
    return progress_bar(total=steps, initial=initial, shown=shown, **options)


def coop_epochs(shots: float) -> int:
    """Epochs of CoOp's scripts by the number of shots per class: 50 for 1, 100 for 2 and 4, 200 for 8 and 16.

    Numbers in between take those of the nearest; the scripts take 50 for ImageNet at any number of shots.

    >>> [coop_epochs(shots) for shots in (1, 2, 4, 8, 16)]
    [50, 100, 100, 200, 200]
    """
    return 50 if shots < 1.5 else 100 if shots < 6 else 200


def gather_views(views: Tensor, rows: Tensor, view: Tensor) -> Tensor:
    """One view (b, d) of each of some rows of views (n, v, d), by the numbers (b,) of the rows and of their views.

    It takes a third of the time of ``views[rows, view]``.
    """
    n_views = views.shape[1]
    return views.flatten(0, 1).index_select(0, rows if n_views == 1 else rows * n_views + view)
