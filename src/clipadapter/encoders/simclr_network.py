"""The network of the simclr encoder and its file format: safetensors, with a header that says how it was trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.nn import Module

from clipadapter.errors import EncoderUnavailableError
from clipadapter.utils.files import quote_path, write_atomically

FILE = "encoder.safetensors"
FORMAT = 1
WIDTH = 512
STAGE_WIDTHS = (64, 128, 256, 512)
STRIDE = 32  # product of the strides of all stages
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's weights expect them


def empty_tower() -> Module:
    """A ResNet-18 without classifier, (n, 3, s, s) to (n, 512), and without values, so that nothing is drawn."""
    from torchvision.models import resnet18

    with torch.device("meta"):
        tower: Module = resnet18()
        tower.fc = torch.nn.Identity()
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


def load_tower(folder: Path) -> tuple[Module, int, str]:
    """The trained tower in a folder, the side of its input in pixels, and the SHA-256 of its file."""
    path = find_file(folder)
    try:
        tensors, facts, digest = read_tensors(path)
        tower, size = empty_tower(), int(facts["size"])
        tower.load_state_dict(tensors, assign=True)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise EncoderUnavailableError(f"{path} holds no encoder: {error}") from error
    return tower.eval().requires_grad_(False), size, digest
