"""From features to answers: logits of the heads, calibrated probabilities, decisions, and test-time adaptation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.adaptation import Adapt
from clipadapter.data.images import ImageSource, source_name
from clipadapter.errors import ArtifactError, ImageError
from clipadapter.heads import Head
from clipadapter.persistence import Model
from clipadapter.uncertainty import Answers
from clipadapter.utils.parallel import parallel_map
from clipadapter.utils.prediction import Prediction, PredictionColumns

ROWS_PER_BLOCK = 512  # rows that are answered at once: their features and probabilities stay in the processor's cache
MAX_VALUES_PER_BLOCK = 1 << 19  # probabilities of a block, with many classes


def predict_columns(
    model: Model, features: NDArray[Any], top: int, decision: Mapping[str, Any], adapt: Adapt = None
) -> PredictionColumns:
    """Predictions from features (m, d) of plain pictures, in blocks of rows; see `answer_features`."""
    names = model.text.labels
    if not len(features):  # no head predicts none
        return PredictionColumns.empty(names)
    cache = model.uncertainty.open_cache(adapt, len(names))
    rows = max(1, min(ROWS_PER_BLOCK, MAX_VALUES_PER_BLOCK // len(names)))

    def predict_block(start: int) -> PredictionColumns:
        return answer_features(model, features[start : start + rows, None], decision, cache).columns(names, top)

    blocks = [partial(predict_block, start) for start in range(0, len(features), rows)]
    # With a cache a block waits for the one before, since answers depend on earlier ones.
    return PredictionColumns.concatenate(parallel_map(blocks, None if cache is None else 1))


def answer_features(model: Model, features: NDArray[Any], decision: Mapping[str, Any], adapt: Adapt = None) -> Answers:
    """Probabilities and decisions for pictures, from (m, v, d) features of v views, of which the first is plain."""
    head, uncertainty = model.head, model.uncertainty
    plain, final = features[:, 0], features[..., : model.encoder.text_dim]  # the block ``final`` comes first
    options = uncertainty.decisions.with_changes(decision)
    fold_logits = [finite_logits(each, plain) for each in model.fold_heads]
    logits, view_logits = finite_logits(head, plain), None
    cache = uncertainty.open_cache(adapt, logits.shape[1])
    if features.shape[1] > 1:
        view_logits = finite_logits(head, features.reshape(-1, features.shape[2])).reshape(*features.shape[:2], -1)
    else:
        final = final[:, 0]
    return uncertainty.answer(logits, final, options, fold_logits, cache=cache, view_logits=view_logits)


def predict_batches(
    model: Model,
    batches: Iterable[Sequence[tuple[ImageSource, NDArray[Any] | ImageError]]],
    top: int,
    decision: Mapping[str, Any],
    adapt: Adapt = None,
) -> Iterator[Prediction]:
    """One prediction per picture, in order, from its (v, d) features or the error that says why there are none."""
    for batch in batches:
        features = [values for _, values in batch if not isinstance(values, ImageError)]
        columns = PredictionColumns.empty(model.text.labels)
        if features:
            columns = answer_features(model, np.stack(features), decision, adapt).columns(model.text.labels, top)
        errors = [values.reason if isinstance(values, ImageError) else None for _, values in batch]
        yield from columns.with_unreadable([source_name(source) for source, _ in batch], errors)


def finite_logits(head: Head, features: NDArray[Any]) -> NDArray[Any]:
    """Logits (m, c) of features (m, d). Finite weights of a damaged model may overflow, which is refused."""
    logits = head.logits(features)
    if not np.isfinite(logits).all():
        raise ArtifactError(
            f"the model's arrays give scores that are not finite ({type(head).__name__}): copy it again, or fit again"
        )
    return logits
