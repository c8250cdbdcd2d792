"""The scores of "none of these": how far a picture, or a held-out shot, is from the classes; higher is farther.

A score likens a picture to each class, and sums the likenesses up. A shot is likened by fits without it. Its likenesses
are summed up a second time without its own class: that simulates a picture of none of the classes.

Letters: m pictures, n shots, c classes, d width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError
from clipadapter.uncertainty.class_gaussians import ClassGaussians
from clipadapter.utils.prediction import DEFAULT_LOGIT_SCALE, unit_rows

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """The features that scores compare a picture with. A field is None if it is not available."""

    gaussians: ClassGaussians | None = None  # class means and covariance
    text: Array | None = None  # (c, d) unit text features of the classes
    negative_labels: Array | None = None  # (k, d) unit text features of names of things that are none of the classes
    outliers: Array | None = None  # (b, d) unit features of pictures of none of the classes
    scale: float = DEFAULT_LOGIT_SCALE  # logit scale of the encoder

    @property
    def of_classes(self) -> Array | None:
        """(c, d) class means, else class text; None if there is neither, which the score of the logits alone allows."""
        return self.text if self.gaussians is None else self.gaussians.means

    def restrict(self, names: Sequence[str]) -> MemoryBank:
        """A copy with only what the scores of these names need, as float32."""
        needed = {attribute for name in names for attribute in SCORES[name].arrays}
        arrays = {name: getattr(self, name).astype(np.float32, order="C") for name in needed - {"gaussians"}}
        gaussians = self.gaussians.single() if self.gaussians and "gaussians" in needed else None
        return MemoryBank(gaussians, **arrays, scale=self.scale)


@dataclass(frozen=True, eq=False)
class HeldOutShots:
    """The shots with out-of-fold logits and leave-one-out distances; some of them, if there are very many."""

    rows: Array  # (n, d) unit features
    labels: Array  # (n,) class positions
    logits: Array | None  # (n, c) out-of-fold, NaN rows where a shot was not held out
    distances: Array  # (n, c) leave-one-out squared Mahalanobis distances; NaN for the only shot of a class
    counts: Array  # (c,) shots of each class among all shots


class Score:
    """One score. Its methods get a memory bank whose ``arrays`` are not None."""

    arrays: tuple[str, ...] = ()  # attributes of `MemoryBank` that it needs
    # Whether it compares a picture with shots: the only shot of a class can be compared with other classes only.
    compares_with_shots = False
    reason = "less like any class"  # said of a picture with a high score; "than 90 % of the shots are" follows

    def _liken(self, memory: Any, rows: Array, logits: Array) -> Array:
        """The likeness (m, c) of pictures to the classes, from unit features (m, d) and logits (m, c)."""
        raise NotImplementedError

    def _liken_shots(self, memory: Any, shots: Any) -> Array:
        """The same of held-out shots (n, c). NaN where one is the only one of its class, or has no out-of-fold logits.

        The default is for scores that depend on no shot.
        """
        return self._liken(memory, shots.rows, shots.logits)

    def _sum_up(self, memory: Any, rows: Array, likeness: Array) -> Array:
        """The score (m,) by the likenesses (m, c), of which some may be -inf."""
        return np.asarray(-likeness.max(axis=1))

    def of_pictures(self, memory: Any, rows: Array, logits: Array) -> Array:
        """Scores (m,)."""
        return self._sum_up(memory, rows, self._liken(memory, rows, logits))

    def of_shots(self, memory: Any, shots: HeldOutShots) -> tuple[Array, Array]:
        """Scores (n,) of held-out shots, and the same as if the shot's own class did not exist."""
        likeness = self._liken_shots(memory, shots)
        others = likeness.astype(np.float64)
        others[np.arange(len(others)), shots.labels] = -np.inf
        return self._sum_up(memory, shots.rows, likeness), self._sum_up(memory, shots.rows, others)


class MaxLogit(Score):
    """Hendrycks et al. 2022, https://arxiv.org/abs/1911.11132."""

    def _liken(self, memory: Any, rows: Array, logits: Array) -> Array:
        return logits


class NearestText(Score):
    """Distance to the nearest class text."""

    arrays: tuple[str, ...] = ("text",)
    reason = "less like any class name"

    def _liken(self, memory: Any, rows: Array, logits: Array) -> Array:
        return np.asarray(rows.astype(memory.text.dtype) @ memory.text.T)  # numpy would convert all text instead

    def _sum_up(self, memory: Any, rows: Array, likeness: Array) -> Array:
        return np.asarray(1 - likeness.max(axis=1))


class NegativeLabels(NearestText):
    """Logarithm of the mass of the negative labels over the mass of the classes, by exp of scaled cosines.

    NegLabel's score (Jiang et al. 2024, eq. 5, https://arxiv.org/abs/2403.20078) is one over one plus exp of it: the
    order is the same, but it doesn't saturate.
    """

    arrays, reason = ("text", "negative_labels"), "nearer to names of other things"

    def _sum_up(self, memory: Any, rows: Array, likeness: Array) -> Array:
        to_negatives = rows.astype(memory.text.dtype) @ memory.negative_labels.T
        return log_sum_exp(memory.scale * to_negatives) - log_sum_exp(memory.scale * likeness)


