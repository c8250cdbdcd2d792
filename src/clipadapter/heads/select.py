"""Choosing among heads, or among the parameters of one, from the shots alone.

Every candidate is fitted to a part of the shots and judged on the others, by log-loss: at few shots accuracy moves in
steps as large as the differences that are to be seen. No validation set is needed and test data is refused.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import clone
from torch import Tensor
from tqdm.auto import tqdm

from clipadapter.errors import InputError
from clipadapter.heads._given import checked_shots
from clipadapter.heads._held_out import HeldOut, held_out
from clipadapter.heads.base import Head, SupportSet
from clipadapter.heads.multilabel import binary_losses
from clipadapter.heads.registry import create_head
from clipadapter.heads.support import Array, as_labels, as_views, class_positions, has_several
from clipadapter.heads.text import TextFeatures
from clipadapter.registry import unknown

MOST = 4096
"""Largest number of candidates of one search."""
TEMPERATURES = torch.logspace(-2, 2, 81)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One head and how it did on held-out shots.

    Args:
        name: what it was called, or its parameters in a grid.
        head: unfitted.
        loss: mean log-loss in nats at the candidate's own best temperature: scale is no merit, a calibrator sets it.
        behind: how much higher the loss is than the best candidate's; 0 for the best.
        error: standard error of ``behind``, from the paired losses of the held-out shots.
        accuracy: share of held-out shots that are right; with several labels a picture, of all their answers.
        temperature: what the logits are divided by for that loss.
        seconds: how long its fits took.
    """

    name: str
    head: Head
    loss: float
    behind: float
    error: float
    accuracy: float
    temperature: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Selection:
    """What `select` found.

    Args:
        candidates: best first.
        how: "leave-one-out", "folds" or "views".
        n_held_out: shots that were judged on.
        seconds: how long it took.
    """

    candidates: tuple[Candidate, ...]
    how: str
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
) -> Selection:
    """The head that predicts held-out shots best.

    Shots are held out one at a time where every candidate has a closed form for it, else in stratified folds. With
    one shot a class and several views, the last view is held out. With one shot and one view nothing can be.

    Args:
        heads: heads by name; or one head, or the name of one, whose parameters are searched.
        X: (n, d) or (n, v, d) raw features of the shots.
        y: (n,) labels.
        text: class text.
        grid: values to try, by parameter; all combinations are tried on every head.
        folds: of the cross-validation.
        seed: of the folds.
        progress: show a bar on stderr.

    Raises:
        InputError: if the features are a test part, nothing can be held out, there are more than 4096 candidates, or
            a head has no such parameter.

    >>> from clipadapter.testing import toy_features
    >>> X, y, text = toy_features()
    >>> select("linear-probe", X, y, text, grid={"C": [1e-6, 10.0]}).best.C
    10.0
    """
    start = time.perf_counter()
    candidates = _candidates(heads, grid or {})
    found: dict[str, HeldOut] = {}
    seconds: dict[str, float] = {}
    shots: dict[type, SupportSet] = {}
    for name, head in tqdm(candidates.items(), desc="held-out shots", disable=not progress, leave=False):
        begun = time.perf_counter()
        closed = found and next(iter(found.values())).how == "leave-one-out"
        first = None if found and not closed else _leave_one_out(head, X, y, text, shots)
        if closed and first is None:
            # Folds fit to fewer shots than leave-one-out does, so that the two can't be compared.
            found = {other: held_out(candidates[other], X, y, text, folds=folds, seed=seed) for other in found}
        found[name] = held_out(head, X, y, text, folds=folds, seed=seed) if first is None else first
        seconds[name] = time.perf_counter() - begun
    ranked = _rank(candidates, found, seconds)
    judged = found[ranked[0].name]
    return Selection(ranked, judged.how, len(judged.rows), time.perf_counter() - start)


