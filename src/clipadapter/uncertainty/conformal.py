"""Conformal prediction sets: the classes that a picture may have, with guaranteed coverage of the true class.

Nonconformity scores of held-out shots, 1 - p of the true class (LAC: Sadinle, Lei, Wasserman, JASA 2019,
https://arxiv.org/abs/1609.00451), give a threshold; a set has every class whose score is not above it.

Split and class-conditional (Mondrian): Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005,
chapters 4.2 and 4.5. CV+: Barber, Candès, Ramdas, Tibshirani, Annals of Statistics 2021,
https://arxiv.org/abs/1905.02928, for classes as in https://arxiv.org/abs/2006.02544.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import InputError, brief
from clipadapter.uncertainty.saved_state import SavedState

Array = NDArray[Any]

CONFORMAL_METHODS = ("split", "cross", "cv+")
RANK_DECIMALS = 9  # decimals of a rank: (r + 1) times a rate such as 0.9 is a little off its true value in binary


@dataclass(frozen=True, eq=False)
class Conformal:
    """Nonconformity scores of held-out shots, which give prediction sets at any coverage; made by `learn_conformal`.

    Args:
        scores: (r,) of each held-out shot's true class, ascending.
        labels: (r,) its class position.
        folds: (r,) the fold that it was held out in; zeros unless ``method`` is "cv+".
        n_classes: c.
        by_class: whether each class has its own threshold (Mondrian).
        method: "split": the final fit did not see these shots. "cross": each of k fits left out a part, and a fit
            to all shots predicts. "cv+": those k fits predict together.
    """

    scores: Array
    labels: Array
    folds: Array
    n_classes: int
    by_class: bool = False
    method: str = "cross"

    def sets(
        self, probabilities: ArrayLike, coverage: float = 0.9, *, empty: bool = False, best: ArrayLike | None = None
    ) -> NDArray[np.bool_]:
        """Prediction sets of pictures.

        Args:
            probabilities: (m, c); for "cv+" (k, m, c), of the fits without fold 0, 1, ..., k - 1.
            coverage: share of pictures, above 0 and below 1, whose set must have the true class.
            empty: allow empty sets. If the best class is correct more often than ``coverage``, only empty sets bring
                the coverage down to that rate. Without them the best class is always in its set.
            best: (m,) positions of the predicted classes, if they are not the most probable ones.

        Returns:
            (m, c). Where shots are too few for the rate, see `explain_shortage`: for "cross" the classes whose
            probabilities make up that share; for the others, and for a class with a threshold of its own, all classes.

        Raises:
            InputError: if the coverage, the shape or a probability is invalid.
        """
        rate = _check_coverage(coverage)
        p = check_probabilities(probabilities)
        if p.ndim != (3 if self.method == "cv+" else 2) or p.shape[-1] != self.n_classes:
            expected = f"(k, m, {self.n_classes})" if self.method == "cv+" else f"(m, {self.n_classes})"
            raise InputError(f"probabilities must be {expected} for {brief(self.method)}, got {p.shape}")
        if self.method == "cv+":
            sets = self._cv_plus(p, rate)
        elif self._is_by_probability(rate):
            # The fewest classes of each row whose probabilities sum to the rate.
            order = np.argsort(-p, axis=1, kind="stable")
            ranked = np.take_along_axis(p, order, axis=1)
            sets = np.empty(p.shape, bool)
            np.put_along_axis(sets, order, np.cumsum(ranked, axis=1) - ranked < rate, axis=1)
        else:
            sets = 1 - p <= self.thresholds(rate)
        if not empty and len(sets):
            overall = p.mean(axis=0) if self.method == "cv+" else p
            sets[np.arange(len(sets)), overall.argmax(axis=1) if best is None else np.asarray(best)] = True
        return np.asarray(sets)

    def thresholds(self, coverage: float = 0.9) -> Array:
        """The largest nonconformity score (c,) that a class in a set may have; infinite where shots are too few.

        It is the score of rank (r + 1) x coverage. For "split" the rank is rounded up, as the theorem requires. "cross"
        has no theorem, and the score between two shots is interpolated: rounded up, 9 to 19 shots cover 93 % on average
        where 90 % are requested.

        Raises:
            InputError: if the rate is not between 0 and 1.
        """
        rate = _check_coverage(coverage)
        if not self.by_class:
            return np.full(self.n_classes, _quantile(self.scores, rate, self.method == "cross"))
        scores_by_class = [self.scores[self.labels == k] for k in range(self.n_classes)]
        return np.array([_quantile(scores, rate, self.method == "cross") for scores in scores_by_class])

    def _cv_plus(self, p: Array, rate: float) -> Array:
        """A class is left out if (1 - alpha)(r + 1) shots have lower scores, each by the fit that did not see it."""
        if p.shape[0] != int(self.folds.max(initial=-1)) + 1:
            raise InputError(f"cv+ has {int(self.folds.max(initial=-1)) + 1} fits, but {p.shape[0]} gave probabilities")
        n_below, r = np.zeros(p.shape[1:], np.int64), np.full(self.n_classes, len(self.scores))
        for fold, nonconformities in enumerate(1 - p):
            in_fold = self.folds == fold
            if not self.by_class:
                n_below += np.searchsorted(self.scores[in_fold], nonconformities, side="left")
                continue
            for k in range(self.n_classes):
                scores = self.scores[in_fold & (self.labels == k)]
                n_below[:, k] += np.searchsorted(scores, nonconformities[:, k], side="left")
        if self.by_class:
            r = np.bincount(self.labels, minlength=self.n_classes)
        return np.asarray(n_below < np.round(rate * (r + 1), RANK_DECIMALS))

    def _is_by_probability(self, rate: float) -> bool:
        """Whether sets follow from the probabilities alone, since no score of a shot is high enough for the rate."""
        return self.method == "cross" and not self.by_class and len(self.scores) < _shots_needed(rate)

    def explain_shortage(self, coverage: float = 0.9) -> str | None:
        """Why the shots don't decide which classes are in a set, with advice; None if there are enough shots.

        With r held-out shots no coverage above r / (r + 1) can be guaranteed: a new picture has a higher score than
        all of them once in r + 1 times. So 90 % needs 9 shots, and 9 of each class if each has its own threshold.

        Raises:
            InputError: if the rate is not between 0 and 1.
        """
        rate = _check_coverage(coverage)
        needed, percent = _shots_needed(rate), f"{100 * rate:.4g} %"
        counts = np.bincount(self.labels, minlength=self.n_classes) if self.by_class else np.array([len(self.scores)])
        fewest, n_short = int(counts.min()), int((counts < needed).sum())
        if not n_short:
            return None
        # The highest coverage that r shots can guarantee is r / (r + 1), rounded down here.
        most = f", or set a coverage of at most {math.floor(1000 * fewest / (fewest + 1)) / 1000:g}" if fewest else ""
        if self.by_class:
            return (
                f"{percent} coverage of every class needs {needed} held-out shots of each; {n_short} of "
                f"{self.n_classes} classes have fewer (the fewest: {fewest}) and are in every set. Give more shots"
                f"{most}, or use a coverage over all classes together"
            )
        by_probability = f"a set has the classes that make up {percent} of the probability, which no shots confirm"
        sets = by_probability if self._is_by_probability(rate) else "every set has all classes"
        return (
            f"{percent} coverage needs {needed} held-out shots, there {'is' if fewest == 1 else 'are'} {fewest}: "
            f"{sets}. Give more shots{most}"
        )

    def describe_guarantee(self, coverage: float = 0.9) -> str:
        """The exact guarantee, as a sentence.

        Raises:
            InputError: if the rate is not between 0 and 1.
        """
        rate, r = _check_coverage(coverage), len(self.scores)
        shortage = self.explain_shortage(rate)
        if shortage and not self.by_class:
            return shortage + "."
        scope = "of each class's pictures" if self.by_class else "of pictures"
        claim = f"{100 * rate:.4g} % {scope} have their class in the set"
        frequencies = "" if self.by_class else ", with the same class frequencies"
        sentences = [
            {
                "split": f"At least {claim}, on average over draws of the shots that were held out",
                "cv+": f"About {claim}; proven is a little less than {100 * max(0.0, 2 * rate - 1):.4g} %",
                "cross": f"About {claim}. No theorem says so: the held-out shots were scored by fits to fewer shots "
                "than the final fit, and their temperature was learned from them",
            }[self.method],
            f"That holds if new pictures are like the shots{frequencies}",
        ]
        if not self.by_class:
            # The coverage of one fit is Beta(rank, r + 1 - rank) (Vovk, ACML 2012).
            mean = min(math.ceil(round((r + 1) * rate, RANK_DECIMALS)), r) / (r + 1)
            points = 100 * math.sqrt(mean * (1 - mean) / (r + 2))
            sentences.append(f"With {r} held-out shots coverage varies by {points:.1f} points between fits")
        sentences.append("If the best class alone is correct more often, coverage is that share: no set is empty")
        return ". ".join([*sentences, shortage] if shortage else sentences) + "."

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Facts for JSON, and arrays by name."""
        facts = {"by_class": self.by_class, "method": self.method, "n_classes": self.n_classes}
        return facts, {"scores": self.scores, "labels": self.labels, "folds": self.folds}

    @classmethod
    def from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> Conformal:
        """Restore what `state` returned, and check it.

        Raises:
            ArtifactError: if a fact or an array is missing or invalid.
        """
        saved = SavedState("set of held-out scores", facts, arrays)
        scores = saved.array("scores", (None,))
        labels, folds = (saved.array(name, scores.shape, "i") for name in ("labels", "folds"))
        c = saved.fact("n_classes", int, lambda x: x > 0)
        saved.require((np.diff(scores) >= 0).all(), "its 'scores' are not ascending")
        for name, positions, count in (("labels", labels, c), ("folds", folds, len(folds))):
            saved.require(((positions >= 0) & (positions < count)).all(), f"a value of its {name!r} is out of range")
        method = saved.fact("method", str, lambda x: x in CONFORMAL_METHODS)
        return cls(scores.astype(np.float64), labels, folds, c, saved.fact("by_class", bool), method)


