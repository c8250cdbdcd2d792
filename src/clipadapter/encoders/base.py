"""The base class of encoders: two frozen towers, and the facts about them that must never be guessed.

At the end is what encoders do with their input before a tower gets it.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor, nn

from clipadapter.encoders.catalogue import UNKNOWN_LICENCE, EncoderListing, list_known
from clipadapter.encoders.registry import ENCODERS
from clipadapter.errors import InputError, brief
from clipadapter.runtime.engines import Tower
from clipadapter.utils.blocks import FINAL, Block, Blocks, as_blocks, total_width
from clipadapter.utils.parallel import run_in_batches
from clipadapter.utils.pixels import PixelSpec
from clipadapter.utils.prediction import DEFAULT_LOGIT_SCALE
from clipadapter.utils.towers import Projection, TextTower

if TYPE_CHECKING:
    from clipadapter.encoders.open_clip_prompts import PromptPlaces

MAX_BATCH_TOKENS = 512
"""Tokens in a batch of texts, padding included. On a CPU 256 to 2,048 are equally fast; more do not fit its cache."""

TOKENIZER_PROBES = (
    "a photo of a cat.",
    "A Photo, of the ÜBER-cat's hat!",
    "  two   spaces & <p>marks</p> ",
    "one two three four five six seven eight nine ten " * 12,
)
"""Texts whose tokens differ between tokenizers: case, accents, punctuation, spaces, truncation."""


@dataclass(frozen=True)
class EncoderInfo:
    """Facts about an encoder.

    Args:
        name: its URI; opening the URI again gives the same encoder.
        dim: width d of picture features: the sum of the widths of the blocks.
        image_size: side of the square input in pixels.
        logit_scale: ``exp(logit_scale)`` of the model; cosines are multiplied by it.
        logit_bias: added to the logits by sigmoid-loss models (SigLIP), else None.
        licence: licence of the weights, or "unknown".
        fingerprint: hex digest of weights, preprocessing and code version; in every cache key and artifact.
        note: what a user should know, such as why ``auto`` took this encoder; may be empty.
        blocks: the blocks of picture features (`clipadapter.utils.blocks`); by default ``final`` alone, which text
            features are compared with. Only a further pass of an encoder of several passes has no block ``final``.
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
    blocks: Blocks = ()
    backend: str = "torch"
    precision: str = "fp32"
    int8_calibration_digest: str = ""

    def __post_init__(self) -> None:
        blocks = as_blocks(self.blocks, needs_final=False) if self.blocks else (Block(FINAL, self.dim),)
        object.__setattr__(self, "blocks", blocks)
        if total_width(blocks) != self.dim:
            raise InputError(f"the blocks of {self.name} have {total_width(blocks)} columns, but its dim is {self.dim}")

    @classmethod
    def without_text(cls, name: str, dim: int, image_size: int, licence: str, fingerprint: str) -> EncoderInfo:
        """Facts about an encoder of pictures only, in torch and full precision."""
        return cls(name, dim, image_size, DEFAULT_LOGIT_SCALE, None, licence, fingerprint)

    @property
    def text_dim(self) -> int:
        """Width of text features: that of the block ``final``."""
        return self.blocks[0].width


