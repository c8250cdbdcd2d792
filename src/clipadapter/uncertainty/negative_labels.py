"""Negative labels: names that mean none of the classes (NegLabel, https://arxiv.org/abs/2403.20078)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError
from clipadapter.utils.prediction import unit_rows

Array = NDArray[Any]
_STOP_WORDS = {"a", "an", "and", "in", "of", "on", "or", "the", "with"}


def select_negative_labels(
    class_names: Sequence[str], class_text: Array, names: Sequence[str], text: Array
) -> NDArray[np.int64]:
    """Select the names of a list that mean something else than every class.

    A name is left out if it shares a word with a class name, or if its text is too close to a class text: closer than
    half of the names are to their nearest other name, and closer than nine in ten classes are to theirs. Those mean
    different objects, so a name that is closer is probably a synonym or a kind of that class.

    Args:
        class_names: c names.
        class_text: (c, d); a row of zeros is a class without text.
        names: k names.
        text: (k, d), by the same encoder and prompts.

    Returns:
        Positions in ``names``, ascending; possibly none.

    Raises:
        InputError: if counts or widths differ.

    >>> names = ["tabby cat", "kitten", "sports car", "teapot"]
    >>> text = np.array([[1, 0.1, 0], [1, 0.2, 0], [0, 1, 0.5], [0, 0, 1.0]])
    >>> select_negative_labels(["cat", "dog"], np.array([[1, 0, 0], [0.5, 0.5, 0]]), names, text)
    array([2, 3])
    """
    class_rows, name_rows = unit_rows(class_text), unit_rows(text)
    counts = len(class_rows), len(name_rows)
    if counts != (len(class_names), len(names)) or class_rows.shape[1:] != name_rows.shape[1:]:
        raise InputError(
            f"{len(class_names)} classes with text {class_rows.shape} and {len(names)} negative labels with text "
            f"{name_rows.shape}: give a row for each name, all of one width"
        )
    if not len(names):
        return np.zeros(0, dtype=np.int64)
    max_cosine = max(np.quantile(_nearest_cosines(name_rows), 0.5), np.quantile(_nearest_cosines(class_rows), 0.9))
    class_words = set().union(*(_split_words(name) for name in class_names))
    shares_word = np.array([bool(_split_words(name) & class_words) for name in names])
    return np.flatnonzero(~shares_word & ((name_rows @ class_rows.T).max(axis=1) <= max_cosine))


def _nearest_cosines(rows: Array) -> Array:
    """The cosine of each row to the nearest other row; -1 if there is no other."""
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1.0)
    return np.asarray(cosines.max(axis=1))


def _split_words(name: str) -> set[str]:
    """Lower-case words of a name in the singular, without stop words: "cup", "glass" of "Cups_of the Glass"."""
    words = set(re.findall(r"[^\W_]+", name.lower())) - _STOP_WORDS
    return {word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words}
