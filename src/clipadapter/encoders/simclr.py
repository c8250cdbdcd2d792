"""An image tower that `clipadapter.pretraining` trained on the user's own pictures; it has no text tower."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipadapter.backends import Tower
from clipadapter.blocks import FINAL
from clipadapter.encoders.base import EncoderInfo, PictureEncoder
from clipadapter.encoders.catalogue import EncoderListing, listings_of
from clipadapter.encoders.inner_layers import INNER_MAX, INNER_MEAN, INNER_STD, StageNetwork, second_size_of
from clipadapter.encoders.inputs import check_pixels, to_tensor
from clipadapter.encoders.registry import register_encoder
from clipadapter.encoders.simclr_network import MEAN, STAGE_WIDTHS, STD, STRIDE, WIDTH, find_file, load_tower
from clipadapter.errors import InputError
from clipadapter.parallel import run_in_batches
from clipadapter.pixels import PixelSpec
from clipadapter.prediction import DEFAULT_LOGIT_SCALE


@register_encoder("simclr")
class SimClrEncoder(PictureEncoder):
    """The ResNet-18 in a folder that ``clipadapter simclr`` wrote, ``simclr:FOLDER``; pictures only.

    The picture feature is the network's last pooled map: 512 values, none negative.

    Args:
        folder: folder of the encoder.
        device: a torch device.

    Raises:
        EncoderUnavailableError: if the folder holds no intact encoder.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        self.device = device
        self._folder = Path(folder).expanduser().absolute()
        tower, size, digest = load_tower(self._folder)
        self._tower = tower.to(device)
        self._pixels = PixelSpec(size, MEAN, STD)
        facts = ("simclr 1", digest, size, MEAN, STD)
        self.info = EncoderInfo(
            name=f"simclr:{self._folder}",
            dim=WIDTH,
            image_size=size,
            logit_scale=DEFAULT_LOGIT_SCALE,
            logit_bias=None,
            licence="unknown",
            fingerprint=hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest(),
        )

    @classmethod
    def open(cls, variant: str, device: str = "cpu") -> SimClrEncoder:
        """Open the encoder in a folder.

        Raises:
            InputError: if no folder is named.
            EncoderUnavailableError: if the folder holds no intact encoder.
        """
        cls.check(variant)
        return cls(variant, device)

    @classmethod
    def check(cls, variant: str) -> None:
        """As `Encoder.check`."""
        if not variant:
            raise InputError(
                "'simclr' names no folder: say simclr:FOLDER, as 'clipadapter simclr --out FOLDER' made it"
            )
        find_file(Path(variant).expanduser().absolute())

    @classmethod
    def listing(cls) -> list[EncoderListing]:
        """What the catalogue says."""
        return listings_of("simclr")

    def preprocess(self, image: Image.Image) -> Tensor:
        """Scale the short side to the size of the training, crop the centre, normalize as for ImageNet."""
        return to_tensor(self._pixels.to_square(image), MEAN, STD)

    def tower(self) -> Tower:
        """ResNet-18 up to its pooling."""
        return Tower(self.info.name, self.info.fingerprint, WIDTH, self._pixels, self._tower)

    def layers(self) -> Mapping[str, int]:
        """``final``, and mean, maximum and deviation of the outputs of the four stages; the last mean is ``final``."""
        stages = sum(STAGE_WIDTHS)
        return {FINAL: WIDTH, INNER_MEAN: stages - WIDTH, INNER_MAX: stages, INNER_STD: stages}

    def second_size(self) -> int | None:
        """12/7 of the size of the training, as a multiple of 32; the tower is convolutional, so it takes any size."""
        return second_size_of(self.info.image_size, STRIDE)

    def layer_network(self, layers: Sequence[str], size: int) -> torch.nn.Module:
        """See `Encoder.layer_network`."""
        tower: Any = self._tower
        stem = torch.nn.Sequential(tower.conv1, tower.bn1, tower.relu, tower.maxpool)
        stages = (tower.layer1, tower.layer2, tower.layer3)
        return StageNetwork(stem, stages, tower.layer4, torch.nn.Sequential(tower.avgpool, torch.nn.Flatten()), layers)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, 512)."""
        check_pixels(pixels, self.info.image_size)
        if not len(pixels):
            return torch.empty(0, WIDTH)
        with torch.inference_mode():
            return run_in_batches(self._tower, self._tower, pixels.to(self.device)).cpu()

    def patch_features(self, image: Image.Image) -> Tensor:
        """(h, w, 512): the map whose mean is the picture's feature."""
        layers = [layer for name, layer in self._tower.named_children() if name not in ("avgpool", "fc")]
        with torch.inference_mode():
            return torch.nn.Sequential(*layers)(self.preprocess(image)[None].to(self.device))[0].permute(1, 2, 0).cpu()
