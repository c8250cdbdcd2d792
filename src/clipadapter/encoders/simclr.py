"""An image tower that `clipadapter.pretraining` trained on the user's own pictures; it has no text tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clipadapter.encoders.base import EncoderInfo, TorchEncoder, digest_of
from clipadapter.encoders.catalogue import UNKNOWN_LICENCE
from clipadapter.encoders.inner_layers import INNER_MAX, INNER_MEAN, INNER_STD, StageNetwork, second_size_of
from clipadapter.encoders.registry import register_encoder
from clipadapter.encoders.simclr_network import MEAN, STAGE_WIDTHS, STD, STRIDE, WIDTH, find_file, load_tower
from clipadapter.errors import InputError
from clipadapter.utils.blocks import FINAL
from clipadapter.utils.pixels import PixelSpec


@register_encoder("simclr")
class SimClrEncoder(TorchEncoder):
    """The ResNet-18 in a folder that ``clipadapter simclr`` wrote, ``simclr:FOLDER``; pictures only.

    The picture feature is the network's last pooled map: 512 values, none negative.
    """

    has_text = False

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        self.device = device
        folder = Path(folder).expanduser().absolute()
        tower, size, digest = load_tower(folder)
        self._tower = tower.to(device)
        self.pixels = PixelSpec(size, MEAN, STD)
        fingerprint = digest_of("simclr 1", digest, size, MEAN, STD)
        self.info = EncoderInfo.without_text(f"simclr:{folder}", WIDTH, size, UNKNOWN_LICENCE, fingerprint)

    @classmethod
    def open(cls, variant: str, device: str = "cpu") -> SimClrEncoder:
        cls.check(variant)
        return cls(variant, device)

    @classmethod
    def check(cls, variant: str) -> None:
        if not variant:
            raise InputError(
                "'simclr' names no folder: say simclr:FOLDER, as 'clipadapter simclr --out FOLDER' made it"
            )
        find_file(Path(variant).expanduser().absolute())

    def network(self) -> nn.Module:
        return self._tower

    def layers(self) -> Mapping[str, int]:
        """``final``, and mean, maximum and deviation of the outputs of the four stages; the last mean is ``final``."""
        stages = sum(STAGE_WIDTHS)
        return {FINAL: WIDTH, INNER_MEAN: stages - WIDTH, INNER_MAX: stages, INNER_STD: stages}

    def second_size(self) -> int | None:
        """12/7 of the size of the training, as a multiple of 32; the tower is convolutional, so it takes any size."""
        return second_size_of(self.info.image_size, STRIDE)

    def layer_network(self, layers: Sequence[str], size: int) -> nn.Module:
        tower: Any = self._tower
        stem = nn.Sequential(tower.conv1, tower.bn1, tower.relu, tower.maxpool)
        stages = (tower.layer1, tower.layer2, tower.layer3)
        return StageNetwork(stem, stages, tower.layer4, nn.Sequential(tower.avgpool, nn.Flatten()), layers)

    def patches(self, pixels: Tensor) -> Tensor:
        """The map whose mean is the picture's feature."""
        maps: Tensor = nn.Sequential(*list(self._tower.children())[:-2])(pixels)  # without pooling and classifier
        return maps[0].permute(1, 2, 0)