class Mahalanobis(Score):
    """Distance to the nearest class mean, see `ClassGaussians`."""

    arrays, compares_with_shots, reason = ("gaussians",), True, "farther from every class"

    def of_pictures(self, memory: Any, rows: Array, logits: Array) -> Array:
        """As of any score, in bounded memory."""
        return np.asarray(memory.gaussians.nearest(rows))

    def _liken_shots(self, memory: Any, shots: Any) -> Array:
        return np.asarray(-shots.distances)


class NearestOutlier(Score):
    """Cosine to the nearest outlier minus the cosine to the nearest class mean."""

    arrays, compares_with_shots = ("gaussians", "outliers"), True
    reason = "closer to an outlier picture, relative to the class means,"

    def _liken(self, memory: Any, rows: Array, logits: Array) -> Array:
        return np.asarray(rows @ unit_rows(memory.gaussians.means).T)

    def _liken_shots(self, memory: Any, shots: Any) -> Array:
        # The mean of a shot's own class is computed without it.
        means, labels = memory.gaussians.means, shots.labels
        k = shots.counts[labels]
        others = (k[:, None] * means[labels] - shots.rows) / np.maximum(k - 1, 1)[:, None]
        own = np.einsum("nd,nd->n", shots.rows, unit_rows(others))
        cosines = self._liken(memory, shots.rows, shots.logits)
        cosines[np.arange(len(labels)), labels] = np.where(k > 1, own, np.nan)
        return cosines

    def _sum_up(self, memory: Any, rows: Array, likeness: Array) -> Array:
        return np.asarray((rows @ memory.outliers.T).max(axis=1) - likeness.max(axis=1))


SCORES: dict[str, Score] = {
    "max-logit": MaxLogit(),
    "text": NearestText(),
    "negative-labels": NegativeLabels(),
    "mahalanobis": Mahalanobis(),
    "outliers": NearestOutlier(),
}
"""Every score by its name in saved models. A new score is a class above and an entry here, and its graph in
`clipadapter.runtime.export.graph`."""


def log_sum_exp(x: Array) -> Array:
    """Logarithm of the sum of exp over each row; -inf adds nothing.

    >>> log_sum_exp(np.array([[0.0, -np.inf], [1000.0, 1000.0]]))
    array([   0.        , 1000.69314718])
    """
    top = x.max(axis=1)
    finite = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):  # of a row of -inf only
        return np.asarray(finite + np.log(np.exp(x - finite[:, None]).sum(axis=1)))


_STOP_WORDS = {"a", "an", "and", "in", "of", "on", "or", "the", "with"}


def select_negative_labels(
    class_names: Sequence[str], class_text: Array, names: Sequence[str], text: Array
) -> NDArray[np.int64]:
    """Select the names of a list that mean something else than every class (NegLabel, as of `NegativeLabels`).

    A name is left out if it shares a word with a class name, or if its text is too close to a class text: closer than
    half of the names are to their nearest other name, and closer than nine in ten classes are to theirs. Those mean
    different objects, so a name that is closer is probably a synonym or a kind of that class.

    Args:
        class_names: c names.
        class_text: (c, d); a row of zeros is a class without text.
        names: k names.
        text: (k, d), by the same encoder and prompts.

    Returns:
        Positions in ``names``, ascending; possibly none.

    Raises:
        InputError: if counts or widths differ.

    >>> names = ["tabby cat", "kitten", "sports car", "teapot"]
    >>> text = np.array([[1, 0.1, 0], [1, 0.2, 0], [0, 1, 0.5], [0, 0, 1.0]])
    >>> select_negative_labels(["cat", "dog"], np.array([[1, 0, 0], [0.5, 0.5, 0]]), names, text)
    array([2, 3])
    """
    class_rows, name_rows = unit_rows(class_text), unit_rows(text)
    counts = len(class_rows), len(name_rows)
    if counts != (len(class_names), len(names)) or class_rows.shape[1:] != name_rows.shape[1:]:
        raise InputError(
            f"{len(class_names)} classes with text {class_rows.shape} and {len(names)} negative labels with text "
            f"{name_rows.shape}: give a row for each name, all of one width"
        )
    if not len(names):
        return np.zeros(0, dtype=np.int64)
    max_cosine = max(np.quantile(_nearest_cosines(name_rows), 0.5), np.quantile(_nearest_cosines(class_rows), 0.9))
    class_words = set().union(*(_split_words(name) for name in class_names))
    shares_word = np.array([bool(_split_words(name) & class_words) for name in names])
    return np.flatnonzero(~shares_word & ((name_rows @ class_rows.T).max(axis=1) <= max_cosine))


def _nearest_cosines(rows: Array) -> Array:
    """The cosine of each row to the nearest other row; -1 if there is no other."""
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1.0)
    return np.asarray(cosines.max(axis=1))


def _split_words(name: str) -> set[str]:
    """Lower-case words of a name in the singular, without stop words: "cup", "glass" of "Cups_of the Glass"."""
    words = set(re.findall(r"[^\W_]+", name.lower())) - _STOP_WORDS
    return {word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words}
