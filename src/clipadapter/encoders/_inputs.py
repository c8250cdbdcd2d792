"""Checks that every encoder makes on what it is given."""

from __future__ import annotations

from collections.abc import Sequence

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
