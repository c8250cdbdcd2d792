"""Names of other things, as text beside that of the classes: what a picture of none of them may be nearer to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from clipadapter.data import class_prompts
from clipadapter.encoders import Encoder
from clipadapter.features import FeatureStore, encode_classes
from clipadapter.heads import TextFeatures
from clipadapter.uncertainty import select_negative_labels
from clipadapter.uncertainty.negative_labels import imagenet_names


def distractors(
    encoder: Encoder, text: TextFeatures, templates: str | Sequence[str], store: FeatureStore | None
) -> tuple[tuple[str, ...], NDArray[Any] | None]:
    """The class names of ImageNet that are no near synonyms of the classes.

    Args:
        encoder: of the class text.
        text: of the classes.
        templates: that the classes' prompts were made by.
        store: keeps the text of the names; None keeps nothing.

    Returns:
        The names, and their unit text (k, d).
    """
    names = tuple(dict.fromkeys(imagenet_names()))  # two names stand for two classes each
    found = encode_classes(encoder, class_prompts(names, templates, None), store)
    kept = select_negative_labels(text.labels, text.embeddings, names, found.embeddings)
    return tuple(names[i] for i in kept), found.embeddings[kept]
