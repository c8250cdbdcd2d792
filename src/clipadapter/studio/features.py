"""Features of a project's pictures: computed once, through the feature store, and kept while the studio runs."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier.inputs import open_store
from clipadapter.data import class_prompts
from clipadapter.data.images import ImageSource
from clipadapter.encoders import Encoder
from clipadapter.features import FeatureStore, choose_backend, encode_classes, extract
from clipadapter.studio.pictures import Contents, PictureFile, Stamp
from clipadapter.utils.blocks import Blocks, total_width

Array = NDArray[Any]
PICTURES_PER_STEP = 16
"""Pictures between two reports of progress, where the caller can stop, if each takes one pass through a tower."""
MIN_PICTURES_PER_STEP = 4
"""The same if each takes many passes."""


class FeatureCache:
    """Features of one quality by the stamps of files, so that a picture that was moved keeps its features.

    Blocks that another quality has too are read from the feature store, unless `params` switch that off.

    Attributes:
        encoder: gives the features, in the backend that was chosen.
    """

    def __init__(self, encoder: Encoder, params: Mapping[str, Any], cost: float = 1.0) -> None:
        self.encoder = encoder
        self._backend = (params.get("backend", "auto"), params.get("precision", "auto"))
        self._is_backend_chosen = self._backend == ("torch", "fp32")
        # "auto", a path of the feature store, or None for no store.
        self._store_path, self._batch_size = params.get("cache", "auto"), params.get("batch_size", 32)
        self._pictures_per_step = max(MIN_PICTURES_PER_STEP, round(PICTURES_PER_STEP / cost))
        self._rows: dict[Stamp, Array] = {}
        self._errors: dict[Stamp, str] = {}

    @property
    def blocks(self) -> Blocks:
        """Name and width of each block of `matrix`."""
        return self.encoder.info.blocks

    def has(self, picture: PictureFile) -> bool:
        """Whether the features of a picture are computed."""
        return picture.stamp in self._rows

    def fraction_done(self, pictures: Sequence[PictureFile]) -> float:
        """Return the share of these pictures that were processed, 0..1."""
        return 1 - len(self._missing(pictures)) / max(len(pictures), 1)

    def matrix(self, pictures: Sequence[PictureFile]) -> Array:
        """Return (n, d) float32 features of pictures that `has` them, all blocks side by side."""
        if not pictures:
            return np.empty((0, total_width(self.blocks)), np.float32)
        return np.stack([self._rows[picture.stamp] for picture in pictures])

    def final(self, pictures: Sequence[PictureFile]) -> Array:
        """Return (n, w) float32 block ``final``, by which pictures are compared with each other and with class text."""
        return self.matrix(pictures)[:, : self.blocks[0].width]

    def unreadable(self, contents: Contents) -> dict[str, str]:
        """Return why pictures can't be read, by key."""
        return {one.key: self._errors[one.stamp] for one in contents.pictures() if one.stamp in self._errors}

    def compute(self, pictures: Sequence[PictureFile], class_names: Sequence[str]) -> Generator[int, None, None]:
        """Compute missing features in steps. Yield the number of pictures that are done after each step."""
        missing = self._missing(pictures)
        if not missing:
            return
        with open_store(self._store_path) as store:
            if not self._is_backend_chosen:  # once: features of two precisions must not be mixed
                self._choose_backend(missing, class_names, store)
            for start in range(0, len(missing), self._pictures_per_step):
                part = missing[start : start + self._pictures_per_step]
                paths = [picture.path for picture in part]
                result = extract(self.encoder, paths, store=store, batch_size=self._batch_size)
                self._rows.update((part[i].stamp, row[0]) for i, row in zip(result.rows, result.features, strict=True))
                self._errors.update((part[i].stamp, reason) for i, _, reason in result.skipped)
                yield len(pictures) - len(missing) + start + len(part)

    def compute_one(self, image: ImageSource) -> Array:
        """Return (w,) block ``final`` of a picture; it is not kept."""
        row = extract(self.encoder, [image], strict=True).features[0, 0]
        return np.asarray(row[: self.encoder.info.text_dim])

    def _missing(self, pictures: Sequence[PictureFile]) -> list[PictureFile]:
        return [one for one in pictures if not self.has(one) and one.stamp not in self._errors]

    def _choose_backend(
        self, pictures: Sequence[PictureFile], class_names: Sequence[str], store: FeatureStore | None
    ) -> None:
        base, (backend, precision) = self.encoder, self._backend
        text = (lambda: encode_classes(base, class_prompts(class_names), store)) if len(class_names) > 1 else None
        paths = [picture.path for picture in pictures]
        self.encoder = choose_backend(base, paths, backend=backend, precision=precision, text=text, store=store)
        self._is_backend_chosen = True
