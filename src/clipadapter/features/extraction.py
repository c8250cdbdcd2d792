"""Features of pictures: computed once, taken from the store ever after."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from clipadapter.data.images import ImageSource, image_bytes, read_image, shrink_factor, source_name
from clipadapter.encoders import Encoder
from clipadapter.errors import ImageError, InputError
from clipadapter.features.store import FeatureStore, feature_key
from clipadapter.features.views import ViewSpec, augment
from clipadapter.pixels import min_jpeg_side

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


MAX_WAITING_BYTES = 2**30
"""Pixels that wait to be encoded: with a view for each epoch one picture has more than 100 MB of them."""


@dataclass(frozen=True)
class Job:
    """What is computed from what.

    Args:
        encoder: its image tower is used.
        sources: all pictures.
        store: where features are looked up and put.
        views: which views of each picture.
        dtype: number type in the store, float32 or float16.
        batch_size: views encoded at a time.
        workers: threads that read and prepare.
        lock: guards picture objects, which PIL does not let two threads load at once.
    """

    encoder: Encoder
    sources: Sequence[ImageSource]
    store: FeatureStore
    views: ViewSpec
    dtype: str
    batch_size: int
    workers: int
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Done:
    """A picture that is finished.

    Args:
        position: its place in the sources.
        values: (v, d) features, or the error that says why there are none.
        computed: how many of the v features were computed for it, not taken from the store.
    """

    position: int
    values: NDArray[np.float32] | ImageError
    computed: int = 0


@dataclass
class _Prepared:
    """A picture between reading and encoding: the views found in the store, and the pixels of the others."""

    position: int
    keys: list[bytes]
    found: dict[bytes, NDArray[np.float32]]
    pixels: dict[bytes, Tensor] = field(default_factory=dict)

    def done(self, fresh: dict[bytes, NDArray[np.float32]], computed: int) -> Done:
        vectors = [self.found[key] if key in self.found else fresh[key] for key in self.keys]
        return Done(self.position, np.stack(vectors), computed)


class _Plan:
    """Positions still to be done, in order until `leave` is called."""

    def __init__(self, positions: range) -> None:
        self._parts: deque[Sequence[int]] = deque([positions])

    def take(self) -> int | None:
        while self._parts:
            part = self._parts.popleft()
            if part:
                self._parts.appendleft(part[1:])
                return part[0]
        return None

    def leave(self, returned: list[int]) -> None:
        """Go on in the middle of what lies ahead, since somebody else works here; the rest comes later."""
        ahead, *tail = self._parts or [range(0)]
        middle = len(ahead) // 2
        self._parts = deque([ahead[middle:], *tail, ahead[:middle], returned])


def run(job: Job, positions: range) -> Generator[Done, None, None]:
    """Finish the pictures at these positions, each once, in no promised order.

    Close the generator (``contextlib.closing``) to have its threads stopped.
    """
    pool = ThreadPoolExecutor(job.workers, thread_name_prefix="clipadapter-read")
    # Back-pressure: one batch is prepared while another is encoded; a few more keep the threads busy.
    room = 2 * job.workers + -(-job.batch_size // job.views.count)
    picture_bytes = 4 * 3 * job.encoder.info.image_size**2 * job.views.count
    room = min(room, max(2, MAX_WAITING_BYTES // picture_bytes))
    plan = _Plan(positions)
    window: deque[tuple[int, Future[_Prepared | Done]]] = deque()
    batch: list[_Prepared] = []
    try:
        while True:
            while len(window) < room and (position := plan.take()) is not None:
                window.append((position, pool.submit(_prepare, job, position)))
            if window:
                picture = window.popleft()[1].result()
                if isinstance(picture, Done):
                    yield picture
                    continue
                batch.append(picture)
                if sum(len(picture.pixels) for picture in batch) < job.batch_size:
                    continue
            elif not batch:
                return
            done, crowded = _encode(job, batch)
            batch = []
            yield from done
            if crowded:
                for _, future in window:
                    future.cancel()
                plan.leave([position for position, _ in window])
                window.clear()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare(job: Job, position: int) -> _Prepared | Done:
    """Read a picture once, look its views up, make those that are missing. Runs in a thread."""
    source, info = job.sources[position], job.encoder.info
    try:
        with _alone(job, source):
            data = image_bytes(source)
        digest = blake2b(data, digest_size=32).digest()
        keys = [feature_key(digest, info.fingerprint, job.views.key(i), job.dtype) for i in range(job.views.count)]
        picture = _Prepared(position, keys, job.store.get_many(keys, info.dim))
        if len(picture.found) == len(keys):
            return picture.done({}, computed=0)
        missing = [i for i, key in enumerate(keys) if key not in picture.found]
        with _alone(job, source):
            images = _decode(job, source, data, missing)
    except ImageError as error:
        return Done(position, error)
    for i in missing:
        view = augment(images[i], job.views, i, digest, info.image_size)
        picture.pixels[keys[i]] = job.encoder.preprocess(view)
    return picture


def _decode(job: Job, source: ImageSource, data: bytes, views: list[int]) -> dict[int, Image.Image]:
    """What each of these views is made from.

    Only the plain view may come from a shrunk picture, and must, whatever views are made beside it: a stored
    feature depends on nothing but its key.
    """
    info, own = job.encoder.info, data if isinstance(source, str | Path) else None
    least = min_jpeg_side(info.precision, info.image_size)
    if views == [0]:
        return {0: read_image(source, data=own, shrink_to=least)}
    whole = read_image(source, data=own)
    images = dict.fromkeys(views, whole)
    if 0 in images and own is not None and least is not None and shrink_factor(own, whole.size, least) > 1:
        images[0] = read_image(source, data=own, shrink_to=least)
    return images


def _encode(job: Job, batch: list[_Prepared]) -> tuple[list[Done], bool]:
    """Encode what is still missing and put it.

    Returns:
        The finished pictures, and whether another process works on the same ones.
    """
    pixels = {key: value for picture in batch for key, value in picture.pixels.items()}
    # Pictures that came twice, or that another process finished since they were looked up.
    known = job.store.get_many(list(pixels), job.encoder.info.dim)
    crowded = job.store.touched() and bool(known)
    missing = [key for key in pixels if key not in known]
    # Not torch's stack and cat: these wake threads that go on spinning, on the cores that others need.
    rows = []
    for i in range(0, len(missing), job.batch_size):
        batch_pixels = np.stack([pixels[key].numpy() for key in missing[i : i + job.batch_size]])
        rows.append(job.encoder.encode_pixels(torch.from_numpy(batch_pixels)).numpy())
    with np.errstate(over="ignore"):  # too large for float16 is not finite: told below
        vectors = np.concatenate(rows).astype(job.dtype) if rows else np.empty((0, 0))
    new = {key: vector for key, vector in zip(missing, vectors, strict=True) if np.isfinite(vector).all()}
    if new:
        crowded |= job.store.put_many(new) < len(new)
    values = known | {key: vector.astype(np.float32) for key, vector in new.items()}
    done, uncounted = [], set(new)
    for picture in batch:
        if picture.pixels.keys() <= values.keys():
            own = picture.pixels.keys() & uncounted
            uncounted -= own  # an equal picture in the batch did not cost anything
            done.append(picture.done(values, computed=len(own)))
        else:
            error = ImageError(source_name(job.sources[picture.position]), "its feature is not finite")
            done.append(Done(picture.position, error))
    return done, crowded


def _alone(job: Job, source: ImageSource) -> AbstractContextManager[Any]:
    return job.lock if isinstance(source, Image.Image) else nullcontext()


def default_workers() -> int:
    """Threads that read pictures if nobody says how many."""
    return min(8, os.cpu_count() or 1)
