"""What open_clip's image towers say of each patch of a picture, in the space of the picture's own feature.

CLIP's transformer reads its answer off one token, and what it leaves at the patches points anywhere. So the last layer
is run as in ClearCLIP (Lan et al., ECCV 2024, https://arxiv.org/abs/2407.12442, section 3): each patch attends to those
with queries like its own, and what attention gives is all that counts, without the residual and the MLP. CLIP's ResNet
ends in attention, too: there each place passes through its value and output layers alone, as in MaskCLIP (Zhou et al.,
ECCV 2022, https://arxiv.org/abs/2112.01071, section 3.2). Networks of timm pool each place as if it were all there is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from clipadapter.encoders._tuned import share


def find_patches(visual: Any, pixels: Tensor) -> Tensor | None:
    """A feature for each patch.

    Args:
        visual: of a model of open_clip.
        pixels: (1, 3, s, s), normalised, where the tower is.

    Returns:
        (h, w, d) as the tower gives it; None for towers that are not known: those of CoCa, and networks of timm that
        answer by a class token.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    # Not isinstance: a derived class may end in another way.
    if type(visual) is VisionTransformer:
        return _of_transformer(visual, pixels)
    if type(visual) is ModifiedResNet:
        return _of_resnet(visual, pixels)
    return _of_timm(visual, pixels) if type(visual) is TimmModel else None


def places(features: Tensor) -> Tensor:
    """A feature map (1, d, h, w) as (h, w, d)."""
    return features[0].permute(1, 2, 0)


class QueryAttention(nn.Module):
    """A layer of which each token keeps what those with like queries have as values.

    Args:
        block: of open_clip, with torch's own attention.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, *_others: Any, **_named: Any) -> Tensor:
        """Tokens (n, l, width) to the same shape."""
        attention = self.block.attn
        made = torch.nn.functional.linear(self.block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        q, _, v = made.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (n, heads, l, width) each
        found = torch.nn.functional.scaled_dot_product_attention(q, q, v).transpose(1, 2).flatten(2)
        kept: Tensor = self.block.ls_1(attention.out_proj(found))
        return kept


def _of_transformer(visual: Any, pixels: Tensor) -> Tensor | None:
    last = visual.transformer.resblocks[-1]
    known = isinstance(getattr(last, "attn", None), nn.MultiheadAttention) and visual.transformer.batch_first
    if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg") or not known:
        return None
    tower = share(visual)  # the encoder's own modules stay as they are
    tower.output_tokens = True
    if visual.pool_type == "tok":
        tower.transformer.resblocks[-1] = QueryAttention(tower.transformer.resblocks[-1])
    _, tokens = tower(pixels)
    tokens = tower.ln_post(tokens) if visual.final_ln_after_pool else tokens
    patches: Tensor = tokens[0] if tower.proj is None else tokens[0] @ tower.proj
    return patches.unflatten(0, tuple(visual.grid_size))


def _of_resnet(visual: Any, pixels: Tensor) -> Tensor:
    (features,) = visual.forward_intermediates(pixels, indices=1, intermediates_only=True)["image_intermediates"]
    pool, grid = visual.attnpool, tuple(features.shape[2:])
    spots = places(features).flatten(0, 1)
    spots = spots + pool.positional_embedding[1:].to(spots.dtype)  # the first is that of the mean
    patches: Tensor = pool.c_proj(pool.v_proj(spots))
    return patches.unflatten(0, grid)


def _of_timm(visual: Any, pixels: Tensor) -> Tensor | None:
    trunk = visual.trunk
    if getattr(trunk, "global_pool", "") == "token" or getattr(trunk, "output_fmt", "NCHW") != "NCHW":
        return None
    features: Tensor = trunk.forward_features(pixels)
    grid: Any
    if features.ndim == 4:
        grid = tuple(features.shape[2:])
        alone = places(features).flatten(0, 1)[:, :, None, None]
    else:
        first = int(getattr(trunk, "num_prefix_tokens", 0))
        side = math.isqrt(features.shape[1] - first)
        if side * side != features.shape[1] - first:
            return None
        grid = (side, side)
        alone = features[0, first:, None]
        if first and not getattr(trunk, "pool_include_prefix", False):
            # Pooling drops so many tokens before it looks at the patches.
            alone = torch.cat([features[:, :first].expand(len(alone), -1, -1), alone], dim=1)
    found: Tensor = visual.head(trunk.forward_head(alone))
    return found.unflatten(0, grid)
