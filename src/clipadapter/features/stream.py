"""Features of a stream of pictures: any number, in their order, as soon as they are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from clipadapter.data.image_notes import ImageNotes
from clipadapter.data.images import ImageSource, source_name
from clipadapter.encoders import Encoder
from clipadapter.errors import ImageError
from clipadapter.features.extraction import ExtractionJob, NoStore, run_job
from clipadapter.features.store import FeatureStore
from clipadapter.features.views import ViewSpec


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
    kept = NoStore() if store is None else store
    job = ExtractionJob(encoder, window, kept, views, batch_size=batch_size, workers=workers)
    notes = ImageNotes()
    with job.open_threads() as threads, closing(run_job(job, _positions(sources, window), threads)) as batches:
        for batch in batches:
            for extracted in batch:
                notes.add(source_name(window[extracted.position]), extracted.notes)
            yield [(window.pop(extracted.position), extracted.values) for extracted in batch]
    notes.warn()


def _positions(sources: Iterable[ImageSource | None], window: dict[int, ImageSource]) -> Iterator[int | None]:
    """Positions of sources, which are in `window` until their features are given."""
    for position, source in enumerate(sources):
        if source is None:
            yield None
        else:
            window[position] = source
            yield position
