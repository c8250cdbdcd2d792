"""Features of a project's pictures: computed once, through the feature store, and kept while the studio runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.data import class_prompts
from clipadapter.data.images import ImageSource
from clipadapter.encoders import Encoder
from clipadapter.features import Extraction, FeatureStore, choose_backend, encode_classes, extract
from clipadapter.studio.contents import Contents
from clipadapter.studio.pictures import PictureFile, Stamp

Array = NDArray[Any]
PICTURES_PER_STEP = 16
"""Pictures between two reports of progress, where the caller can stop."""


class FeatureCache:
    """Features by the stamps of files, so that a picture that was moved keeps its features.

    Args:
        encoder: an open encoder.
        backend: backend of its image tower, or "auto"; chosen when the first pictures come.
        precision: precision, or "auto"; chosen at the same time.
        params: parameters of `FewShotClassifier`; ``cache`` and ``batch_size`` are used.
    """

    def __init__(self, encoder: Encoder, backend: str, precision: str, params: Mapping[str, Any]) -> None:
        self.encoder = encoder
        # None once the encoder runs in its backend: when it was chosen, or if the plain one was requested.
        self._requested_backend = None if (backend, precision) == ("torch", "fp32") else (backend, precision)
        # "auto", a path of the feature store, or None for no store.
        self._store_path = params.get("cache", "auto")
        self._batch_size = params.get("batch_size", 32)
        self._features: dict[Stamp, Array] = {}
        self._errors: dict[Stamp, str] = {}

    def has(self, picture: PictureFile) -> bool:
        """Whether the features of a picture are computed."""
        return picture.stamp in self._features

    def fraction_done(self, pictures: Sequence[PictureFile]) -> float:
        """Return the share of these pictures that were processed, 0..1."""
        done = sum(one.stamp in self._features or one.stamp in self._errors for one in pictures)
        return done / max(len(pictures), 1)

    def matrix(self, pictures: Sequence[PictureFile]) -> Array:
        """Return (n, d) float32 features of pictures that `has` them."""
        rows = [self._features[picture.stamp] for picture in pictures]
        return np.stack(rows) if rows else np.empty((0, self.encoder.info.dim), np.float32)

    def unreadable(self, contents: Contents) -> dict[str, str]:
        """Return why pictures can't be read, by key."""
        return {one.key: self._errors[one.stamp] for one in contents.pictures() if one.stamp in self._errors}

    def compute(self, pictures: Sequence[PictureFile], class_names: Sequence[str]) -> Iterator[int]:
        """Compute missing features in steps. Yield the number of pictures that are done after each step.

        Raises:
            StoreError: if the store can't be written.
        """
        missing = [one for one in pictures if one.stamp not in self._features and one.stamp not in self._errors]
        if not missing:
            return
        with self._open_store() as store:
            self._choose_backend([picture.path for picture in missing], class_names, store)
            for start in range(0, len(missing), PICTURES_PER_STEP):
                part = missing[start : start + PICTURES_PER_STEP]
                result = self._extract([picture.path for picture in part], store)
                self._features.update(
                    (part[i].stamp, row[0]) for i, row in zip(result.rows, result.features, strict=True)
                )
                self._errors.update((part[i].stamp, reason) for i, _, reason in result.skipped)
                yield len(pictures) - len(missing) + start + len(part)

    def compute_one(self, image: ImageSource) -> Array:
        """Return (d,) features of a picture; they are not kept.

        Raises:
            ImageError: if it can't be read.
        """
        return np.asarray(extract(self.encoder, [image], strict=True).features[0, 0])

    def _extract(self, paths: Sequence[Path], store: FeatureStore | None) -> Extraction:
        return extract(self.encoder, paths, store=store, batch_size=self._batch_size)

    def _choose_backend(self, paths: Sequence[Path], class_names: Sequence[str], store: FeatureStore | None) -> None:
        """Choose the backend once: features of two precisions must not be mixed."""
        if self._requested_backend is None:
            return
        base, (backend, precision) = self.encoder, self._requested_backend
        text = (lambda: encode_classes(base, class_prompts(class_names), store)) if len(class_names) > 1 else None
        self.encoder = choose_backend(base, paths, backend=backend, precision=precision, text=text, store=store)
        self._requested_backend = None

    def _open_store(self) -> Any:
        if self._store_path is None:
            return nullcontext(None)
        return closing(FeatureStore(None if self._store_path == "auto" else self._store_path))
