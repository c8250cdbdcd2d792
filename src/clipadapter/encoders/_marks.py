"""Which tokens of a text are marks of its beginning and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

Tokenize = Callable[[Sequence[str]], list[list[int]]]


def find_marks(tokenize: Tokenize) -> tuple[int, int]:
    """How many tokens begin and end every text, from what a tokenizer makes of no word and of one.

    >>> find_marks(lambda texts: [[101, *map(ord, text), 102] for text in texts])
    (1, 1)
    """
    none, one = tokenize(["", "cat"])
    begin = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(none, one, strict=False)))
    return begin, len(none) - begin
