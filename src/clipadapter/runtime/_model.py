"""What all that answers without torch has in common: squares in, names out."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.data.images import MAX_PIXELS, MAX_SECONDS, ImageSource, read_image, source_name
from clipadapter.errors import ImageError, InputError
from clipadapter.pixels import PixelSpec, min_jpeg_side
from clipadapter.prediction import Prediction, unreadable
from clipadapter.uncertainty import Answers, Uncertainty

BATCH = 8
"""Pictures that are answered at a time: in larger batches ONNX Runtime takes half as long again for each."""
AHEAD = 2
"""Batches that are read while one is answered."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the graph says of n pictures.

    Args:
        logits: (n, c).
        features: (n, d) raw, as from the encoder.
        parts: (n, p) scores of "none of these", one a part of the rejector; None without one, or if the rejector
            computes them itself.
        probabilities: (n, c) as the graph computes them, in float32; None if it does not.
        strangeness: (n,) the sum of the parts as the graph computes it; None if it does not.
    """

    logits: NDArray[Any]
    features: NDArray[Any]
    parts: NDArray[Any] | None = None
    probabilities: NDArray[Any] | None = None
    strangeness: NDArray[Any] | None = None

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.logits)

    def rows(self, which: slice) -> Outputs:
        """Those of some of the pictures."""
        every = (self.logits, self.features, self.parts, self.probabilities, self.strangeness)
        return Outputs(*(None if array is None else array[which] for array in every))  # type: ignore[arg-type]


class RuntimeModel(ABC):
    """A fitted model that answers without torch.

    Args:
        class_names: in the order of the logits.
        pixels: how pictures become squares.
        uncertainty: what held-out shots taught.
        precision: of the image tower.
    """

    class_names: tuple[str, ...]
    pixels: PixelSpec
    uncertainty: Uncertainty
    precision: str

    @property
    def several(self) -> bool:
        """Whether a picture may have several labels."""
        return self.uncertainty.multilabel is not None

    @abstractmethod
    def run(self, squares: NDArray[np.uint8]) -> Outputs:
        """Squares (n, s, s, 3), values 0 .. 255, to what the graph says; may be called from several threads."""

    def square(
        self,
        image: ImageSource,
        data: bytes | None = None,
        max_pixels: int = MAX_PIXELS,
        max_seconds: float = MAX_SECONDS,
    ) -> NDArray[np.uint8]:
        """A picture as the square (s, s, 3) that `run` takes; may be called from several threads.

        Args:
            image: a path, PIL picture or array.
            data: the file's bytes, if they were read already: then the path is but a name.
            max_pixels: larger pictures are refused before they are unpacked.
            max_seconds: processor time for a file of a slow format, such as JPEG 2000.

        Raises:
            ImageError: if it can't be read.
        """
        least = min_jpeg_side(self.precision, self.pixels.size)
        return self.pixels.to_square(read_image(image, max_pixels, data, least, max_seconds))

    def answers(self, outputs: Outputs, **asked: Any) -> Answers:
        """What to say of pictures.

        Args:
            outputs: of `run`.
            asked: ``reject``, ``coverage`` or ``costs``, instead of what the model was fitted to say.

        Raises:
            InputError: if something is asked for that was not learned from the shots.
        """
        wanted = self.uncertainty.decisions.changed(asked)
        return self.uncertainty.answer(outputs.logits, outputs.features, wanted, columns=outputs.parts)

    def classify(self, images: Sequence[ImageSource], top: int = 5, **asked: Any) -> list[Prediction]:
        """One answer a picture, in their order; see `FewShotClassifier.classify`."""
        return list(self.stream(images, top, **asked))

    def predict(self, images: Sequence[ImageSource], **asked: Any) -> list[Any]:
        """The class of each picture; None if it is none of them; a tuple of classes where it may have several.

        Raises:
            ImageError: if a picture can't be read.
        """
        found = []
        for answer in self.stream(images, 1, **asked):
            if answer.error is not None:
                raise ImageError(answer.source, answer.error)
            found.append(answer.labels if self.several else answer.label)
        return found

    def predict_proba(self, images: Sequence[ImageSource]) -> NDArray[np.float64]:
        """Calibrated probabilities (m, c).

        Raises:
            ImageError: if a picture can't be read.
        """
        found = [np.zeros((0, len(self.class_names)))]
        for seen, outputs in self._batches(images, BATCH):
            _demand_all(seen)
            found.append(self.uncertainty.probabilities(outputs.logits))
        return np.concatenate(found)

    def stream(
        self, images: Iterable[ImageSource], top: int = 5, batch_size: int = BATCH, **asked: Any
    ) -> Iterator[Prediction]:
        """Answers in the order of the pictures, of which a few batches are in memory at a time.

        Threads read the next pictures while one batch is answered; a picture that can't be read costs only its own
        answer.

        Args:
            images: any number.
            top: how many classes to name.
            batch_size: pictures answered at a time.
            asked: as for `answers`.

        Raises:
            InputError: if something is asked for that was not learned from the shots, the batch size is below 1, or one
                picture came instead of several.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, but is {batch_size}")
        for seen, outputs in self._batches(images, batch_size):
            told, place = self.answers(outputs, **asked), 0
            for picture in seen:
                if picture.reason is None:
                    yield told.prediction(place, picture.name, self.class_names, top)
                    place += 1
                else:
                    yield unreadable(picture.name, picture.reason)

    def _batches(self, images: Iterable[ImageSource], batch_size: int) -> Iterator[tuple[list[_Seen], Outputs]]:
        """Pictures, and what the graph says of those that can be read."""
        if isinstance(images, str | np.ndarray) or not isinstance(images, Iterable):
            raise InputError(f"pictures must be given as a list, but came as {type(images).__name__}")
        given = iter(images)
        with ThreadPoolExecutor(min(batch_size, os.cpu_count() or 1)) as pool:
            waiting: deque[list[Future[_Seen]]] = deque()
            while True:
                while len(waiting) < AHEAD and (batch := list(islice(given, batch_size))):
                    waiting.append([pool.submit(self._seen, image) for image in batch])
                if not waiting:
                    return
                seen = [future.result() for future in waiting.popleft()]
                squares = [picture.square for picture in seen if picture.square is not None]
                yield seen, self.run(np.stack(squares)) if squares else self._none()

    def _seen(self, image: ImageSource) -> _Seen:
        try:
            return _Seen(source_name(image), self.square(image))
        except ImageError as error:
            return _Seen(error.source, reason=error.reason)

    def _none(self) -> Outputs:
        """What is said of no picture."""
        c = len(self.class_names)
        parts = None if self.uncertainty.rejector is None else np.zeros((0, len(self.uncertainty.rejector.parts)))
        width = None if self.uncertainty.rejector is None else self.uncertainty.rejector.memory.width
        return Outputs(np.zeros((0, c)), np.zeros((0, width or 1)), parts)


@dataclass(frozen=True, eq=False)
class _Seen:
    """A picture that was read, or why it can't be."""

    name: str
    square: NDArray[np.uint8] | None = None
    reason: str | None = None


def _demand_all(seen: Sequence[_Seen]) -> None:
    for picture in seen:
        if picture.reason is not None:
            raise ImageError(picture.name, picture.reason)
