"""Base of models that predict without torch: pictures in, predictions out."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.adaptation import Adapt, TdaCache
from clipadapter.data.image_notes import ImageNotes, find_image_notes
from clipadapter.data.images import MAX_DECODE_SECONDS, ImageSource, image_bytes, read_image_shrunk, source_name
from clipadapter.data.pictures import Pictures, list_pictures
from clipadapter.errors import ImageError, InputError
from clipadapter.uncertainty import Answers, Uncertainty
from clipadapter.utils.pixels import PixelSpec, min_jpeg_side, pack_squares, packed_shape
from clipadapter.utils.prediction import Prediction, unreadable

DEFAULT_BATCH_SIZE = 8
"""In larger batches ONNX Runtime takes 1.5 times as long per picture."""
PREFETCHED_BATCHES = 2
"""Batches that are read ahead, the one that runs included: threads read the next while the graph runs."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """Outputs of a graph for n pictures.

    Args:
        logits: (n, c).
        features: (n, d) raw, as from the encoder; of several blocks the block ``final``.
        ood_score_parts: (n, p) scores of "none of these", one per part of the rejector; None without a rejector, or if
            the rejector computes them itself.
        probabilities: (n, c) as the graph computes them, in float32; None if it does not.
        ood_scores: (n,) weighted sum of the parts as the graph computes it; None if it does not.
        blocks: (n, w) all blocks of the features; None if ``final`` is the only one.
    """

    logits: NDArray[Any]
    features: NDArray[Any]
    ood_score_parts: NDArray[Any] | None = None
    probabilities: NDArray[Any] | None = None
    ood_scores: NDArray[Any] | None = None
    blocks: NDArray[Any] | None = None

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.logits)

    def rows(self, index: slice) -> Outputs:
        """Outputs of some of the pictures."""
        arrays = (getattr(self, field.name) for field in fields(self))
        return Outputs(*(None if array is None else array[index] for array in arrays))  # type: ignore[arg-type]

    @classmethod
    def concatenate(cls, outputs: Sequence[Outputs]) -> Outputs:
        """Outputs of all pictures of several batches."""
        batches = {field.name: [getattr(each, field.name) for each in outputs] for field in fields(cls)}
        return cls(**{name: None if rows[0] is None else np.concatenate(rows) for name, rows in batches.items()})  # type: ignore[arg-type]


class RuntimeModel(ABC):
    """A fitted model that predicts without torch.

    Args:
        class_names: in the order of the logits.
        pixels: how pictures become squares.
        uncertainty: calibration, rejection, sets and decisions.
        precision: of the image tower.
        further_inputs: how pictures become further squares, of other sizes or scaled otherwise.
    """

    class_names: tuple[str, ...]
    pixels: PixelSpec
    uncertainty: Uncertainty
    precision: str
    further_inputs: tuple[PixelSpec, ...] = ()

    @property
    def inputs(self) -> tuple[PixelSpec, ...]:
        """All squares that the model takes of a picture, in their order."""
        return (self.pixels, *self.further_inputs)

    @property
    def is_multilabel(self) -> bool:
        """Whether a picture may have several labels."""
        return self.uncertainty.multilabel is not None

    @abstractmethod
    def run(self, squares: NDArray[np.uint8]) -> Outputs:
        """Squares (n, s, s, 3), values 0 .. 255, to outputs; may be called from several threads.

        A model with several `inputs` takes (n, l), rows of `preprocess`.
        """

    def grey_pictures(self, n: int, value: int = 128) -> NDArray[np.uint8]:
        """What `preprocess` returns for n pictures of one grey."""
        return np.full((n, *packed_shape(self.inputs)), value, np.uint8)

    def preprocess(
        self,
        image: ImageSource,
        data: bytes | None = None,
        max_pixels: int | None = None,
        max_seconds: float = MAX_DECODE_SECONDS,
    ) -> NDArray[np.uint8]:
        """Preprocess a picture to the square (s, s, 3) that `run` takes; may be called from several threads.

        For several `inputs` the result is (l,): all squares, one after another, of the picture that is decoded once.

        Args:
            image: a path, PIL picture or array.
            data: the bytes of the file, if they were read already: then the path is only a name.
            max_pixels: larger pictures are refused before they are decoded; None: see `set_max_pixels`.
            max_seconds: processor time for a file of a slow format, such as JPEG 2000.

        Raises:
            ImageError: if it can't be read.
        """
        min_sides = [min_jpeg_side(self.precision, spec.size) for spec in self.inputs]
        images = read_image_shrunk(image, min_sides, max_pixels, data, max_seconds)
        return pack_squares(
            [spec.to_square(images[min_side]) for spec, min_side in zip(self.inputs, min_sides, strict=True)]
        )

    def open_cache(self, adapt: Adapt) -> TdaCache | None:
        """A cache for `adapt`; see `Uncertainty.open_cache`."""
        return self.uncertainty.open_cache(adapt, len(self.class_names))

    def adapt(self, outputs: Outputs, cache: TdaCache) -> NDArray[np.float64]:
        """Probabilities (n, c) by test-time adaptation, for `answer`; the cache remembers the pictures.

        Args:
            outputs: of `run`, in the order of the stream.
            cache: of `open_cache`.
        """
        return self.uncertainty.adapt(cache, outputs.features, outputs.logits)

    def answer(self, outputs: Outputs, *, adapted: NDArray[Any] | None = None, **decisions: Any) -> Answers:
        """Probabilities, decisions and sets of classes.

        Args:
            outputs: of `run`.
            adapted: (n, c) of `adapt`.
            decisions: ``reject``, ``coverage`` or ``costs``; without one, as the model was fitted.

        Raises:
            InputError: if a decision needs what was not learned from the shots.
        """
        options = self.uncertainty.decisions.with_changes(decisions)
        columns = outputs.ood_score_parts
        return self.uncertainty.answer(outputs.logits, outputs.features, options, columns=columns, adapted=adapted)

    def classify(self, images: Pictures, top: int = 5, *, adapt: Adapt = None, **decisions: Any) -> list[Prediction]:
        """One prediction per picture, in their order; see `FewShotClassifier.classify`. There are no ``views``."""
        return list(self.iter_predictions(images, top, adapt=adapt, **decisions))

    def predict(self, images: Pictures, **decisions: Any) -> list[Any]:
        """The class of each picture; None if it is rejected; a tuple of classes where it may have several.

        Args:
            images: in all forms that `FewShotClassifier.predict` takes; one picture gives a list of one.
            decisions: as for `answer`; or ``adapt``, see `iter_predictions`.

        Raises:
            ImageError: if a picture can't be read.
        """
        labels: list[Any] = []
        for prediction in self.iter_predictions(images, 1, **decisions):
            if prediction.error is not None:
                raise ImageError(prediction.source, prediction.error)
            labels.append(prediction.labels if self.is_multilabel else prediction.label)
        return labels

    def predict_proba(self, images: Pictures) -> NDArray[np.float64]:
        """Calibrated probabilities (m, c); one picture gives (1, c).

        Raises:
            ImageError: if a picture can't be read.
        """
        probabilities = [np.zeros((0, len(self.class_names)))]
        for pictures, outputs in self.iter_outputs(images, DEFAULT_BATCH_SIZE):
            for picture in pictures:
                if picture.error is not None:
                    raise ImageError(picture.name, picture.error)
            probabilities.append(self.uncertainty.probabilities(outputs.logits))
        return np.concatenate(probabilities)

    def iter_predictions(
        self,
        images: Pictures | Iterable[ImageSource] | Iterator[ImageSource | None],
        top: int = 5,
        batch_size: int = DEFAULT_BATCH_SIZE,
        *,
        adapt: Adapt = None,
        **decisions: Any,
    ) -> Iterator[Prediction]:
        """Predictions in the order of the pictures, of which a few batches are in memory at a time.

        Threads read the next pictures while the graph runs on one batch. A picture that can't be read gives a
        prediction with an error, and changes no other.

        Args:
            images: any number, in all forms that `FewShotClassifier.predict` takes; or an iterator of pictures. None in
                it means that the next picture is not there yet: the predictions for all before it come first.
            top: number of classes to name.
            batch_size: number of pictures per run of the graph.
            adapt: "tda" lets earlier pictures change the answers to later ones; a cache goes on from call to call.
            decisions: as for `answer`.

        Raises:
            InputError: if a decision needs what was not learned from the shots, or the batch size is below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, but is {batch_size}")
        cache = self.open_cache(adapt)
        for pictures, outputs in self.iter_outputs(images, batch_size):
            adapted = None if cache is None else self.adapt(outputs, cache)
            answers, row = self.answer(outputs, adapted=adapted, **decisions), 0
            for picture in pictures:
                if picture.error is None:
                    yield answers.prediction(row, picture.name, self.class_names, top)
                    row += 1
                else:
                    yield unreadable(picture.name, picture.error)

    def iter_outputs(
        self, images: Pictures | Iterable[ImageSource] | Iterator[ImageSource | None], batch_size: int
    ) -> Iterator[tuple[list[LoadedPicture], Outputs]]:
        """Batches of pictures in their order, and the outputs for those that can be read."""
        # An iterator may have more pictures than fit into memory.
        remaining = images if isinstance(images, Iterator) else iter(list_pictures(images))
        notes, is_paused = ImageNotes(), False
        with ThreadPoolExecutor(min(batch_size, os.cpu_count() or 1)) as pool:
            pending: deque[list[Future[LoadedPicture]]] = deque()
            while True:
                while len(pending) < PREFETCHED_BATCHES and not is_paused:
                    batch, is_paused = _take(remaining, batch_size)
                    if not batch:
                        break
                    pending.append([pool.submit(self._load, image) for image in batch])
                if not pending:
                    if not is_paused:
                        break
                    is_paused = False
                    continue
                pictures = [future.result() for future in pending.popleft()]
                for picture in pictures:
                    notes.add(picture.name, picture.notes)
                squares = [picture.square for picture in pictures if picture.square is not None]
                yield pictures, self.run(np.stack(squares)) if squares else self._empty_outputs()
        notes.warn()

    def _load(self, image: ImageSource) -> LoadedPicture:
        try:
            data = image_bytes(image) if isinstance(image, (str, Path)) else None
            notes = [] if data is None else find_image_notes(data)
            return LoadedPicture(source_name(image), self.preprocess(image, data), notes=notes)
        except ImageError as error:
            return LoadedPicture(error.source, error=error.reason)

    def _empty_outputs(self) -> Outputs:
        """Outputs for no picture."""
        rejector, c = self.uncertainty.rejector, len(self.class_names)
        parts = None if rejector is None else np.zeros((0, len(rejector.parts)))
        width = None if rejector is None else rejector.memory.width
        return Outputs(np.zeros((0, c)), np.zeros((0, width or 1)), parts)


def _take(images: Iterator[ImageSource | None], batch_size: int) -> tuple[list[ImageSource], bool]:
    """The next pictures, and whether there are fewer because the next one is not there yet."""
    batch: list[ImageSource] = []
    for image in islice(images, batch_size):
        if image is None:
            return batch, True
        batch.append(image)
    return batch, False


@dataclass(frozen=True, eq=False)
class LoadedPicture:
    """The squares of a picture and the notes on it, or why it can't be read."""

    name: str
    square: NDArray[np.uint8] | None = None
    error: str | None = None
    notes: Sequence[str] = ()
