"""Causal towers of open_clip over texts that begin alike: the beginning is run once, then what differs.

No token sees what stands behind it, so the keys and values of the beginning are those of every text. The sums are those
of ``ResidualAttentionBlock`` of open_clip 3.3 (MIT), with the block's own weights and other modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of the beginning in one layer, (h, p, w / h) each, for h heads."""


def plain_blocks(transformer: Any) -> list[Any] | None:
    """The transformer's blocks as they are now if they do what this module repeats, else None."""
    from open_clip.transformer import ResidualAttentionBlock, Transformer

    # Not isinstance: a derived class may attend in another way.
    if type(transformer) is not Transformer or transformer.grad_checkpointing:
        return None
    blocks = list(transformer.resblocks)
    plain = all(type(block) is ResidualAttentionBlock and _is_plain(block) for block in blocks)
    return blocks if plain else None


def _is_plain(block: Any) -> bool:
    attention = block.attn
    return (
        type(attention) is nn.MultiheadAttention
        and not hasattr(block, "ln_1_kv")
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
        and not attention.dropout
    )


def run_beginning(blocks: Sequence[Any], hidden: Tensor) -> list[KeysValues]:
    """What the layers give of a beginning (p, w) to the tokens behind it."""
    found = []
    for number, block in enumerate(blocks, start=1):
        q, k, v = _projected(block, hidden).movedim(0, 2)  # (h, p, w / h) each
        found.append((k, v))
        if number < len(blocks):  # nobody asks for the beginning's own features
            mixed = scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
            hidden = _finished(block, hidden, mixed.movedim(0, -2))
    return found


def run_after(blocks: Sequence[Any], beginning: Sequence[KeysValues], hidden: Tensor, lengths: Tensor) -> Tensor:
    """Hidden states at the last token of each row, after all layers.

    Args:
        blocks: from `plain_blocks`.
        beginning: from `run_beginning`.
        hidden: (k, l, w), the tokens behind the beginning, places added.
        lengths: (k,), how many tokens of each row count; 1 or more.

    Returns:
        (k, w)
    """
    rows, length, _ = hidden.shape
    starts = torch.arange(rows, device=hidden.device) * length
    told = (torch.arange(length, device=hidden.device) < lengths[:, None]).flatten().nonzero()[:, 0]  # (t,)
    # Only attention needs rows: everything else takes the t tokens that count, without the padding.
    tokens = hidden.flatten(0, 1)[told]
    for number, (block, (keys, values)) in enumerate(zip(blocks, beginning, strict=True), start=1):
        parts = _projected(block, tokens)  # (t, 3, h, w / h)
        padded = parts.new_zeros(rows * length, *parts.shape[1:]).index_copy(0, told, parts)
        mixed = _attended(padded.unflatten(0, (rows, length)), keys, values).flatten(0, 1)
        if number < len(blocks):
            tokens = _finished(block, tokens, mixed[told])
        else:
            tokens = _finished(block, tokens[lengths.cumsum(0) - 1], mixed[starts + lengths - 1])
    return tokens


def _attended(parts: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of each token to the beginning, to those before it in its row and to itself.

    Written out, since the library's own attention wants the beginning's keys once for each row: that takes three times
    as long and as much memory.

    Args:
        parts: (k, l, 3, h, w / h): queries, keys, values.
        keys: (h, p, w / h), of the beginning.
        values: (h, p, w / h).

    Returns:
        (k, l, h, w / h)
    """
    rows, length, _, _, size = parts.shape
    q, k, v = parts.permute(2, 3, 0, 1, 4)  # (h, k, l, w / h) each
    q = q * size**-0.5
    before = (q.flatten(1, 2) @ keys.mT).unflatten(1, (rows, length))  # (h, k, l, p)
    behind = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    own = (q @ k.mT).masked_fill(behind, -torch.inf)  # (h, k, l, l)
    shares = torch.cat([before, own], dim=-1).softmax(dim=-1)
    before, own = shares.split([keys.shape[1], length], dim=-1)
    mixed = (before.flatten(1, 2) @ values).unflatten(1, (rows, length)) + own @ v
    return mixed.movedim(0, 2)


def _projected(block: Any, hidden: Tensor) -> Tensor:
    """Queries, keys and values of tokens (..., w), as (..., 3, h, w / h)."""
    attention = block.attn
    found = linear(block.ln_1(hidden), attention.in_proj_weight, attention.in_proj_bias)
    return found.unflatten(-1, (3, attention.num_heads, attention.head_dim))


def _finished(block: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """The rest of a block: tokens (..., w) and what attention gives for them, (..., h, w / h)."""
    out = block.attn.out_proj
    hidden = hidden + block.ls_1(linear(mixed.flatten(-2), out.weight, out.bias))
    found: Tensor = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
    return found
