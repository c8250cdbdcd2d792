"""An encoder whose image tower runs in another backend or precision; the encoder itself encodes texts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipadapter.backends import PRECISIONS, Int8Calibration, Runner, Tower, create_backend
from clipadapter.encoders.base import Encoder, EncoderWrapper
from clipadapter.errors import InputError, brief
from clipadapter.utils.pixels import MIN_JPEG_SIDE_RATIO


class BackendEncoder(EncoderWrapper):
    """See `with_backend`; ``calibration`` is the digest of the pictures that int8 was calibrated with."""

    def __init__(
        self, plain: Encoder, tower: Tower, run: Runner, backend: str, precision: str, calibration: str = ""
    ) -> None:
        super().__init__(plain)
        self.pixels, self._run = tower.pixels, run
        self.info = replace(
            plain.info,
            fingerprint=precision_fingerprint(plain.info.fingerprint, backend, precision, calibration),
            backend=backend,
            precision=precision,
            int8_calibration_digest=calibration,
        )

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """(s, s, 3)."""
        return (self.pixels.size, self.pixels.size, 3)

    @property
    def pixel_dtype(self) -> torch.dtype:
        """uint8."""
        return torch.uint8

    def preprocess(self, image: Image.Image) -> Tensor:
        """The square that the tower sees, as (s, s, 3) uint8: the backend normalizes it."""
        return torch.from_numpy(np.array(self.pixels.to_square(image)))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(n, s, s, 3) uint8 to (n, d)."""
        if tuple(pixels.shape[1:]) != self.pixel_shape or pixels.dtype != torch.uint8:
            raise InputError(
                f"this encoder takes pixels (n, {', '.join(map(str, self.pixel_shape))}) of uint8, but got "
                f"{tuple(pixels.shape)} of {pixels.dtype}"
            )
        if not len(pixels):
            return torch.empty(0, self.info.dim)
        return torch.from_numpy(self._run(pixels.numpy()))

    def tower(self) -> Tower | None:
        """That of the encoder itself."""
        return self.plain.tower()

    def towers(self) -> tuple[Tower, ...]:
        """Those of the encoder itself."""
        return self.plain.towers()

    def layers(self) -> Mapping[str, int]:
        """Those of the encoder itself."""
        return self.plain.layers()

    def block_fingerprints(self) -> tuple[str, ...]:
        """Those of the encoder itself in this precision.

        int8 rounds each layer by ranges that may depend on which other layers are read.
        """
        info, plain = self.info, self.plain.block_fingerprints()
        if len(plain) == 1:
            return (info.fingerprint,)
        facts = info.precision, info.int8_calibration_digest
        together = f" of {self.plain.info.fingerprint}" if info.precision == "int8" else ""
        return tuple(precision_fingerprint(each + together, info.backend, *facts) for each in plain)

    def patch_features(self, image: Image.Image) -> Tensor | None:
        """Of the encoder itself, in full precision."""
        return self.plain.patch_features(image)


def calibrations_of_passes(encoder: Encoder, calibration: Int8Calibration | None) -> dict[int, Int8Calibration]:
    """The calibration of each pass of an encoder by its number; none for passes that only the encoder itself runs."""
    numbers = [i for i, each in enumerate(encoder.passes()) if each.tower() is not None]
    return {} if calibration is None else {i: calibration.of_pass(n) for n, i in enumerate(numbers)}


def precision_fingerprint(fingerprint: str, backend: str, precision: str, calibration: str = "") -> str:
    """Fingerprint of an encoder in another precision.

    All backends give the same features in full precision, and nearly the same in bf16, so they share a fingerprint.
    Features in int8 depend on the backend and on the pictures it was calibrated with.
    """
    if precision == "fp32":
        return fingerprint
    # How far JPEGs are shrunk while they are decoded is part of it: see `clipadapter.utils.pixels.min_jpeg_side`.
    facts = f"{fingerprint} {precision} room {MIN_JPEG_SIDE_RATIO}"
    if precision == "int8":
        facts += f" {backend} {calibration}"
    return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()


def with_backend(
    encoder: Encoder, backend: str = "torch", precision: str = "fp32", calibration: Int8Calibration | None = None
) -> Encoder:
    """The same encoder, with an image tower that runs in another backend or precision.

    Args:
        encoder: any; if it can't be converted, torch and fp32 return it unchanged.
        backend: see ``clipadapter.backends.list_backends()``.
        precision: "fp32" gives the same features up to rounding; "bf16" and "int8" give similar ones with another
            fingerprint.
        calibration: pictures that set the ranges of int8, for each pass of an encoder of several blocks.

    Raises:
        UnknownNameError: if no backend has the name.
        InputError: if the encoder can't be converted, or the backend has no such precision or device.
        MissingExtraError: if the backend is not installed.

    >>> from clipadapter.encoders import create_encoder
    >>> with_backend(create_encoder("toy")).info.backend
    'torch'
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, but is {brief(precision)}")
    if len(encoder.passes()) > 1:
        calibrations = calibrations_of_passes(encoder, calibration)
        # A pass that only the encoder itself can run stays as it is.
        return encoder.run_on(
            [
                each if each.tower() is None else with_backend(each, backend, precision, calibrations.get(i))
                for i, each in enumerate(encoder.passes())
            ]
        )
    plain = encoder.plain if isinstance(encoder, BackendEncoder) else encoder
    runtime = create_backend(backend, device=plain.device)
    tower = plain.tower()
    if tower is None:
        if (backend, precision) == ("torch", "fp32"):
            return plain
        raise InputError(f"the image tower of {plain.info.name} can't be converted: use backend 'torch' and fp32")
    run = runtime.prepare(tower, precision, calibration)
    digest = calibration.digest if calibration is not None and precision == "int8" else ""
    return BackendEncoder(plain, tower, run, backend, precision, digest)
