"""Features of pictures: computed once, taken from the store ever after."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipadapter.data.images import ImageSource
from clipadapter.encoders import Encoder
from clipadapter.errors import ImageError, InputError
from clipadapter.features._pipeline import Job, default_workers, run
from clipadapter.features.store import FeatureStore
from clipadapter.features.views import ViewSpec

Dtype = Literal["float32", "float16"]
Skipped = tuple[int, str, str]


@dataclass(frozen=True, eq=False)
class Extraction:
    """What `extract` gives.

    Args:
        features: (n, v, d) raw float32 features of the pictures that could be read, in the sources' order.
        rows: (n) positions of these pictures in the sources, rising.
        skipped: (position, name, reason) of the others.
        computed: how many of the n * v features were computed.
        cached: how many were in the store, or came from an equal picture among the sources.
    """

    features: NDArray[np.float32]
    rows: list[int]
    skipped: list[Skipped]
    computed: int
    cached: int


@dataclass(frozen=True)
class EmbedResult:
    """What `embed` did.

    Args:
        done: how many pictures have their features in the store now.
        skipped: (position, name, reason) of those that can't be read.
        computed: how many features were computed.
        cached: how many were in the store, or came from an equal picture among the sources.
    """

    done: int
    skipped: list[Skipped]
    computed: int
    cached: int


def extract(
    encoder: Encoder,
    sources: Sequence[ImageSource],
    *,
    store: FeatureStore | None = None,
    views: ViewSpec = ViewSpec(),  # noqa: B008 - frozen
    batch_size: int = 32,
    workers: int | None = None,
    progress: bool = False,
    strict: bool = False,
    dtype: Dtype = "float32",
) -> Extraction:
    """Features of pictures, from the store where it has them.

    Each batch is put into the store as soon as it is computed: one that was cut short goes on where it was.

    Args:
        encoder: whose features.
        sources: pictures: paths, PIL images or arrays.
        store: looked up and filled; None writes no file, and computes equal pictures once all the same.
        views: the plain picture alone, or augmented views besides.
        batch_size: views encoded at a time.
        workers: threads that read pictures; None takes one a core, at most 8.
        progress: show a bar on stderr.
        strict: raise for a picture that can't be read instead of skipping it.
        dtype: number type in the store; float16 halves it and rounds the features.

    Raises:
        ImageError: if ``strict`` and a picture can't be read.
        InputError: if an argument is out of range.
        StoreError: if the store can't be written.

    >>> from clipadapter.encoders import create_encoder
    >>> extract(create_encoder("toy"), [np.zeros((8, 8, 3), np.uint8)]).features.shape
    (1, 1, 32)
    """
    n = _count(sources)
    values = np.empty((n, views.count, encoder.info.dim), np.float32)
    read = np.zeros(n, bool)

    def keep(position: int, vectors: NDArray[np.float32]) -> None:
        values[position], read[position] = vectors, True

    with _store(store) as kept:
        job = _job(encoder, sources, kept, views, dtype, batch_size, workers)
        skipped, computed = _finish(job, range(n), progress, strict, keep)
    features = values if read.all() else values[read]
    rows = [int(row) for row in np.flatnonzero(read)]
    return Extraction(features, rows, skipped, computed, len(rows) * views.count - computed)


def embed(
    encoder: Encoder,
    sources: Sequence[ImageSource],
    store: FeatureStore,
    *,
    views: ViewSpec = ViewSpec(),  # noqa: B008 - frozen
    batch_size: int = 32,
    workers: int | None = None,
    progress: bool = False,
    strict: bool = False,
    dtype: Dtype = "float32",
    shard: tuple[int, int] | None = None,
) -> EmbedResult:
    """Fill the store and keep nothing else in memory, however many pictures there are.

    Several processes may fill one store at once, with or without shards: who meets another at the same
    pictures goes on elsewhere.

    Args:
        encoder: whose features.
        sources: pictures: paths, PIL images or arrays.
        store: what is filled.
        views: the plain picture alone, or augmented views besides.
        batch_size: views encoded at a time.
        workers: threads that read pictures; None takes one a core, at most 8.
        progress: show a bar on stderr.
        strict: raise for a picture that can't be read instead of skipping it.
        dtype: number type in the store.
        shard: (i, n) takes every n-th picture, beginning with the i-th; see `parse_shard`.

    Raises:
        ImageError: if ``strict`` and a picture can't be read.
        InputError: if an argument is out of range.
        StoreError: if the store can't be written.

    >>> from clipadapter.encoders import create_encoder
    >>> pictures = [np.full((8, 8, 3), grey, np.uint8) for grey in range(4)]
    >>> with FeatureStore(":memory:") as store:
    ...     embed(create_encoder("toy"), pictures, store, shard=(1, 2)).done
    2
    """
    i, n = _checked_shard(shard or (1, 1))
    positions = range(i - 1, _count(sources), n)
    job = _job(encoder, sources, store, views, dtype, batch_size, workers)
    skipped, computed = _finish(job, positions, progress, strict)
    ready = len(positions) - len(skipped)
    return EmbedResult(ready, skipped, computed, ready * views.count - computed)


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``i/n``, the i-th of n shards.

    Raises:
        InputError: if it is none.

    >>> parse_shard("2/8")
    (2, 8)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip(), re.ASCII)
    if match is None:
        raise InputError(f"a shard is written i/n, such as 2/8 for the second of eight, but is {text!r}")
    return _checked_shard((int(match[1]), int(match[2])))


def _checked_shard(shard: tuple[int, int]) -> tuple[int, int]:
    i, n = shard
    if not 1 <= i <= n:
        raise InputError(f"shard i/n needs 1 <= i <= n, but is {i}/{n}")
    return shard


def _count(sources: Sequence[ImageSource]) -> int:
    if isinstance(sources, str) or not isinstance(sources, Sequence):
        raise InputError(f"pictures must be given as a list, but came as {type(sources).__name__}")
    return len(sources)


def _job(
    encoder: Encoder,
    sources: Sequence[ImageSource],
    store: FeatureStore,
    views: ViewSpec,
    dtype: str,
    batch_size: int,
    workers: int | None,
) -> Job:
    workers = default_workers() if workers is None else workers
    if batch_size < 1 or workers < 1:
        raise InputError(f"batch_size and workers must be 1 or more, but are {batch_size} and {workers}")
    if dtype not in ("float32", "float16"):
        raise InputError(f"features are stored as float32 or float16, not as {dtype}")
    return Job(encoder, sources, store, views, dtype, batch_size, workers)


@contextmanager
def _store(store: FeatureStore | None) -> Iterator[FeatureStore]:
    """The store given, or one in memory for this call."""
    if store is not None:
        yield store
        return
    with FeatureStore(":memory:") as own:
        yield own


def _finish(
    job: Job,
    positions: range,
    progress: bool,
    strict: bool,
    keep: Callable[[int, NDArray[np.float32]], None] | None = None,
) -> tuple[list[Skipped], int]:
    """Run the job to its end; hands each picture's (v, d) features to `keep`.

    Returns:
        The pictures that can't be read, and how many features were computed.
    """
    skipped: list[Skipped] = []
    computed = 0
    with closing(run(job, positions)) as results:
        bar = tqdm(results, total=len(positions), desc="features", unit="img", file=sys.stderr) if progress else results
        for done in bar:
            if not isinstance(done.values, ImageError):
                computed += done.computed
                if keep is not None:
                    keep(done.position, done.values)
            elif strict:
                raise done.values
            else:
                skipped.append((done.position, done.values.source, done.values.reason))
    return sorted(skipped), computed
