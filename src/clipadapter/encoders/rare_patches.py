"""The patches of a picture that differ most from its other patches: a feature for small defects.

Means and maxima over a whole picture hide a spot of a few pixels. Here each patch has a Mahalanobis distance from the
mean and covariance of all patches of the same picture, as in the RX detector (Reed and Yu 1990,
https://doi.org/10.1109/29.60107). The feature describes the patches of the largest distances. It depends on no shots,
so it is stored, exported and mixed with others like every layer.

PatchCore (Roth et al. 2022, https://arxiv.org/abs/2106.08265), PaDiM (Defard et al. 2020,
https://arxiv.org/abs/2011.08785) and WinCLIP (Jeong et al. 2023, https://arxiv.org/abs/2303.14814) compare with patches
of other pictures instead, and find whether a picture has a defect. From PatchCore are the early layers with their 3 x 3
means, from PaDiM the Mahalanobis distance. docs/decisions/0036-rare-patches.md has the measurements.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

PATCH_COUNTS = (1, 4, 16, 48)  # the feature has the mean of this many of the rarest patches, for each number
BORDER = 2
"""Patches at each side that are left out. Zero padding makes them rarer than any defect: on fabric with spots they take
the area under the ROC curve from 0.98 to 0.52."""
SHRINKAGE = 0.1  # part of the identity in the correlation matrix. So each of its eigenvalues is at least this large
MIN_RELATIVE_STD = 1e-3
"""Lower bound of the deviation of a channel, as a share of the root mean square over the channels: else a channel that
is constant up to rounding would count as much as the others."""
NEWTON_STEPS = 14
"""The residual of the inverse is squared by each step. It begins below 1 - 0.2 / d for d channels, so that 14 steps
suffice for hundreds of channels."""


def join_maps(fine: Tensor, coarse: Tensor) -> Tensor:
    """3 x 3 means of maps (n, a, 2 h, 2 w) and (n, b, h, w) of two stages on the coarser grid, (n, a + b, h, w)."""
    means = [
        avg_pool2d(maps.float(), 3, stride, padding=1, count_include_pad=False)
        for maps, stride in ((fine, 2), (coarse, 1))
    ]
    return torch.cat(means, dim=1)


def patch_distances(maps: Tensor) -> Tensor:
    """Mahalanobis distance of each patch from the patches of its picture, divided by their root mean square.

    (n, c, h, w), larger than 4 x 4, to (n, h - 4, w - 4): the border of two patches at each side does not count.

    >>> maps = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> maps[0, :, 9, 5] = 20
    >>> divmod(int(patch_distances(maps).flatten().argmax()), 12)  # in rows of 12, after a border of 2
    (7, 3)
    """
    n, _, h, w = maps.shape
    squares = _squared_distances(_standardize(maps))
    mean_square = squares.mean(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return (squares / mean_square).sqrt().reshape(n, h - 2 * BORDER, w - 2 * BORDER)


def describe_rare_patches(maps: Tensor) -> Tensor:
    """Means of the 1, 4, 16 and 48 rarest patches by `patch_distances`, in standard units: (n, c, h, w) to (n, 4 c)."""
    z = _standardize(maps)
    n_patches = z.shape[2]
    rarest = _squared_distances(z).topk(min(PATCH_COUNTS[-1], n_patches), dim=1).indices
    patches = z.gather(2, rarest[:, None, :].expand(-1, z.shape[1], -1))  # (n, c, 48), the rarest first
    return torch.cat([patches[:, :, :count].mean(dim=2) for count in PATCH_COUNTS], dim=1)


def _standardize(maps: Tensor) -> Tensor:
    """(n, c, h, w) to (n, c, p) without the border, each channel of mean 0 and deviation 1."""
    x = maps.float()[:, :, BORDER:-BORDER, BORDER:-BORDER].flatten(2)
    x = x - x.mean(dim=2, keepdim=True)
    variance = (x * x).mean(dim=2, keepdim=True)
    floor = MIN_RELATIVE_STD**2 * variance.mean(dim=1, keepdim=True)
    return x / (variance + floor).clamp(min=torch.finfo(torch.float32).tiny).sqrt()


def _squared_distances(z: Tensor) -> Tensor:
    """(n, c, p) to (n, p): squared Mahalanobis distances by the channels' correlations, divided by c."""
    c, p = z.shape[1:]
    identity = torch.eye(c, dtype=z.dtype, device=z.device)
    correlation = (1 - SHRINKAGE) / p * (z @ z.transpose(1, 2)) + SHRINKAGE * identity
    return (z * (_inverse(correlation) @ z)).mean(dim=1).clamp(min=0)


def _inverse(matrices: Tensor) -> Tensor:
    """Inverse of symmetric matrices (n, c, c) with eigenvalues of `SHRINKAGE` or more."""
    # The Newton-Schulz iteration (Schulz 1933, https://doi.org/10.1002/zamm.19330130111) needs matrix products alone:
    # ONNX has no operator for the inverse.
    identity = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
    largest = matrices.abs().sum(dim=2).amax(dim=1)[:, None, None]  # no eigenvalue is larger
    inverse = 2 / (largest + SHRINKAGE) * identity
    for _ in range(NEWTON_STEPS):
        inverse = inverse @ (2 * identity - matrices @ inverse)
    return inverse
