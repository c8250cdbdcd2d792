"""Conformal prediction sets: the classes that a picture may have, with guaranteed coverage of the true class.

Nonconformity scores of held-out shots give a threshold; a set has every class whose score is not above it.

Split and class-conditional (Mondrian): Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005,
chapters 4.2 and 4.5. CV+: Barber, Candès, Ramdas, Tibshirani, Annals of Statistics 2021, https://arxiv.org/abs/1905.02928,
for classes as in https://arxiv.org/abs/2006.02544.

Scores. LAC: Sadinle, Lei, Wasserman, JASA 2019, https://arxiv.org/abs/1609.00451. APS: Romano, Sesia, Candès, NeurIPS
2020, https://arxiv.org/abs/2006.02544. RAPS: Angelopoulos, Bates, Jordan, Malik, ICLR 2021,
https://arxiv.org/abs/2009.14193.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import ArtifactError, InputError

Array = NDArray[Any]

CONFORMAL_METHODS = ("split", "cross", "cv+")
RANK_DECIMALS = 9
"""Decimals of a rank: (r + 1) times a rate such as 0.9 is a little off its true value in binary."""
SCORES = ("lac", "aps", "raps")
RAPS_PENALTY, RAPS_FREE_RANKS = 0.01, 1
"""RAPS: the penalty lambda of each class whose rank is above k_reg."""


@dataclass(frozen=True, eq=False)
class Conformal:
    """Nonconformity scores of held-out shots, which give prediction sets at any coverage; made by `learn_conformal`.

    Args:
        scores: (r,) of each held-out shot's true class, ascending.
        labels: (r,) its class position.
        folds: (r,) the fold that it was held out in; zeros unless ``method`` is "cv+".
        n_classes: c.
        score: see `nonconformity`.
        by_class: whether each class has a threshold of its own (Mondrian).
        method: "split": the fit that answers did not see these shots. "cross": several fits each left out a part, and a
            fit to all shots answers. "cv+": those several fits answer together.
    """

    scores: Array
    labels: Array
    folds: Array
    n_classes: int
    score: str = "lac"
    by_class: bool = False
    method: str = "cross"

    def sets(
        self, probabilities: ArrayLike, coverage: float = 0.9, *, empty: bool = False, best: ArrayLike | None = None
    ) -> NDArray[np.bool_]:
        """Prediction sets of pictures.

        Args:
            probabilities: (m, c); for "cv+" (k, m, c), of the fits without fold 0, 1, ..., k - 1.
            coverage: share of pictures, above 0 and below 1, whose set must have the true class.
            empty: let sets be empty. Where the best class is right more often than ``coverage`` asks for, only
                empty sets bring coverage down to that rate; without them the best class is always in its set.
            best: (m,) positions of the classes that are answered, if they are not the most probable ones.

        Returns:
            (m, c); all classes where shots are too few for the rate, see `too_few`.

        Raises:
            InputError: if the rate, the shape or a probability is none.
        """
        rate = _check_coverage(coverage)
        p = check_probabilities(probabilities)
        if p.ndim != (3 if self.method == "cv+" else 2) or p.shape[-1] != self.n_classes:
            expected = f"(k, m, {self.n_classes})" if self.method == "cv+" else f"(m, {self.n_classes})"
            raise InputError(f"probabilities must be {expected} for {self.method!r}, got {p.shape}")
        sets = self._cv_plus(p, rate) if self.method == "cv+" else nonconformity(p, self.score) <= self.thresholds(rate)
        if not empty and len(sets):
            overall = p.mean(axis=0) if self.method == "cv+" else p
            sets[np.arange(len(sets)), overall.argmax(axis=1) if best is None else np.asarray(best)] = True
        return np.asarray(sets)

    def thresholds(self, coverage: float = 0.9) -> Array:
        """The largest nonconformity score (c,) that a class in a set may have; infinite where shots are too few.

        It is the score of rank (r + 1) x coverage. For "split" this is rounded up, as the theorem asks for; "cross"
        has no theorem and errs to the large side already, so that between two shots it is interpolated.

        Raises:
            InputError: if the rate is not between 0 and 1.
        """
        rate = _check_coverage(coverage)
        if not self.by_class:
            return np.full(self.n_classes, _quantile(self.scores, rate, self.method == "cross"))
        own = [self.scores[self.labels == k] for k in range(self.n_classes)]
        return np.array([_quantile(scores, rate, self.method == "cross") for scores in own])

    def _cv_plus(self, p: Array, rate: float) -> Array:
        """A class is left out if (1 - alpha)(r + 1) shots have lower scores, each by the fit that did not see it."""
        if p.shape[0] != int(self.folds.max(initial=-1)) + 1:
            raise InputError(f"cv+ has {int(self.folds.max(initial=-1)) + 1} fits, but {p.shape[0]} gave probabilities")
        n_below, r = np.zeros(p.shape[1:], np.int64), np.full(self.n_classes, len(self.scores))
        for fold, nonconformities in enumerate(nonconformity(p, self.score)):
            mine = self.folds == fold
            if not self.by_class:
                n_below += np.searchsorted(self.scores[mine], nonconformities, side="left")
                continue
            for k in range(self.n_classes):
                n_below[:, k] += np.searchsorted(
                    self.scores[mine & (self.labels == k)], nonconformities[:, k], side="left"
                )
        if self.by_class:
            r = np.bincount(self.labels, minlength=self.n_classes)
        return np.asarray(n_below < np.round(rate * (r + 1), RANK_DECIMALS))

    def too_few(self, coverage: float = 0.9) -> str | None:
        """Why all or some classes are in every set, and what to do; None if there are enough shots.

        With r held-out shots no coverage above r / (r + 1) can be guaranteed: a new picture has a higher score than
        all of them once in r + 1 times. So 90 % needs 9 shots, and 9 of each class if each has its own threshold.

        Raises:
            InputError: if the rate is not between 0 and 1.
        """
        rate = _check_coverage(coverage)
        needed = math.ceil(round(rate / (1 - rate), RANK_DECIMALS))
        if not self.by_class:
            r = len(self.scores)
            if r >= needed:
                return None
            return (
                f"{100 * rate:.4g} % coverage needs {needed} held-out shots, there {'is' if r == 1 else 'are'} {r}: "
                f"every set has all classes. Give more shots{_attainable_coverage(r)}"
            )
        counts = np.bincount(self.labels, minlength=self.n_classes)
        few = int((counts < needed).sum())
        if not few:
            return None
        return (
            f"{100 * rate:.4g} % coverage of every class needs {needed} held-out shots of each; {few} of "
            f"{self.n_classes} classes have fewer (the fewest: {counts.min()}) and are in every set. Give more shots"
            f"{_attainable_coverage(int(counts.min()))}, or ask for coverage over all classes together"
        )

    def words(self, coverage: float = 0.9) -> str:
        """The exact guarantee, as a sentence.

        Raises:
            InputError: if the rate is not between 0 and 1.
        """
        rate, r = _check_coverage(coverage), len(self.scores)
        few = self.too_few(rate)
        if few and not self.by_class:
            return few + "."
        whose = "of each class's pictures" if self.by_class else "of pictures"
        ask = f"{100 * rate:.4g} % {whose} have their class in the set"
        if self.method == "split":
            sentences = [f"At least {ask}, on average over draws of the shots that were held out"]
        elif self.method == "cv+":
            sentences = [f"About {ask}; proven is a little less than {100 * max(0.0, 2 * rate - 1):.4g} %"]
        else:
            sentences = [
                f"About {ask}. No theorem says so: what judged the held-out shots had learned from fewer shots than "
                "what answers, so that coverage tends to be higher"
            ]
        if self.by_class:
            sentences.append("That holds if new pictures are like the shots")
        else:
            sentences.append("That holds if new pictures are like the shots and their classes as frequent")
            sentences.append(
                f"With {r} held-out shots one fit differs from it by {_coverage_deviation(r, rate):.1f} points or so"
            )
        sentences.append("Where the best class alone is right more often, coverage is that share: no set is empty")
        return ". ".join([*sentences, few] if few else sentences) + "."

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Facts for JSON, and arrays by name."""
        facts = {"score": self.score, "by_class": self.by_class, "how": self.method, "n_classes": self.n_classes}
        return facts, {"scores": self.scores, "labels": self.labels, "folds": self.folds}

    @classmethod
    def from_state(cls, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> Conformal:
        """What `state` gave, checked.

        Raises:
            ArtifactError: if a fact or an array is missing or can't be what `state` gave.
        """
        try:
            chosen = facts["score"], facts["by_class"], facts["how"], facts["n_classes"]
            scores, labels, folds = (np.asarray(arrays[name]) for name in ("scores", "labels", "folds"))
        except KeyError as error:
            raise ArtifactError(f"the saved conformal sets have no {error.args[0]!r}: fit again") from error
        score, by_class, method, c = chosen
        right = score in SCORES and method in CONFORMAL_METHODS and type(by_class) is bool and type(c) is int and c > 0
        right = right and scores.ndim == 1 and labels.shape == folds.shape == scores.shape
        right = right and scores.dtype.kind == "f" and labels.dtype.kind == folds.dtype.kind == "i"
        if not right or not np.isfinite(scores).all() or (np.diff(scores) < 0).any():
            raise ArtifactError("the saved conformal sets are damaged: copy the model again, or fit again")
        if len(scores) and not (0 <= labels.min() <= labels.max() < c and 0 <= folds.min() <= folds.max() < len(folds)):
            raise ArtifactError("the saved conformal sets name classes or folds that there are not: fit again")
        return cls(scores.astype(np.float64), labels, folds, c, score, by_class, method)


def learn_conformal(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    score: str = "lac",
    by_class: bool = False,
    method: str = "cross",
    folds: ArrayLike | None = None,
) -> Conformal:
    """Learn prediction sets from out-of-fold probabilities of shots.

    Args:
        probabilities: (r, c) calibrated, of held-out shots.
        labels: (r,) their class positions.
        score: see `nonconformity`.
        by_class: guarantee the coverage for each class separately, from its own shots only.
        method: "split", "cross" or "cv+"; see `Conformal`.
        folds: (r,) number of the fold that each shot was held out in; for "cv+" only.

    Raises:
        InputError: if shapes don't go together, or "cv+" comes without folds.

    >>> held_out = learn_conformal([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1], method="split")
    >>> held_out.scores
    array([0.1, 0.2, 0.6])
    >>> held_out.sets([[0.75, 0.25], [0.5, 0.5]], coverage=0.75)  # rank 3 of 3: up to 0.6
    array([[ True, False],
           [ True,  True]])
    """
    if method not in CONFORMAL_METHODS:
        raise InputError(
            f"there are no conformal sets of the kind {method!r}; there are: {', '.join(CONFORMAL_METHODS)}"
        )
    p, y = check_probabilities(probabilities), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1] or (len(y) and y.dtype.kind not in "iu"):
        raise InputError(f"probabilities (r, c) and class positions (r,) don't go together: {p.shape} and {y.shape}")
    if len(y) and not 0 <= y.min() <= y.max() < p.shape[1]:
        raise InputError(f"class positions must be from 0 to {p.shape[1] - 1}, got {y.min()} to {y.max()}")
    if (method == "cv+") != (folds is not None):
        raise InputError("'cv+' needs the fold that each shot was held out in, and the others take none")
    fold = np.zeros(len(y), np.int64) if folds is None else np.asarray(folds)
    if fold.shape != y.shape:
        raise InputError(f"folds must be one number a held-out shot, {len(y)}, got {fold.shape}")
    nonconformities = nonconformity(p, score)[np.arange(len(y)), y.astype(np.int64)]
    order = np.argsort(nonconformities, kind="stable")
    kept = nonconformities[order], y[order].astype(np.int64), fold[order].astype(np.int64)
    return Conformal(*kept, p.shape[1], score, by_class, method)