def learn_conformal(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    by_class: bool = False,
    method: str = "cross",
    folds: ArrayLike | None = None,
) -> Conformal:
    """Learn prediction sets from out-of-fold probabilities of shots.

    Args:
        probabilities: (r, c) calibrated, of held-out shots.
        labels: (r,) their class positions.
        by_class: guarantee the coverage for each class separately, from its own shots only.
        method: "split", "cross" or "cv+"; see `Conformal`.
        folds: (r,) number of the fold that each shot was held out in; for "cv+" only.

    Raises:
        InputError: if shapes don't match, or "cv+" has no folds.

    >>> held_out = learn_conformal([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1], method="split")
    >>> held_out.scores
    array([0.1, 0.2, 0.6])
    >>> held_out.sets([[0.75, 0.25], [0.5, 0.5]], coverage=0.75)  # rank 3 of 3: up to 0.6
    array([[ True, False],
           [ True,  True]])
    """
    if method not in CONFORMAL_METHODS:
        raise InputError(
            f"there is no conformal method {brief(method)}; the methods are: {', '.join(CONFORMAL_METHODS)}"
        )
    p, y = check_probabilities(probabilities), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1] or (len(y) and y.dtype.kind not in "iu"):
        raise InputError(f"probabilities (r, c) and class positions (r,) don't match: {p.shape} and {y.shape}")
    if len(y) and not 0 <= y.min() <= y.max() < p.shape[1]:
        raise InputError(f"class positions must be from 0 to {p.shape[1] - 1}, got {y.min()} to {y.max()}")
    if (method == "cv+") != (folds is not None):
        raise InputError("'cv+' needs the fold in which each shot was held out; other methods take no folds")
    fold = np.zeros(len(y), np.int64) if folds is None else np.asarray(folds)
    if fold.shape != y.shape:
        raise InputError(f"folds must be one number per held-out shot, {len(y)}, got {fold.shape}")
    nonconformities = 1 - p[np.arange(len(y)), y.astype(np.int64)]
    order = np.argsort(nonconformities, kind="stable")
    ordered = nonconformities[order], y[order].astype(np.int64), fold[order].astype(np.int64)
    return Conformal(*ordered, p.shape[1], by_class, method)


