"""The model of a project: its fit, its accuracy on pictures that the fit did not see, and explained predictions.

Accuracies are measured among the classes that have pictures. A class without pictures has none that could be predicted
correctly, so that its name would only lower the accuracy of the others until it gets its pictures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier import FewShotClassifier
from clipadapter.classifier.evaluation import score
from clipadapter.data import draw_shots
from clipadapter.data.images import ImageSource
from clipadapter.doctor.diagnosis import collect_label_evidence, find_doubts
from clipadapter.doctor.pictures import nearest_neighbours
from clipadapter.encoders import Encoder
from clipadapter.explain import Neighbour, explain
from clipadapter.features import FeatureSet, extract
from clipadapter.heads import Head, TextFeatures, create_head, mean_shots_per_class, out_of_fold
from clipadapter.heads.estimator import clone
from clipadapter.heads.support import label_positions
from clipadapter.metrics import AccuracyForecast, forecast_accuracy, wilson_interval
from clipadapter.studio.pictures import Contents
from clipadapter.utils.blocks import FINAL
from clipadapter.utils.prediction import softmax

Array = NDArray[Any]
DRAWS_PER_POINT = 3  # random draws of shots for each point of the learning curve
MORE_SHOTS = 10  # pictures per class to add in the forecast
MAX_CURVE_SHOTS = 32  # most shots per class of a point that is drawn
MAX_PREDICTED_CLASSES = 5
MAX_NEIGHBOURS = 5
SAME_PICTURE_SIMILARITY = 1 - 1e-6


@dataclass(frozen=True, eq=False)
class ProjectModel:
    """A classifier of the classes of a project."""

    text: TextFeatures  # text features; their labels are the class names, in the order of the columns
    zero_shot: Head  # head that uses the class names alone
    # Fitted to the labelled pictures; None if there are none. It has all blocks of features.
    classifier: FewShotClassifier | None = None
    shot_count: int = 0  # number of labelled pictures
    # Accuracy of the class names alone, mean over classes; None without labelled pictures
    zero_shot_accuracy: float | None = None
    held_out: CurvePoint | None = None  # accuracy on held-out labelled pictures; None if none can be held out
    # Why the label of a picture may be wrong, as a sentence, by key
    doubts: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def small_classifier(self) -> FewShotClassifier | None:
        """The classifier to save, without blocks that no answer depends on; one object, which knows what it saved."""
        return None if self.classifier is None else copy.copy(self.classifier).drop_unused_blocks()

    def probabilities(self, features: Array) -> Array:
        """Return (m, c) probabilities of pictures (m, d): calibrated, or zero-shot without labelled pictures."""
        if self.classifier is not None:
            return self.classifier.uncertainty_.probabilities(self.classifier.head_.logits(features))
        final = features[:, : self.text.embeddings.shape[1]]
        return softmax(self.zero_shot.logits(final), self.zero_shot.prior_temperature(1))


def fit_project_model(
    classifier: FewShotClassifier, text: TextFeatures, shots: FeatureSet, unlabelled: Array | None = None
) -> ProjectModel:
    """Fit to the labelled pictures, whose sources are their keys, and for some heads to unlabelled ones (u, d)."""
    text, labels = text.with_order("given"), np.asarray(shots.y)
    # The zero-shot head uses no shots, but a fit needs some: the text features themselves have the right width.
    zero_shot = create_head("zero-shot").fit(text.embeddings, text.labels, text=text)
    if not len(shots):
        return ProjectModel(text, zero_shot)
    classifier.fit_features(shots, text, unlabelled=unlabelled)
    label_indices = label_positions(labels, np.asarray(text.labels))
    name_logits = zero_shot.logits(shots.final)
    present = np.unique(label_indices)  # a class without pictures would only lower the accuracy of the others
    best = present[name_logits[:, present].argmax(axis=1)]
    zero_shot_accuracy = mean_class_accuracy(best == label_indices, label_indices)
    held_out = out_of_fold(classifier.head_, shots.X, labels, text, strategies=("own", "folds"))
    point = None
    if held_out is not None:
        rows = held_out.first_per_shot
        predicted = present[rows.logits[:, present].argmax(axis=1)]
        correct = np.full((1, len(labels)), np.nan)
        correct[0, rows.rows] = predicted == rows.labels
        point = CurvePoint.of_fits(held_out.shots_per_class, correct, label_indices)
    doubts = explain_doubts(shots, text)
    return ProjectModel(text, zero_shot, classifier, len(labels), zero_shot_accuracy, point, doubts)


def explain_doubts(shots: FeatureSet, text: TextFeatures) -> dict[str, str]:
    """Why the labels that the doctor doubts may be wrong, as sentences, by the key of the picture."""
    keys = shots.provenance["sources"]
    # The order of the doctor, since folds depend on it.
    order = sorted(range(len(shots)), key=lambda row: (shots.y[row], keys[row]))
    part = shots.take(order)
    evidence = collect_label_evidence(part, text, nearest_neighbours(part.final))
    return {
        keys[order[doubt.row]]: (
            f"It looks like “{doubt.other}” ({doubt.p_other:.0%}), not like “{doubt.label}” ({doubt.p_label:.0%})."
        )
        for doubt in find_doubts(evidence)
    }


# ---- Learning curve ----


@dataclass(frozen=True, eq=False)
class CurvePoint:
    """A point of the learning curve: fits to the same number of shots."""

    shots_per_class: float  # shots of each class; 0 for the class names alone
    accuracy: float  # mean over the fits of the accuracy on other pictures, which is a mean over classes
    correct: Array  # (fits, m) 1 where a fit predicted a picture correctly, 0 where not, NaN where it saw the picture

    @property
    def picture_count(self) -> int:
        """Number of pictures that were predicted by a fit that did not see them."""
        return int((~np.isnan(self.correct)).any(axis=0).sum())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy on new pictures (Wilson), as if all classes had as many pictures."""
        return wilson_interval(self.accuracy, self.picture_count)

    @classmethod
    def of_fits(cls, shots_per_class: float, correct: Array, labels: Array) -> CurvePoint:
        """Compute the accuracy of fits, (fits, m), from the classes of the pictures (m,)."""
        return cls(shots_per_class, float(np.mean([mean_class_accuracy(row, labels) for row in correct])), correct)


