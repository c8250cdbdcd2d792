"""Features of pictures: computed once, then taken from the store.

Threads read and prepare pictures; the main thread encodes each batch and stores its features at once. No memory grows
with the number of pictures, of which only a window is loaded.
"""

from __future__ import annotations

import os
import re
import threading
from collections import ChainMap, deque
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clipadapter.data.image_notes import ImageNotes, find_image_notes
from clipadapter.data.images import ImageSource, image_bytes, read_image_shrunk, source_name
from clipadapter.encoders import Encoder
from clipadapter.errors import ImageError, InputError, brief
from clipadapter.features.collection import ImageRef
from clipadapter.features.store import FeatureStore, feature_key
from clipadapter.features.views import ViewSpec, augment
from clipadapter.utils.blocks import column_slices
from clipadapter.utils.pixels import min_jpeg_side
from clipadapter.utils.progress import progress_bar

Skipped = tuple[int, str, str]  # position, name and reason of a picture that can't be read
MAX_WAITING_BYTES = 2**30
"""Pixels that wait to be encoded. With a view for each epoch one picture has more than 100 MB of them."""
MAX_STORED_BATCHES = 4  # batches of features from the store that are given at once
Source: TypeAlias = "ImageSource | ImageRef"
Vectors: TypeAlias = dict[bytes, NDArray[np.float32]]  # features of blocks by their key in the store


@dataclass(frozen=True, eq=False)
class Extraction:
    """The result of `extract`.

    Args:
        features: (n, v, d) raw float32 features of the pictures that could be read, in the sources' order; n is 0 if
            they were only stored.
        rows: positions of the pictures that could be read in the sources, ascending.
        skipped: (position, name, reason) of the others.
        computed: how many of the features were computed.
        cached: how many were in the store, or came from an equal picture among the sources.
    """

    features: NDArray[np.float32]
    rows: list[int]
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
    keep: bool = True,
) -> Extraction:
    """Extract the features of pictures; features in the store are not computed again.

    Each batch is stored as soon as it is computed, so an interrupted call continues where it stopped. Several processes
    may fill one store at once, each with pictures of its own: else all compute the same ones.

    Args:
        encoder: computes the features.
        sources: pictures: paths, PIL images or arrays.
        store: read and filled; None writes no file. Equal pictures are computed once in both cases.
        views: the plain picture only, or augmented views in addition.
        batch_size: views encoded at a time.
        workers: threads that read pictures; None takes one a core, at most 8.
        progress: show a bar on stderr.
        strict: raise for a picture that can't be read instead of skipping it.
        keep: return the features. False only stores them, so that memory hardly grows with their number.

    Raises:
        ImageError: if ``strict`` and a picture can't be read.
        InputError: if an argument is out of range.
        StoreError: if the store can't be written.

    >>> from clipadapter.encoders import create_encoder
    >>> extract(create_encoder("toy"), [np.zeros((8, 8, 3), np.uint8)]).features.shape
    (1, 1, 32)
    """
    if isinstance(sources, str) or not isinstance(sources, Sequence):
        raise InputError(f"pictures must be given as a list, but came as {type(sources).__name__}")
    n, computed, skipped, notes = len(sources), 0, list[Skipped](), ImageNotes()
    features = np.empty((n if keep else 0, views.count, encoder.info.dim), np.float32)
    with nullcontext(store) if store is not None else FeatureStore(":memory:") as opened_store:
        job = ExtractionJob(encoder, opened_store, views, batch_size, workers)
        with job.open_threads() as threads, closing(run_job(job, sources, threads)) as batches:
            pictures = (picture for batch in batches for picture in batch)
            for picture in progress_bar(pictures, total=n, desc="features", unit="img", shown=progress):
                if not isinstance(picture.values, ImageError):
                    computed += picture.computed
                    notes.add(picture.name, picture.notes)
                    if keep:
                        features[picture.position] = picture.values
                elif strict:
                    raise picture.values
                else:
                    skipped.append((picture.position, picture.values.source, picture.values.reason))
    notes.warn()
    unreadable = {position for position, _, _ in skipped}
    rows = [row for row in range(n) if row not in unreadable]
    if keep and unreadable:
        features = features[rows]
    return Extraction(features, rows, skipped, computed, len(rows) * views.count - computed)


