"""An encoder that also gives the inputs of its projection, for heads that train the projection.

The name of the module begins with an underscore because the package imports it. No module imports another one that
registers an encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from clipadapter.backends import Tower
from clipadapter.encoders.backend import BackendEncoder, with_backend
from clipadapter.encoders.base import Encoder
from clipadapter.encoders.catalogue import EncoderListing, listings_of
from clipadapter.encoders.inputs import check_pixels
from clipadapter.encoders.projection import replace_projection
from clipadapter.encoders.registry import create_encoder, register_encoder, schemes_with
from clipadapter.errors import InputError
from clipadapter.towers import Projection, TextTower


@register_encoder("unprojected")
class UnprojectedEncoder(Encoder):
    """Picture features (d), followed by the input of the encoder's projection (p); text features of the encoder.

    The image tower is that of the encoder with a wider last step: the projection and the identity side by side. So
    every backend can run it.

    Args:
        projected: an encoder whose image tower ends in a projection; see `Encoder.projection`.

    Raises:
        InputError: if it has none, or its pictures are padded to a square.
    """

    def __init__(self, projected: Encoder) -> None:
        projection, tower, info = projected.projection(), projected.tower(), projected.info
        if projection is None or tower is None:
            raise InputError(
                f"the image tower of {info.name} ends in no linear projection that can be taken apart; those of "
                f"{schemes_with('projection')} do, but for SigLIP and a few other models of open_clip. Use the head "
                "'rla', which needs none"
            )
        self.projected, self.device = projected, projected.device
        p, d = projection.weight.shape
        facts = ("unprojected 1", info.fingerprint)
        self.info = replace(
            info,
            name=f"unprojected:{info.name}",
            dim=d + p,
            text_dim=d,
            fingerprint=hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest(),
        )
        module = replace_projection(tower.module, _append_identity(projection))
        self._tower = Tower(self.info.name, self.info.fingerprint, self.info.dim, tower.pixels, module)

    @classmethod
    def open(cls, variant: str, device: str = "cpu") -> Encoder:
        """Open ``ENCODER``, a URI.

        Raises:
            InputError: if the variant is empty, or the encoder has no projection.
        """
        if not variant:
            raise InputError("'unprojected:' names no encoder: say unprojected:ENCODER, such as unprojected:auto")
        return with_unprojected(create_encoder(variant, device))

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """What the catalogue says."""
        return listings_of("unprojected")

    def preprocess(self, image: Image.Image) -> Tensor:
        """As the encoder itself does."""
        return self.projected.preprocess(image)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, d + p)."""
        check_pixels(pixels, self.info.image_size)
        if not len(pixels):
            return torch.empty(0, self.info.dim)
        with torch.inference_mode():
            features: Tensor = self._tower.module(pixels.to(self.device)).float().cpu()
        return features

    def tower(self) -> Tower:
        """The tower of the encoder with the wider last step."""
        return self._tower

    def text_tower(self) -> TextTower | None:
        """That of the encoder itself."""
        return self.projected.text_tower()

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to (k, d), by the encoder itself."""
        return self.projected.encode_text(texts, batch_size)


def with_unprojected(encoder: Encoder) -> Encoder:
    """The same encoder, with picture features that are followed by the input of its projection.

    Args:
        encoder: an encoder whose image tower ends in a projection. If that is the identity, as with ``lite``, the
            encoder is returned unchanged. An encoder that a backend runs keeps its backend and precision, except int8:
            that would need the pictures it was calibrated with, so torch runs it in fp32.

    Returns:
        An encoder of features (d + p); `EncoderInfo.text_dim` is d.

    Raises:
        InputError: if its image tower ends in no projection, as that of SigLIP.

    >>> with_unprojected(create_encoder("unprojected:lite")).info.name
    'lite'
    """
    if isinstance(encoder, BackendEncoder):
        plain, info = with_unprojected(encoder.plain), encoder.info
        if plain is encoder.plain:
            return encoder
        return plain if info.precision == "int8" else with_backend(plain, info.backend, info.precision)
    projection = encoder.projection()
    has_unprojected = isinstance(encoder, UnprojectedEncoder) or (projection is not None and _is_identity(projection))
    return encoder if has_unprojected else UnprojectedEncoder(encoder)


def _append_identity(projection: Projection) -> Projection:
    """(p, d) to (p, d + p): the output is followed by the input."""
    weight, bias = projection.weight, projection.bias
    wide = torch.cat([weight, torch.eye(len(weight))], dim=1)
    return Projection(wide, None if bias is None else torch.cat([bias, torch.zeros(len(weight))]))


def _is_identity(projection: Projection) -> bool:
    return projection.bias is None and torch.equal(projection.weight, torch.eye(len(projection.weight)))
