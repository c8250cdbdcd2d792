"""What is learned from a project's features, and how good it is on pictures that the fit did not see."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from clipadapter.bench.score import score
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import draw_shots
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures, create_head, mean_shots_per_class, out_of_fold
from clipadapter.prediction import softmax

Array = NDArray[Any]
DRAWS = 3
"""How often shots are drawn for a point of the curve."""
MOST = 32
"""Shots a class of the last point."""


@dataclass(frozen=True, eq=False)
class Learned:
    """A classifier of the classes that there were.

    Args:
        text: class text; its labels are the class names.
        zero_shot: the head that knows these alone.
        model: fitted to the shots; None before there are any.
        shots: how many.
        by_names: share that the names alone call right, each class counted alike; None without shots.
        held_out: share that is right of shots that were held out, likewise; None if none could be.
        held_out_shots: shots a class that these fits saw.
        doubtful: what a held-out shot was called, by the shot's key, where that is not its class.
        seconds: that the fit took.
    """

    text: TextFeatures
    zero_shot: Head
    model: FewShotClassifier | None = None
    shots: int = 0
    by_names: float | None = None
    held_out: float | None = None
    held_out_shots: float = 0.0
    doubtful: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, in the order of the columns."""
        return self.text.labels

    def probabilities(self, features: Array) -> Array:
        """(m, c) of pictures (m, d): calibrated, or from class names alone before there is a shot."""
        if self.model is not None:
            return self.model.uncertainty_.probabilities(self.model.head_.logits(features))
        return softmax(self.zero_shot.logits(features), self.zero_shot.prior_temperature(1))


@dataclass(frozen=True)
class Point:
    """Of the learning curve.

    Args:
        shots: a class.
        accuracy: mean over draws of the share of others that is right, each class counted alike.
        low: of the worst draw.
        high: of the best one.
    """

    shots: float
    accuracy: float
    low: float
    high: float


def learn(
    model: FewShotClassifier, text: TextFeatures, keys: Sequence[str], features: Array, labels: Sequence[str]
) -> Learned:
    """Fit to all shots.

    Args:
        model: not fitted; its encoder made the features.
        text: class text of all classes; some may have no shot.
        keys: names of the n shots.
        features: (n, d).
        labels: class of each.

    Raises:
        InputError: if the head can't be fitted to these.
    """
    start, text = time.perf_counter(), text.with_order("given")
    # It looks at no shot, but is checked to have some: the class text itself has the right width.
    zero_shot = create_head("zero-shot").fit(text.embeddings, text.labels, text=text)
    if not len(labels):
        return Learned(text, zero_shot)
    info = model.encoder_.info
    told = {"encoder": info.name, "fingerprint": info.fingerprint, "sources": list(keys), "skipped": [], "views": 1}
    model.fit_features(FeatureSet(features, tuple(labels), text.labels, told), text)
    truth = _positions(labels, text.labels)
    by_names = class_mean(zero_shot.logits(features).argmax(axis=1), truth)
    seconds = time.perf_counter() - start
    unseen = out_of_fold(model.head_, features, np.asarray(labels), text, strategies=("own", "folds"))
    if unseen is None:
        return Learned(text, zero_shot, model, len(labels), by_names, seconds=seconds)
    once = unseen.first_per_shot
    called = once.logits.argmax(axis=1)
    wrong = {keys[row]: text.labels[k] for row, k, t in zip(once.rows, called, once.labels, strict=True) if k != t}
    right = class_mean(called, once.labels)
    return Learned(text, zero_shot, model, len(labels), by_names, right, unseen.shots_per_class, wrong, seconds)


def curve(
    learned: Learned, features: Array, labels: Sequence[str], test: tuple[Array, Sequence[str]] | None = None
) -> Iterator[Point]:
    """Accuracy of fits to fewer shots: on the shots that they did not see, or on test pictures.

    The first point is that of the class names alone, the last one that of `Learned.held_out`, or of the model on the
    test pictures.

    Args:
        learned: from all shots.
        features: (n, d) of the shots.
        labels: class of each.
        test: (m, d) and m class names of the part "test", which nothing is chosen by.
    """
    assert learned.model is not None
    names, truth = learned.names, _positions(labels, learned.names)
    judge = None if test is None else FeatureSet(test[0], tuple(test[1]), names).mark_for_evaluation()
    by_names = learned.by_names if judge is None else _on_test(learned.zero_shot, judge)
    if by_names is not None:
        yield Point(0, by_names, by_names, by_names)
    counts = np.bincount(truth)
    several = counts[counts >= 2]
    whole = learned.held_out_shots if judge is None else mean_shots_per_class(labels)
    most = min(int(several.min()) - 1, MOST) if len(several) else 0
    for k in (2**i for i in range(6) if 2**i <= most and 2**i < 0.9 * whole):
        found = []
        for seed in range(DRAWS):
            rows = np.array(draw_shots(labels, k, seed))
            head = clone(learned.model.head_).fit(features[rows], [labels[i] for i in rows], text=learned.text)
            if judge is not None:
                found.append(_on_test(head, judge))
                continue
            rest = np.setdiff1d(np.arange(len(labels)), rows)
            found.append(class_mean(head.logits(features[rest]).argmax(axis=1), truth[rest]))
        yield Point(k, float(np.mean(found)), min(found), max(found))
    last = learned.held_out if judge is None else _on_test(learned.model.head_, judge)
    if last is not None:
        yield Point(whole, last, last, last)


def class_mean(called: Array, truth: Array) -> float:
    """Share that is right, each class that occurs counted alike.

    >>> class_mean(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]))
    0.5
    """
    return float(np.mean([(called[truth == k] == k).mean() for k in np.unique(truth)]))


def _on_test(head: Head, test: FeatureSet) -> float:
    found = score(head, test)
    return class_mean(found.logits.argmax(axis=1), found.labels)


def _positions(labels: Sequence[str], names: Sequence[str]) -> Array:
    position = {name: i for i, name in enumerate(names)}
    return np.array([position[label] for label in labels], np.int64)