@dataclass(frozen=True)
class LearningCurve:
    """How the accuracy grows with the number of labelled pictures."""

    points: tuple[CurvePoint, ...]  # in the order of their shots
    is_on_test: bool = False  # whether it was measured on the part "test"
    forecast_shots: float = 0.0  # shots per class of the forecast
    # Accuracy with `MORE_SHOTS` more pictures per class; None if the points say too little
    forecast: AccuracyForecast | None = None

    @property
    def shows_gain(self) -> bool:
        """Whether the forecast is clearly above the last point. Else it says nothing about more pictures."""
        return self.forecast is not None and self.forecast.rises and self.forecast.value > self.points[-1].accuracy


def learning_curve(model: ProjectModel, test: FeatureSet, on_step: Callable[[], None] = lambda: None) -> LearningCurve:
    """Measure the accuracy of fits to fewer shots, on pictures that they did not see, and forecast that of more shots.

    The first point is that of the class names alone. The last one is `ProjectModel.held_out`, or that of the model on
    the test pictures, on which no choice depends; those of classes without labelled pictures are left out. ``on_step``
    is called between two fits, and may raise.
    """
    assert model.classifier is not None
    fitted, shots = model.classifier.head_, model.classifier.support_
    labels, present = shots.y, sorted(set(shots.y))
    test = test.take([i for i, name in enumerate(test.y) if name in present])
    is_on_test = len(test) > 0
    measured = test if is_on_test else shots
    measured_labels = label_positions(np.asarray(measured.y), np.asarray(model.text.labels))

    def measure(head: Head, drawn: Sequence[int] | Array = ()) -> Array:
        """(m,) correct predictions; NaN for the pictures that the head was fitted to."""
        on_step()
        others = np.setdiff1d(np.arange(len(measured)), () if is_on_test else drawn).astype(int)
        part = measured.take(others).mark_for_evaluation()
        part = part.select_blocks([FINAL]) if head is model.zero_shot else part
        result = score(head, part, among=present)
        correct = np.full(len(measured), np.nan)
        correct[others] = result.logits.argmax(axis=1) == result.labels
        return correct

    def fit(drawn: Array) -> Head:
        part, pool = shots.take(drawn), fitted.kept_pictures_
        return clone(fitted).fit(part.X, part.y, text=model.text, unlabelled=pool, blocks=part.blocks)

    points = [CurvePoint.of_fits(0, measure(model.zero_shot)[None], measured_labels)]
    counts = np.unique(labels, return_counts=True)[1]
    divisible = counts[counts >= 2]
    shots_now, last = mean_shots_per_class(labels), model.held_out
    if is_on_test:
        last = CurvePoint.of_fits(shots_now, measure(fitted)[None], measured_labels)
    last_shots = 0 if last is None else last.shots_per_class
    max_shots = min(int(divisible.min()) - 1, MAX_CURVE_SHOTS) if len(divisible) else 0
    for count in (2**i for i in range(6) if 2**i <= max_shots and 2**i < 0.9 * last_shots):
        draws = [np.array(draw_shots(labels, count, seed)) for seed in range(DRAWS_PER_POINT)]
        correct = np.stack([measure(fit(drawn), drawn) for drawn in draws])
        points.append(CurvePoint.of_fits(count, correct, measured_labels))
    points += [] if last is None else [last]
    forecast = forecast_accuracy(
        [point.shots_per_class for point in points for _ in point.correct],
        np.concatenate([point.correct for point in points]),
        measured_labels,
        target_shots=shots_now + MORE_SHOTS,
    )
    return LearningCurve(tuple(points), is_on_test, shots_now + MORE_SHOTS, forecast)


