"""Text features of classes: one unit vector per class, from its prompts, which are encoded once and stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipadapter.encoders import Encoder, open_text_tower
from clipadapter.errors import InputError, brief
from clipadapter.features.store import FeatureStore, feature_key
from clipadapter.heads import TextFeatures
from clipadapter.utils.functional import ensemble, unit


def encode_classes(
    encoder: Encoder, prompts: Mapping[str, Sequence[str]], store: FeatureStore | None = None
) -> TextFeatures:
    """Encode the prompts of every class.

    Args:
        encoder: encodes each different prompt once.
        prompts: class name to one or more texts; the order of the names is that of the classes.
        store: read and filled; None encodes all prompts.

    Returns:
        A unit vector (d,) per class (normalize each prompt, mean, normalize), the unit vectors of its single prompts if
        a class has more than one, and the logit scale and bias of the encoder. No class has text if the encoder has no
        text tower (`Encoder.has_text`).

    Raises:
        InputError: if there is no class, or a class has no prompt.

    >>> from clipadapter.encoders import create_encoder
    >>> encode_classes(create_encoder("toy"), {"cat": ["a cat"], "dog": ["a dog", "a puppy"]}).labels
    ('cat', 'dog')
    """
    if not prompts:
        raise InputError("class text needs at least one class, but there are none")
    for name, texts in prompts.items():
        if isinstance(texts, str) or not texts:
            raise InputError(f"class '{name}' needs a list of one or more prompts, but has {brief(texts)}")
    info = encoder.info
    if not encoder.has_text:
        return TextFeatures.of_names(list(prompts), info.text_dim, info.logit_scale)
    different = dict.fromkeys(text for texts in prompts.values() for text in texts)
    row_of = {text: i for i, text in enumerate(different)}
    rows = _encode_texts(encoder, list(different), store)  # (k, d)
    vectors = torch.stack([ensemble(rows[[row_of[text] for text in texts]]) for texts in prompts.values()])  # (c, d)
    tower = partial(open_text_tower, encoder)
    encoded = TextFeatures(list(prompts), vectors.numpy(), info.logit_scale, info.logit_bias, tower)
    if all(len(texts) == 1 for texts in prompts.values()):  # the vectors are those of the prompts
        return encoded
    unit_rows = unit(rows).numpy()
    unit_rows.flags.writeable = False  # classes share rows without copies: 1000 classes of 50 sentences have 100 MB
    return encoded.with_prompts([_take_rows(unit_rows, [row_of[text] for text in texts]) for texts in prompts.values()])


def _take_rows(rows: NDArray[np.float32], positions: Sequence[int]) -> NDArray[np.float32]:
    """Rows at these positions, without a copy if they follow each other."""
    first, n = positions[0], len(positions)
    return rows[first : first + n] if list(positions) == list(range(first, first + n)) else rows[list(positions)]


def _encode_texts(encoder: Encoder, texts: Sequence[str], store: FeatureStore | None) -> Tensor:
    """Raw features (k, d) of different texts; only those that the store lacks are computed."""
    if store is None:
        return encoder.encode_text(texts)
    # Texts are compared with the block ``final``: an encoder that gives further blocks has the same text features.
    info, fingerprint = encoder.info, encoder.block_fingerprints()[0]
    keys = [feature_key(blake2b(text.encode(), digest_size=32).digest(), fingerprint, "text") for text in texts]
    features = store.get_many(keys, info.text_dim)
    if missing := [i for i, key in enumerate(keys) if key not in features]:
        fresh = encoder.encode_text([texts[i] for i in missing]).numpy()
        new = {keys[i]: row for i, row in zip(missing, fresh, strict=True)}
        store.put_many(new)
        features |= new
    return torch.stack([torch.from_numpy(features[key].copy()) for key in keys])
