"""Heads that tune the encoder: pictures to what they learn from, and a saved model back to the encoder it needs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier._pictures import Skipped, check_any
from clipadapter.classifier._towers import as_saved, check_same, reopened
from clipadapter.data.images import ImageSource, image_bytes, read_image
from clipadapter.encoders import Encoder, EncoderInfo, create_encoder, fingerprint_in, open_twin
from clipadapter.errors import ArtifactError, ImageError, InputError
from clipadapter.features import ViewSpec, augment, choose_backend
from clipadapter.heads import Head
from clipadapter.persistence import Model
from clipadapter.pixels import PixelSpec
from clipadapter.tuners import TowerTuner

IN_MEMORY = 2**30
"""Bytes of squares that are kept in memory; more lie in a temporary file. A square of 224 pixels has 150,528."""


def check_alone(grid: Mapping[str, Sequence[Any]] | None, unlabelled: Sequence[ImageSource] | None) -> None:
    """Refuse before the work what a head that tunes the encoder does not take.

    Raises:
        InputError: if there are values to try, each of which would be an encoder of its own, or unlabelled pictures.
    """
    if grid:
        raise InputError("a grid is chosen on features, but this head tunes the encoder: set head_params instead")
    if unlabelled is not None:
        raise InputError("this head tunes the encoder on labelled pictures only: leave unlabelled out")


def tune(
    head: Head,
    encoder: Encoder,
    images: Sequence[ImageSource],
    labels: Sequence[str],
    prompts: Mapping[str, Sequence[str]],
    views: ViewSpec,
    strict: bool,
) -> tuple[Encoder, Encoder]:
    """Have a head tune an encoder.

    Args:
        head: one that does.
        encoder: with or without a backend.
        images: paths, PIL images or arrays; unreadable ones are left out.
        labels: class name of each.
        prompts: texts of each class.
        views: of each picture.
        strict: raise for a picture that can't be read.

    Returns:
        The plain encoder, and the tuned one.

    Raises:
        DataError: if no picture can be read, or one can't and ``strict``.
        InputError: if the encoder can't be tuned.
    """
    assert isinstance(head, TowerTuner)
    plain = _plain(encoder)
    tower = open_twin(plain).tower()
    assert tower is not None
    squares, rows = _squares(images, views, tower.pixels, strict)
    head.tune(plain, squares, [str(labels[i]) for i in rows], prompts)
    return plain, head.tuned(plain)


def run_by(tuned: Encoder, images: Sequence[ImageSource], backend: str, precision: str) -> Encoder:
    """A tuned encoder by the backend that was asked for; "auto" leaves it with torch, since converting takes long."""
    if (backend, precision) == ("auto", "auto"):
        return tuned
    backend, precision = backend.replace("auto", "torch"), precision.replace("auto", "fp32")
    return choose_backend(tuned, images, backend=backend, precision=precision)


def facts_of_base(base: EncoderInfo, tuned: EncoderInfo) -> EncoderInfo:
    """What a saved model knows of its encoder: the one that was tuned, in the precision that the tuned one ran in."""
    fingerprint = fingerprint_in(base.fingerprint, tuned.backend, tuned.precision, tuned.calibration)
    return replace(tuned, fingerprint=fingerprint)


def encoders_of(
    saved: Model, given: str | Encoder | None, device: str, backend: str, precision: str
) -> tuple[Encoder, Encoder | None]:
    """The encoder of a saved model, and the same as its head tuned it, if it did; arguments as for `reopened`.

    Raises:
        FingerprintError: if it is another encoder.
        ArtifactError: if what the head learned does not fit it.
    """
    facts = saved.encoder
    if not isinstance(saved.head, TowerTuner):
        return reopened(facts, given, device, backend, precision), None
    base = _plain(given if isinstance(given, Encoder) else create_encoder(given or facts.name, device))
    check_same(facts, base.info)
    try:
        tuned = saved.head.tuned(base)
    except InputError as error:
        raise ArtifactError(f"the saved model is damaged: {error}") from error
    if (backend, precision, facts.backend, facts.precision) == ("auto", "auto", "torch", "fp32"):
        return base, tuned
    return base, as_saved(facts_of_base(tuned.info, facts), tuned, backend, precision)


def _plain(encoder: Encoder) -> Encoder:
    """The encoder without its backend, and without what stands behind its features."""
    while isinstance(inner := getattr(encoder, "plain", None), Encoder):
        encoder = inner
    return encoder


def _squares(
    images: Sequence[ImageSource], views: ViewSpec, pixels: PixelSpec, strict: bool
) -> tuple[NDArray[np.uint8], list[int]]:
    """Views (n, v, s, s, 3) of the pictures that can be read, each read once; and which these are."""
    shape = (len(images), views.count, pixels.size, pixels.size, 3)
    squares: NDArray[np.uint8]
    if math.prod(shape) <= IN_MEMORY:
        squares = np.empty(shape, np.uint8)
    else:
        with tempfile.TemporaryFile() as file:  # it goes when the last array of it does
            squares = np.memmap(file, np.uint8, "w+", shape=shape)
    rows: list[int] = []
    skipped: list[Skipped] = []
    for i, source in enumerate(images):
        try:
            image, digest = read_image(source), blake2b(image_bytes(source), digest_size=32).digest()
        except ImageError as error:
            if strict:
                raise
            skipped.append((i, error.source, error.reason))
            continue
        for view in range(views.count):
            squares[len(rows), view] = pixels.square(augment(image, views, view, digest, pixels.size))
        rows.append(i)
    check_any(rows, skipped, len(images))
    return squares[: len(rows)], rows