def mean_class_accuracy(correct: Array, labels: Array) -> float:
    """Return the mean over classes of the share of correct predictions (m,), where NaN is a picture that is left out.

    >>> mean_class_accuracy(np.array([1, 1, np.nan, 0]), np.array([0, 0, 0, 1]))
    0.5
    """
    return float(np.mean([np.nanmean(correct[labels == k]) for k in np.unique(labels[~np.isnan(correct)])]))


# ---- Predictions ----


@dataclass(frozen=True)
class ExplainedPrediction:
    """The prediction for one picture, with reasons."""

    top: tuple[tuple[str, float], ...]  # (class, probability), most probable first
    shot_count: int  # labelled pictures that the model was fitted to; 0 if it used the class names alone
    reason: str = ""  # why, in a sentence or two without technical terms
    details: tuple[str, ...] = ()  # the explanation in numbers, as sentences
    nearest: tuple[Neighbour, ...] = ()  # most similar labelled pictures
    labelled_as: str | None = None  # class of the picture if it is a labelled one
    unlike: str | None = None  # why the picture is unlike every class; else None


def explain_prediction(
    model: ProjectModel, image: ImageSource, contents: Contents, encoder: Encoder
) -> ExplainedPrediction:
    """Predict the class of a picture and explain it."""
    if model.classifier is None:
        row = model.probabilities(extract(encoder, [image], strict=True).features[:, 0])[0]
        best = np.argsort(-row, kind="stable")[:MAX_PREDICTED_CLASSES]
        return ExplainedPrediction(tuple((model.text.labels[i], float(row[i])) for i in best), 0)
    explanation = explain(model.classifier, image, top=MAX_PREDICTED_CLASSES, neighbours=MAX_NEIGHBOURS)
    nearest = tuple(one for one in explanation.nearest if contents.label(one.source) is not None)
    same = next((one.label for one in nearest if one.similarity > SAME_PICTURE_SIMILARITY), None)
    text_label = explanation.parts[0].label if explanation.parts else None
    return ExplainedPrediction(
        explanation.prediction.top,
        model.shot_count,
        _describe_reason(explanation.label, text_label, [one.label for one in nearest]),
        tuple(explanation.sentences()[1:]),  # the first one repeats the probabilities
        nearest,
        same,
        unlike=explanation.prediction.reason if explanation.prediction.unlike_every_class else None,
    )


def _describe_reason(label: str, name_label: str | None, nearest: Sequence[str]) -> str:
    """Say what the most similar pictures and the class names say about a prediction.

    >>> _describe_reason("cat", "dog", ["cat", "cat", "dog"])
    '2 of the 3 most similar pictures are labelled “cat”. By the class names alone, it would be “dog”.'
    """
    votes = list(nearest).count(label)
    share = f"All {votes}" if votes == len(nearest) else f"{votes or 'None'} of the {len(nearest)}"
    sentences = [f"{share} most similar pictures are labelled “{label}”."] if len(nearest) > 1 else []
    if name_label == label:
        sentences.append("The class names alone say the same.")
    elif name_label is not None:
        sentences.append(f"By the class names alone, it would be “{name_label}”.")
    return " ".join(sentences)