def check_probabilities(probabilities: ArrayLike) -> Array:
    """Check probabilities (..., c), and return them as float64."""
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim < 2 or not p.shape[-1]:
        raise InputError(f"probabilities must be rows with one number per class, got shape {p.shape}")
    if not (np.isfinite(p).all() and (p >= 0).all() and (np.abs(p.sum(axis=-1) - 1) < 1e-3).all()):
        raise InputError("probabilities must be finite, at least 0 and sum to one in each row; logits are not accepted")
    return p


def _shots_needed(rate: float) -> int:
    """The fewest held-out shots of which one has a score of rank (r + 1) x rate."""
    return math.ceil(round(rate / (1 - rate), RANK_DECIMALS))


def _quantile(scores: Array, rate: float, interpolate: bool) -> float:
    """The score of rank (r + 1) x rate among ascending scores: the next higher one, or interpolated."""
    rank = round((len(scores) + 1) * rate, RANK_DECIMALS)
    if rank > len(scores):
        return math.inf
    above = float(scores[math.ceil(rank) - 1])
    if not interpolate or rank < 1:
        return above
    below, fraction = float(scores[math.floor(rank) - 1]), rank - math.floor(rank)
    return below + fraction * (above - below)


def _check_coverage(coverage: float) -> float:
    if not 0 < coverage < 1:
        raise InputError(f"coverage must be above 0 and below 1, such as 0.9, got {coverage}")
    return float(coverage)
