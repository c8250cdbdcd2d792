"""Choose among heads, or among the parameters of one, from the shots alone.

Every candidate is fitted to a part of the shots and compared by log-loss on the others: with few shots accuracy moves
in steps as large as the differences between candidates. No validation set is needed, and test features are refused.
"""

from __future__ import annotations

import itertools
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipadapter.errors import InputError
from clipadapter.heads.base import Head
from clipadapter.heads.create import create_head
from clipadapter.heads.estimator import clone
from clipadapter.heads.losses import binary_losses
from clipadapter.heads.out_of_fold import out_of_fold
from clipadapter.heads.support import Array
from clipadapter.heads.text import TextFeatures
from clipadapter.utils.progress import progress_bar
from clipadapter.utils.registry import unknown

MAX_CANDIDATES = 4096  # largest number of candidates of one search
TEMPERATURES = torch.logspace(-2, 2, 81)  # temperatures at which the log-loss of a candidate is tried


@dataclass(frozen=True, eq=False)
class Candidate:
    """A head and its results on held-out shots.

    Args:
        name: its key in the mapping of heads, or its parameters in a grid.
        head: unfitted.
        loss: mean log-loss in nats at the candidate's own best temperature: a calibrator will set the scale anyway.
        excess_loss: how much higher the loss is than the best candidate's; 0 for the best.
        standard_error: of ``excess_loss``, from the paired losses of the held-out shots.
        accuracy: share of held-out shots that are right; if multi-label, of all binary predictions.
        temperature: the temperature of that loss.
        seconds: duration of its fits.
    """

    name: str
    head: Head
    loss: float
    accuracy: float
    temperature: float
    seconds: float
    excess_loss: float = 0.0
    standard_error: float = 0.0


@dataclass(frozen=True, eq=False)
class Selection:
    """The result of `select`.

    Args:
        candidates: best first.
        strategy: "folds" or "views"; see `out_of_fold`.
        n_held_out: number of held-out shots.
        seconds: duration.
    """

    candidates: tuple[Candidate, ...]
    strategy: str
    n_held_out: int
    seconds: float

    @property
    def best(self) -> Head:
        """The head with the lowest loss, unfitted."""
        return clone(self.candidates[0].head)


def select(
    heads: str | Head | Mapping[str, Head],
    X: ArrayLike,
    y: ArrayLike,
    text: TextFeatures | None = None,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    folds: int = 4,
    seed: int = 0,
    progress: bool = False,
    blocks: Sequence[tuple[str, int]] | None = None,
) -> Selection:
    """The head that predicts held-out shots best.

    Shots are held out in stratified folds. With one shot per class and several views, the last view is held out. With
    one shot and one view nothing can be held out.

    Args:
        heads: heads by name; or one head, or the name of one, whose parameters are searched.
        X: (n, d) or (n, v, d) raw features of the shots.
        y: (n,) labels, or (n, c) multi-label targets.
        text: text features.
        grid: values to try, by parameter; all combinations are tried on every head.
        folds: of the cross-validation.
        seed: of the folds.
        progress: show a bar on stderr.
        blocks: as for `Head.fit`.

    Raises:
        InputError: if the features are marked for evaluation, nothing can be held out, there are more than 4096
            candidates, or a head lacks a parameter of the grid.

    >>> from clipadapter.testing import toy_features
    >>> X, y, text = toy_features()
    >>> select("linear-probe", X, y, text, grid={"C": [1e-6, 10.0]}).best.C
    10.0
    """
    start = time.perf_counter()
    candidates = _make_candidates(heads, grid or {})
    tried: list[tuple[Candidate, Array]] = []
    for name, head in progress_bar(candidates.items(), desc="held-out shots", shown=progress, leave=False):
        start_of_candidate = time.perf_counter()
        result = out_of_fold(head, X, y, text, folds=folds, seed=seed, blocks=blocks)
        if result is None:
            raise InputError(
                f"{type(head).__name__} is transductive: it can't be tested on held-out shots"
                if head.transductive
                else "with one shot per class and one view nothing can be held out: give two shots of some classes, or "
                "views=2 or more, or choose the head yourself ('auto' needs none)"
            )
        logits, truth = torch.from_numpy(result.logits), torch.from_numpy(result.labels)
        losses, temperature = losses_at_best_temperature(logits, truth)
        is_right = logits.argmax(dim=1) == truth if truth.ndim == 1 else (logits > 0) == (truth > 0)
        seconds = time.perf_counter() - start_of_candidate
        accuracy = float(is_right.double().mean())
        tried.append((Candidate(name, head, float(losses.mean()), accuracy, temperature, seconds), losses.numpy()))
        strategy, n_held_out = result.strategy, len(result.rows)  # the same for all
    tried.sort(key=lambda each: each[0].loss)
    ranked = [tried[0][0]]
    for candidate, losses_of_shots in tried[1:]:
        excess = losses_of_shots - tried[0][1]
        error = float(excess.std()) / (len(excess) - 1) ** 0.5 if len(excess) > 1 else float("nan")
        ranked.append(replace(candidate, excess_loss=float(excess.mean()), standard_error=error))
    return Selection(tuple(ranked), strategy, n_held_out, time.perf_counter() - start)


def _make_candidates(heads: str | Head | Mapping[str, Head], grid: Mapping[str, Sequence[Any]]) -> dict[str, Head]:
    """Every combination of parameters of every head, by a name that states what differs."""
    named = dict(heads) if isinstance(heads, Mapping) else {"": create_head(heads) if isinstance(heads, str) else heads}
    count = len(named) * int(np.prod([len(values) for values in grid.values()]))
    if not count:
        raise InputError("there is nothing to choose from: give at least one head and one value of each parameter")
    if count > MAX_CANDIDATES:
        raise InputError(f"{count} candidates are too many (limit {MAX_CANDIDATES}): give fewer values per parameter")
    candidates: dict[str, Head] = {}
    for name, head in named.items():
        known = head.get_params(deep=False)
        unknown_parameters = sorted(set(grid) - set(known))
        if unknown_parameters:
            raise unknown(f"parameter of {type(head).__name__}", unknown_parameters[0], list(known))
        for values in itertools.product(*grid.values()):
            params = dict(zip(grid, values, strict=True))
            settings = ", ".join(f"{key}={value}" for key, value in params.items())
            full_name = ", ".join(part for part in (name, settings) if part) or type(head).__name__
            candidates[full_name] = clone(head).set_params(**params)
    return candidates


def losses_at_best_temperature(logits: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Log-losses (r,) in nats at the one of `TEMPERATURES` that makes their mean smallest, and that temperature.

    Of logits (r, c), with class positions (r,) or multi-label targets (r, c).
    """
    logits = logits.double()
    log_loss = partial(cross_entropy, reduction="none") if labels.ndim == 1 else binary_losses
    losses = cache(lambda i: log_loss(logits / float(TEMPERATURES[i]), labels))
    # The mean loss is convex in the inverse temperature, so that it has one minimum: bisection on its slope.
    rising = range(len(TEMPERATURES) - 1)
    best = bisect_left(rising, True, key=lambda i: bool(losses(i).mean() <= losses(i + 1).mean()))
    return losses(best), float(TEMPERATURES[best])
