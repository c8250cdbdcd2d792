"""What a model computes for a stream of pictures, and for the reference that the stream is compared with.

The reference is pictures of normal operation, or the model's shots. A model was fitted to its shots, so that its
probabilities for them are too good. Shots are therefore held out in folds. Pictures of the stream are predicted by the
heads of these folds too, each picture by one of them. The probabilities of both samples then come from fits of the same
kind. This serves the tests if shots are the reference, and class priors for either reference: held-out shots show how
often the model confuses which classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import DataError, InputError, brief
from clipadapter.monitor.priors import (
    INTERVAL_QUANTILES,
    MIN_DENSITY,
    Array,
    count_confusions,
    draw_priors,
    estimate_priors,
    prior_intervals,
)
from clipadapter.runtime import Predictor
from clipadapter.uncertainty import DecisionOptions
from clipadapter.utils.formatting import describe_unreadable

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier

AnyModel: TypeAlias = "FewShotClassifier | Predictor"
ADVICE = "give pictures of the usual situation (--reference FOLDER, reference=)"
PRIOR_POWERS = np.linspace(0, 1, 21)


@dataclass(frozen=True, eq=False)
class Observations:
    """Features, probabilities and rejections of m pictures."""

    features: NDArray[Any]  # (m, d) block ``final``, which is compared with that of other pictures
    head_features: NDArray[Any]  # (m, e) features that the head reads, which are those of all blocks
    probabilities: Array  # (m, c), calibrated
    rejected: NDArray[np.bool_] | None  # (m,) which are called none of the classes; None if the model can't reject
    indices: tuple[int, ...]  # positions of the pictures in the given paths
    skipped: tuple[tuple[str, str], ...]  # (name, reason) of the pictures that can't be read
    n_repeated: int  # how many were left out because an earlier picture has the same features

    def __len__(self) -> int:
        return len(self.features)


def observe(model: AnyModel, paths: Sequence[Path], reject: float | None) -> Observations:
    """Run a model on pictures, with a rate of "none of these" if it can reject; copies of a picture count once."""
    if not paths:
        raise DataError("there are no pictures: give one or more")
    parts: NDArray[Any] | None = None  # scores of "none of these", which an exported graph computes
    if isinstance(model, Predictor):
        pictures, outputs = model.outputs_of(paths)
        indices = [i for i, picture in enumerate(pictures) if picture.error is None]
        skipped = [(picture.name, picture.error) for picture in pictures if picture.error is not None]
        if not indices:
            raise DataError(f"{describe_unreadable(len(paths))}: {skipped[0][0]}: {skipped[0][1]}")
        features = head_features = outputs.features
        logits, parts, uncertainty = outputs.logits, outputs.ood_score_parts, model.uncertainty
    else:
        placeholder = "unknown"  # feature sets have labels, and these pictures have none
        extracted = model.extract_features(list(paths), [placeholder] * len(paths), [placeholder], views=1)
        features, head_features, logits = extracted.final, extracted.plain, model.head_.logits(extracted.plain)
        indices, skipped = extracted.provenance["rows"], extracted.provenance["skipped"]
        uncertainty = model.uncertainty_
    # Copies are not independent observations: a picture that was sent again would look like a change.
    first = np.sort(np.unique(features, axis=0, return_index=True)[1])
    features, head_features, logits = features[first], head_features[first], logits[first]
    parts = None if parts is None else parts[first]
    answers = uncertainty.answer(logits, features, DecisionOptions(reject=reject), columns=parts)
    return Observations(
        features,
        head_features,
        answers.probabilities,
        None if reject is None else answers.rejected,
        tuple(indices[i] for i in first),
        tuple(skipped),
        len(indices) - len(first),
    )


@dataclass(frozen=True, eq=False)
class HeldOutShots:
    """Shots of a model, predicted by fits that did not see them."""

    rows: NDArray[np.int64]  # (n,) row of each among the shots of the model
    probabilities: Array  # (n, c)
    labels: NDArray[np.int64]  # (n,) class positions
    # Gives probabilities (m, c) of other pictures from features (m, d), by the same kind of fits
    predict: Callable[[NDArray[Any]], Array]


@dataclass(frozen=True, eq=False)
class Reference:
    """The pictures or shots that a stream is compared with."""

    features: Array  # (n, d)
    probabilities: Array  # (n, c), by fits without them
    labels: NDArray[np.int64] | None  # (n,) class positions of shots; None for pictures, which have no labels
    assumed_priors: Array  # (c,) priors of the classes that the model's probabilities are for
    priors: Array  # (c,) priors of the classes that the stream should have
    sample_priors: Array  # (c,) shares of the classes in the reference itself
    n_rejected: int  # how many the model calls none of the classes
    n_scored: int  # how many have a score of that
    # The model's shots, held out; None if they can't be. If shots are the reference, these are its rows
    held_out: HeldOutShots | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def kind(self) -> str:
        """What the reference consists of: "shots" or "pictures"."""
        return "pictures" if self.labels is None else "shots"

    def shots_per_class(self) -> float:
        """Mean number of shots of the classes that have any; infinite for pictures without labels."""
        return np.inf if self.labels is None else float(np.unique(self.labels, return_counts=True)[1].mean())

    def comparable_probabilities(self, observations: Observations) -> Array:
        """Probabilities (m, c) of pictures, by the same kind of fits as those of the reference."""
        if self.labels is None or self.held_out is None:
            return np.asarray(observations.probabilities)
        return self.held_out.predict(observations.head_features)


def reference_from_pictures(model: AnyModel, paths: Sequence[Path], reject: float | None) -> Reference:
    """Make a reference of pictures of normal operation."""
    observations = observe(model, paths, reject)
    assumed = _priors_of_shots(model)
    held_out = None if isinstance(model, Predictor) or _why_not_held_out(model) else hold_out_shots(model)
    return Reference(
        observations.features,
        observations.probabilities,
        None,
        assumed,
        estimate_with_intervals(observations, held_out, assumed)[0],
        estimate_priors(observations.probabilities, assumed),
        0 if observations.rejected is None else int(observations.rejected.sum()),
        len(observations),
        held_out,
    )


def reference_from_shots(model: AnyModel, reject: float | None, priors: Mapping[str, float] | None) -> Reference:
    """Make a reference of a model's shots."""
    if isinstance(model, Predictor):
        raise InputError(f"an exported file has no shots to compare with: {ADVICE}")
    if why := _why_not_held_out(model):
        raise InputError(f"{why}: {ADVICE}")
    names, uncertainty = model.class_names_, model.uncertainty_
    shots = hold_out_shots(model)
    sample_priors = np.bincount(shots.labels, minlength=len(names)) / len(shots.labels)
    n_rejected = n_scored = 0
    if reject is not None and uncertainty.rejector is not None:
        scores = uncertainty.rejector.weighted_sum(uncertainty.rejector.held_out_scores)
        n_rejected, n_scored = int((scores > uncertainty.rejector.threshold(reject).value).sum()), len(scores)
    return Reference(
        np.asarray(model.support_.final, np.float64)[shots.rows],
        shots.probabilities,
        shots.labels,
        estimate_assumed_priors(shots.probabilities, shots.labels),
        complete_priors(priors, names, sample_priors),
        sample_priors,
        n_rejected,
        n_scored,
        shots,
    )


