"""Models of open_clip from the Hugging Face hub, by the name of their repository."""

from __future__ import annotations

from clipadapter.encoders.base import Encoder
from clipadapter.encoders.catalogue import EncoderListing, listings_of
from clipadapter.encoders.open_clip import OpenClipEncoder
from clipadapter.encoders.registry import register_encoder


@register_encoder("hf-hub")
class HubEncoder(Encoder):
    """A model of open_clip from a repository of the hub, ``hf-hub:ORG/MODEL`` or ``hf-hub:ORG/MODEL@REVISION``."""

    @classmethod
    def open(cls, variant: str, device: str = "cpu") -> Encoder:
        """Open a repository; see `clipadapter.encoders.open_clip_sources.find_repository`.

        Raises:
            InputError: if the variant names no repository.
            EncoderUnavailableError: if the weights can't be had.
        """
        return OpenClipEncoder.open(f"hf-hub:{variant}", device)

    @classmethod
    def check(cls, variant: str) -> None:
        """As `Encoder.check`."""
        OpenClipEncoder.check(f"hf-hub:{variant}")

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """What the catalogue says."""
        return listings_of("hf-hub")
