"""Features of a project's pictures: computed once, by way of the store, and kept as long as the studio runs."""

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
from clipadapter.studio._pictures import Picture, Stamp
from clipadapter.studio._reading import Contents

Array = NDArray[Any]
STEP = 16
"""Pictures after which progress is told, and a change of the project is looked for."""


class Features:
    """Features by the stamps of files, so that a picture that was moved keeps its own.

    Args:
        encoder: open.
        backend: what runs its image tower, or "auto"; settled when the first pictures come.
        precision: likewise.
        params: those of `FewShotClassifier`; ``cache`` and ``batch_size`` are used.
    """

    def __init__(self, encoder: Encoder, backend: str, precision: str, params: Mapping[str, Any]) -> None:
        self.encoder = encoder
        self._wish = None if (backend, precision) == ("torch", "fp32") else (backend, precision)
        self._cache = params.get("cache", "auto")
        self._batch_size = params.get("batch_size", 32)
        self._rows: dict[Stamp, Array] = {}
        self._bad: dict[Stamp, str] = {}

    def has(self, picture: Picture) -> bool:
        """Whether its features are there."""
        return picture.stamp in self._rows

    def share(self, pictures: Sequence[Picture]) -> float:
        """How many of these are done."""
        return sum(one.stamp in self._rows or one.stamp in self._bad for one in pictures) / max(len(pictures), 1)

    def matrix(self, pictures: Sequence[Picture]) -> Array:
        """(n, d) float32 of pictures that are there."""
        rows = [self._rows[one.stamp] for one in pictures]
        return np.stack(rows) if rows else np.empty((0, self.encoder.info.dim), np.float32)

    def reasons(self, contents: Contents) -> dict[str, str]:
        """Why pictures can't be read, by their keys."""
        return {one.key: self._bad[one.stamp] for one in contents.all() if one.stamp in self._bad}

    def fill(self, pictures: Sequence[Picture], class_names: Sequence[str]) -> Iterator[int]:
        """Compute what is missing, some at a time; how many are done.

        Raises:
            StoreError: if the store can't be written.
        """
        missing = [one for one in pictures if one.stamp not in self._rows and one.stamp not in self._bad]
        if not missing:
            return
        with self._store() as store:
            self._settle([one.path for one in missing], class_names, store)
            for start in range(0, len(missing), STEP):
                part = missing[start : start + STEP]
                found = self._extract([one.path for one in part], store)
                self._rows.update((part[i].stamp, row[0]) for i, row in zip(found.rows, found.features, strict=True))
                self._bad.update((part[i].stamp, reason) for i, _, reason in found.skipped)
                yield len(pictures) - len(missing) + start + len(part)

    def of(self, image: ImageSource) -> Array:
        """(d,) of one picture, which is not kept.

        Raises:
            ImageError: if it can't be read.
        """
        return np.asarray(extract(self.encoder, [image], strict=True).features[0, 0])

    def _extract(self, paths: Sequence[Path], store: FeatureStore | None) -> Extraction:
        return extract(self.encoder, paths, store=store, batch_size=self._batch_size)

    def _settle(self, paths: Sequence[Path], class_names: Sequence[str], store: FeatureStore | None) -> None:
        """Choose the backend, once; features of two precisions must not be mixed."""
        if self._wish is None:
            return
        plain, (backend, precision) = self.encoder, self._wish
        text = (lambda: encode_classes(plain, class_prompts(class_names), store)) if len(class_names) > 1 else None
        self.encoder = choose_backend(plain, paths, backend=backend, precision=precision, text=text, store=store)
        self._wish = None

    def _store(self) -> Any:
        if self._cache is None:
            return nullcontext(None)
        return closing(FeatureStore(None if self._cache == "auto" else self._cache))