def stream_features(
    encoder: Encoder,
    sources: Iterable[ImageSource | None],
    *,
    store: FeatureStore | None = None,
    views: ViewSpec = ViewSpec(),  # noqa: B008 - frozen
    batch_size: int = 32,
    workers: int | None = None,
) -> Iterator[list[tuple[ImageSource, NDArray[np.float32] | ImageError]]]:
    """Extract the features of any number of pictures in their order, of which a window is in memory.

    Threads read the next pictures while the encoder and the caller work.

    Args:
        encoder: computes the features.
        sources: pictures: paths, PIL images or arrays. None among them says that the next one is not there yet: the
            features of all before it are given before the iterator is asked again.
        store: read and filled; None stores nothing.
        views: as for `extract`.
        batch_size: views encoded at a time.
        workers: threads that read pictures; None takes one a core, at most 8.

    Yields:
        The pictures that are ready, each with its (v, d) features or the error that says why it can't be read.

    Raises:
        InputError: if an argument is out of range.
        StoreError: if the store can't be written.

    >>> from clipadapter.encoders import create_encoder
    >>> pictures = (np.full((8, 8, 3), grey, np.uint8) for grey in range(3))
    >>> [len(ready) for ready in stream_features(create_encoder("toy"), pictures, batch_size=2)]
    [2, 1]
    """
    job, notes = ExtractionJob(encoder, store, views, batch_size, workers), ImageNotes()
    with job.open_threads() as threads, closing(run_job(job, sources, threads)) as batches:
        for batch in batches:
            for picture in batch:
                notes.add(picture.name, picture.notes)
            yield [(picture.source, picture.values) for picture in batch]  # type: ignore[misc]
    notes.warn()


