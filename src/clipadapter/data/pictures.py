"""The forms in which pictures can be given: paths, folders, tables, data sets, and pictures in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clipadapter.data.dataset import Dataset
from clipadapter.data.folders import list_images
from clipadapter.data.images import ImageSource, source_name
from clipadapter.data.manifests import is_manifest, read_manifest
from clipadapter.errors import DataError, InputError, brief
from clipadapter.utils.files import printable

Pictures: TypeAlias = "ImageSource | Sequence[ImageSource] | Dataset"
"""One picture or many, as `FewShotClassifier` and `Predictor` take them; `list_pictures` says which forms there are."""
FEATURES_INSTEAD = "pictures are given as paths, PIL pictures or arrays (h, w, 3); features go to head_.predict(X)"


def list_pictures(images: Pictures | Iterable[ImageSource]) -> list[ImageSource]:
    """List the pictures of every form in which they can be given.

    A path of a picture, a PIL picture, an array (h, w, 3) or of another shape that `read_image` takes; or many: a list
    of these, an array (m, h, w, 3), a folder with pictures at any depth, a table (.csv, .tsv, .jsonl, .parquet) with
    the column ``path``, or a `Dataset`.
    """
    if isinstance(images, Dataset):
        return list(images.paths)
    if isinstance(images, str | Path):
        return _list_files(Path(images)) or [images]
    if isinstance(images, np.ndarray):
        return _list_arrays(images)
    if not isinstance(images, Iterable):
        source_name(images)  # raises for all but PIL pictures
        return [images]
    pictures = list(images)
    if pictures and all(isinstance(picture, Real) for picture in pictures):
        raise InputError(f"{FEATURES_INSTEAD}, but got {brief(images)}")
    return pictures


def _list_files(path: Path) -> list[ImageSource]:
    """The pictures of a folder or table; none if the path is neither."""
    if path.is_dir():
        pictures = list_images(path)
        if not pictures:
            raise DataError(f"there are no pictures in '{printable(path)}'")
        return list(pictures)
    return list(read_manifest(path).dataset.paths) if is_manifest(path) and path.is_file() else []


def _list_arrays(images: NDArray[Any]) -> list[ImageSource]:
    """The pictures of an array: one, or many along the first axis."""
    if images.dtype == object or images.dtype.kind == "U":
        return [str(image) if isinstance(image, np.str_) else image for image in images.ravel()]
    if images.ndim < 2 or (images.ndim == 2 and images.dtype != np.uint8):
        raise InputError(f"{FEATURES_INSTEAD}, but got {brief(images)}")
    is_one = images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (1, 3, 4))
    return [images] if is_one else list(images)
