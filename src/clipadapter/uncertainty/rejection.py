"""None of these: whether a picture shows any of the classes at all.

A `Rejector` is learned from the shots alone. Its score says how strange a picture is; its threshold is set so that a
chosen share of pictures of the classes is rejected, by scores of the shots as if they had not been seen. Scores are in
`clipadapter.uncertainty._scores`, each with its paper.

``method="auto"`` is a weighted sum of scores on a common scale (mean and deviation of the held-out shots): the highest
logit, the Mahalanobis distance to the classes' means, and the text (the distractors' share where there are distractors,
else the distance to the nearest class text), and the background if there is one. What a score is worth is seen from
the shots: each shot is also scored as if its class did not exist, and the weight is how many standard deviations these
lie above the others (the rule of a linear discriminant with a diagonal covariance).

Where no class has two shots, text has still never seen them, so that its held-out scores are exact; but a distance can
only be had from the other classes' shots. The sum's threshold is then too high, never too low: fewer pictures of the
classes are rejected than was asked (``Threshold.bound``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError, TooFewShotsError
from clipadapter.uncertainty._columns import (
    NEEDS,
    TO_SHOTS,
    Memory,
    background_of_itself,
    held_out_column,
    memory_and_seen,
)
from clipadapter.uncertainty._distractors import imagenet_names, kept_distractors
from clipadapter.uncertainty._rejector import Part, Rejector, Threshold
from clipadapter.uncertainty._scores import unit_rows

__all__ = ["METHODS", "Part", "Rejector", "Threshold", "imagenet_names", "kept_distractors", "learn_rejector"]

Array = NDArray[Any]
METHODS = ("auto", *NEEDS)
MOST_BACKGROUND = 512
"""Background pictures that are kept; of more, as many are drawn."""


def learn_rejector(
    features: ArrayLike,
    labels: ArrayLike,
    c: int,
    *,
    logits: ArrayLike | None = None,
    rows: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    text: ArrayLike | None = None,
    scale: float = 100.0,
    distractors: ArrayLike | None = None,
    names: Sequence[str] = (),
    background: ArrayLike | None = None,
    method: str = "auto",
    seed: int = 0,
) -> Rejector:
    """Learn from the shots how strange a picture may be.

    Args:
        features: (n, d) of the shots, any length.
        labels: (n,) class positions.
        c: number of classes.
        logits: (r, c) of shots by heads that had not seen them (`heads.out_of_fold`); None if there are none.
        rows: (r,) which shots these are.
        probabilities: (r, c) from the held-out logits by the calibrator; only "msp" needs them.
        text: (c, d) unit class text, rows of zeros for classes without; None if there is none.
        scale: the encoder's logit scale.
        distractors: (k, d) text of other things, see `kept_distractors`.
        names: k names of these, for the reasons.
        background: (b, d) features of pictures of none of the classes.
        method: "auto" or the name of one score.
        seed: of the draw among more than 512 background pictures.

    Raises:
        InputError: if the method is not known or lacks what it needs, a shape does not fit, or there is nothing to
            learn from.

    >>> X, y = np.array([[1, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1]]), [0, 0, 1, 1]
    >>> rejector = learn_rejector(X, y, 2, text=np.eye(2))
    >>> strange = rejector.scores([[1, 0], [-1, -1]], np.zeros((2, 2)))
    >>> strange > rejector.threshold(0.2).value
    array([False,  True])
    """
    X, y = np.asarray(features, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if method not in METHODS:
        raise InputError(f"no way to tell strange pictures is called {method!r}; there are: {', '.join(METHODS)}")
    if X.ndim != 2 or not len(X) or y.shape != X.shape[:1] or y.min() < 0 or y.max() >= c:
        raise InputError(f"features {X.shape} and labels {y.shape}: give at least one shot, labels from 0 to {c - 1}")
    extra = {
        "text": _matrix(text, "class text", X.shape[1], c),
        "distractors": _matrix(distractors, "distractors", X.shape[1], len(names) or None),
        "background": _drawn(_matrix(background, "background features", X.shape[1], None), seed),
    }
    answers, likely = (_scattered(part, rows, len(X), c) for part in (logits, probabilities))
    apart = method in ("auto", "mahalanobis", "background")
    memory, seen = memory_and_seen(X, y, c, answers, likely, apart, scale=float(scale), **extra)
    single = bool(np.bincount(y, minlength=c).max() < 2)
    wanted = [method] if method != "auto" else _auto(memory, answers is not None and not single, not single or c > 1)
    columns = [held_out_column(name, memory, seen) for name in wanted]
    known, other = (np.stack([column[i] for column in columns], axis=1) for i in (0, 1))
    # Without a second shot a distance can only be to other classes: too far, so that too few are rejected.
    bound = single and not TO_SHOTS.isdisjoint(wanted)
    known = np.where(np.isnan(known), other, known) if bound else known
    kept = np.isfinite(known).all(axis=1)
    if not kept.any():
        raise TooFewShotsError(
            "nothing is known of pictures that were not learned from: give two shots of some class, or class text"
        )
    known, other = known[kept], other[kept]
    centre, deviation = known.mean(axis=0), known.std(axis=0)
    deviation = np.where(deviation > 1e-12 * (1 + np.abs(centre)), deviation, 1.0)
    weights = np.ones(len(wanted)) if bound or len(wanted) == 1 else _weights(wanted, known, other, memory)
    parts = tuple(Part(*map(_plain, each)) for each in zip(wanted, weights, centre, deviation, strict=True))
    told = tuple(map(str, names)) if "distractors" in wanted else ()
    return Rejector(method, parts, known, bound, told, memory.kept(wanted))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else float(value)


def _auto(memory: Memory, logits: bool, distances: bool) -> list[str]:
    """The scores that the default sums, if held-out logits, or distances to shots, are to be had."""
    distances = distances and memory.spread is not None
    by_text = "text" if memory.distractors is None else "distractors"
    found = {
        "max-logit": logits,
        "mahalanobis": distances,
        by_text: memory.text is not None,
        "background": distances and memory.background is not None,
    }
    if not any(found.values()):
        raise TooFewShotsError(
            "nothing tells what is strange: give class text, or two shots of some class and one of each"
        )
    return [name for name, there in found.items() if there]


def _weights(wanted: list[str], known: Array, other: Array, memory: Memory) -> Array:
    """How far the scores of strangers lie above the others, in standard deviations; equal if none does."""
    found = []
    for i, name in enumerate(wanted):
        strangers = [other[np.isfinite(other[:, i]), i]]
        if name == "background":
            strangers.append(background_of_itself(memory))
        strangers = [each for each in strangers if len(each)]
        if not strangers:
            return np.ones(len(wanted))
        mean, variance = (float(np.mean([f(each) for each in strangers])) for f in (np.mean, np.var))
        spread = math.sqrt((known[:, i].var() + variance) / 2)
        found.append(max(0.0, (mean - known[:, i].mean()) / spread) if spread > 1e-12 else 0.0)
    return np.array(found) if sum(found) > 0 else np.ones(len(wanted))


def _matrix(value: ArrayLike | None, what: str, width: int, count: int | None) -> Array | None:
    if value is None:
        return None
    found = np.asarray(value, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != width or len(found) != (len(found) if count is None else count):
        wanted = f"({count or 'any number'}, {width})"
        raise InputError(f"{what} must have shape {wanted}, but have {found.shape}: are they by the same encoder?")
    if not np.isfinite(found).all():
        raise InputError(f"{what} are not all finite")
    return unit_rows(found) if len(found) else None


def _drawn(background: Array | None, seed: int) -> Array | None:
    if background is None or len(background) <= MOST_BACKGROUND:
        return background
    return background[np.sort(np.random.default_rng(seed).permutation(len(background))[:MOST_BACKGROUND])]


def _scattered(values: ArrayLike | None, rows: ArrayLike | None, n: int, c: int) -> Array | None:
    """What is known of some shots (r, c) as (n, c), NaN for the others."""
    if values is None:
        return None
    found, where = np.asarray(values, dtype=np.float64), np.asarray(np.arange(n) if rows is None else rows)
    if found.shape != (len(where), c) or (len(where) and not 0 <= where.min() <= where.max() < n):
        raise InputError(f"held-out answers {found.shape} of rows {where.shape}: give ({len(where)}, {c}) of {n} shots")
    full = np.full((n, c), np.nan)
    full[where] = found
    return full
