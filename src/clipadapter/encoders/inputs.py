"""What encoders do with their input before a tower sees it: checks, pixels to tensors, batches of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from clipadapter.errors import InputError


def check_pixels(pixels: Tensor, size: int) -> None:
    """Refuse what is not a batch (n, 3, size, size).

    Raises:
        InputError: if the shape is another one.
    """
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
        raise InputError(f"this encoder takes pixels (n, 3, {size}, {size}), but got {tuple(pixels.shape)}")


def unique_texts(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each different text once, in order of first appearance, and where each given text is among them.

    Raises:
        InputError: if there are no texts, or something is not a text.

    >>> unique_texts(["cat", "dog", "cat"])
    (['cat', 'dog'], [0, 1, 0])
    """
    if isinstance(texts, str):
        raise InputError(f"texts must be a list of texts, but is one text: [{texts!r}] would be a list")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"texts must be of type str, but one is a {type(text).__name__}: {text!r}")
    if not len(texts):
        raise InputError("there are no texts to encode: give one or more")
    places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return list(places), [places[text] for text in texts]


def to_tensor(image: ArrayLike, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """An RGB picture (h, w, 3), values 0 .. 255, to (3, h, w) float32, ``(value / 255 - mean) / std`` in each channel.

    >>> to_tensor(np.full((2, 2, 3), 255), mean=(0.5,) * 3, std=(0.5,) * 3)[:, 0, 0]
    tensor([1., 1., 1.])
    """
    values = np.asarray(image, dtype=np.float32) / 255
    scaled = (values - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


TOKENS = 512
"""Most tokens in a batch, padding included. On a CPU 256 to 2,048 are about alike; more no longer fit its cache."""


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Which texts go through a tower together, shortest first.

    Args:
        lengths: tokens of each text.
        size: most texts in a batch. It has fewer where they would have more than ``TOKENS`` tokens.

    Yields:
        Places in ``lengths``; each place comes once.

    Raises:
        InputError: if ``size`` is less than one.

    >>> list(batches([9, 7, 400, 9, 300], size=2))
    [[1, 0], [3], [4], [2]]
    """
    if size < 1:
        raise InputError(f"batch_size must be 1 or more, but is {size}: it is how many texts are encoded at once")
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if len(batch) == size or (batch and (len(batch) + 1) * lengths[place] > TOKENS):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


Tokenize = Callable[[Sequence[str]], list[list[int]]]


def count_special_tokens(tokenize: Tokenize) -> tuple[int, int]:
    """How many tokens begin and end every text, from what a tokenizer makes of no word and of one.

    >>> count_special_tokens(lambda texts: [[101, *map(ord, text), 102] for text in texts])
    (1, 1)
    """
    none, one = tokenize(["", "cat"])
    begin = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(none, one, strict=False)))
    return begin, len(none) - begin
