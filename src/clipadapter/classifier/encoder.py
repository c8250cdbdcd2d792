"""Heads that tune the encoder: pictures to what they learn from, and a saved model back to the encoder it needs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.backends import Calibration
from clipadapter.classifier.inputs import Skipped, check_any, open_store
from clipadapter.data.images import ImageSource, image_bytes, read_image
from clipadapter.encoders import Encoder, EncoderInfo, create_encoder, fingerprint_in, open_twin, with_backend
from clipadapter.errors import (
    ArtifactError,
    EncoderUnavailableError,
    FingerprintError,
    ImageError,
    InputError,
    MissingExtraError,
)
from clipadapter.features import ViewSpec, augment, choose_backend, ready_backend
from clipadapter.heads import Head, TextFeatures
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


def chosen(
    encoder: Encoder,
    images: Sequence[ImageSource],
    backend: str,
    precision: str,
    text: Callable[[], TextFeatures],
    cache: str | Path | None,
    progress: bool,
) -> Encoder:
    """The encoder as it runs fastest on these pictures; see `choose_backend`."""
    with open_store(cache) as store:
        return choose_backend(
            encoder, images, backend=backend, precision=precision, text=text, store=store, progress=progress
        )


def reopened(
    saved: EncoderInfo, given: str | Encoder | None, device: str, backend: str = "auto", precision: str = "auto"
) -> Encoder:
    """The encoder of a saved model, in the precision it was fitted with.

    Args:
        saved: what the model knows of it.
        given: where it is now, or the open encoder; the saved name if not given.
        device: torch device, if it must be opened.
        backend: "auto" takes one that is ready here.
        precision: "auto" is the saved one; another gives features that are near, not equal, to those of the fit.

    Raises:
        FingerprintError: if it is another encoder.
        MissingExtraError: if the backend that was asked for is not installed.
    """
    encoder = given if isinstance(given, Encoder) else create_encoder(given or saved.name, device)
    if isinstance(given, Encoder) and given.info.fingerprint == saved.fingerprint:
        return given
    check_same(saved, encoder.info)
    return as_saved(saved, encoder, backend, precision)


def check_same(saved: EncoderInfo, here: EncoderInfo) -> None:
    """Refuse a plain encoder that is not the one of a saved model.

    Raises:
        FingerprintError: if it is another.
    """
    if fingerprint_in(here.fingerprint, saved.backend, saved.precision, saved.calibration) != saved.fingerprint:
        raise FingerprintError(
            f"the model was fitted with {saved.name} of fingerprint {saved.fingerprint[:12]}, but "
            f"{here.name} here has {here.fingerprint[:12]}: its weights or preprocessing differ, so "
            "predictions would be wrong. Give the encoder it was fitted with (encoder=..., or --encoder), or fit again"
        )


def as_saved(saved: EncoderInfo, encoder: Encoder, backend: str = "auto", precision: str = "auto") -> Encoder:
    """A plain encoder in the precision of a saved model; see `reopened`."""
    wanted = saved.precision if precision == "auto" else precision
    calibration = Calibration(None, saved.calibration) if wanted == "int8" and saved.calibration else None
    if encoder.tower() is None:
        return encoder
    if backend != "auto":
        return with_backend(encoder, backend, wanted, calibration)
    try:
        return ready_backend(encoder, wanted, saved.backend, calibration)
    except (EncoderUnavailableError, MissingExtraError) as error:
        if precision != "auto":
            raise
        note = f"the model was fitted on {wanted} features, these are fp32, near but not equal: {error}"
        encoder.info = replace(encoder.info, note="; ".join(part for part in (encoder.info.note, note) if part))
        return encoder
