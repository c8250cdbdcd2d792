"""Features of inner layers of an image tower, from the same pass as its final feature.

Convolutional towers: each channel's mean, maximum and standard deviation over positions, of the outputs of all stages,
side by side and not scaled. Late stages see objects, and early ones textures and small defects. Each statistic is a
layer of its own: on 21 sets of pictures (EfficientNet-Lite0, 2 to 16 shots per class) the head `auto` gained more from
one block for each statistic than from one for each stage, or from one of all (docs/decisions/0035-auto-blocks.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from clipadapter.encoders.rare_patches import describe_rare_patches, join_maps, patch_distances
from clipadapter.utils.blocks import FINAL, RARE_PATCHES

INNER = "inner"  # all statistics in one layer, as the toy encoder has it
INNER_MEAN, INNER_MAX, INNER_STD = "inner-mean", "inner-max", "inner-std"  # one layer for each statistic of all stages
INNER_TOKEN = "inner-token"  # class tokens of a transformer; the means of its patch tokens are ``inner-mean``
N_STATISTICS = 3  # columns for each channel: mean, maximum, standard deviation


def add_statistics(parts: Mapping[str, list[Tensor]], maps: Tensor, layers: Sequence[str]) -> None:
    """Append mean, maximum, deviation in float32 of each channel (n, c, h, w), (n, c) each, to the wanted layers."""
    maps = maps.float()
    is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
    if {INNER_MEAN, INNER_STD} & set(layers):
        mean = maps.mean(dim=(2, 3))
    if INNER_MEAN in layers:
        parts[INNER_MEAN].append(mean)
    if INNER_MAX in layers:
        # Pooling is faster in torch, which has no fast maximum over the first dimension of a matrix. OpenVINO and ONNX
        # Runtime have a maximum as an operator of its own.
        pooled = maps.amax(dim=(2, 3)) if is_traced else nn.functional.adaptive_max_pool2d(maps, 1).flatten(1)
        parts[INNER_MAX].append(pooled)
    if INNER_STD in layers:
        # The variance is the difference of two moments: `Tensor.var` takes ten times as long on channels-last maps.
        if is_traced:
            # One pass: OpenVINO and ONNX Runtime have the norm as an operator of its own.
            n_positions = int(maps.shape[2]) * int(maps.shape[3])
            second_moment = torch.linalg.vector_norm(maps, dim=(2, 3)) ** 2 / n_positions
        else:
            # Faster in torch, which has no fast norm over the first dimension of a matrix.
            second_moment = (maps * maps).mean(dim=(2, 3))
        parts[INNER_STD].append((second_moment - mean * mean).clamp(min=0).sqrt())


class StageNetwork(nn.Module):
    """A convolutional tower, whose modules it holds, with other outputs; modules that these do not need do not run."""

    # ``rare-patches`` reads the output of stage ``patch_stage`` beside that of the stage before it, of twice the
    # resolution. Maps before ``first_stage`` are the largest: their statistics would cost most of the time of all.

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        last: nn.Module,
        pool: nn.Module,
        layers: Sequence[str],
        patch_stage: int = 0,
        first_stage: int = 0,
    ) -> None:
        super().__init__()
        self.layers, self.patch_stage, self.first_stage = tuple(layers), patch_stage, first_stage
        n_stages = patch_stage + 1 if self.layers == (RARE_PATCHES,) else len(stages)
        self.stem, self.stages = stem, nn.ModuleList(stages[:n_stages])
        needs_last = bool({FINAL, INNER_MAX, INNER_STD} & set(self.layers))
        self.last: nn.Module | None = last if needs_last else None
        self.pool: nn.Module | None = pool if needs_last else None
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, sum of widths) float32."""
        maps = self.stem(pixels)
        parts: dict[str, list[Tensor]] = {INNER_MEAN: [], INNER_MAX: [], INNER_STD: [], RARE_PATCHES: []}
        for i, stage in enumerate(self.stages):
            before, maps = maps, stage(maps)
            if RARE_PATCHES in self.layers and i == self.patch_stage:
                parts[RARE_PATCHES].append(describe_rare_patches(join_maps(before, maps)))
            if i >= self.first_stage:
                add_statistics(parts, maps, self.layers)
        if self.last is not None and self.pool is not None:
            maps = self.last(maps)
            if FINAL in self.layers:
                parts[FINAL] = [self.pool(maps).float()]
            add_statistics(parts, maps, [layer for layer in self.layers if layer != INNER_MEAN])
        return torch.cat([each for layer in self.layers for each in parts[layer]], dim=1)

    def patch_distances(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, h, w): how rare each patch is, without the border; see `rare_patches.patch_distances`."""
        before = maps = self.stem(pixels)
        for stage in self.stages[: self.patch_stage + 1]:
            before, maps = maps, stage(maps)
        return patch_distances(join_maps(before, maps))


def second_size_of(native: int, step: int) -> int | None:
    """A larger side than the native one, 12/7 of it as 384 is of 224, in steps of a patch or all strides; else None."""
    size = step * round(native * 12 / 7 / step)
    return size if size > native else None
