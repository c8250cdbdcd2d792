"""Where in a picture a head sees a class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipadapter.encoders import Encoder
from clipadapter.heads import Head

Map = tuple[NDArray[np.float64] | None, tuple[float, float] | None, str]


def heat_map(encoder: Encoder, head: Head, picture: Image.Image, k: int) -> Map:
    """What a head says of each part of a picture, as if that part were all there is.

    Args:
        encoder: the one that the head was fitted with.
        head: fitted.
        picture: RGB.
        k: position of the class.

    Returns:
        (h, w) in 0..1, the logit of the class less the mean of the others'; its lowest and highest value before it was
        stretched; and nothing. Or None, None, and why.
    """
    name = encoder.info.name
    if encoder.info.text_dim is not None:
        return None, None, f"no heat map: the features of {name} are of two kinds, side by side"
    if head.needs_tower_to_predict:
        return None, None, "no heat map: this head would run the text tower once for each part of the picture"
    patches = encoder.patch_features(picture)
    if patches is None:
        return None, None, f"no heat map: {name} has no features of parts of a picture"
    h, w, d = patches.shape
    values = contrast(head.logits(patches.reshape(h * w, d).numpy()), k).reshape(h, w)
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1e-12), (low, high), ""


def contrast(logits: NDArray[Any], k: int) -> NDArray[np.float64]:
    """Logits (m, c) of one class, less the mean of the others: (m,).

    >>> contrast(np.array([[5.0, 1.0, 3.0], [0.0, 2.0, 2.0]]), 0)
    array([ 3., -2.])
    """
    values = logits.astype(np.float64)
    others = (values.sum(axis=1) - values[:, k]) / (values.shape[1] - 1)
    return np.asarray(values[:, k] - others)


def seen_square(encoder: Encoder, picture: Image.Image) -> NDArray[np.uint8] | None:
    """(s, s, 3): the part of a picture that an encoder sees, as large as it sees it; None if that is not known."""
    plain = getattr(encoder, "plain", encoder)  # what a backend runs
    tower = plain.tower() if isinstance(plain, Encoder) else None
    return None if tower is None else tower.pixels.to_square(picture)
