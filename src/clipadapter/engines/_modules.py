"""Towers as torch modules that begin with plain pixels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clipadapter.engines._base import Tower


class Uint8Tower(nn.Module):
    """Squares (n, s, s, 3) of values 0 .. 255 to features: mean and deviation, then the tower.

    Args:
        tower: what comes after the pixels.
        dtype: number type the tower works in.
    """

    def __init__(self, tower: Tower, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.module, self.dtype = tower.module, dtype
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (tower.pixels.mean, tower.pixels.std))
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, squares: Tensor) -> Tensor:
        """(n, s, s, 3) to (n, d) float32."""
        # The view is channels-last already, which convolutions like best.
        pixels = squares.permute(0, 3, 1, 2).float() * self.scale + self.shift
        features: Tensor = self.module(pixels.to(self.dtype)).float()
        return features


def traced(tower: Tower) -> torch.jit.ScriptModule:
    """The tower as a graph, for any number of squares."""
    example = torch.randint(0, 256, (2, tower.pixels.size, tower.pixels.size, 3), dtype=torch.uint8)
    with _plain_attention(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on constants in the trace; a converted tower is compared with the original
        module: torch.jit.ScriptModule = torch.jit.trace(Uint8Tower(tower).eval(), example, check_trace=False)
    return module


def is_transformer(tower: Tower) -> bool:
    """Whether it attends, which int8 must know."""
    return any("attention" in type(module).__name__.lower() for module in tower.module.modules())


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in parts: torch's fused kernel has no counterpart elsewhere."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
