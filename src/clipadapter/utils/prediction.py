"""The prediction for one picture, those for many as columns, softmax, unit rows, and features only to predict for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import ImageError

DEFAULT_LOGIT_SCALE = 100.0  # logit scale if none is given: that of CLIP's released checkpoints


@dataclass(frozen=True)
class Prediction:
    """The prediction for one picture.

    Args:
        source: the picture, as the user named it.
        label: predicted class; None if the picture is rejected as none of the classes, or can't be read.
        probability: of that class, or of `nearest` if the picture is rejected.
        top: (class, probability) of the best classes, best first; with unequal costs the class with the least expected
            cost is first.
        error: why the picture can't be read, else None.
        nearest: the class that is predicted without rejection; `label` unless that is None.
        reason: why the picture is unlike every class, whether it is rejected for that or only marked; else None.
        labels: the prediction set if a coverage is set; the predicted labels of a multi-label model; else None.
        ood_score: how unlike the classes the picture is, 0 for the mean held-out shot; None if it was not learned.
    """

    source: str
    label: str | None
    probability: float | None
    top: tuple[tuple[str, float], ...]
    error: str | None = None
    nearest: str | None = None
    reason: str | None = None
    labels: tuple[str, ...] | None = None
    ood_score: float | None = None

    @property
    def unlike_every_class(self) -> bool:
        """Whether the score is above the threshold. A multi-label model has no score."""
        return self.reason is not None and self.ood_score is not None

    def record(self) -> dict[str, Any]:
        """As a dictionary for JSON."""
        return {
            "source": self.source,
            "label": self.label,
            "probability": self.probability,
            "top": [{"label": name, "score": score} for name, score in self.top],
            "nearest": self.nearest,
            "unlike_every_class": self.unlike_every_class,
            "ood_score": self.ood_score,
            "reason": self.reason,
            "labels": None if self.labels is None else list(self.labels),
            "error": self.error,
        }


@dataclass(frozen=True, eq=False)
class PredictionColumns:
    """The predictions for m pictures as columns, which take less time and memory than m `Prediction`.

    Classes are given by their positions in `class_names`. A list per picture is stored as one array of all its items,
    and the m + 1 offsets between which the items of each picture are.
    """

    class_names: tuple[str, ...]  # in the order of the logits
    best: NDArray[np.int64]  # (m,) classes that are predicted without rejection, as `Prediction.nearest`
    rejected: NDArray[np.bool_]  # (m,) whether the picture is none of the classes: the prediction has no label
    probabilities: NDArray[np.float64]  # (m,) of `best`
    top: NDArray[np.int64]  # best classes of all pictures, as `Prediction.top`
    top_scores: NDArray[np.float64]  # their probabilities
    top_offsets: NDArray[np.int64]  # (m + 1,) of `top` and `top_scores`
    reasons: tuple[str | None, ...]  # (m,) why a picture is unlike every class, as `Prediction.reason`; else None
    # Classes of the prediction sets, or predicted labels of a multi-label model, as `Prediction.labels`; None if
    # there are no sets
    members: NDArray[np.int64] | None = None
    member_offsets: NDArray[np.int64] | None = None  # (m + 1,) of `members`; None if there are no sets
    ood_scores: NDArray[np.float64] | None = None  # (m,) as `Prediction.ood_score`; None if they were not learned

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.best)

    @classmethod
    def empty(cls, class_names: Sequence[str]) -> PredictionColumns:
        """The predictions for no picture."""
        none, numbers = np.zeros(0, np.int64), np.zeros(0)
        return cls(tuple(class_names), none, np.zeros(0, bool), numbers, none, numbers, np.zeros(1, np.int64), ())

    @classmethod
    def concatenate(cls, parts: Sequence[PredictionColumns]) -> PredictionColumns:
        """The predictions of several batches of one model with the same options."""
        first = parts[0]
        if len(parts) == 1:
            return first

        def join(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            if name == "class_names" or values[0] is None:
                return values[0]
            if name == "reasons":
                return tuple(chain.from_iterable(values))
            if name.endswith("_offsets"):
                starts = np.cumsum([0, *(part[-1] for part in values[:-1])])
                values = [[0], *(part[1:] + start for part, start in zip(values, starts, strict=True))]
            return np.concatenate(values)

        return cls(*(join(field.name) for field in fields(cls)))

    def with_unreadable(self, sources: Sequence[str], errors: Sequence[str | None]) -> Iterator[Prediction]:
        """The predictions one by one, in the order of the sources; one with an error can't be read, and has no row."""
        rows = self.predictions([source for source, error in zip(sources, errors, strict=True) if error is None])
        for source, error in zip(sources, errors, strict=True):
            yield next(rows) if error is None else unreadable(source, error)

    def predictions(self, sources: Sequence[str]) -> Iterator[Prediction]:
        """The predictions one by one."""
        names = self.class_names
        for i, (source, best, reason) in enumerate(zip(sources, self.best.tolist(), self.reasons, strict=True)):
            items = slice(self.top_offsets[i], self.top_offsets[i + 1])
            top = zip(self.top[items].tolist(), self.top_scores[items].tolist(), strict=True)
            labels = None
            if self.members is not None and self.member_offsets is not None:
                own = self.members[self.member_offsets[i] : self.member_offsets[i + 1]]
                labels = tuple(names[k] for k in own.tolist())
            yield Prediction(
                source,
                None if self.rejected[i] else names[best],
                float(self.probabilities[i]),
                tuple((names[k], score) for k, score in top),
                None,
                names[best],
                reason,
                labels,
                None if self.ood_scores is None else float(self.ood_scores[i]),
            )


def unreadable(source: str, error: str) -> Prediction:
    """The prediction for a picture that can't be read."""
    return Prediction(source, None, None, (), error)


def labels_of(predictions: Iterable[Prediction], multilabel: bool) -> list[Any]:
    """The label of each prediction, or all its labels. Raises ImageError for a picture that can't be read."""
    labels: list[Any] = []
    for prediction in predictions:
        if prediction.error is not None:
            raise ImageError(prediction.source, prediction.error)
        labels.append(prediction.labels if multilabel else prediction.label)
    return labels


def unit_rows(features: ArrayLike) -> NDArray[np.float64]:
    """Rows (..., d) scaled to length one, float64; a row of zeros stays zero."""
    rows = np.asarray(features, dtype=np.float64)
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(norm > 0, norm, 1.0))


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """Logits (m, c) to probabilities (m, c)."""
    scaled = logits.astype(np.float64) / temperature
    exponent = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponent / exponent.sum(axis=1, keepdims=True))


class EvaluationFeatures(np.ndarray[Any, Any]):
    """Features of a test split, which heads predict for, but refuse to fit to. Slices have this type too."""
