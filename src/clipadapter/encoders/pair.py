"""Two encoders side by side, for heads that use a second look at the picture."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from clipadapter.backends import Tower
from clipadapter.encoders.base import Encoder, EncoderInfo, EncoderListing
from clipadapter.encoders.registry import create_encoder, list_encoders, register_encoder
from clipadapter.errors import InputError
from clipadapter.towers import TextTower

NOTE = "features of two encoders side by side, text of the first; for heads such as svl-adapter"


@register_encoder("pair")
class PairEncoder(Encoder):
    """Picture features of two encoders side by side, the first one's left; text features of the first alone.

    Each half is what its encoder gives by itself, to the last bit: a picture is decoded once and prepared for both.

    Args:
        first: gives text features, logit scale and bias, too.
        second: any; its text tower is not asked.

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
            InputError: if it is not two.
        """
        first, second = _halves(variant)
        return cls(create_encoder(first, device), create_encoder(second, device))

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """One line."""
        return [EncoderListing("pair:FIRST+SECOND", None, "unknown", NOTE)]

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """(l,): both encoders' pixels in a row."""
        return (sum(self._sizes()),)

    def preprocess(self, image: Image.Image) -> Tensor:
        """The input of both encoders in a row (l,)."""
        return torch.cat([each.preprocess(image).flatten() for each in (self.first, self.second)])

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(n, l) to (n, d1 + d2)."""
        if pixels.ndim != 2 or tuple(pixels.shape[1:]) != self.pixel_shape:
            raise InputError(f"this encoder takes pixels (n, {self.pixel_shape[0]}), but got {tuple(pixels.shape)}")
        halves = zip((self.first, self.second), pixels.split(self._sizes(), dim=1), strict=True)
        return torch.cat([each.encode_pixels(half.unflatten(1, each.pixel_shape)) for each, half in halves], dim=1)

    def towers(self) -> tuple[Tower, ...]:
        """Those of both."""
        first, second = self.first.towers(), self.second.towers()
        return (*first, *second) if first and second else ()

    def text_tower(self) -> TextTower | None:
        """That of the first encoder."""
        return self.first.text_tower()

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to (k, d1), by the first encoder."""
        return self.first.encode_text(texts, batch_size)

    def _sizes(self) -> list[int]:
        return [math.prod(each.pixel_shape) for each in (self.first, self.second)]


def _halves(variant: str) -> tuple[str, str]:
    """The two URIs: a plus sign may also stand in a path, so the first one that a known scheme follows counts."""
    parts = variant.split("+")
    for i in range(1, len(parts)):
        first, second = "+".join(parts[:i]), "+".join(parts[i:])
        if first and second.partition(":")[0] in list_encoders():
            return first, second
    raise InputError(f"'pair:{variant}' names no two encoders: say pair:FIRST+SECOND, such as pair:lite+simclr:FOLDER")
