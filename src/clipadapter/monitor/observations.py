"""What a model computes for pictures, whether it is a saved model or an exported file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import DataError
from clipadapter.runtime import Predictor
from clipadapter.uncertainty import DecisionOptions
from clipadapter.utils.formatting import describe_unreadable

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier

Array = NDArray[Any]
AnyModel: TypeAlias = "FewShotClassifier | Predictor"


@dataclass(frozen=True, eq=False)
class Observations:
    """Features, probabilities and scores of m pictures."""

    features: Array  # (m, d) block ``final``, which is compared with that of other pictures
    head_features: Array  # (m, e) features that the head reads, which are those of all blocks
    probabilities: Array  # (m, c), calibrated
    ood_scores: Array | None  # (m,) score of "none of these"; None if the model has none
    indices: tuple[int, ...]  # positions of the pictures in the given paths
    skipped: tuple[tuple[str, str], ...] = ()  # (name, reason) of the pictures that can't be read
    n_repeated: int = 0  # how many were left out because an earlier picture has the same features

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.features)


def observe(model: AnyModel, paths: Sequence[Path], reject: float | None) -> Observations:
    """Run a model on pictures; copies of a picture count once."""
    if not paths:
        raise DataError("there are no pictures: give one or more")
    part_scores: Array | None = None
    if isinstance(model, Predictor):
        pictures, outputs = model.outputs_of(paths)
        indices = [i for i, picture in enumerate(pictures) if picture.error is None]
        skipped = [(picture.name, picture.error) for picture in pictures if picture.error is not None]
        if not indices:
            raise DataError(f"{describe_unreadable(len(paths))}: {skipped[0][0]}: {skipped[0][1]}")
        features = head_features = outputs.features
        logits, part_scores = outputs.logits, outputs.ood_score_parts
    else:
        placeholder = "unknown"  # feature sets have labels, and these pictures have none
        extracted = model.extract_features(list(paths), [placeholder] * len(paths), [placeholder], views=1)
        features, head_features, logits = extracted.final, extracted.plain, model.head_.logits(extracted.plain)
        indices, skipped = extracted.provenance["rows"], extracted.provenance["skipped"]
    # Copies are not independent observations: a picture that was sent again would look like a change.
    first = np.sort(np.unique(features, axis=0, return_index=True)[1])
    features, head_features, logits = features[first], head_features[first], logits[first]
    part_scores = None if part_scores is None else part_scores[first]
    answers = uncertainty_of(model).answer(logits, features, DecisionOptions(reject=reject), columns=part_scores)
    return Observations(
        features,
        head_features,
        answers.probabilities,
        answers.ood_scores,
        tuple(indices[i] for i in first),
        tuple(skipped),
        len(indices) - len(first),
    )


def uncertainty_of(model: AnyModel) -> Any:
    """The calibration and the rejector of a model."""
    return model.uncertainty if isinstance(model, Predictor) else model.uncertainty_


def count_rejected(model: AnyModel, observations: Observations, reject: float) -> int:
    """How many pictures the model calls none of the classes at this rate; 0 if it has no scores."""
    mask = rejected_mask(model, observations, reject)
    return 0 if mask is None else int(mask.sum())


def rejected_mask(model: AnyModel, observations: Observations, reject: float | None) -> Array | None:
    """Which pictures (m,) the model calls none of the classes at this rate; None if it can't reject."""
    if reject is None or observations.ood_scores is None:
        return None
    return np.asarray(observations.ood_scores > uncertainty_of(model).rejector.threshold(reject).value)
