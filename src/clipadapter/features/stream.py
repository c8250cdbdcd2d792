"""Features of a stream of pictures: any number, in their order, as soon as they are there."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.data.image_notes import ImageNotes
from clipadapter.data.images import ImageSource, source_name
from clipadapter.encoders import Encoder
from clipadapter.errors import ImageError
from clipadapter.features.extraction import (
    ExtractedImage,
    ExtractionJob,
    NoStore,
    PreparedImage,
    encode_batch,
    make_job,
    prepare_image,
)
from clipadapter.features.store import FeatureStore
from clipadapter.features.views import ViewSpec

MAX_STORED_BATCHES = 4
"""Batches of features from the store that are given at once."""
END: Any = object()


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
    window: dict[int, ImageSource] = {}
    job = make_job(encoder, window, NoStore() if store is None else store, views, "float32", batch_size, workers)
    notes = ImageNotes()
    with closing(_stream_job(job, window, iter(sources))) as batches:
        for batch in batches:
            for extracted in batch:
                notes.add(source_name(window[extracted.position]), extracted.notes)
            yield [(window.pop(extracted.position), extracted.values) for extracted in batch]
    notes.warn()


def _stream_job(
    job: ExtractionJob, window: dict[int, ImageSource], sources: Iterator[ImageSource | None]
) -> Generator[list[ExtractedImage], None, None]:
    """Extract pictures in their order; see `stream_features`. Their sources are in `window` meanwhile."""
    pool = ThreadPoolExecutor(job.workers, thread_name_prefix="clipadapter-read")
    max_waiting, batch_passes = job.max_waiting, job.batch_passes
    max_pictures = max(1, MAX_STORED_BATCHES * job.batch_size // job.views.count)
    positions = count()
    waiting: deque[Future[PreparedImage | ExtractedImage]] = deque()
    batch: list[PreparedImage | ExtractedImage] = []
    is_paused = is_over = False
    try:
        while waiting or not is_over:
            while len(waiting) < max_waiting and not (is_paused or is_over):
                source = next(sources, END)
                if source is END:
                    is_over = True
                elif source is None:
                    is_paused = True
                else:
                    position = next(positions)
                    window[position] = source
                    waiting.append(pool.submit(prepare_image, job, position))
            if waiting:
                batch.append(waiting.popleft().result())
            prepared = [picture for picture in batch if isinstance(picture, PreparedImage)]
            is_full = sum(len(picture.pixels) for picture in prepared) >= batch_passes or len(batch) >= max_pictures
            if is_full or (not waiting and (is_paused or is_over)):
                encoded = iter(encode_batch(job, prepared)[0] if prepared else [])
                if batch:
                    yield [next(encoded) if isinstance(picture, PreparedImage) else picture for picture in batch]
                batch, is_paused = [], is_paused and bool(waiting)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
