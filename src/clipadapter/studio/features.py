"""Features of a project's pictures: computed once, through the feature store, and kept while the studio runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.data import class_prompts
from clipadapter.data.images import ImageSource
from clipadapter.encoders import Encoder, open_blocks
from clipadapter.features import Extraction, FeatureStore, choose_backend, encode_classes, extract
from clipadapter.studio.contents import Contents
from clipadapter.studio.pictures import PictureFile, Stamp
from clipadapter.utils.blocks import Blocks, column_slices

Array = NDArray[Any]
PICTURES_PER_STEP = 16
"""Pictures between two reports of progress, where the caller can stop, if each takes one pass through a tower."""
MIN_PICTURES_PER_STEP = 4
"""The same if each takes many passes."""


class FeatureCache:
    """Features by the stamps of files, so that a picture that was moved keeps its features.

    Each block of features is kept apart. A cache of other blocks of the same encoder (`with_blocks`) computes only
    those that are missing.

    Attributes:
        encoder: gives the features, in the backend that was chosen.
    """

    def __init__(self, encoder: Encoder, backend: str, precision: str, params: Mapping[str, Any]) -> None:
        self._base, self._backend = encoder, (backend, precision)
        # "auto", a path of the feature store, or None for no store.
        self._store_path = params.get("cache", "auto")
        self._batch_size = params.get("batch_size", 32)
        self._pictures_per_step = PICTURES_PER_STEP
        # The features of each block by its fingerprint, which names encoder, layer, size of the picture and precision.
        self._vectors: dict[Stamp, dict[str, Array]] = {}
        self._errors: dict[Stamp, str] = {}
        self._set_encoder(encoder, is_backend_chosen=False)

    def with_blocks(self, names: Sequence[str], others: Sequence[Encoder] = (), cost: float = 1.0) -> FeatureCache:
        """Return a cache of other blocks, which shares all features that are computed.

        Its backend and precision are chosen anew, since those of one layer may not suit another one.
        """
        other = copy.copy(self)
        other._set_encoder(open_blocks(self._base, names, others), is_backend_chosen=False)
        other._pictures_per_step = max(MIN_PICTURES_PER_STEP, round(PICTURES_PER_STEP / cost))
        return other

    @property
    def blocks(self) -> Blocks:
        """Name and width of each block of `matrix`."""
        return self.encoder.info.blocks

    def has(self, picture: PictureFile) -> bool:
        """Whether all features of a picture are computed."""
        return self._vectors.get(picture.stamp, {}).keys() >= self._fingerprint_set

    def fraction_done(self, pictures: Sequence[PictureFile]) -> float:
        """Return the share of these pictures that were processed, 0..1."""
        done = sum(self.has(one) or one.stamp in self._errors for one in pictures)
        return done / max(len(pictures), 1)

    def matrix(self, pictures: Sequence[PictureFile]) -> Array:
        """Return (n, d) float32 features of pictures that `has` them, all blocks side by side."""
        return self._stack(pictures, self._fingerprints)

    def final(self, pictures: Sequence[PictureFile]) -> Array:
        """Return (n, w) float32 block ``final``, by which pictures are compared with each other and with class text."""
        return self._stack(pictures, self._fingerprints[:1])

    def _stack(self, pictures: Sequence[PictureFile], fingerprints: Sequence[str]) -> Array:
        if not pictures:
            width = sum(block.width for block in self.blocks[: len(fingerprints)])
            return np.empty((0, width), np.float32)
        rows = [self._vectors[picture.stamp] for picture in pictures]
        parts = [np.stack([row[fingerprint] for row in rows]) for fingerprint in fingerprints]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def unreadable(self, contents: Contents) -> dict[str, str]:
        """Return why pictures can't be read, by key."""
        return {one.key: self._errors[one.stamp] for one in contents.pictures() if one.stamp in self._errors}

    def compute(self, pictures: Sequence[PictureFile], class_names: Sequence[str]) -> Iterator[int]:
        """Compute missing features in steps. Yield the number of pictures that are done after each step."""
        missing = self._missing(pictures)
        if not missing:
            return
        with self._open_store() as store:
            self._choose_backend([picture.path for picture in missing], class_names, store)
            missing = self._missing(pictures)  # the precision that was chosen may have been used before
            for start in range(0, len(missing), self._pictures_per_step):
                part = missing[start : start + self._pictures_per_step]
                result = self._extract([picture.path for picture in part], store)
                for i, row in zip(result.rows, result.features, strict=True):
                    self._keep(part[i].stamp, row[0])
                self._errors.update((part[i].stamp, reason) for i, _, reason in result.skipped)
                yield len(pictures) - len(missing) + start + len(part)

    def compute_one(self, image: ImageSource) -> Array:
        """Return (w,) block ``final`` of a picture; it is not kept."""
        row = extract(self.encoder, [image], strict=True).features[0, 0]
        return np.asarray(row[: self.encoder.info.text_dim])

    def _missing(self, pictures: Sequence[PictureFile]) -> list[PictureFile]:
        return [one for one in pictures if not self.has(one) and one.stamp not in self._errors]

    def _keep(self, stamp: Stamp, row: Array) -> None:
        # Another thread may read the features of the picture, so that its dictionary is replaced, not changed.
        columns = column_slices(self.blocks).values()
        own = {key: row[part].copy() for key, part in zip(self._fingerprints, columns, strict=True)}
        self._vectors[stamp] = {**self._vectors.get(stamp, {}), **own}

    def _extract(self, paths: Sequence[Path], store: FeatureStore | None) -> Extraction:
        return extract(self.encoder, paths, store=store, batch_size=self._batch_size)

    def _set_encoder(self, encoder: Encoder, is_backend_chosen: bool) -> None:
        self.encoder = encoder
        self._fingerprints = encoder.block_fingerprints()
        self._fingerprint_set = frozenset(self._fingerprints)
        self._is_backend_chosen = is_backend_chosen or self._backend == ("torch", "fp32")

    def _choose_backend(self, paths: Sequence[Path], class_names: Sequence[str], store: FeatureStore | None) -> None:
        """Choose the backend once: features of two precisions must not be mixed."""
        if self._is_backend_chosen:
            return
        base, (backend, precision) = self.encoder, self._backend
        text = (lambda: encode_classes(base, class_prompts(class_names), store)) if len(class_names) > 1 else None
        chosen = choose_backend(base, paths, backend=backend, precision=precision, text=text, store=store)
        self._set_encoder(chosen, is_backend_chosen=True)

    def _open_store(self) -> Any:
        if self._store_path is None:
            return nullcontext(None)
        return closing(FeatureStore(None if self._store_path == "auto" else self._store_path))
