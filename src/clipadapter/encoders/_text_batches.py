"""Batches of texts of about one length: padding costs as much as words do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clipadapter.errors import InputError

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
