"""Two encoders as one, for heads that use the picture features of a second encoder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from clipadapter.backends import Tower
from clipadapter.encoders.base import Encoder, EncoderInfo
from clipadapter.encoders.catalogue import EncoderListing, listings_of
from clipadapter.encoders.registry import check_encoder, create_encoder, list_encoders, register_encoder
from clipadapter.errors import InputError
from clipadapter.towers import TextTower


@register_encoder("pair")
class PairEncoder(Encoder):
    """Picture features of two encoders side by side, those of the first one on the left; its text features.

    Each half equals the features of its encoder, to the last bit: a picture is decoded once and prepared for both.

    Args:
        first: also gives text features, logit scale and bias.
        second: any encoder; its text tower is not used.

    >>> from clipadapter.encoders.toy import ToyEncoder
    >>> info = PairEncoder(ToyEncoder(), ToyEncoder()).info
    >>> info.name, info.dim, info.text_dim
    ('pair:toy+toy', 64, 32)
    """

    def __init__(self, first: Encoder, second: Encoder) -> None:
        self.first, self.second, self.device = first, second, first.device
        one, two = first.info, second.info
        facts = ("pair 1", one.fingerprint, two.fingerprint)
        self.info = EncoderInfo(
            name=f"pair:{one.name}+{two.name}",
            dim=one.dim + two.dim,
            image_size=max(one.image_size, two.image_size),
            logit_scale=one.logit_scale,
            logit_bias=one.logit_bias,
            licence=one.licence if one.licence == two.licence else f"{one.licence}, {two.licence}",
            fingerprint=hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest(),
            note="; ".join(info.note for info in (one, two) if info.note),
            text_dim=one.text_dim or one.dim,
        )

    @classmethod
    def open(cls, variant: str, device: str = "cpu") -> PairEncoder:
        """Open ``FIRST+SECOND``, two URIs.

        Raises:
            InputError: if the variant is not two URIs.
        """
        first, second = _split_uris(variant)
        return cls(create_encoder(first, device), create_encoder(second, device))

    @classmethod
    def check(cls, variant: str) -> None:
        """As `Encoder.check`."""
        for uri in _split_uris(variant):
            check_encoder(uri)

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """What the catalogue says."""
        return listings_of("pair")

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """(l,): the flattened pixels of both encoders, one after the other."""
        return (sum(self._pixel_counts()),)

    def preprocess(self, image: Image.Image) -> Tensor:
        """The flattened input of both encoders, (l,)."""
        return torch.cat([encoder.preprocess(image).flatten() for encoder in (self.first, self.second)])

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(n, l) to (n, d1 + d2)."""
        if pixels.ndim != 2 or tuple(pixels.shape[1:]) != self.pixel_shape:
            raise InputError(f"this encoder takes pixels (n, {self.pixel_shape[0]}), but got {tuple(pixels.shape)}")
        halves = zip((self.first, self.second), pixels.split(self._pixel_counts(), dim=1), strict=True)
        features = [encoder.encode_pixels(half.unflatten(1, encoder.pixel_shape)) for encoder, half in halves]
        return torch.cat(features, dim=1)

    def towers(self) -> tuple[Tower, ...]:
        """Those of both encoders."""
        first, second = self.first.towers(), self.second.towers()
        return (*first, *second) if first and second else ()

    def text_tower(self) -> TextTower | None:
        """That of the first encoder."""
        return self.first.text_tower()

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to (k, d1), by the first encoder."""
        return self.first.encode_text(texts, batch_size)

    def _pixel_counts(self) -> list[int]:
        return [math.prod(encoder.pixel_shape) for encoder in (self.first, self.second)]


def _split_uris(variant: str) -> tuple[str, str]:
    """The two URIs. A path may contain a plus sign, so the split is at the first one that a known scheme follows."""
    parts = variant.split("+")
    for i in range(1, len(parts)):
        first, second = "+".join(parts[:i]), "+".join(parts[i:])
        if first and second.partition(":")[0] in list_encoders():
            return first, second
    raise InputError(f"'pair:{variant}' names no two encoders: say pair:FIRST+SECOND, such as pair:lite+simclr:FOLDER")
