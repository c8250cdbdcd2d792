"""Image towers as the first part of the graph: from plain squares, or from normalised pixels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from clipadapter.backends import Tower
from clipadapter.backends._modules import Uint8Tower
from clipadapter.encoders import Encoder
from clipadapter.errors import InputError


def towers_of(encoder: Encoder) -> tuple[Tower, ...]:
    """The encoder's image towers in full precision on the CPU, whatever backend runs it.

    Raises:
        InputError: if only the encoder itself can run it, or two towers take squares that are made otherwise.
    """
    found = encoder.towers()
    name = encoder.info.name
    if not found:
        raise InputError(
            f"the image tower of {name} can't be exported: nothing but the encoder itself can prepare its pictures or "
            "run it. Of open_clip those are the models that pad pictures to a square"
        )
    first = found[0].pixels
    for tower in found[1:]:
        if replace(tower.pixels, mean=first.mean, std=first.std) != first:
            raise InputError(
                f"{name} can't be exported: its towers take squares of {first.size} ({first.resize}, {first.resample}) "
                f"and {tower.pixels.size} ({tower.pixels.resize}, {tower.pixels.resample}), but a file has one input. "
                "Use two encoders that see pictures alike: 'clipadapter simclr' has --size"
            )
    return tuple(replace(tower, network=_on_cpu(tower.module)) for tower in found)


def _on_cpu(module: nn.Module) -> nn.Module:
    tensors = [*module.parameters(), *module.buffers()]
    return module if all(tensor.device.type == "cpu" for tensor in tensors) else copy.deepcopy(module).cpu()


class Squares(nn.Module):
    """Squares (n, s, s, 3), values 0 .. 255, to features of all towers side by side (n, d)."""

    def __init__(self, towers: Sequence[Tower]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(Uint8Tower(tower) for tower in towers)

    def forward(self, squares: Tensor) -> Tensor:
        """(n, s, s, 3) to (n, d)."""
        return _beside([tower(squares) for tower in self.towers])


class Pixels(nn.Module):
    """Pixels (n, 3, s, s) as the first tower takes them, to features of all towers side by side (n, d)."""

    def __init__(self, towers: Sequence[Tower]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(tower.module for tower in towers)
        mean, std = _mean_and_std(towers[0])
        self.steps = [((std / other[1]), (mean - other[0]) / other[1]) for other in map(_mean_and_std, towers)]

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, d)."""
        alike = [pixels if i == 0 else pixels * scale + shift for i, (scale, shift) in enumerate(self.steps)]
        return _beside([tower(each).float() for tower, each in zip(self.towers, alike, strict=True)])


def _mean_and_std(tower: Tower) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (tower.pixels.mean, tower.pixels.std))
    return mean, std


def _beside(features: list[Tensor]) -> Tensor:
    return features[0] if len(features) == 1 else torch.cat(features, dim=1)
