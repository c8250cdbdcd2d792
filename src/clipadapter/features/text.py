"""Class text: one unit vector a class, made from its prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from clipadapter.encoders import Encoder
from clipadapter.errors import InputError
from clipadapter.functional import ensemble
from clipadapter.heads import ClassText


def encode_classes(encoder: Encoder, prompts: Mapping[str, Sequence[str]]) -> ClassText:
    """Encode the prompts of every class.

    Args:
        encoder: its text tower is asked once, for every different prompt.
        prompts: class name to one or more texts; the order of the names is that of the classes.

    Returns:
        A unit vector (d,) a class (normalise each prompt, mean, normalise), and the encoder's logit scale and
        bias.

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
            raise InputError(f"class '{name}' needs a list of one or more prompts, but has {texts!r}")
    unique = {text: None for texts in prompts.values() for text in texts}
    row = {text: i for i, text in enumerate(unique)}
    embeddings = encoder.encode_text(list(unique))  # (k, d)
    weight = torch.stack([ensemble(embeddings[[row[text] for text in texts]]) for texts in prompts.values()])  # (c, d)
    info = encoder.info
    return ClassText(list(prompts), weight.numpy(), logit_scale=info.logit_scale, logit_bias=info.logit_bias)
