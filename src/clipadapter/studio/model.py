"""The model of a project: its fit, its accuracy on pictures that the fit did not see, and explained predictions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from clipadapter.classifier import FewShotClassifier
from clipadapter.classifier.evaluation import score
from clipadapter.data import draw_shots
from clipadapter.data.images import ImageSource
from clipadapter.explain import explain
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures, create_head, mean_shots_per_class, out_of_fold
from clipadapter.prediction import softmax
from clipadapter.studio.contents import Contents
from clipadapter.studio.features import FeatureCache

Array = NDArray[Any]
DRAWS_PER_POINT = 3
"""Random draws of shots for each point of the learning curve."""
MAX_CURVE_SHOTS = 32
"""Most shots per class of a point that is drawn."""
MAX_PREDICTED_CLASSES = 5
MAX_NEIGHBOURS = 5
SAME_PICTURE_SIMILARITY = 1 - 1e-6


@dataclass(frozen=True, eq=False)
class ProjectModel:
    """A classifier of the classes of a project.

    Args:
        text: text features; their labels are the class names.
        zero_shot: head that uses the class names alone.
        classifier: fitted to the labelled pictures; None if there are none.
        shot_count: number of labelled pictures.
        zero_shot_accuracy: accuracy of the class names alone, mean over classes; None without labelled pictures.
        held_out_accuracy: accuracy on held-out labelled pictures, mean over classes; None if none can be held out.
        held_out_shots_per_class: shots per class of the fits that held pictures out.
        misclassified: predicted class of each held-out picture whose prediction is wrong, by key.
        fit_seconds: duration of the fit.
    """

    text: TextFeatures
    zero_shot: Head
    classifier: FewShotClassifier | None = None
    shot_count: int = 0
    zero_shot_accuracy: float | None = None
    held_out_accuracy: float | None = None
    held_out_shots_per_class: float = 0.0
    misclassified: Mapping[str, str] = field(default_factory=dict)
    fit_seconds: float = 0.0

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the columns."""
        return self.text.labels

    def probabilities(self, features: Array) -> Array:
        """Return (m, c) probabilities of pictures (m, d): calibrated, or zero-shot without labelled pictures."""
        if self.classifier is not None:
            return self.classifier.uncertainty_.probabilities(self.classifier.head_.logits(features))
        return softmax(self.zero_shot.logits(features), self.zero_shot.prior_temperature(1))


def fit_project_model(
    classifier: FewShotClassifier, text: TextFeatures, keys: Sequence[str], features: Array, labels: Sequence[str]
) -> ProjectModel:
    """Fit to all labelled pictures.

    Args:
        classifier: not fitted; its encoder made the features.
        text: text features of all classes; some may have no picture.
        keys: keys of the n pictures.
        features: (n, d).
        labels: class of each picture.

    Raises:
        InputError: if the head can't be fitted to them.
    """
    start, text = time.perf_counter(), text.with_order("given")
    # The zero-shot head uses no shots, but a fit needs some: the text features themselves have the right width.
    zero_shot = create_head("zero-shot").fit(text.embeddings, text.labels, text=text)
    if not len(labels):
        return ProjectModel(text, zero_shot)
    info = classifier.encoder_.info
    provenance = {
        "encoder": info.name,
        "fingerprint": info.fingerprint,
        "sources": list(keys),
        "skipped": [],
        "views": 1,
    }
    classifier.fit_features(FeatureSet(features, tuple(labels), text.labels, provenance), text)
    label_indices = _to_indices(labels, text.labels)
    zero_shot_accuracy = mean_class_accuracy(zero_shot.logits(features).argmax(axis=1), label_indices)
    fit_seconds = time.perf_counter() - start
    held_out = out_of_fold(classifier.head_, features, np.asarray(labels), text, strategies=("own", "folds"))
    if held_out is None:
        return ProjectModel(text, zero_shot, classifier, len(labels), zero_shot_accuracy, fit_seconds=fit_seconds)
    rows = held_out.first_per_shot
    predicted = rows.logits.argmax(axis=1)
    return ProjectModel(
        text,
        zero_shot,
        classifier,
        len(labels),
        zero_shot_accuracy,
        held_out_accuracy=mean_class_accuracy(predicted, rows.labels),
        held_out_shots_per_class=held_out.shots_per_class,
        misclassified={
            keys[row]: text.labels[k] for row, k, t in zip(rows.rows, predicted, rows.labels, strict=True) if k != t
        },
        fit_seconds=fit_seconds,
    )


# ---- Learning curve ----


@dataclass(frozen=True)
class CurvePoint:
    """A point of the learning curve.

    Args:
        shots_per_class: shots of each class; 0 for the class names alone.
        accuracy: mean over the draws of the accuracy on other pictures, which is a mean over classes.
        lowest: accuracy of the worst draw.
        highest: accuracy of the best draw.
    """

    shots_per_class: float
    accuracy: float
    lowest: float
    highest: float


