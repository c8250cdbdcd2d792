"""An image tower that `clipadapter.pretraining` trained on the user's own pictures; it has no text tower.

Its file is safetensors, with a header that says how it was trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from clipadapter.encoders.base import EncoderInfo, TorchEncoder
from clipadapter.encoders.inner_layers import INNER_MAX, INNER_MEAN, INNER_STD, StageNetwork, second_size_of
from clipadapter.encoders.registry import register_encoder
from clipadapter.errors import EncoderUnavailableError, InputError
from clipadapter.utils.blocks import FINAL
from clipadapter.utils.files import quote_path, write_atomically
from clipadapter.utils.pixels import PixelSpec
from clipadapter.utils.prediction import DEFAULT_LOGIT_SCALE

FILE = "encoder.safetensors"
FORMAT = 1
WIDTH = 512
STAGE_WIDTHS = (64, 128, 256, 512)
STRIDE = 32
"""Product of the strides of all stages."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, as torchvision's weights expect them."""


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
        facts = ("simclr 1", digest, size, MEAN, STD)
        self.info = EncoderInfo(
            name=f"simclr:{folder}",
            dim=WIDTH,
            image_size=size,
            logit_scale=DEFAULT_LOGIT_SCALE,
            logit_bias=None,
            licence="unknown",
            fingerprint=hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest(),
        )

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


def empty_tower() -> nn.Module:
    """A ResNet-18 without its classifier, (n, 3, s, s) to (n, 512). Its values must be loaded afterwards.

    Nothing is drawn from a random generator.
    """
    from torchvision.models import resnet18

    with torch.device("meta"):
        tower: nn.Module = resnet18()
        tower.fc = nn.Identity()
    return tower


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and facts about them as one file, atomically."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save_tensors(flat, {"facts": json.dumps({"format": FORMAT, **facts})}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, facts and SHA-256 of a file that `write_tensors` wrote."""
    try:
        data = path.read_bytes()
        tensors = load_tensors(data)
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
        format_number = facts.pop("format")
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    if format_number != FORMAT:
        raise ValueError(f"{path} has format {format_number}, this version reads {FORMAT}: update clipadapter")
    return tensors, facts, hashlib.sha256(data).hexdigest()


def find_file(folder: Path) -> Path:
    """The file of the encoder in a folder, which must be there."""
    path = folder / FILE
    if not path.is_file():
        command = f"clipadapter simclr PICTURES --out {quote_path(folder)}"
        raise EncoderUnavailableError(f"there is no {path}; to make one: {command}")
    return path


def load_tower(folder: Path) -> tuple[nn.Module, int, str]:
    """The trained tower in a folder, the side of its input in pixels, and the SHA-256 of its file."""
    path = find_file(folder)
    try:
        tensors, facts, digest = read_tensors(path)
        tower, size = empty_tower(), int(facts["size"])
        tower.load_state_dict(tensors, assign=True)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise EncoderUnavailableError(f"{path} holds no encoder: {error}") from error
    return tower.eval().requires_grad_(False), size, digest
