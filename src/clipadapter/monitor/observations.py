"""Pictures as a model sees them, whether it is a saved one or an exported file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import DataError, ImageError
from clipadapter.runtime import BATCH, Predictor
from clipadapter.uncertainty import DecisionOptions

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier

Array = NDArray[Any]
AnyModel: TypeAlias = "FewShotClassifier | Predictor"


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model says of m pictures.

    Args:
        features: (m, d).
        probabilities: (m, c), calibrated.
        strangeness: (m,) score of "none of these"; None if the model has none.
        rows: positions of the pictures among those given.
        skipped: (name, reason) of those that can't be read.
        repeated: how many were left out because the same picture had come before.
    """

    features: Array
    probabilities: Array
    strangeness: Array | None
    rows: tuple[int, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    repeated: int = 0

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.features)


def see(model: AnyModel, paths: Sequence[Path], rate: float | None) -> Seen:
    """Ask a model about pictures; one that comes twice counts once.

    Args:
        model: fitted, or exported.
        paths: of the pictures.
        rate: of "none of these"; None if the model can't say that.

    Raises:
        DataError: if there is no picture, or none can be read.
    """
    if not paths:
        raise DataError("there are no pictures to look at")
    features, logits, columns, rows, skipped = (
        _exported(model, paths) if isinstance(model, Predictor) else _fitted(model, paths)
    )
    # Twins are no two witnesses: a picture that was sent again would look like a change.
    first = np.sort(np.unique(features, axis=0, return_index=True)[1])
    features, logits = features[first], logits[first]
    columns = None if columns is None else columns[first]
    told = model_trust(model).answer(logits, features, DecisionOptions(reject=rate), columns=columns)
    kept = tuple(rows[i] for i in first)
    return Seen(features, told.probabilities, told.ood_scores, kept, tuple(skipped), len(rows) - len(first))


def model_trust(model: AnyModel) -> Any:
    """What held-out shots taught a model."""
    return model.uncertainty if isinstance(model, Predictor) else model.uncertainty_


def _fitted(model: FewShotClassifier, paths: Sequence[Path]) -> tuple[Any, ...]:
    name = "unknown"
    found = model.extract_features(list(paths), [name] * len(paths), [name], views=1)
    facts = found.provenance
    features = np.asarray(found.plain)
    return features, model.head_.logits(features), None, facts["rows"], facts["skipped"]


def _exported(model: Predictor, paths: Sequence[Path]) -> tuple[Any, ...]:
    rows: list[int] = []
    skipped: list[tuple[str, str]] = []
    parts, squares = [], []
    for i, path in enumerate(paths):
        try:
            squares.append(model.square(path))
            rows.append(i)
        except ImageError as error:
            skipped.append((error.source, error.reason))
        if squares and (len(squares) == BATCH or i + 1 == len(paths)):
            parts.append(model.run(np.stack(squares)))
            squares = []
    if not parts:
        raise DataError(f"none of the {len(paths)} pictures can be read: {skipped[0][0]}: {skipped[0][1]}")
    scores = [part.parts for part in parts if part.parts is not None]
    columns = np.concatenate(scores) if scores else None
    features = np.concatenate([part.features for part in parts])
    return features, np.concatenate([part.logits for part in parts]), columns, rows, skipped
