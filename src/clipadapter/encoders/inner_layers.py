"""Features of inner layers of an image tower, from the same pass as its final feature.

Convolutional towers: mean, maximum and standard deviation of each channel over the positions of the outputs of all
stages, side by side and not scaled. Late stages see objects and early ones textures and small defects. In a trial on
six sets of pictures (EfficientNet-Lite0, 1 to 16 shots per class) all stages together were as good as one block for
each stage, and better than the last stages alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipadapter.blocks import FINAL

INNER = "inner"
"""The layer that all encoders of this library call their inner features."""
N_STATISTICS = 3
"""Columns for each channel: mean, maximum, standard deviation."""


def map_statistics(maps: Tensor) -> Tensor:
    """Mean, maximum and population standard deviation of each channel over all positions.

    They are computed in float32, whichever type the maps have.

    Args:
        maps: (n, c, h, w) feature maps.

    Returns:
        (n, 3 c) float32: all means, then all maxima, then all deviations.

    >>> map_statistics(torch.tensor([[[[0.0, 0.0], [4.0, 4.0]]]]))
    tensor([[2., 4., 2.]])
    """
    maps = maps.float()
    mean = maps.mean(dim=(2, 3))
    # From the two moments: `Tensor.var` takes ten times as long on maps that are channels-last in memory.
    variance = (maps * maps).mean(dim=(2, 3)) - mean * mean
    # Pooling is four times as fast in torch; other backends have the plain maximum.
    is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
    largest = maps.amax(dim=(2, 3)) if is_traced else nn.functional.adaptive_max_pool2d(maps, 1).flatten(1)
    return torch.cat([mean, largest, variance.clamp(min=0).sqrt()], dim=1)


class StageNetwork(nn.Module):
    """A convolutional tower that gives statistics of its stages, its final feature, or both.

    It holds the modules of the tower, not copies. Modules that the wanted layers do not need are not run.

    Args:
        stem: pixels (n, 3, s, s) to the input of the first stage.
        stages: each takes the output of the one before it, (n, c, h, w).
        head: the output of the last stage to the final feature.
        layers: ``final``, ``inner`` or both, in this order.
    """

    def __init__(self, stem: nn.Module, stages: Sequence[nn.Module], head: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.stem, self.stages = stem, nn.ModuleList(stages)
        self.head = head if FINAL in layers else None
        self.has_inner = INNER in layers
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, sum of widths) float32."""
        maps, inner = self.stem(pixels), []
        for stage in self.stages:
            maps = stage(maps)
            if self.has_inner:
                inner.append(map_statistics(maps))
        final = [] if self.head is None else [self.head(maps).float()]
        return torch.cat([*final, *inner], dim=1)
