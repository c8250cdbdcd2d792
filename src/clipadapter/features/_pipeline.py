"""Pictures to features: threads read and prepare, the main thread encodes and stores each batch at once.

Nothing here grows with the number of pictures: the plan is a few ranges, and only a window of pictures is
in memory.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipadapter.data.images import ImageSource, image_bytes, read_image, shrink_factor, source_name
from clipadapter.encoders import Encoder
from clipadapter.errors import ImageError
from clipadapter.features.store import FeatureStore, feature_key
from clipadapter.features.views import ViewSpec, augment
from clipadapter.pixels import min_jpeg_side

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