def nonconformity(probabilities: ArrayLike, score: str = "lac") -> Array:
    """Nonconformity score of every class for each picture; higher means that the class fits less.

    "lac" is 1 - p. "aps" is the mass of all classes that are more probable, and half of the class's own: the paper
    draws that share at random, we take its mean, so that the same picture always gets the same answer (any fixed score
    keeps the promise). "raps" adds 0.01 for each rank after the first, so that long tails of small probabilities stay
    out.

    Args:
        probabilities: (..., c), rows sum to one.
        score: "lac", "aps" or "raps".

    Returns:
        (..., c) float64.

    Raises:
        InputError: if there is no such score, or a probability is none.

    >>> nonconformity([[0.5, 0.25, 0.25]])
    array([[0.5 , 0.75, 0.75]])
    >>> nonconformity([[0.5, 0.25, 0.25]], "aps")
    array([[0.25 , 0.625, 0.875]])
    """
    if score not in SCORES:
        raise InputError(f"there is no conformal score {score!r}; there are: {', '.join(SCORES)}")
    p = check_probabilities(probabilities)
    if score == "lac":
        return 1 - p
    order = np.argsort(-p, axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=-1)
    nonconformities = np.cumsum(ranked, axis=-1) - ranked / 2
    if score == "raps":
        ranks = np.arange(1, p.shape[-1] + 1)
        nonconformities = nonconformities + RAPS_PENALTY * np.maximum(0, ranks - RAPS_FREE_RANKS)
    scores = np.empty_like(p)
    np.put_along_axis(scores, order, nonconformities, axis=-1)
    return scores


