"""Negative labels: names of things that are none of the classes (NegLabel, https://arxiv.org/abs/2403.20078)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import InputError
from clipadapter.uncertainty.ood_scores import unit_rows

Array = NDArray[Any]
_STOP_WORDS = {"a", "an", "and", "in", "of", "on", "or", "the", "with"}


def select_negative_labels(
    class_names: Sequence[str], class_text: Array, names: Sequence[str], text: Array
) -> NDArray[np.int64]:
    """Select the names of a list that mean something else than every class.

    Left out is a name that shares a word with a class name, and one whose text is too near to a class text: nearer than
    half of the names are to their nearest other name, and nearer than nine in ten classes are to theirs. These are
    different things, so what is nearer still is likely a synonym, or a kind of that class.

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
    own, other = unit_rows(class_text), unit_rows(text)
    if len(own) != len(class_names) or len(other) != len(names) or own.shape[1:] != other.shape[1:]:
        raise InputError(
            f"{len(class_names)} classes with text {own.shape} and {len(names)} negative labels with text "
            f"{other.shape}: give a row for each name, all of one width"
        )
    if not len(names):
        return np.zeros(0, dtype=np.int64)
    bound = max(np.quantile(_to_nearest(other), 0.5), np.quantile(_to_nearest(own), 0.9))
    words = set().union(*(_words(name) for name in class_names))
    shared = np.array([bool(_words(name) & words) for name in names])
    return np.flatnonzero(~shared & ((other @ own.T).max(axis=1) <= bound))


def _to_nearest(rows: Array) -> Array:
    """The cosine of each row to the nearest other one; -1 if there is no other."""
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1.0)
    return np.asarray(cosines.max(axis=1))


def _words(name: str) -> set[str]:
    """Lower-case words of a name in the singular, without the small ones.

    >>> sorted(_words("Cups_of the Glass"))
    ['cup', 'glass']
    """
    found = set(re.findall(r"[^\W_]+", name.lower())) - _STOP_WORDS
    return {word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in found}
