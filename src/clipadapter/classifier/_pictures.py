"""Pictures, some of which can't be read: features with their labels, and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipadapter.classifier._towers import open_store
from clipadapter.data.images import ImageSource, source_name
from clipadapter.encoders import Encoder, EncoderInfo
from clipadapter.errors import DataError
from clipadapter.features import Extraction, FeatureSet, ViewSpec, extract
from clipadapter.heads import Head
from clipadapter.prediction import Prediction, answer, softmax

Skipped = tuple[int, str, str]


def extracted(
    encoder: Encoder,
    images: Sequence[ImageSource],
    views: ViewSpec,
    cache: str | Path | None,
    batch_size: int,
    progress: bool,
    strict: bool,
) -> Extraction:
    """Features of pictures, by way of the store that ``cache`` means; see `clipadapter.features.extract`."""
    with open_store(cache) as store:
        return extract(
            encoder, images, store=store, views=views, batch_size=batch_size, progress=progress, strict=strict
        )


def feature_set(
    found: Extraction,
    images: Sequence[ImageSource],
    labels: Sequence[str],
    class_names: Sequence[str],
    views: ViewSpec,
    info: EncoderInfo,
) -> FeatureSet:
    """Features of labelled pictures; their provenance says what made them and what was skipped.

    Args:
        found: what was extracted.
        images: all pictures.
        labels: class name of each.
        class_names: all classes in order.
        views: which views were made.
        info: of the encoder.

    Raises:
        DataError: if no picture can be read.
    """
    check_any(found.rows, found.skipped, len(images))
    provenance = {
        "encoder": info.name,
        "fingerprint": info.fingerprint,
        "skipped": [(name, reason) for _, name, reason in found.skipped],
        "rows": list(found.rows),
        "computed": found.computed,
        "views": views.count,
    }
    X = found.features if views.count > 1 else found.features[:, 0]
    return FeatureSet(X, tuple(str(labels[i]) for i in found.rows), tuple(class_names), provenance)


def check_any(rows: Sequence[int], skipped: Sequence[Skipped], count: int) -> None:
    """Refuse pictures of which none can be read.

    Raises:
        DataError: if so; says why the first can't.
    """
    if not len(rows):
        reasons = "; ".join(f"{name}: {reason}" for _, name, reason in skipped[:3])
        raise DataError(f"none of the {count} pictures can be read: {reasons or 'there are none'}")


def answers(
    found: Extraction,
    images: Sequence[ImageSource],
    head: Head,
    names: Sequence[str],
    temperature: float,
    top: int,
) -> list[Prediction]:
    """An answer a picture, in their order; of those that can't be read, why.

    Args:
        found: what was extracted.
        images: all pictures.
        head: fitted.
        names: of the classes.
        temperature: logits are divided by it before the softmax.
        top: how many classes to name.
    """
    reasons = {i: reason for i, _, reason in found.skipped}
    rows = softmax(head.logits(found.features[:, 0]), temperature) if found.rows else ()
    told = dict(zip(found.rows, rows, strict=True))
    return [answer(source_name(x), names, told.get(i), reasons.get(i), top) for i, x in enumerate(images)]
