"""Features of the patches of a picture, from open_clip's image towers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from clipadapter.encoders.layers import copy_sharing_weights
from clipadapter.encoders.projection import kind_of
from clipadapter.encoders.prompted_layers import PromptedBlock, without_prompts


def encode_patches(visual: Any, pixels: Tensor) -> Tensor | None:
    """A feature for each patch of a picture, in the space of the picture's feature.

    CLIP's transformer reads its feature from one token, and the outputs at the patches are not in that space. So the
    last layer runs as in ClearCLIP (Lan et al., ECCV 2024, https://arxiv.org/abs/2407.12442, section 3): each patch
    attends to patches with similar queries, and the output of attention is taken without the residual and the MLP.
    CLIP's ResNet ends in attention too: there each position passes the value and output layers only, as in MaskCLIP
    (Zhou et al., ECCV 2022, https://arxiv.org/abs/2112.01071, section 3.2). Networks of timm pool each position as if
    it were the only one.

    Pixels (1, 3, s, s) to (h, w, d); None for towers that are not supported: those of CoCa, and networks of timm that
    read their feature from a class token.
    """
    patches_of = {"vit": _transformer_patches, "resnet": _resnet_patches, "timm": _timm_patches}
    kind = kind_of(visual)
    return patches_of[kind](visual, pixels) if kind else None


class QueryAttention(nn.Module):
    """A block of open_clip with ``nn.MultiheadAttention`` in which tokens attend to those with similar queries."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, *_others: Any, **_named: Any) -> Tensor:
        """Tokens (n, l, width) to the same shape."""
        attention = self.block.attn
        qkv = torch.nn.functional.linear(self.block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        q, _, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (n, heads, l, width) each
        mixed = torch.nn.functional.scaled_dot_product_attention(q, q, v).transpose(1, 2).flatten(2)
        output: Tensor = self.block.ls_1(attention.out_proj(mixed))
        return output


def _transformer_patches(visual: Any, pixels: Tensor) -> Tensor | None:
    last_block = without_prompts(visual.transformer.resblocks[-1])
    has_plain_attention = isinstance(getattr(last_block, "attn", None), nn.MultiheadAttention)
    is_supported = has_plain_attention and visual.transformer.batch_first and visual.attn_pool is None
    if not is_supported or visual.pool_type not in ("tok", "avg"):
        return None
    tower = copy_sharing_weights(visual)  # the modules of the encoder stay unchanged
    tower.output_tokens = True
    if visual.pool_type == "tok":
        blocks = tower.transformer.resblocks
        last = QueryAttention(without_prompts(blocks[-1]))
        is_prompted = isinstance(blocks[-1], PromptedBlock)
        blocks[-1] = PromptedBlock(last, blocks[-1].source, is_text=False) if is_prompted else last
    _, tokens = tower(pixels)
    tokens = tower.ln_post(tokens) if visual.final_ln_after_pool else tokens
    grid = tuple(visual.grid_size)
    tokens = tokens[0, : math.prod(grid)]  # without prompts, which stand after the patches
    patches: Tensor = tokens if tower.proj is None else tokens @ tower.proj
    return patches.unflatten(0, grid)


def _resnet_patches(visual: Any, pixels: Tensor) -> Tensor:
    (features,) = visual.forward_intermediates(pixels, indices=1, intermediates_only=True)["image_intermediates"]
    pool, grid = visual.attnpool, tuple(features.shape[2:])
    positions = features[0].permute(1, 2, 0).flatten(0, 1)
    positions = positions + pool.positional_embedding[1:].to(positions.dtype)  # the first one belongs to the mean
    patches: Tensor = pool.c_proj(pool.v_proj(positions))
    return patches.unflatten(0, grid)


def _timm_patches(visual: Any, pixels: Tensor) -> Tensor | None:
    trunk = visual.trunk
    if getattr(trunk, "global_pool", "") == "token" or getattr(trunk, "output_fmt", "NCHW") != "NCHW":
        return None
    features: Tensor = trunk.forward_features(pixels)
    grid: Any
    if features.ndim == 4:
        grid = tuple(features.shape[2:])
        single_patches = features[0].permute(1, 2, 0).flatten(0, 1)[:, :, None, None]
    else:
        n_prefix = int(getattr(trunk, "num_prefix_tokens", 0))
        side = math.isqrt(features.shape[1] - n_prefix)
        if side * side != features.shape[1] - n_prefix:
            return None
        grid = (side, side)
        single_patches = features[0, n_prefix:, None]
        if n_prefix and not getattr(trunk, "pool_include_prefix", False):
            # Pooling drops the prefix tokens before it reads the patches.
            prefix = features[:, :n_prefix].expand(len(single_patches), -1, -1)
            single_patches = torch.cat([prefix, single_patches], dim=1)
    patches: Tensor = visual.head(trunk.forward_head(single_patches))
    return patches.unflatten(0, grid)