def _leave_one_out(
    head: Head, X: ArrayLike, y: ArrayLike, text: TextFeatures | None, shots: dict[type, SupportSet]
) -> HeldOut | None:
    """In closed form, of the shots whose class has another; None if the head has none, or no class has two.

    Heads of one class take the same checked shots, which remember what several candidates need.
    """
    if head.transductive or has_several(y):
        return None
    labels = as_labels(y, len(as_views(X)))
    positions = class_positions(labels, text)[1]
    rows = np.flatnonzero(np.bincount(positions)[positions] > 1)
    if not len(rows):
        return None
    if type(head) not in shots:
        shots[type(head)] = checked_shots(head, X, y, text)[0]
    with torch.inference_mode():
        logits = head._leave_one_out(shots[type(head)])
    return None if logits is None else HeldOut(logits.numpy()[rows], positions[rows], rows, "leave-one-out")


def _candidates(heads: str | Head | Mapping[str, Head], grid: Mapping[str, Sequence[Any]]) -> dict[str, Head]:
    """Every combination of every head, by a name that says what differs."""
    named = dict(heads) if isinstance(heads, Mapping) else {"": create_head(heads) if isinstance(heads, str) else heads}
    count = len(named) * int(np.prod([len(values) for values in grid.values()]))
    if not count:
        raise InputError("there is nothing to choose from: give at least one head and one value of each parameter")
    if count > MOST:
        raise InputError(f"{count} candidates are too many (limit {MOST}): give fewer values a parameter")
    found: dict[str, Head] = {}
    for name, head in named.items():
        known = head.get_params(deep=False)
        wrong = sorted(set(grid) - set(known))
        if wrong:
            raise unknown(f"parameter of {type(head).__name__}", wrong[0], list(known))
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            words = ", ".join(f"{key}={value}" for key, value in chosen.items())
            found[", ".join(part for part in (name, words) if part) or type(head).__name__] = clone(head).set_params(
                **chosen
            )
    return found


def _rank(
    candidates: Mapping[str, Head], found: Mapping[str, HeldOut], seconds: Mapping[str, float]
) -> tuple[Candidate, ...]:
    scored = {name: _losses(held) for name, held in found.items()}
    order = sorted(scored, key=lambda name: float(scored[name][0].mean()))
    best = scored[order[0]][0]
    ranked = []
    for name in order:
        losses, temperature = scored[name]
        more = losses - best
        error = float(more.std()) / max(len(more) - 1, 1) ** 0.5 if len(more) > 1 else float("nan")
        right = float(_right(found[name]).mean())
        ranked.append(
            Candidate(
                name,
                candidates[name],
                float(losses.mean()),
                float(more.mean()),
                error if name != order[0] else 0.0,
                right,
                temperature,
                seconds[name],
            )
        )
    return tuple(ranked)


def _losses(held: HeldOut) -> tuple[Array, float]:
    """(r,) log-losses at the temperature that makes their mean least, and that temperature."""
    logits, labels = torch.from_numpy(held.logits).double(), torch.from_numpy(held.labels)
    log_loss = _log_loss if labels.ndim == 1 else binary_losses
    every: dict[int, Tensor] = {}

    def losses(i: int) -> Tensor:
        if i not in every:
            every[i] = log_loss(logits / float(TEMPERATURES[i]), labels)
        return every[i]

    # The mean loss is convex in the inverse temperature: it falls up to its least value, and never again after it.
    low, high = 0, len(TEMPERATURES) - 1
    while low < high:
        middle = (low + high) // 2
        if losses(middle).mean() <= losses(middle + 1).mean():
            high = middle
        else:
            low = middle + 1
    return losses(low).numpy(), float(TEMPERATURES[low])


def _right(held: HeldOut) -> Array:
    """Whether the answers (r,) are right, or of several labels (r, c)."""
    if held.labels.ndim == 1:
        return np.asarray(held.logits.argmax(axis=1) == held.labels)
    return np.asarray((held.logits > 0) == (held.labels > 0))


def _log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")
