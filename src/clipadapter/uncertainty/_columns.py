"""Each score as a column: of any picture, and of the shots as if they had not been seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError
from clipadapter.uncertainty import _scores as formula
from clipadapter.uncertainty._scores import unit_rows, without_own
from clipadapter.uncertainty._spread import Spread, learn_spread

Array = NDArray[Any]
NEEDS = {
    "max-logit": "logits",
    "energy": "logits",
    "msp": "probabilities",
    "mcm": "text",
    "text": "text",
    "distractors": "distractors",
    "mahalanobis": "shots of every class",
    "knn": "shots",
    "background": "background",
}
"""Every score, and what it can't do without."""
TO_SHOTS = {"mahalanobis", "knn", "background"}
"""Scores that compare a picture with shots: of a class's only shot they say how far the other classes are."""


@dataclass(frozen=True, eq=False)
class Memory:
    """What the scores compare a picture with; None is what was not given.

    Args:
        spread: class means and covariance.
        text: (c, d) unit class text.
        distractors: (k, d) unit text of other things.
        background: (b, d) unit features of background pictures.
        shots: (n, d) unit features.
        scale: logit scale of the encoder.
    """

    spread: Spread | None = None
    text: Array | None = None
    distractors: Array | None = None
    background: Array | None = None
    shots: Array | None = None
    scale: float = 100.0

    @property
    def width(self) -> int | None:
        """d, or None if pictures are compared with nothing."""
        means = None if self.spread is None else self.spread.means
        arrays = (means, self.text, self.distractors, self.background, self.shots)
        return next((int(each.shape[1]) for each in arrays if each is not None), None)

    @property
    def classes(self) -> int | None:
        """c, or None if pictures are compared with nothing that has a row a class."""
        means = None if self.spread is None else self.spread.means
        return next((len(each) for each in (means, self.text) if each is not None), None)

    def kept(self, wanted: Sequence[str]) -> Memory:
        """Only what these scores need, as float32."""
        by_text = {"text", "mcm", "distractors"} & set(wanted)
        return Memory(
            spread=self.spread.single() if self.spread and {"mahalanobis", "background"} & set(wanted) else None,
            text=_single(self.text) if by_text else None,
            distractors=_single(self.distractors) if "distractors" in wanted else None,
            background=_single(self.background) if "background" in wanted else None,
            shots=_single(self.shots) if "knn" in wanted else None,
            scale=self.scale,
        )

    def column(self, name: str, rows: Array, logits: Array, probabilities: Array | None) -> Array:
        """One score (m,) of pictures.

        Args:
            name: of the score.
            rows: (m, d) unit features.
            logits: (m, c).
            probabilities: (m, c).
        """
        if name in ("max-logit", "energy"):
            return formula.max_logit(logits) if name == "max-logit" else formula.energy(logits)
        if name == "msp":
            if probabilities is None:
                raise InputError("the score 'msp' needs calibrated probabilities: give probabilities")
            return formula.msp(probabilities)
        if name == "mahalanobis":
            return np.asarray(_given(self.spread, name).distances(rows).min(axis=1))
        if name == "knn":
            return formula.nearest(rows @ _given(self.shots, name).T)
        if name == "background":
            directions = unit_rows(_given(self.spread, name).means)
            return formula.background(rows @ _given(self.background, name).T, rows @ directions.T)
        return self._by_text(name, rows, rows @ _given(self.text, name).T)

    def _by_text(self, name: str, rows: Array, cosines: Array) -> Array:
        if name == "distractors":
            return formula.distractors(cosines, rows @ _given(self.distractors, name).T, self.scale)
        return formula.mcm(cosines) if name == "mcm" else formula.text_distance(cosines)


@dataclass(frozen=True, eq=False)
class Seen:
    """The shots, and what heads that had not seen them answered.

    Args:
        rows: (n, d) unit features.
        labels: (n,) class positions.
        logits: (n, c), NaN rows where nothing was held out; or None.
        probabilities: the same.
        apart: (n, c) squared distances of each shot as if it had been left out; NaN for the only shot of a class.
    """

    rows: Array
    labels: Array
    logits: Array | None
    probabilities: Array | None
    apart: Array


