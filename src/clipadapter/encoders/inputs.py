"""What encoders do with their input before a tower gets it: checks, pixels to tensors, batches of texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from clipadapter.errors import InputError, brief

MAX_BATCH_TOKENS = 512
"""Tokens in a batch of texts, padding included. On a CPU 256 to 2,048 are equally fast; more do not fit its cache."""

TOKENIZER_PROBES = (
    "a photo of a cat.",
    "A Photo, of the ÜBER-cat's hat!",
    "  two   spaces & <p>marks</p> ",
    "one two three four five six seven eight nine ten " * 12,
)
"""Texts whose tokens differ between tokenizers: case, accents, punctuation, spaces, truncation."""


def check_pixels(pixels: Tensor, size: int) -> None:
    """Refuse pixels that are no batch (n, 3, size, size)."""
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
        raise InputError(f"this encoder takes pixels (n, 3, {size}, {size}), but got {tuple(pixels.shape)}")


def to_tensor(image: ArrayLike, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """An RGB picture (h, w, 3) of 0 .. 255 to (3, h, w) float32, ``(value / 255 - mean) / std`` in each channel."""
    values = np.asarray(image, dtype=np.float32) / 255
    normalized = (values - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalized.transpose(2, 0, 1)))


def compute_fingerprint(facts: Any, arrays: Mapping[str, Tensor]) -> str:
    """32 hex digits of facts that JSON can write, and of the names, shapes, types and values of arrays.

    SHA-256 because processors have instructions for it: 0.5 s for ViT-B/32, half the time of BLAKE2.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(array.shape)} {array.dtype}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return str(digest.hexdigest()[:32])


def unique_texts(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The different texts in order of first appearance, and the index among them of each text.

    >>> unique_texts(["cat", "dog", "cat"])
    (['cat', 'dog'], [0, 1, 0])
    """
    if isinstance(texts, str):
        raise InputError(f"texts must be a list of texts, but is one text: [{brief(texts)}] would be a list")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"texts must be of type str, but one is a {type(text).__name__}: {brief(text)}")
    if not len(texts):
        raise InputError("there are no texts to encode: give one or more")
    index = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return list(index), [index[text] for text in texts]


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Batches of texts of similar length, shortest first: padding costs as much as words do.

    Yields indices of ``lengths``, the numbers of tokens; each comes once. A batch has fewer than ``batch_size`` texts
    where they would have more than ``MAX_BATCH_TOKENS`` tokens.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, but is {batch_size}: it is how many texts are encoded at once")
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if len(batch) == batch_size or (batch and (len(batch) + 1) * lengths[i] > MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
