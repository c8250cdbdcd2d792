"""Encoders of a classifier: tuned by a head, run by another backend, opened again for a saved model."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier.inputs import Label, Skipped, check_any_readable
from clipadapter.data.images import ImageSource, image_bytes, read_image
from clipadapter.encoders import (
    Encoder,
    EncoderInfo,
    create_encoder,
    open_blocks,
    open_tunable_copy,
    plain_encoder,
    precision_fingerprint,
    unprojected_blocks,
    with_backend,
)
from clipadapter.errors import (
    ArtifactError,
    EncoderUnavailableError,
    FingerprintError,
    ImageError,
    InputError,
    MissingExtraError,
    brief,
)
from clipadapter.features import FeatureTable, ViewSpec, augment, choose_backend, restore_backend
from clipadapter.heads import Head
from clipadapter.persistence import Model
from clipadapter.tuners import TowerTuner
from clipadapter.utils.blocks import FINAL, RARE_PATCHES, UNPROJECTED, BlockSource
from clipadapter.utils.pixels import PixelSpec

NamedEncoders = str | Encoder | Sequence[str | Encoder]
QUALITIES = ("fast", "standard", "best")
DEFAULT_QUALITY = "auto"
"""`FewShotClassifier.fit` chooses "standard" or "best" (`second_look`); everything else reads "standard"."""
MAX_PIXEL_BYTES_IN_MEMORY = 2**30  # more pixels go to a temporary file. A view of 224 x 224 pixels has 150,528 bytes.


def check_quality(quality: str, known: Sequence[str] = (DEFAULT_QUALITY, *QUALITIES)) -> str:
    """Return the quality."""
    if quality not in known:
        raise InputError(f"quality must be {', '.join(known)}, but is {brief(quality)}")
    return quality


def block_names(encoder: Encoder) -> tuple[str, ...]:
    """Names of the blocks that an encoder gives, ``final`` first."""
    return tuple(block.name for block in encoder.info.blocks)


def blocks_to_read(
    encoder: Encoder, others: Sequence[Encoder], heads: Sequence[Head], quality: str, named: Sequence[str] = ()
) -> list[str]:
    """Names of the blocks of features that some heads read, ``final`` first; ``named`` are those named one by one."""
    reads = {head.reads for head in heads}
    names = [FINAL]
    if "unprojected" in reads:
        names += unprojected_blocks(encoder)
    if "second-encoder" in reads:
        names += [BlockSource(plain_encoder(other).info.name, FINAL).name for other in others[:1]]
        names += named
    if "all" in reads:
        names += blocks_of_quality(encoder, others, quality, named)
    return list(dict.fromkeys(names))


def blocks_of_quality(
    encoder: Encoder, others: Sequence[Encoder], quality: str, named: Sequence[str] = ()
) -> list[str]:
    """Names of all blocks of a quality; of an encoder that was given with several blocks, these blocks."""
    names: list[str] = []
    for one in (encoder, *others):
        plain = plain_encoder(one)
        uri, own = ("", named) if one is encoder else (plain.info.name, block_names(one))
        if len(own) > 1:
            sources = [BlockSource.parse(name) for name in own]
            names += [replace(source, encoder=source.encoder or uri).name for source in sources]
            continue
        layers = [FINAL] if quality == "fast" else [layer for layer in plain.layers() if layer != UNPROJECTED]
        # Small defects are seen at the second resolution only, so `standard` does not spend time on them.
        names += [BlockSource(uri, layer).name for layer in layers if layer != RARE_PATCHES]
        size = plain.second_size() if quality == "best" else None
        if size is not None:
            names += [BlockSource(uri, layer, size, is_mirrored=True).name for layer in layers]
    return names


def relative_cost(encoder: Encoder, others: Sequence[Encoder], names: Sequence[str]) -> float:
    """The cost per picture of some blocks, in passes of one encoder at its own size; all encoders count the same."""
    sides = {other.info.name: plain_encoder(other).info.image_size for other in others}
    sides[""] = plain_encoder(encoder).info.image_size
    cost = 0.0
    for uri, size, is_mirrored in {BlockSource.parse(name).pass_key for name in names}:
        ratio = 1.0 if size is None or uri not in sides else size / sides[uri]
        cost += (2 if is_mirrored else 1) * ratio**2
    return cost


def as_encoder_list(encoder: NamedEncoders) -> list[str | Encoder]:
    """The encoders that one argument names."""
    return [encoder] if isinstance(encoder, str | Encoder) else list(encoder)


def open_encoders(encoder: NamedEncoders, device: str) -> list[Encoder]:
    """The encoders that one argument names, of which the first that has a text tower, if any, comes first."""
    named = as_encoder_list(encoder)
    encoders = [create_encoder(each, device) if isinstance(each, str) else each for each in named]
    first = next((i for i, encoder in enumerate(encoders) if encoder.has_text), 0)
    return [encoders[first], *encoders[:first], *encoders[first + 1 :]]


def check_head(head: Head, encoder: Encoder, grid: object, unlabelled: object) -> None:
    """Refuse, before the work begins, a head that these encoders or arguments do not go with."""
    if head.needs_text and not encoder.has_text:
        raise InputError(
            f"{type(head).__name__} needs class text, but {encoder.info.name} has no text tower: name an encoder that "
            f"has one beside it, such as --encoder lite --encoder {encoder.info.name}, or take the head 'auto', which "
            "needs none"
        )
    if head.tunes_encoder and grid:
        raise InputError("a grid is chosen on features, but this head tunes the encoder: set head_params instead")
    if head.tunes_encoder and unlabelled is not None:
        raise InputError("this head tunes the encoder on labelled pictures only: leave unlabelled out")


def tune_encoder(
    encoder: Encoder,
    head: Head,
    images: Sequence[ImageSource],
    labels: Sequence[Label],
    prompts: Mapping[str, Sequence[str]],
    views: ViewSpec,
    *,
    backend: str,
    precision: str,
    strict: bool,
) -> tuple[Encoder, Encoder]:
    """The plain encoder, and the one that a tuner has tuned, run by a backend."""
    assert isinstance(head, TowerTuner)
    plain = plain_encoder(encoder)
    tunable = open_tunable_copy(plain)
    head.check_encoder(tunable)
    tower = tunable.tower()
    assert tower is not None
    pixels, rows = _read_views(images, views, tower.pixels, strict)
    head.tune(plain, pixels, [str(labels[i]) for i in rows], prompts)
    tuned = head.tuned(plain)
    if (backend, precision) != ("auto", "auto"):  # else torch, since converting takes long
        backend, precision = backend.replace("auto", "torch"), precision.replace("auto", "fp32")
        tuned = choose_backend(tuned, images, backend=backend, precision=precision)
    return plain, tuned


def info_of_base(base: EncoderInfo, tuned: EncoderInfo) -> EncoderInfo:
    """Facts that a saved model keeps: those of the encoder before tuning, in the precision of the tuned one."""
    fingerprint = precision_fingerprint(base.fingerprint, tuned.backend, tuned.precision, tuned.int8_calibration_digest)
    return replace(tuned, fingerprint=fingerprint)


def open_saved_encoders(
    model: Model, encoder: NamedEncoders | None, device: str, backend: str = "auto", precision: str = "auto"
) -> tuple[Encoder, Encoder | None]:
    """Open the encoder of a saved model; if the head is a tuner, also the encoder that is tuned with its weights."""
    saved, is_tuned = model.encoder, isinstance(model.head, TowerTuner)
    if isinstance(encoder, Encoder) and not is_tuned and encoder.info.fingerprint == saved.fingerprint:
        return encoder, None
    try:
        opened = open_encoders(saved.name if encoder is None else encoder, device)
        base = plain_encoder(opened[0]) if is_tuned else _restore_blocks(saved, opened)
    except EncoderUnavailableError as error:
        raise EncoderUnavailableError(
            f"{error}. The model was fitted with {saved.name}: if weights were moved, name all its encoders where they "
            "are now (encoder=[...], or --encoder URI for each)"
        ) from error
    if not is_tuned:
        return _restore_precision(saved, base, backend, precision), None
    _check_fingerprint(saved, base.info)
    try:
        tuned = model.head.tuned(base)
    except InputError as error:
        raise ArtifactError(f"the saved model is damaged: {error}") from error
    if (backend, precision, saved.backend, saved.precision) == ("auto", "auto", "torch", "fp32"):
        return base, tuned
    return base, _restore_precision(info_of_base(tuned.info, saved), tuned, backend, precision)


def find_blocks(model: Model, table: FeatureTable) -> tuple[str, ...]:
    """Names of the blocks of a table of features that a saved model needs."""
    saved, widths = model.encoder, dict(table.blocks)
    advice = f"extract them again: clipadapter embed PICTURES --encoder '{saved.name}' --precision {saved.precision}"
    if isinstance(model.head, TowerTuner):
        raise InputError("this model has tuned its encoder, so that no other features fit it: give the pictures")
    for name, width in saved.blocks:
        if widths.get(name) != width:
            has = ", ".join(f"{block.name} ({block.width})" for block in table.blocks)
            raise InputError(
                f"the model needs the block {name} ({width} columns), but {table.path} has {has}: {advice}"
            )
    names = tuple(block.name for block in saved.blocks)
    if table.fingerprint in (None, saved.fingerprint):
        return names
    stated = dict(zip(widths, table.block_fingerprints, strict=False))
    own = [saved.fingerprint]
    if len(names) > 1 and stated:  # some of the blocks of the table may be those of the model
        own = list(open_saved_encoders(model, None, "cpu")[0].block_fingerprints())
    if own == [stated.get(name) for name in names]:
        return names
    raise FingerprintError(
        f"the features of {table.path} are from {table.encoder} of fingerprint {str(table.fingerprint)[:12]}, but the "
        f"model was fitted with {saved.name} of {saved.fingerprint[:12]}: weights, precision or blocks differ; {advice}"
    )


def _restore_blocks(saved: EncoderInfo, opened: Sequence[Encoder]) -> Encoder:
    """The blocks of a saved model from its encoders, the one of the class text first."""
    first, *others = opened
    uris = [uri for uri in dict.fromkeys(BlockSource.parse(block.name).encoder for block in saved.blocks) if uri]
    if len(others) > len(uris):
        raise InputError(
            f"{len(opened)} encoders are named, but the model was fitted with {1 + len(uris)}: {saved.name}"
        )
    if saved.blocks != first.info.blocks:  # another way to name the encoder of the class text was given
        names = [block.name for block in saved.blocks]
        first = open_blocks(plain_encoder(first), names, moved=dict(zip(uris, others, strict=False)))
    _check_fingerprint(saved, first.info)
    return first


def _check_fingerprint(saved: EncoderInfo, opened: EncoderInfo) -> None:
    """Check that a plain encoder is the one that a model was fitted with."""
    calibration = saved.int8_calibration_digest
    if precision_fingerprint(opened.fingerprint, saved.backend, saved.precision, calibration) != saved.fingerprint:
        raise FingerprintError(
            f"the model was fitted with {saved.name} of fingerprint {saved.fingerprint[:12]}, but "
            f"{opened.name} on this machine has {opened.fingerprint[:12]}: its weights or preprocessing differ, so "
            "predictions would be wrong. Give the encoder it was fitted with (encoder=..., or --encoder), or fit again"
        )


def _restore_precision(saved: EncoderInfo, encoder: Encoder, backend: str, precision: str) -> Encoder:
    """Run a plain encoder in the precision of the fit: another one gives features that are close, but not equal."""
    target = saved.precision if precision == "auto" else precision
    calibration = saved.int8_calibration_digest or None
    if all(each.tower() is None for each in encoder.passes()):
        return encoder
    if backend != "auto":
        return with_backend(encoder, backend, target, calibration)
    try:
        return restore_backend(encoder, target, saved.backend, calibration)
    except (EncoderUnavailableError, MissingExtraError) as error:
        if precision != "auto":
            raise
        # fp32 gives almost the same predictions as the saved precision, which is better than none. The note says so.
        note = f"the model was fitted on {target} features, these are fp32: close but not equal: {error}"
        encoder.info = replace(encoder.info, note="; ".join(part for part in (encoder.info.note, note) if part))
        return encoder


def _read_views(
    images: Sequence[ImageSource], views: ViewSpec, pixels: PixelSpec, strict: bool
) -> tuple[NDArray[np.uint8], list[int]]:
    """Pixels (n, v, s, s, 3) of the views of all readable pictures, and their positions among the images."""
    shape = (len(images), views.count, pixels.size, pixels.size, 3)
    squares: NDArray[np.uint8]
    if math.prod(shape) <= MAX_PIXEL_BYTES_IN_MEMORY:
        squares = np.empty(shape, np.uint8)
    else:
        with tempfile.TemporaryFile() as file:  # it is deleted together with the last array that maps it
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
            squares[len(rows), view] = pixels.to_square(augment(image, views, view, digest, pixels.size))
        rows.append(i)
    check_any_readable(rows, skipped, len(images))
    return squares[: len(rows)], rows