class Encoder(ABC):
    """Two frozen towers: pictures and texts to raw float32 features, of one width unless ``info`` says otherwise.

    The encoder owns resizing, interpolation, mean and deviation, tokenizer, padding and lower-casing. A subclass
    defines ``info``, ``device``, `preprocess`, `encode_pixels` and `encode_text`; `TorchEncoder` has the first two of
    these methods. It overrides `open` if something may follow its scheme.
    """

    info: EncoderInfo
    device: str
    has_text: bool = True
    """Whether there is a text tower; False for an encoder of pictures only."""
    builds_quickly: ClassVar[bool] = False  # its image tower is built in well below a second

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of the result of `preprocess`: (3, s, s), unless the encoder packs the input of several towers."""
        return (3, self.info.image_size, self.info.image_size)

    @classmethod
    def open(cls, variant: str, device: str = "cpu") -> Encoder:
        """Open an encoder. By default nothing may follow the scheme, and the constructor takes the device.

        Args:
            variant: what follows the scheme in the URI; may be empty.
            device: a torch device.
        """
        refuse_variant(ENCODERS.name_of(cls) or cls.__name__, variant)
        cls.check(variant)
        return cls(device)  # type: ignore[call-arg]

    @classmethod  # noqa: B027 - not abstract: an encoder that is opened quickly needs no check
    def check(cls, variant: str) -> None:
        """Refuse a variant that can't be opened, as far as that shows without loading or downloading weights.

        Args:
            variant: what follows the scheme in the URI.

        Raises:
            InputError, EncoderUnavailableError, MissingExtraError: as `open`.
        """

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """The URIs that this class can open, without loading weights; by default its scheme or what is catalogued."""
        scheme = ENCODERS.name_of(cls) or cls.__name__
        known = [one for one in list_known() if one.name.partition(":")[0] == scheme]
        return known or [EncoderListing(scheme, None, UNKNOWN_LICENCE)]

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

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Texts to raw features (k, d) float32 on CPU, in inference mode.

        Raises:
            InputError: if there are no texts, or the encoder has no text tower (`has_text`).
        """
        name = self.info.name
        raise InputError(
            f"{name} has no text tower: name one that has beside it, such as --encoder lite --encoder {name}, or use a "
            "head that needs no class text, such as auto or linear-probe"
        )

    def tower(self) -> Tower | None:
        """The image tower for backends; None, the default, if only the encoder itself can run it."""
        return None

    def passes(self) -> tuple[Encoder, ...]:
        """The encoders whose features lie side by side, each with one pass through an image tower.

        Only `BlockEncoder` has several; any other encoder has itself.
        """
        return (self,)

    def towers(self) -> tuple[Tower, ...]:
        """The image towers whose features lie side by side; empty if only the encoder itself can run one of them."""
        tower = self.tower()
        return () if tower is None else (tower,)

    def block_fingerprints(self) -> tuple[str, ...]:
        """A fingerprint of each block of `info`, by which features are stored."""
        return (self.info.fingerprint,)

    def layers(self) -> Mapping[str, int]:
        """The width of each layer of the image tower that features can be taken from, ``final`` first.

        The others are inner layers, from the input to the output; ``unprojected``, if there is one, is the input of the
        last, linear step. Only ``final`` by default.
        """
        return {FINAL: self.info.dim}

    def second_size(self) -> int | None:
        """Side in pixels of a second, larger square that the image tower can take; None, the default, if it can't."""
        return None

    def layer_network(self, layers: Sequence[str], size: int) -> nn.Module:
        """The image tower with other outputs; it shares its weights.

        Args:
            layers: keys of `layers`, in their order.
            size: side of the square in pixels, also another one than the encoder's own.

        Returns:
            A module in inference mode: normalised pixels (n, 3, size, size) to the raw features of these layers side by
            side (n, sum of widths), float32. Every backend can convert it.

        Raises:
            InputError: if the tower can't be run at this size.
        """
        raise InputError(f"the image tower of {self.info.name} gives its final feature only, at its own size")

    def text_tower(self) -> TextTower | None:
        """The text tower, which takes token embeddings; None, the default, if prompts can't be learned with it."""
        return None

    def projection(self) -> Projection | None:
        """The last, linear step of the image tower, in float32 on the CPU; None, the default, if it has none.

        The identity means that features are also the input of the projection. Any other projection is between the
        layers ``unprojected`` and ``final``; see `layers`.
        """
        return None

    def tunable_copy(self) -> Encoder | None:
        """A second encoder on the same weights, for methods that change weights; None, the default, if they can't.

        To replace a module or weight of ``tower().module`` or ``text_tower().network()`` of the copy leaves the
        original unchanged. A method that changes the copy gives it another fingerprint.
        """
        return None

    def prompt_places(self) -> PromptPlaces | None:
        """Where prompts go in both towers, for methods that learn them; None, the default, if there are no such places.

        To insert prompts changes the encoder, so it must be a `tunable_copy`.
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

    def rare_patch_map(self, image: Image.Image, size: int) -> Tensor | None:
        """How much each patch of a picture differs from the other patches of the picture.

        Args:
            image: RGB, of any size.
            size: side in pixels of the square that the layer ``rare-patches`` reads.

        Returns:
            (h, w) float32 on the CPU: Mahalanobis distances, of root mean square 1, on a grid over the square without
            a border of two patches at each side. None, the default, if there is no such layer.
        """
        return None

    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 32) -> Tensor:
        """RGB pictures to raw features (n, d) float32 on CPU, without cache or threads."""
        batches = [
            self.encode_pixels(torch.stack([self.preprocess(image) for image in images[i : i + batch_size]]))
            for i in range(0, len(images), batch_size)
        ]
        return torch.cat(batches) if batches else torch.empty(0, self.info.dim)


class TorchEncoder(Encoder):
    """An encoder whose image tower is a module of torch, which backends may run too.

    A subclass sets ``info``, ``device`` and ``pixels``, and defines `network` and, if it has texts, `encode_text`.
    """

    pixels: PixelSpec
    """How a picture becomes the input of the network."""

    @abstractmethod
    def network(self) -> nn.Module:
        """The image tower in inference mode, on the device: normalised pixels (n, 3, s, s) to raw features (n, d)."""

    def image_features(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, s, s) on the device to raw features (n, d); those of `network` by default."""
        return self.network()(pixels)

    def patches(self, pixels: Tensor) -> Tensor | None:
        """Pixels (1, 3, s, s) on the device to the features (h, w, d) of `patch_features`; None by default."""
        return None

    def tower(self) -> Tower | None:
        return Tower(self.info.name, self.info.fingerprint, self.info.dim, self.pixels, self.network)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Scale, crop and normalize as ``pixels`` says."""
        return to_tensor(self.pixels.to_square(image), self.pixels.mean, self.pixels.std)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, d)."""
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != self.pixel_shape:
            shape = ", ".join(map(str, self.pixel_shape))
            raise InputError(f"this encoder takes pixels (n, {shape}), but got {tuple(pixels.shape)}")
        if not len(pixels):
            return torch.empty(0, self.info.dim)
        with torch.inference_mode():
            return run_in_batches(self.image_features, self.network(), pixels.to(self.device)).float().cpu()

    def patch_features(self, image: Image.Image) -> Tensor | None:
        with torch.inference_mode():
            patches = self.patches(self.preprocess(image)[None].to(self.device))
        return None if patches is None else patches.float().cpu()


