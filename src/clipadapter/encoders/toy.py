"""A toy encoder for tests: it has no learned weights, but colour words match pictures of their colour."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from clipadapter.encoders.base import EncoderInfo, TorchEncoder, to_tensor, unique_texts
from clipadapter.encoders.catalogue import EncoderListing
from clipadapter.encoders.inner_layers import INNER, N_STATISTICS
from clipadapter.encoders.rare_patches import PATCH_COUNTS, describe_rare_patches, patch_distances
from clipadapter.encoders.registry import register_encoder
from clipadapter.errors import InputError
from clipadapter.runtime.engines import Tower
from clipadapter.utils.blocks import FINAL, RARE_PATCHES
from clipadapter.utils.pixels import PixelSpec
from clipadapter.utils.towers import Projection, TextTower, WordTower

IMAGE_SIZE = 32
WIDTH = 32
GRID = 8
INNER_GRID = 4
SECOND_IMAGE_SIZE = 48
PIXELS = PixelSpec(IMAGE_SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
NOTE = "tests only: knows colours and nothing else"
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}


@register_encoder("toy")
class ToyEncoder(TorchEncoder):
    """Random projection of the picture shrunk to 8 x 8; a colour word has the feature of a square of its colour.

    Other words have short random vectors that depend only on the word. The feature of a text is the sum of its words.

    >>> toy = ToyEncoder()
    >>> images = toy.encode_images([Image.new("RGB", (40, 50), name) for name in ("red", "green", "blue")])
    >>> texts = toy.encode_text(["a photo of a red thing.", "a green one", "Blue"])
    >>> torch.cosine_similarity(images[:, None], texts[None], dim=-1).argmax(dim=1)
    tensor([0, 1, 2])
    """

    pixels = PIXELS

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        generator = torch.Generator().manual_seed(0)
        self._projection = torch.randn(3 * GRID * GRID, WIDTH, generator=generator).div(3 * GRID * GRID).to(device)
        self._network = self.layer_network([FINAL], IMAGE_SIZE)
        fingerprint = hashlib.blake2b(b"toy 2", digest_size=16).hexdigest()
        self.info = EncoderInfo("toy", WIDTH, IMAGE_SIZE, 20.0, None, "Apache-2.0", fingerprint, NOTE)
        squares = [Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), colour) for colour in COLOURS.values()]
        self._tower = WordTower(dict(zip(COLOURS, self.encode_images(squares), strict=True)), WIDTH)

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        return [EncoderListing("toy", WIDTH, "Apache-2.0", NOTE)]

    def network(self) -> torch.nn.Module:
        return self._network

    def image_features(self, pixels: Tensor) -> Tensor:
        """Row by row: the rounding of a matrix product may depend on the size of the batch."""
        pooled = torch.nn.functional.adaptive_avg_pool2d(pixels, GRID).flatten(1)
        return torch.stack([row @ self._projection for row in pooled])

    def tower(self) -> None:
        """No backend would be faster."""

    def towers(self) -> tuple[Tower, ...]:
        """The same projection as a graph, whose rounding may depend on the size of the batch."""
        return (Tower(self.info.name, self.info.fingerprint, WIDTH, PIXELS, self.network()),)

    def layers(self) -> Mapping[str, int]:
        """``final``; ``inner``: mean, maximum and deviation of 4 x 4 squares by channel; ``rare-patches`` of pixels."""
        return {FINAL: WIDTH, INNER: N_STATISTICS * 3 * INNER_GRID**2, RARE_PATCHES: len(PATCH_COUNTS) * 3}

    def second_size(self) -> int:
        return SECOND_IMAGE_SIZE

    def layer_network(self, layers: Sequence[str], size: int) -> torch.nn.Module:
        if size % GRID:
            raise InputError(f"the toy encoder takes multiples of {GRID} pixels, but the size is {size}")
        return _ToyNetwork(self._projection, layers, size).eval()

    def rare_patch_map(self, image: Image.Image, size: int) -> Tensor:
        """(44, 44) at 48 pixels; see `Encoder.rare_patch_map`."""
        return patch_distances(to_tensor(replace(PIXELS, size=size).to_square(image), PIXELS.mean, PIXELS.std)[None])[0]

    def text_tower(self) -> TextTower:
        return self._tower

    def projection(self) -> Projection:
        """The identity: features count as the input of the projection."""
        return Projection(torch.eye(WIDTH))

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        different, index = unique_texts(texts)
        return self._tower.encode_tokens(self._tower.tokenize(different))[index]


class _ToyNetwork(torch.nn.Module):
    """The layers of the toy encoder."""

    def __init__(self, weight: Tensor, layers: Sequence[str], size: int) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", weight)
        self.layers, self.size = tuple(layers), size

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, d)."""
        features = {}
        if FINAL in self.layers:
            cells = torch.nn.functional.avg_pool2d(pixels, self.size // GRID)
            features[FINAL] = cells.flatten(1) @ self.weight
        if INNER in self.layers:
            side = self.size // INNER_GRID
            mean, moment = (torch.nn.functional.avg_pool2d(values, side) for values in (pixels, pixels * pixels))
            largest = torch.nn.functional.max_pool2d(pixels, side)
            deviation = (moment - mean * mean).clamp(min=0).sqrt()
            features[INNER] = torch.cat([each.flatten(1) for each in (mean, largest, deviation)], dim=1)
        if RARE_PATCHES in self.layers:
            features[RARE_PATCHES] = describe_rare_patches(pixels)
        return torch.cat([features[layer] for layer in self.layers], dim=1).float()
