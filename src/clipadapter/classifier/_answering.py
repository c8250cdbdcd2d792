"""What a fitted classifier says of pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier._pictures import answered
from clipadapter.data.images import ImageSource
from clipadapter.errors import ArtifactError, InputError
from clipadapter.features import Extraction, ViewSpec
from clipadapter.heads import Head
from clipadapter.prediction import Prediction
from clipadapter.uncertainty import Answers, Uncertainty


class Answering(ABC):
    """Part of `FewShotClassifier`: the fitted one answers.

    Args:
        head_: fitted.
        class_names_: in the order of the logits.
        uncertainty_: what held-out shots taught.
        fold_heads_: heads that were fitted without one fold each, for sets by CV+.
    """

    head_: Head
    class_names_: tuple[str, ...]
    uncertainty_: Uncertainty
    fold_heads_: tuple[Head, ...]

    @abstractmethod
    def _extract(self, images: Sequence[ImageSource], spec: ViewSpec, strict: bool) -> Extraction:
        """Features of pictures."""

    def logits(self, images: Sequence[ImageSource]) -> NDArray[Any]:
        """Scores (m, c) of pictures, columns in the order of ``class_names_``.

        Raises:
            ImageError: if a picture can't be read.
            ArtifactError: if what the model has learned gives a score that is not finite.
        """
        self._check_fitted()
        return _finite_logits(self.head_, self._plain(images))

    def predict(self, images: Sequence[ImageSource], **asked: Any) -> list[Any]:
        """The class of each picture; None if it is none of them, where that was asked for (see `classify`).

        Where pictures have several labels: all classes of each, a tuple that may be empty.
        """
        found = self._answers(self._plain(images), asked)
        if found.multilabel and found.sets is not None:
            return [tuple(name for name, has in zip(self.class_names_, row, strict=True) if has) for row in found.sets]
        return [None if no else self.class_names_[i] for i, no in zip(found.best, found.rejected, strict=True)]

    def predict_proba(self, images: Sequence[ImageSource]) -> NDArray[Any]:
        """Calibrated probabilities (m, c) of pictures."""
        return self.uncertainty_.probabilities(self.logits(images))

    def classify(self, images: Sequence[ImageSource], top: int = 5, **asked: Any) -> list[Prediction]:
        """One answer a picture, in their order; a picture that can't be read costs only its own answer.

        Args:
            images: paths, PIL images or arrays.
            top: how many classes to name, at most all.
            asked: ``reject``, ``coverage`` or ``costs`` for these pictures, instead of those of
                `UncertaintyOptions`; None asks for nothing.

        Raises:
            InputError: if something is asked for that could not be learned from the shots.
        """
        self._check_fitted()
        found = self._extract(images, ViewSpec(), strict=False)
        told = self._answers(found.features[:, 0], asked) if found.rows else None
        return answered(found, images, told, self.class_names_, top)

    def _plain(self, images: Sequence[ImageSource]) -> NDArray[Any]:
        """Features (m, d) of pictures, all of which can be read."""
        return self._extract(images, ViewSpec(), strict=True).features[:, 0]

    def _answers(self, features: NDArray[Any], asked: Mapping[str, Any]) -> Answers:
        self._check_fitted()
        folds = [_finite_logits(head, features) for head in self.fold_heads_]
        logits = _finite_logits(self.head_, features)
        return self.uncertainty_.answer(logits, features, self.uncertainty_.decisions.changed(asked), folds)

    def _check_fitted(self) -> None:
        if not hasattr(self, "head_"):
            raise InputError("this FewShotClassifier is not fitted: call fit(images, labels), or load(folder)")


def _finite_logits(head: Head, features: NDArray[Any]) -> NDArray[Any]:
    """Logits (m, c) of features (m, d).

    Raises:
        ArtifactError: if one is not finite: finite weights of a damaged model may overflow.
    """
    logits = head.logits(features)
    if not np.isfinite(logits).all():
        raise ArtifactError(
            f"the model's arrays give scores that are not finite ({type(head).__name__}): copy it again, or fit again"
        )
    return logits