def hold_out_shots(model: FewShotClassifier) -> HeldOutShots:
    """Predict each shot of a model by a head that was fitted without it."""
    from clipadapter.heads import out_of_fold

    support, calibrator = model.support_, model.uncertainty_.calibrator
    held_out = out_of_fold(
        model.head_, support.X, support.y, model.refit_text(), strategies=("folds",), keep_heads=True, seed=model.seed
    )
    assert held_out is not None
    shots = held_out.first_per_shot

    def predict(features: NDArray[Any]) -> Array:
        fold_of_row = np.arange(len(features)) % len(held_out.heads)
        logits = np.empty((len(features), len(model.class_names_)))
        for fold, head in enumerate(held_out.heads):
            rows = fold_of_row == fold
            logits[rows] = head.logits(features[rows]) if rows.any() else 0
        return np.asarray(calibrator.probabilities(logits * held_out.logit_scale_ratio))

    return HeldOutShots(shots.rows, calibrator.probabilities(shots.logits), shots.labels, predict)


def estimate_with_intervals(
    observations: Observations, held_out: HeldOutShots | None, assumed: Array, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Priors (c,) of the classes in a sample of pictures, and the ends of their 95 % intervals.

    With held-out shots: mean and percentiles of the posterior of `draw_priors`. Without: the EM on the model's
    probabilities, with the intervals of `prior_intervals`, which take the probabilities to be right.
    """
    if held_out is None:
        return prior_intervals(observations.probabilities, assumed, seed=seed)
    predictions = held_out.predict(observations.head_features).argmax(axis=1)
    confusions = count_confusions(held_out.probabilities.argmax(axis=1), held_out.labels, len(assumed))
    priors = draw_priors(np.bincount(predictions, minlength=len(assumed)), confusions, seed=seed)
    low, high = np.quantile(priors, INTERVAL_QUANTILES, axis=0)
    return priors.mean(axis=0), low, high


def estimate_assumed_priors(probabilities: Array, labels: NDArray[np.int64]) -> Array:
    """Estimate the priors (c,) that probabilities (n, c) are for, from pictures with labels (n,).

    Some heads learn the class frequencies of unequal shots, some treat all classes alike, some are between. So the
    frequencies are raised to a power between 0 (all alike) and 1 (as in the sample). The power with the largest
    likelihood of the labels is taken. It does not matter if all classes have the same number of pictures.
    """
    n, c = probabilities.shape
    counts = np.bincount(labels, minlength=c)
    # A class without a shot is known by its text, and needs a prior above zero.
    frequencies = counts / n if (counts > 0).all() else (counts + 1) / (n + c)
    best, best_priors = -np.inf, frequencies
    for power in PRIOR_POWERS:
        priors = frequencies**power / (frequencies**power).sum()
        joint = probabilities * frequencies / priors
        likelihood = joint[np.arange(n), labels] / np.maximum(joint.sum(axis=1), MIN_DENSITY)
        if (value := float(np.log(np.maximum(likelihood, MIN_DENSITY)).sum())) > best + 1e-9:
            best, best_priors = value, priors
    return np.asarray(best_priors)


def complete_priors(priors: Mapping[str, float] | None, names: Sequence[str], sample_priors: Array) -> Array:
    """Priors (c,) of all classes from those of some: the others share the rest in the proportions of their shots."""
    if not priors:
        return sample_priors
    if unknown := sorted(set(priors) - set(names)):
        raise InputError(f"no class is called {brief(unknown[0])}; the model's classes: {', '.join(names)}")
    total, is_other = sum(priors.values()), np.array([name not in priors for name in names])
    if min(priors.values()) < 0 or total > 1 + 1e-9 or (abs(total - 1) > 1e-9 and not is_other.any()):
        raise InputError(
            f"the usual class frequencies (--usual, reference_priors=) add up to {total:g}: give numbers "
            "between 0 and 1 that are 1 in all"
        )
    others = sample_priors * is_other
    others = others / others.sum() * max(0.0, 1 - total) if others.sum() else others
    return np.array([priors.get(name, others[i]) for i, name in enumerate(names)])


def _priors_of_shots(model: AnyModel) -> Array:
    """Shares (c,) of the classes in a model's shots, also if the model was saved without their features."""
    if isinstance(model, Predictor):
        return np.full(len(model.class_names), 1 / len(model.class_names))  # an exported file has no counts
    counts = np.array([float(model.support_.shot_counts[name]) for name in model.class_names_])
    counts = counts + 1 if (counts <= 0).any() else counts
    return np.asarray(counts / counts.sum())


def _why_not_held_out(model: FewShotClassifier) -> str:
    """Why a model's shots can't be held out; "" if they can."""
    head, support = model.head_, model.support_
    if not len(support):
        return "the model was saved without its shots (--no-support)"
    if head.tunes_encoder or head.needs_tower:
        return f"the shots can't be held out: the head {type(head).__name__} would have to be trained again"
    if head.transductive:
        return f"the head {type(head).__name__} is transductive, so that no shot can be held out"
    if max(support.counts.values()) < 2:
        return "no shot can be held out, since no class has two"
    return ""