def held_out_column(name: str, memory: Memory, seen: Seen) -> tuple[Array, Array]:
    """One score of the shots as if they had not been seen, and as if their class did not exist.

    Returns:
        Two times (n,). NaN where a shot is the only one of its class and the score compares with shots, or where no
        head's answer is known.
    """
    rows, labels = seen.rows, seen.labels
    if name in ("max-logit", "energy"):
        score = formula.max_logit if name == "max-logit" else formula.energy
        logits = _given(seen.logits, name)
        return score(logits), score(without_own(logits, labels))
    if name == "msp":
        p = _given(seen.probabilities, name)
        others = np.where(np.arange(p.shape[1]) == labels[:, None], 0.0, p)
        return formula.msp(p), formula.msp(others / np.maximum(others.sum(axis=1, keepdims=True), 1e-300))
    if name == "mahalanobis":
        _given(memory.spread, name)
        return seen.apart.min(axis=1), -without_own(-seen.apart, labels).max(axis=1)
    if name == "knn":
        cosines = rows @ rows.T
        np.fill_diagonal(cosines, -np.inf)
        others = np.where(labels[:, None] == labels, -np.inf, cosines)
        alone = np.bincount(labels)[labels] < 2
        return np.where(alone, np.nan, formula.nearest(cosines)), formula.nearest(others)
    if name == "background":
        near = rows @ _given(memory.background, name).T
        cosines = _to_means(memory, seen)
        return formula.background(near, cosines), formula.background(near, without_own(cosines, labels))
    cosines = rows @ _given(memory.text, name).T
    return memory._by_text(name, rows, cosines), memory._by_text(name, rows, without_own(cosines, labels))


def background_of_itself(memory: Memory) -> Array:
    """The score "background" of the background pictures, each as if it had been left out (b,).

    >>> memory = Memory(Spread(np.eye(2)[:1], np.zeros((0, 2)), 1.0), background=np.eye(2)[[1, 1]])
    >>> background_of_itself(memory)
    array([1., 1.])
    """
    pictures = _given(memory.background, "background")
    cosines = pictures @ pictures.T
    np.fill_diagonal(cosines, -np.inf if len(pictures) > 1 else 1.0)
    directions = unit_rows(_given(memory.spread, "background").means)
    return formula.background(cosines, pictures @ directions.T)


def memory_and_seen(
    features: Array, labels: Array, c: int, logits: Array | None, probabilities: Array | None, apart: bool, **given: Any
) -> tuple[Memory, Seen]:
    """Class means and covariance of the shots, if ``apart`` asks for distances, beside what else was given.

    A class without a shot has no mean: then there are no distances.
    """
    rows = unit_rows(features)
    if not apart or (np.bincount(labels, minlength=c) == 0).any():
        return Memory(shots=rows, **given), Seen(rows, labels, logits, probabilities, np.full((len(rows), c), np.nan))
    spread, distances = learn_spread(rows, labels, c)
    return Memory(spread, shots=rows, **given), Seen(rows, labels, logits, probabilities, distances)


def _to_means(memory: Memory, seen: Seen) -> Array:
    """Cosines of the shots to class means (n, c), to a shot's own class without it."""
    means, labels = _given(memory.spread, "background").means, seen.labels
    cosines = seen.rows @ unit_rows(means).T
    k = np.bincount(labels, minlength=len(means))[labels]
    others = (k[:, None] * means[labels] - seen.rows) / np.maximum(k - 1, 1)[:, None]
    own = np.einsum("nd,nd->n", seen.rows, unit_rows(others))
    cosines[np.arange(len(labels)), labels] = np.where(k > 1, own, np.nan)
    return cosines


def _single(value: Array | None) -> Array | None:
    return None if value is None else value.astype(np.float32, order="C")


def _given(value: Any, name: str) -> Any:
    if value is None:
        raise InputError(f"the score {name!r} needs {NEEDS[name]}, which were not given")
    return value