def learning_curve(
    model: ProjectModel, features: Array, labels: Sequence[str], test: tuple[Array, Sequence[str]] | None = None
) -> Iterator[CurvePoint]:
    """Compute the accuracy of fits to fewer shots, on pictures that they did not see.

    The first point is that of the class names alone. The last one is `ProjectModel.held_out_accuracy`, or the accuracy
    of the model on the test pictures.

    Args:
        model: fitted to all labelled pictures.
        features: (n, d) of the labelled pictures.
        labels: class of each.
        test: (m, d) and m class names of the part "test"; no choice depends on them.
    """
    assert model.classifier is not None
    label_indices = _to_indices(labels, model.class_names)
    test_set = None if test is None else FeatureSet(test[0], tuple(test[1]), model.class_names).mark_for_evaluation()
    zero_shot_accuracy = model.zero_shot_accuracy if test_set is None else _test_accuracy(model.zero_shot, test_set)
    if zero_shot_accuracy is not None:
        yield CurvePoint(0, zero_shot_accuracy, zero_shot_accuracy, zero_shot_accuracy)
    counts = np.bincount(label_indices)
    divisible = counts[counts >= 2]
    last_shots = model.held_out_shots_per_class if test_set is None else mean_shots_per_class(labels)
    max_shots = min(int(divisible.min()) - 1, MAX_CURVE_SHOTS) if len(divisible) else 0
    for shots in (2**i for i in range(6) if 2**i <= max_shots and 2**i < 0.9 * last_shots):
        accuracies = []
        for seed in range(DRAWS_PER_POINT):
            drawn = np.array(draw_shots(labels, shots, seed))
            head = clone(model.classifier.head_).fit(features[drawn], [labels[i] for i in drawn], text=model.text)
            if test_set is not None:
                accuracies.append(_test_accuracy(head, test_set))
                continue
            others = np.setdiff1d(np.arange(len(labels)), drawn)
            predicted = head.logits(features[others]).argmax(axis=1)
            accuracies.append(mean_class_accuracy(predicted, label_indices[others]))
        yield CurvePoint(shots, float(np.mean(accuracies)), min(accuracies), max(accuracies))
    last = model.held_out_accuracy if test_set is None else _test_accuracy(model.classifier.head_, test_set)
    if last is not None:
        yield CurvePoint(last_shots, last, last, last)


def mean_class_accuracy(predicted: Array, labels: Array) -> float:
    """Return the mean over classes of the share of correct predictions.

    >>> mean_class_accuracy(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]))
    0.5
    """
    return float(np.mean([(predicted[labels == k] == k).mean() for k in np.unique(labels)]))


def _test_accuracy(head: Head, test: FeatureSet) -> float:
    result = score(head, test)
    return mean_class_accuracy(result.logits.argmax(axis=1), result.labels)


def _to_indices(labels: Sequence[str], class_names: Sequence[str]) -> Array:
    index = {name: i for i, name in enumerate(class_names)}
    return np.array([index[label] for label in labels], np.int64)


# ---- Predictions ----


@dataclass(frozen=True)
class SimilarPicture:
    """A labelled picture that is similar to the one of a prediction.

    Args:
        key: key of the picture.
        label: its class.
        similarity: cosine of the features, -1 to 1.
    """

    key: str
    label: str
    similarity: float


@dataclass(frozen=True)
class ExplainedPrediction:
    """The prediction for one picture, with reasons.

    Args:
        top: (class, probability), most probable first.
        shot_count: labelled pictures that the model was fitted to; 0 if it used the class names alone.
        sentences: explanation.
        nearest: most similar labelled pictures.
        labelled_as: class of the picture if it is a labelled one.
    """

    top: tuple[tuple[str, float], ...]
    shot_count: int
    sentences: tuple[str, ...] = ()
    nearest: tuple[SimilarPicture, ...] = ()
    labelled_as: str | None = None


def explain_prediction(
    model: ProjectModel, image: ImageSource, contents: Contents, features: FeatureCache
) -> ExplainedPrediction:
    """Predict the class of a picture and explain it.

    Args:
        model: fitted to labelled pictures, or zero-shot.
        image: path, PIL image or array.
        contents: tells which labelled pictures still exist.
        features: computes the features of the picture.

    Raises:
        ImageError: if the picture can't be read.
    """
    if model.classifier is None:
        row = model.probabilities(features.compute_one(image)[None])[0]
        best = np.argsort(-row, kind="stable")[:MAX_PREDICTED_CLASSES]
        return ExplainedPrediction(tuple((model.class_names[i], float(row[i])) for i in best), 0)
    explanation = explain(model.classifier, image, top=MAX_PREDICTED_CLASSES, neighbours=MAX_NEIGHBOURS)
    nearest = tuple(
        SimilarPicture(one.source, one.label, one.similarity)
        for one in explanation.nearest
        if contents.label(one.source) is not None
    )
    same = [one.label for one in nearest if one.similarity > SAME_PICTURE_SIMILARITY]
    return ExplainedPrediction(
        explanation.prediction.top,
        model.shot_count,
        tuple(explanation.sentences()[1:]),  # the first one repeats the probabilities
        nearest,
        same[0] if same else None,
    )