def parse_shard(text: str) -> tuple[int, int]:
    """Parse ``i/n``, the i-th of n shards: every n-th picture, starting with the i-th.

    Raises:
        InputError: if the text is no shard.

    >>> parse_shard("2/8")
    (2, 8)
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip(), re.ASCII)
    if match is None:
        raise InputError(f"a shard is written i/n, such as 2/8 for the second of eight, but is {brief(text)}")
    i, n = int(match[1]), int(match[2])
    if not 1 <= i <= n:
        raise InputError(f"shard i/n needs 1 <= i <= n, but is {i}/{n}")
    return i, n


@dataclass(frozen=True)
class ExtractionJob:
    """The arguments of an extraction."""

    encoder: Encoder
    store: FeatureStore | None  # None: nothing is kept, so that memory does not grow with the number of pictures
    views: ViewSpec = ViewSpec()  # noqa: RUF009 - frozen
    batch_size: int = 32  # views encoded at a time
    workers: int | None = None  # threads that read pictures
    lock: threading.Lock = field(default_factory=threading.Lock)  # two threads must not load one PIL image at once

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.n_threads < 1:
            raise InputError(
                f"batch_size and workers must be 1 or more, but are {self.batch_size} and {self.n_threads}"
            )

    def open_threads(self) -> ThreadPoolExecutor:
        """Threads that read pictures."""
        return ThreadPoolExecutor(self.n_threads, thread_name_prefix="clipadapter-read")

    @property
    def n_threads(self) -> int:
        """Number of threads that read pictures; by default one a core, at most 8."""
        return min(8, os.cpu_count() or 1) if self.workers is None else self.workers

    @property
    def max_waiting(self) -> int:
        """Pictures that wait to be encoded: one batch beside the one that is encoded, and a few for the threads."""
        pictures = 2 * self.n_threads + -(-self.batch_size // self.views.count)
        image_bytes = sum(4 * 3 * each.info.image_size**2 for each in self.encoder.passes()) * self.views.count
        return min(pictures, max(2, MAX_WAITING_BYTES // image_bytes))


@dataclass(frozen=True)
class _PassOfView:
    """One pass of an encoder over one view of a picture; equal for equal pictures."""

    encoder: int  # number of the pass
    keys: tuple[bytes, ...]  # in the store, of each block that the pass gives


@dataclass
class ExtractedImage:
    """A picture with its features. Until the passes that it lacks have run, it has their pixels instead."""

    position: int  # in the sources
    source: Source
    values: NDArray[np.float32] | ImageError | None = None  # (v, d) features, or the error that says why there are none
    digest: bytes | None = None  # hash of its bytes, if they could be read
    notes: Sequence[str] = ()  # what a user should know about the file
    computed: int = 0  # how many of the v features were computed for this picture, not taken from the store
    keys: Sequence[Sequence[bytes]] = ()  # for each view, those of all blocks
    stored: Vectors = field(default_factory=dict)
    pixels: dict[_PassOfView, Tensor] = field(default_factory=dict)  # input of each pass that must run

    @property
    def name(self) -> str:
        """Its name in messages."""
        return source_name(self.source.path if isinstance(self.source, ImageRef) else self.source)

    def finish(self, fresh: Vectors, passes: Collection[_PassOfView] = ()) -> None:
        """Set the features, some of which were computed, for this picture by these passes."""
        known, fresh_keys = ChainMap(self.stored, fresh), {key for each in passes for key in each.keys}
        if all(key in known for view in self.keys for key in view):
            self.values = np.stack([np.concatenate([known[key] for key in view]) for view in self.keys])
            self.computed = sum(not fresh_keys.isdisjoint(view) for view in self.keys)
        else:
            self.values = ImageError(self.name, "its feature is not finite")
        self.stored, self.pixels = {}, {}


def run_job(
    job: ExtractionJob, sources: Iterable[Source | None], threads: Executor
) -> Generator[list[ExtractedImage], None, None]:
    """Extract pictures in their order, of which a window is in memory."""
    # A source of None says that the next one is not there yet: all before it are given first. Close the generator
    # (``contextlib.closing``) to cancel what its threads would do next.
    max_waiting, batch_passes = job.max_waiting, job.batch_size * len(job.encoder.passes())
    max_pictures = max(1, MAX_STORED_BATCHES * job.batch_size // job.views.count)
    window: deque[Future[ExtractedImage]] = deque()
    batch: list[ExtractedImage] = []
    numbered, is_paused, is_over = enumerate(sources), False, False
    try:
        while window or batch or not is_over:
            while len(window) < max_waiting and not (is_paused or is_over):
                position, source = next(numbered, (-1, None))
                is_over, is_paused = position < 0, source is None
                if source is not None:
                    window.append(threads.submit(prepare_image, job, position, source))
            if window:
                batch.append(window.popleft().result())
            n_passes = sum(len(picture.pixels) for picture in batch)
            is_full = n_passes >= batch_passes or len(batch) >= max_pictures
            if not (is_full or (not window and (is_paused or is_over))):
                continue
            if n_passes:
                encode_batch(job, [picture for picture in batch if picture.pixels])
            if batch:
                yield batch
            batch, is_paused = [], is_paused and bool(window)
    finally:
        for future in window:  # else each picture waits for a server that does not answer
            future.cancel()


def prepare_image(job: ExtractionJob, position: int, source: Source) -> ExtractedImage:
    """Read a picture once, look up the features of its views, and make the pixels of missing ones. Runs in a thread."""
    picture, passes = ExtractedImage(position, source), job.encoder.passes()
    path = source.path if isinstance(source, ImageRef) else source
    lock = job.lock if isinstance(source, Image.Image) else nullcontext()
    try:
        with lock:
            data = source.read() if isinstance(source, ImageRef) else image_bytes(source)
        picture.digest = digest = blake2b(data, digest_size=32).digest()
        views = [
            [
                _PassOfView(p, tuple(feature_key(digest, each, job.views.key(i)) for each in one.block_fingerprints()))
                for p, one in enumerate(passes)
            ]
            for i in range(job.views.count)
        ]
        picture.keys = [[key for one in view for key in one.keys] for view in views]
        picture.stored = _look_up(job, [one for view in views for one in view])
        missing = [
            (i, one) for i, view in enumerate(views) for one in view if not picture.stored.keys() >= set(one.keys)
        ]
        # The plain view comes from a shrunk picture where `min_jpeg_side` allows it, whatever else is made: a stored
        # feature depends on its key only. Augmented views come from the picture in full size.
        infos = [one.info for one in passes]
        min_sides = [
            None if i else min_jpeg_side(infos[one.encoder].precision, infos[one.encoder].image_size)
            for i, one in missing
        ]
        is_file = isinstance(path, str | Path)
        if missing:
            with lock:
                images = read_image_shrunk(path, min_sides, data=data if is_file else None)
    except ImageError as error:
        return ExtractedImage(position, source, error.without_traceback(), picture.digest)
    picture.notes = find_image_notes(data) if is_file else ()
    for (i, one), min_side in zip(missing, min_sides, strict=True):
        view = augment(images[min_side], job.views, i, digest, infos[one.encoder].image_size)
        picture.pixels[one] = passes[one.encoder].preprocess(view)
    if not missing:
        picture.finish({})
    return picture


def _look_up(job: ExtractionJob, passes: Iterable[_PassOfView]) -> Vectors:
    """The stored blocks of some passes."""
    if job.store is None:
        return {}
    keys_by_width: dict[int, list[bytes]] = {}
    encoders = job.encoder.passes()
    for one in passes:
        for key, block in zip(one.keys, encoders[one.encoder].info.blocks, strict=True):
            keys_by_width.setdefault(block.width, []).append(key)
    stored: Vectors = {}
    for width, keys in keys_by_width.items():
        stored |= job.store.get_many(keys, width)
    return stored


def encode_batch(job: ExtractionJob, batch: Sequence[ExtractedImage]) -> None:
    """Run the missing passes of pictures, and store their blocks."""
    pixels = {one: value for picture in batch for one, value in picture.pixels.items()}
    # Pictures that came twice, or that another process stored since they were looked up.
    known = _look_up(job, pixels)
    lacking = [one for one in pixels if not known.keys() >= set(one.keys)]
    new: Vectors = {}
    for number, encoder in enumerate(job.encoder.passes()):
        own = [one for one in lacking if one.encoder == number]
        slices = column_slices(encoder.info.blocks).values()
        for i in range(0, len(own), job.batch_size):
            part = own[i : i + job.batch_size]
            # Not torch's stack: it wakes threads that keep spinning, on cores that other threads need.
            stacked = torch.from_numpy(np.stack([pixels[one].numpy() for one in part]))
            for vectors, one in zip(encoder.encode_pixels(stacked).numpy(), part, strict=True):
                for key, columns in zip(one.keys, slices, strict=True):
                    if key not in known and np.isfinite(vectors[columns]).all():
                        new[key] = vectors[columns]
    if new and job.store is not None:
        job.store.put_many(new)
    values, uncounted = known | new, set(lacking)
    for picture in batch:
        own_passes = picture.pixels.keys() & uncounted
        uncounted -= own_passes  # an equal picture in the batch was not computed again
        picture.finish(values, own_passes)