def check_probabilities(probabilities: ArrayLike) -> Array:
    """Probabilities (..., c) as float64.

    Raises:
        InputError: if a row is no distribution.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim < 2 or not p.shape[-1]:
        raise InputError(f"probabilities must be rows of one number a class, got shape {p.shape}")
    if not (np.isfinite(p).all() and (p >= 0).all() and (np.abs(p.sum(axis=-1) - 1) < 1e-3).all()):
        raise InputError("probabilities must be finite, at least 0 and sum to one in each row: give no logits")
    return p


def _quantile(scores: Array, rate: float, between: bool) -> float:
    """The score of rank (r + 1) x rate of ascending ones, between two of them or the next one."""
    rank = round((len(scores) + 1) * rate, RANK_DECIMALS)
    if rank > len(scores):
        return math.inf
    above = float(scores[math.ceil(rank) - 1])
    if not between or rank < 1:
        return above
    below, share = float(scores[math.floor(rank) - 1]), rank - math.floor(rank)
    return below + share * (above - below)


def _attainable_coverage(r: int) -> str:
    """The rate that r shots are enough for, r / (r + 1) rounded down, in the words of an advice; nothing for none."""
    return f", or ask for at most {math.floor(1000 * r / (r + 1)) / 1000:g}" if r else ""


def _coverage_deviation(r: int, rate: float) -> float:
    """Standard deviation in points of one fit's coverage, which is Beta(rank, r + 1 - rank) (Vovk, ACML 2012)."""
    share = min(math.ceil(round((r + 1) * rate, RANK_DECIMALS)), r) / (r + 1)
    return 100 * math.sqrt(share * (1 - share) / (r + 2))


def _check_coverage(coverage: float) -> float:
    if not 0 < coverage < 1:
        raise InputError(f"coverage must be above 0 and below 1, such as 0.9, got {coverage}")
    return float(coverage)