def refuse_variant(scheme: str, variant: str) -> None:
    """Refuse anything that follows a scheme without variants."""
    if variant:
        raise InputError(f"the {scheme} encoder has no variants: say '{scheme}', not '{scheme}:{variant}'")


def to_tensor(image: ArrayLike, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """An RGB picture (h, w, 3) of 0 .. 255 to (3, h, w) float32, ``(value / 255 - mean) / std`` in each channel."""
    values = np.asarray(image, dtype=np.float32) / 255
    normalized = (values - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalized.transpose(2, 0, 1)))


def compute_fingerprint(facts: Any, arrays: Mapping[str, Tensor]) -> str:
    """32 hex digits of facts that JSON can write, and of the names, shapes, types and values of arrays."""
    # SHA-256 because processors have instructions for it: 0.5 s for ViT-B/32, half the time of BLAKE2.
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(array.shape)} {array.dtype}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return str(digest.hexdigest()[:32])


def digest_of(*facts: object) -> str:
    """32 hex digits of facts whose representation is the same on every machine."""
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def unique_texts(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The different texts in order of first appearance, and the index among them of each text.

    >>> unique_texts(["cat", "dog", "cat"])
    (['cat', 'dog'], [0, 1, 0])
    """
    if isinstance(texts, str):
        raise InputError(f"texts must be a list of texts, but is one text: [{brief(texts)}] would be a list")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"texts must be of type str, but one is a {type(text).__name__}: {brief(text)}")
    if not len(texts):
        raise InputError("there are no texts to encode: give one or more")
    index = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return list(index), [index[text] for text in texts]


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of texts by their numbers of tokens in batches, shortest first: padding costs as much as words do."""
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, but is {batch_size}: it is how many texts are encoded at once")
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if len(batch) == batch_size or (batch and (len(batch) + 1) * lengths[i] > MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def encode_by_length(
    tokens: Sequence[list[int]], encode: Callable[[list[list[int]]], Tensor], batch_size: int
) -> Tensor:
    """Raw features (k, d) float32 on the CPU of texts by their tokens, in batches of similar length."""
    batches = list(length_batches([len(ids) for ids in tokens], batch_size))
    features = [encode([tokens[i] for i in batch]).float().cpu() for batch in batches]
    return torch.cat(features)[torch.tensor([i for batch in batches for i in batch]).argsort()]
