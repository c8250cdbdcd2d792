"""The base class of encoders: two frozen towers, and the facts about them that must never be guessed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from clipadapter.backends import Tower
from clipadapter.encoders.catalogue import EncoderListing
from clipadapter.towers import Projection, TextTower


@dataclass(frozen=True)
class EncoderInfo:
    """Facts about an encoder.

    Args:
        name: its URI; opening the URI again gives the same encoder.
        dim: width d of picture features, and of text features unless ``text_dim`` is given.
        image_size: side of the square input in pixels.
        logit_scale: ``exp(logit_scale)`` of the model; cosines are multiplied by it.
        logit_bias: added to the logits by sigmoid-loss models (SigLIP), else None.
        licence: licence of the weights, or "unknown".
        fingerprint: hex digest of weights, preprocessing and code version; in every cache key and artifact.
        note: what a user should know, such as why ``auto`` took this encoder; may be empty.
        text_dim: width of text features if it differs from ``dim``: they are compared with the first columns of picture
            features.
        backend: name of the backend that runs the image tower.
        precision: precision of the image tower: "fp32", "bf16" or "int8"; part of the fingerprint.
        int8_calibration_digest: digest of the pictures that int8 was calibrated with, else empty; part of the
            fingerprint.
    """

    name: str
    dim: int
    image_size: int
    logit_scale: float
    logit_bias: float | None
    licence: str
    fingerprint: str
    note: str = ""
    text_dim: int | None = None
    backend: str = "torch"
    precision: str = "fp32"
    int8_calibration_digest: str = ""


class Encoder(ABC):
    """Two frozen towers: pictures and texts to raw float32 features, of one width unless ``info`` says otherwise.

    The encoder owns resizing, interpolation, mean and deviation, tokenizer, padding and lower-casing. A subclass
    defines ``info``, ``device``, `open`, `listing`, `preprocess`, `encode_pixels` and `encode_text`.
    """

    info: EncoderInfo
    device: str

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of the result of `preprocess`: (3, s, s), unless the encoder packs the input of several towers."""
        return (3, self.info.image_size, self.info.image_size)

    @classmethod
    @abstractmethod
    def open(cls, variant: str, device: str = "cpu") -> Encoder:
        """Open an encoder.

        Args:
            variant: what follows the scheme in the URI; may be empty.
            device: a torch device.
        """

    @classmethod  # noqa: B027 - not abstract: an encoder that is opened quickly needs no check
    def check(cls, variant: str) -> None:
        """Refuse a variant that can't be opened, as far as that shows without loading or downloading weights.

        Args:
            variant: what follows the scheme in the URI.

        Raises:
            InputError, EncoderUnavailableError, MissingExtraError: as `open`.
        """

    @classmethod
    @abstractmethod
    def listing(cls) -> list[EncoderListing]:
        """The URIs that this class can open, without loading weights."""

    @abstractmethod
    def preprocess(self, image: Image.Image) -> Tensor:
        """An RGB picture of any size to the tower's input (3, s, s) float32, on CPU; see `pixel_shape`.

        An encoder that a backend runs returns plain values (s, s, 3) uint8 instead.

        Safe to call from threads. A picture of size (s, s) is neither resized nor cropped: augmented views rely on
        that.
        """

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Preprocessed pictures (n, *pixel_shape) to raw features (n, d) float32 on CPU, in inference mode."""

    @abstractmethod
    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to raw features (k, d) float32 on CPU, in inference mode.

        Raises:
            InputError: if there are no texts.
        """

    def tower(self) -> Tower | None:
        """The image tower for backends; None, the default, if only the encoder itself can run it."""
        return None

    def towers(self) -> tuple[Tower, ...]:
        """The image towers whose features are concatenated; empty if only the encoder itself can run them."""
        tower = self.tower()
        return () if tower is None else (tower,)

    def text_tower(self) -> TextTower | None:
        """The text tower, which takes token embeddings; None, the default, if prompts can't be learned with it."""
        return None

    def projection(self) -> Projection | None:
        """The last, linear step of the image tower, in float32 on the CPU; None, the default, if it has none.

        The identity means that features are also the input of the projection. For any other projection
        `clipadapter.encoders.with_unprojected` gives its input and output, by way of `tower`.
        """
        return None

    def tunable_copy(self) -> Encoder | None:
        """A second encoder on the same weights, for methods that change weights; None, the default, if they can't.

        To replace a module or weight of ``tower().module`` or ``text_tower().network()`` of the copy leaves the
        original unchanged. A method that changes the copy gives it another fingerprint.
        """
        return None

    def patch_features(self, image: Image.Image) -> Tensor | None:
        """Features of the parts of a picture.

        Args:
            image: RGB, of any size.

        Returns:
            (h, w, d) float32 on the CPU: a grid over the square that the tower sees
            (``tower().pixels.to_square(image)``), in the space of the features, so that a head gives logits for each
            part; None, the default, if the tower has no such grid.
        """
        return None

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 32) -> Tensor:
        """RGB pictures to raw features (n, d) float32 on CPU, without cache or threads."""
        batches = [
            self.encode_pixels(torch.stack([self.preprocess(image) for image in images[i : i + batch_size]]))
            for i in range(0, len(images), batch_size)
        ]
        return torch.cat(batches) if batches else torch.empty(0, self.info.dim)
