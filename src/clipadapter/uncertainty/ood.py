"""Out-of-distribution detection: whether a picture shows any of the classes at all ("none of these").

A `Rejector` is learned from the shots alone. It scores how far a picture is from the classes. Its threshold is set so
that a chosen share of pictures of the classes is rejected, by out-of-fold scores of the shots. `ood_scores` has the
scores, each with its paper.

The score is a weighted sum of standardised scores (by mean and deviation of the held-out shots): the maximum logit, the
Mahalanobis distance to the class means, the text (the score of the negative labels if there are some, else the distance
to the nearest class text), and the outliers if there are some. The weights come from the shots: each shot is also
scored as if its class did not exist, and the weight is how many standard deviations these scores lie above the others.
This is a linear discriminant with a diagonal covariance. The logits of a shot without its class are lower than those of
pictures of other things, so that the maximum logit gets a part of its weight.

If no class has two shots, scores by text are still exact, since text does not depend on the shots. Distances can only
be computed to the shots of other classes. The threshold of the sum is then too high, never too low: fewer pictures of
the classes are rejected than the rate says (``Threshold.rate_is_upper_bound``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError, TooFewShotsError
from clipadapter.uncertainty.class_gaussians import ClassGaussians, fit_class_gaussians
from clipadapter.uncertainty.ood_scores import SCORES, HeldOutShots, MemoryBank
from clipadapter.uncertainty.saved_state import SavedState
from clipadapter.utils.prediction import DEFAULT_LOGIT_SCALE, unit_rows

Array = NDArray[Any]
MARK_RATE = 0.04
"""Rate of the threshold above which pictures are marked if none are rejected. With 0.05, 5.8 % of the pictures of the
classes were marked at two shots per class, with 0.04 at most 4.9 % at any number of shots (docs/trust.md)."""
MIN_SHOTS_TO_MARK = 10
"""Held-out shots from which on pictures are marked. With two classes of two shots 7 to 20 % of their pictures were."""
LOGIT_WEIGHT = 0.35
"""Part of its weight that the maximum logit gets. With the whole weight a picture of something else is not marked if
the head is sure of its answer, however far it is from all shots; the best of 0 to 1 on the sets of docs/trust.md."""
SAVED_ARRAYS = ("text", "negative_labels", "outliers")  # attributes of `MemoryBank` that are saved under their name
MAX_OUTLIERS = 512  # outliers that are stored; of more, as many are drawn
MAX_COMPARISONS = 2**25
"""Shots times classes up to which each shot is compared with each class: 268 MB for each kind of score. With more,
those shots are compared that have out-of-fold logits, or that are drawn if there are none."""
MAX_JUDGED_COMPARISONS = 2**24  # shots times classes of those that are drawn


@dataclass(frozen=True)
class ScorePart:
    """One score in the sum."""

    name: str
    weight: float
    centre: float  # mean over the held-out shots
    deviation: float  # standard deviation over them


@dataclass(frozen=True)
class Threshold:
    """The score above which pictures are rejected."""

    value: float  # pictures with a higher score are rejected
    min_rate: float  # smallest rate that so many held-out shots can set, 1 / (r + 1)
    is_attainable: bool  # whether the rate is not below it; if it is, a normal tail is assumed
    rate_is_upper_bound: bool  # whether fewer pictures than the rate are rejected, since every class has one shot
    shots: int  # r, held-out shots that set it


@dataclass(frozen=True, eq=False)
class Rejector:
    """Scores how far pictures are from the classes of a fitted model, and rejects those above a threshold.

    Args:
        parts: scores that are summed.
        held_out_scores: (r, p) the parts' scores of held-out shots.
        rate_is_upper_bound: whether fewer pictures are rejected than the rate says: no class had two shots, and a part
            compares pictures with shots.
        negative_label_names: the negative labels.
        memory: the features that pictures are compared with.
    """

    parts: tuple[ScorePart, ...]
    held_out_scores: Array
    rate_is_upper_bound: bool
    negative_label_names: tuple[str, ...]
    memory: MemoryBank

    def scores(self, features: ArrayLike, logits: ArrayLike) -> Array:
        """Out-of-distribution scores (m,): a weighted sum of standardised scores, 0 for the mean held-out shot.

        Args:
            features: (m, d) as from the encoder, any length.
            logits: (m, c) of the head.

        Raises:
            InputError: if a shape does not fit.
        """
        return self.weighted_sum(self.part_scores(features, logits))

    def weighted_sum(self, columns: ArrayLike) -> Array:
        """Out-of-distribution scores (m,), from the scores (m, p) of the parts.

        Raises:
            InputError: if the number of columns is not that of the parts.
        """
        scores = np.asarray(columns, dtype=np.float64)
        if scores.ndim != 2 or scores.shape[1] != len(self.parts):
            raise InputError(f"scores {scores.shape}: give a column for each of the {len(self.parts)} parts")
        return np.asarray(self._weighted(scores).sum(axis=1))

    def threshold(self, rate: float = 0.05) -> Threshold:
        """The score above which pictures are rejected, so that a share ``rate`` of pictures of the classes is.

        The ceil((r + 1)(1 - rate))-th lowest held-out score (the quantile of split conformal prediction: Vovk et al.
        2005): a new picture of a class, exchangeable with the held-out shots, is above it with probability at most
        ``rate``. The held-out scores come from fits to fewer shots, so this holds only approximately: with a rate of
        5 %, 5 to 6 % were rejected from two shots per class on (Caltech-101, 81 classes, 5 draws).

        With too few held-out shots for the rate, none of their scores is high enough. The threshold is then the highest
        of them, or the prediction bound of a normal distribution (Student's t), whichever is higher. With fewer than
        three held-out shots nothing is rejected.

        Args:
            rate: between 0 and 1.

        Raises:
            InputError: if the rate is out of range.
        """
        if not 0 < rate < 1:
            raise InputError(f"the rate of rejection must be between 0 and 1, but is {rate}")
        ordered = self._ordered_scores
        r = len(ordered)
        position = math.ceil((r + 1) * (1 - rate) - 1e-9)
        value = float(ordered[position - 1]) if position <= r else _normal_tail_bound(ordered, rate)
        return Threshold(value, 1 / (r + 1), position <= r, self.rate_is_upper_bound, r)

    @property
    def mark_threshold(self) -> float:
        """The score above which pictures are marked if none are rejected; infinite with too few held-out shots."""
        enough = len(self._ordered_scores) >= MIN_SHOTS_TO_MARK
        return self.threshold(MARK_RATE).value if enough else math.inf

    def reasons_from_scores(self, columns: ArrayLike, features: ArrayLike) -> list[str]:
        """The reasons from the parts' scores (m, p). Features (m, d) are needed to name a negative label."""
        scores = np.asarray(columns, dtype=np.float64)
        largest_part = self._weighted(scores).argmax(axis=1)
        rows = unit_rows(np.asarray(features))
        return [self._describe(int(p), scores[i, p], rows[i]) for i, p in enumerate(largest_part)]

    def without_arrays(self) -> Rejector:
        """A copy without the memory bank, for an exported graph that computes the parts' scores itself."""
        return replace(self, negative_label_names=(), memory=MemoryBank(scale=self.memory.scale))

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Facts for JSON and arrays: all that `from_state` needs."""
        facts = {
            "parts": [vars(part) for part in self.parts],
            "rate_is_upper_bound": self.rate_is_upper_bound,
            "negative_label_names": list(self.negative_label_names),
            "scale": self.memory.scale,
            "floor": self.memory.gaussians.floor if self.memory.gaussians else None,
        }
        gaussians, memory = self.memory.gaussians, self.memory
        arrays = {name: getattr(memory, name) for name in SAVED_ARRAYS if getattr(memory, name) is not None}
        arrays |= {} if gaussians is None else {"means": gaussians.means, "basis": gaussians.basis}
        return facts, {"held_out_scores": self.held_out_scores, **arrays}

    @classmethod
    def from_state(cls, facts: dict[str, Any], arrays: dict[str, Array], arrays_removed: bool = False) -> Rejector:
        """Restore what `state` returned, and check it; after `without_arrays` the memory bank may be empty.

        Raises:
            ArtifactError: if something is missing, or of the wrong shape or kind, or not finite.
        """
        saved = SavedState("rejector", facts, arrays)
        parts = tuple(_read_part(fact) for fact in saved.fact("parts", list, lambda parts: len(parts) > 0))
        names = saved.fact("negative_label_names", list, lambda names: all(isinstance(name, str) for name in names))
        is_bound = saved.fact("rate_is_upper_bound", bool)
        scores = saved.array("held_out_scores", (None, len(parts)))
        saved.require(len(scores), "it has no held-out score")
        bank = {name: saved.array(name, (None, None)) for name in (*SAVED_ARRAYS, "means", "basis") if name in arrays}
        # An array of another model would give wrong scores, not an error.
        saved.require(set(arrays) == {"held_out_scores", *bank}, f"its arrays are {sorted(arrays)}")
        widths = {array.shape[1] for array in bank.values()}
        saved.require(len(widths) <= 1, f"its arrays are of widths {sorted(widths)}")
        saved.require(all(len(array) or name == "basis" for name, array in bank.items()), "an array of it is empty")
        gaussians, means, basis = None, bank.pop("means", None), bank.pop("basis", None)
        if means is not None:
            basis = saved.array("basis", (None, None))
            saved.require(len(bank.get("text", means)) == len(means), "its means and class text are of other classes")
            gaussians = ClassGaussians(means, basis, saved.fact("floor", float, lambda x: x > 0))
        memory = MemoryBank(gaussians, **bank, scale=saved.fact("scale", float, lambda x: x > 0))
        for part in parts:
            has_arrays = all(getattr(memory, attribute) is not None for attribute in SCORES[part.name].arrays)
            saved.require(arrays_removed or has_arrays, f"it lacks the arrays of {part.name!r}")
        k = 0 if memory.negative_labels is None else len(memory.negative_labels)
        saved.require(len(names) in (0, k), f"it has {len(names)} names of {k} negative labels")
        return cls(parts, scores, is_bound, tuple(names), memory)

    def part_scores(self, features: ArrayLike, logits: ArrayLike) -> Array:
        """The score (m, p) of each part; arguments as of `scores`."""
        rows, logit_rows = np.asarray(features), np.asarray(logits, dtype=np.float64)
        width = None if self.memory.of_classes is None else self.memory.of_classes.shape[1]
        if rows.ndim != 2 or logit_rows.ndim != 2 or len(rows) != len(logit_rows) or width not in (rows.shape[1], None):
            raise InputError(
                f"features {rows.shape} and logits {logit_rows.shape}: give one row of each per picture, features "
                f"of width {width}"
            )
        directions = unit_rows(rows)
        scores = [SCORES[part.name].of_pictures(self.memory, directions, logit_rows) for part in self.parts]
        return np.stack(scores, axis=1) if len(rows) else np.zeros((0, len(self.parts)))

    @cached_property
    def _ordered_scores(self) -> Array:
        return np.sort(self.weighted_sum(self.held_out_scores))

    def _weighted(self, columns: Array) -> Array:
        centre, deviation = (np.array([getattr(p, key) for p in self.parts]) for key in ("centre", "deviation"))
        return np.asarray((columns - centre) / deviation * np.array([part.weight for part in self.parts]))

    def _describe(self, p: int, value: float, row: Array) -> str:
        """Why one picture (d,) is far from the classes by part ``p``, whose score of it is ``value``."""
        name, memory = self.parts[p].name, self.memory
        reason, names = SCORES[name].reason, self.negative_label_names
        percent_below = int(100 * (self.held_out_scores[:, p] < value).mean())
        comparison = "all of the shots are" if percent_below == 100 else f"{percent_below} % of the shots are"
        if name == "negative-labels":
            if memory.negative_labels is None or memory.text is None:  # after `without_arrays`
                return f"less like any class than {comparison}"
            negative_cosines = memory.negative_labels @ row
            if negative_cosines.max() > (memory.text @ row).max() and names:
                return f"nearer to '{names[int(negative_cosines.argmax())]}' than to any class name"
        elif name == "outliers":
            if value > 0:
                return "closer to an outlier picture than to any class mean"
        elif SCORES[name].compares_with_shots and self.rate_is_upper_bound:
            return f"{reason} than {comparison} from other classes"
        return f"{reason} than {comparison}"


def _normal_tail_bound(ordered: Array, rate: float) -> float:
    """The score that one more of r ascending ones exceeds with probability ``rate``, if they are normal."""
    r = len(ordered)
    if r < 3:
        return math.inf
    # Student's quantile by its expansion in 1 / (r - 1) (Abramowitz and Stegun 1964, 26.7.5): within 2 % for rates down
    # to 0.01 from six shots on, and lower than it is with fewer.
    z, v = -NormalDist().inv_cdf(rate), r - 1
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    bound = float(ordered.mean() + t * ordered.std(ddof=1) * math.sqrt(1 + 1 / r))
    return max(bound, float(ordered[-1]))


def learn_rejector(
    features: ArrayLike,
    labels: ArrayLike,
    c: int,
    *,
    logits: ArrayLike | None = None,
    rows: ArrayLike | None = None,
    text: ArrayLike | None = None,
    scale: float = DEFAULT_LOGIT_SCALE,
    negative_labels: ArrayLike | None = None,
    names: Sequence[str] = (),
    outliers: ArrayLike | None = None,
) -> Rejector:
    """Learn a rejector from the shots.

    Args:
        features: (n, d) of the shots, any length.
        labels: (n,) class positions.
        c: number of classes.
        logits: (r, c) out-of-fold logits of shots; None if there are none.
        rows: (r,) which shots these are.
        text: (c, d) unit class text, rows of zeros for classes without text; None if there is none.
        scale: the encoder's logit scale.
        negative_labels: (k, d) text features of negative labels, see `select_negative_labels`.
        names: the k negative labels, for the reasons.
        outliers: (b, d) features of pictures of none of the classes.

    Raises:
        InputError: if a shape does not fit, or there is nothing to learn from.

    >>> X, y = np.array([[1, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1]]), [0, 0, 1, 1]
    >>> rejector = learn_rejector(X, y, 2, text=np.eye(2))
    >>> scores = rejector.scores([[1, 0], [-1, -1]], np.zeros((2, 2)))
    >>> scores > rejector.threshold(0.2).value
    array([False,  True])
    """
    X, y = np.asarray(features, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if X.ndim != 2 or not len(X) or y.shape != X.shape[:1] or y.min() < 0 or y.max() >= c:
        raise InputError(f"features {X.shape} and labels {y.shape}: give at least one shot, labels from 0 to {c - 1}")
    arrays = {
        "text": _check_matrix(text, "class text", X.shape[1], c),
        "negative_labels": _check_matrix(negative_labels, "negative labels", X.shape[1], len(names) or None),
        "outliers": _check_matrix(outliers, "outlier (background) features", X.shape[1], None),
    }
    if arrays["outliers"] is not None:
        arrays["outliers"] = arrays["outliers"][_draw(len(arrays["outliers"]), MAX_OUTLIERS)]
    gaussians, shots = _hold_out(unit_rows(X), y, c, logits, rows)
    memory = MemoryBank(gaussians, **arrays, scale=float(scale))
    one_shot = bool(shots.counts.max() < 2)
    score_names = _select_scores(memory, shots.logits is not None and not one_shot, not one_shot or c > 1)
    columns = [SCORES[name].of_shots(memory, shots) for name in score_names]
    known, other = (np.stack([column[i] for column in columns], axis=1) for i in (0, 1))
    # The only shot of a class can be compared with other classes only. Its distance is too large: fewer are rejected.
    rate_is_upper_bound = one_shot and any(SCORES[name].compares_with_shots for name in score_names)
    known = np.where(np.isnan(known), other, known) if rate_is_upper_bound else known
    complete = np.isfinite(known).all(axis=1)
    if not complete.any():
        raise TooFewShotsError("no shot can be scored out of fold: give two shots of some class, or class text")
    known, other = known[complete], other[complete]
    centre, deviation = known.mean(axis=0), known.std(axis=0)
    deviation = np.where(deviation > 1e-12 * (1 + np.abs(centre)), deviation, 1.0)
    weights = np.ones(len(score_names))
    if not rate_is_upper_bound and len(score_names) > 1:
        weights = _separation_weights(score_names, known, other, memory)
    numbers = np.stack([weights, centre, deviation], axis=1).tolist()
    parts = tuple(ScorePart(name, *each) for name, each in zip(score_names, numbers, strict=True))
    stored_names = tuple(map(str, names)) if "negative-labels" in score_names else ()
    return Rejector(parts, known, rate_is_upper_bound, stored_names, memory.restrict(score_names))


def _hold_out(
    units: Array, y: Array, c: int, logits: ArrayLike | None, rows: ArrayLike | None
) -> tuple[ClassGaussians | None, HeldOutShots]:
    """The Gaussians, None if a class has no shot; and the shots that are compared with the others."""
    n = len(units)
    row_numbers, held_out_logits = np.arange(n) if rows is None else np.asarray(rows), None
    judged = None  # all shots
    if n * c > MAX_COMPARISONS:
        judged = row_numbers if logits is not None else _draw(n, max(1, MAX_JUDGED_COMPARISONS // c))
    if logits is not None:
        held_out_logits = np.asarray(logits, dtype=np.float64)
        is_row = len(row_numbers) == 0 or 0 <= row_numbers.min() <= row_numbers.max() < n
        if held_out_logits.shape != (len(row_numbers), c) or not is_row:
            shapes = f"{held_out_logits.shape} of rows {row_numbers.shape}"
            raise InputError(f"held-out predictions {shapes}: give ({len(row_numbers)}, {c}) of {n} shots")
        if judged is None:
            of_all = np.full((n, c), np.nan)  # NaN for the other shots
            of_all[row_numbers] = held_out_logits
            held_out_logits = of_all
    part, counts = slice(None) if judged is None else judged, np.bincount(y, minlength=c)
    gaussians, distances = None, np.full((len(y[part]), c), np.nan)
    if (counts > 0).all():  # a class without a shot has no mean
        gaussians, distances = fit_class_gaussians(units, y, c, judged)
    return gaussians, HeldOutShots(units[part], y[part], held_out_logits, distances, counts)


def _select_scores(memory: MemoryBank, logits: bool, distances: bool) -> list[str]:
    """Names of the scores that are summed; it depends on whether held-out logits and distances to shots exist."""
    distances = distances and memory.gaussians is not None
    by_text = "text" if memory.negative_labels is None else "negative-labels"
    is_available = {
        "max-logit": logits,
        "mahalanobis": distances,
        by_text: memory.text is not None,
        "outliers": distances and memory.outliers is not None,
    }
    if not any(is_available.values()):
        raise TooFewShotsError(
            "no out-of-distribution score is available: give class text, or two shots of some class and one of each"
        )
    return [name for name, available in is_available.items() if available]


def _separation_weights(score_names: list[str], known: Array, other: Array, memory: MemoryBank) -> Array:
    """How many standard deviations simulated outliers lie above the shots, by score; equal weights if none does."""
    weights: list[float] = []
    for i, name in enumerate(score_names):
        outliers = [other[np.isfinite(other[:, i]), i]]
        if name == "outliers" and memory.outliers is not None and memory.gaussians is not None:
            # The outliers themselves, each compared with the others.
            cosines = memory.outliers @ memory.outliers.T
            np.fill_diagonal(cosines, -np.inf if len(cosines) > 1 else 1.0)
            to_means = memory.outliers @ unit_rows(memory.gaussians.means).T
            outliers.append(cosines.max(axis=1) - to_means.max(axis=1))
        outliers = [each for each in outliers if len(each)]
        if not outliers:
            return np.ones(len(score_names))
        mean, variance = (float(np.mean([f(each) for each in outliers])) for f in (np.mean, np.var))
        deviation = math.sqrt((known[:, i].var() + variance) / 2)
        weight = max(0.0, (mean - known[:, i].mean()) / deviation) if deviation > 1e-12 else 0.0
        weights.append(weight * LOGIT_WEIGHT if name == "max-logit" else weight)
    return np.array(weights) if sum(weights) > 0 else np.ones(len(score_names))


def _check_matrix(value: ArrayLike | None, what: str, width: int, count: int | None) -> Array | None:
    if value is None:
        return None
    matrix = np.asarray(value, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] != width or len(matrix) != (len(matrix) if count is None else count):
        expected = f"({count or 'any number'}, {width})"
        raise InputError(f"{what} must have shape {expected}, but have {matrix.shape}: are they by the same encoder?")
    if not np.isfinite(matrix).all():
        raise InputError(f"{what} are not all finite")
    return unit_rows(matrix) if len(matrix) else None


def _draw(n: int, k: int) -> Array:
    """At most k of n rows in ascending order, the same ones each time."""
    return np.sort(np.random.default_rng(0).permutation(n)[:k]) if n > k else np.arange(n)


def _read_part(fact: Any) -> ScorePart:
    saved = SavedState("rejector's score", fact, {})
    name = saved.fact("name", str, lambda name: name in SCORES)
    weight, deviation = saved.fact("weight", float, lambda x: x >= 0), saved.fact("deviation", float, lambda x: x > 0)
    return ScorePart(name, weight, saved.fact("centre", float), deviation)
