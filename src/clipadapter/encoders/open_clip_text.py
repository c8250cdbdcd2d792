"""Text towers of open_clip: encoding without padding, and prompts given as token embeddings.

CLIP's towers are causal: a token attends to itself and to the tokens before it. The feature is read at the end token,
so what follows that token has no effect. Three things follow:

- Texts are encoded without padding. A prompt has about ten tokens, the context 77.
- Rows of embeddings are as long as their text.
- Texts with a common prefix share the keys and values of that prefix: it passes the layers once, and each text attends
  to it (`after_prefix`).

SigLIP attends in both directions and reads its feature at the last position of the context, so rows are padded.

The sums are those of ``CLIP.encode_text``, ``TextTransformer.forward`` and ``ResidualAttentionBlock`` of open_clip 3.3
(MIT), with the weights and modules of the model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from clipadapter.encoders.layers import PromptedBlock, without_prompts
from clipadapter.utils.towers import TextTower

MAX_RELATIVE_ERROR = 1e-4
"""Largest distance of a feature without padding to the model's own, relative to its length; rounding gives 1e-6."""

KeysValues = tuple[Tensor, Tensor]  # keys and values of the prefix in one layer, (h, p, w / h) each, for h heads


class OpenClipTextTower(TextTower):
    """The tower with some layers; see `wrap_text_tower`."""

    def __init__(self, layers: Any, tokenizer: Any, fingerprint: str, device: str) -> None:
        self.fingerprint, self.device = fingerprint, device
        self.layers, self.tokenizer = layers, tokenizer
        self.context_length = int(layers.context_length)
        self.width = int(layers.token_embedding.weight.shape[1])
        self.dim = int(self.project(torch.zeros(1, self.width, device=device)).shape[1])

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text with its special tokens, without padding."""
        tokens = self.tokenizer(list(texts), context_length=self.context_length)  # (k, context)
        return [row[:n].tolist() for row, n in zip(tokens, self.count_tokens(tokens).tolist(), strict=True)]

    @abstractmethod
    def count_tokens(self, tokens: Tensor) -> Tensor:
        """Number of tokens of each text without padding, (k, context) to (k,)."""

    def network(self) -> nn.Module:
        return self.layers.transformer

    def final_norm(self) -> nn.Module:
        """The norm between the transformer and the projection."""
        return self.layers.ln_final

    def embed(self, ids: Tensor) -> Tensor:
        return self.layers.token_embedding(ids.to(self.device))

    def project(self, hidden: Tensor) -> Tensor:
        """The last step, (k, w) to (k, d)."""
        projection = self.layers.text_projection
        if projection is None:
            return hidden
        return projection(hidden) if isinstance(projection, nn.Linear) else hidden @ projection


class CausalTextTower(OpenClipTextTower):
    """A tower whose features depend on no token after the end token."""

    def __init__(self, *args: Any, end_id: int | None) -> None:
        super().__init__(*args)
        self.end_id = end_id  # of the end token; None if it is the highest id of a text

    def count_tokens(self, tokens: Tensor) -> Tensor:
        """Up to the first end token, as in open_clip."""
        scores = tokens if self.end_id is None else (tokens == self.end_id).int()
        return scores.argmax(dim=1) + 1  # the first of equal ones

    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        lengths = lengths.to(self.device)
        length = int(lengths.max())
        hidden = self.add_positions(embeddings[:, :length])
        hidden = self.layers.transformer(hidden, attn_mask=self.layers.attn_mask[:length, :length])
        return self.project(self.layers.ln_final(hidden)[torch.arange(len(lengths), device=self.device), lengths - 1])

    def after_prefix(self, prefix: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The prefix is run through the layers here if they are of the kind that `plain_blocks` knows."""
        blocks = plain_blocks(self.layers.transformer)
        prompted = [block for block in blocks or () if isinstance(block, PromptedBlock)]
        if blocks is None or any(len(block.source()) >= len(prefix) for block in prompted):
            return super().after_prefix(prefix)  # not all prompts stand among the first tokens
        keys_values = run_prefix(blocks, self.add_positions(prefix))

        def encode(embeddings: Tensor, lengths: Tensor) -> Tensor:
            lengths = lengths.to(self.device)
            hidden = self.add_positions(embeddings[:, : int(lengths.max())], len(prefix))
            return self.project(self.layers.ln_final(run_after_prefix(blocks, keys_values, hidden, lengths)))

        return encode

    def add_positions(self, embeddings: Tensor, start: int = 0) -> Tensor:
        """Embeddings (..., l, w) plus the positional embeddings from position `start` on."""
        dtype = self.layers.transformer.get_cast_dtype()
        positions: Tensor = self.layers.positional_embedding[start : start + embeddings.shape[-2]]
        return embeddings.to(dtype) + positions.to(dtype)


class SigLipTextTower(OpenClipTextTower):
    """A tower that attends in both directions and reads its feature at the last position."""

    @property
    def padding_id(self) -> int:
        """The token that fills up the context."""
        return int(self.tokenizer.tokenizer.pad_token_id)

    def count_tokens(self, tokens: Tensor) -> Tensor:
        """Up to the last token that is no padding; none if there is none."""
        is_token = (tokens != self.padding_id).int()
        return (is_token * torch.arange(1, tokens.shape[1] + 1)).amax(dim=1)

    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        k, length, width = embeddings.shape
        padding = self.embed(torch.tensor([self.padding_id])).to(embeddings.dtype)  # (1, w)
        embeddings = torch.cat([embeddings, padding.expand(k, self.context_length - length, width)], dim=1)
        positions = torch.arange(self.context_length, device=self.device)
        is_token = (positions < lengths.to(self.device)[:, None])[..., None]  # (k, context, 1)
        hidden = torch.where(is_token, embeddings, padding) + self.layers.positional_embedding
        return self.project(self.layers.ln_final(self.layers.transformer(hidden, attn_mask=None))[:, -1])


def wrap_text_tower(model: Any, tokenizer: Any, fingerprint: str, device: str) -> OpenClipTextTower | None:
    """The text tower of a model of open_clip if it is causal or one of SigLIP, else None.

    None is the result for CoCa (a class token at the end) and the towers of the library transformers.
    """
    import open_clip
    from open_clip.transformer import TextTransformer

    # Not isinstance: a derived class may encode texts in another way.
    if type(model) is open_clip.CLIP:
        layers, pool, end = model, "text_pool_type", "text_eos_id"
    elif type(model) is open_clip.CustomTextCLIP and type(model.text) is TextTransformer:
        layers, pool, end = model.text, "pool_type", "eos_id"
    else:
        return None
    pool_type, mask = getattr(layers, pool, None), layers.attn_mask  # which is additive
    facts = layers, tokenizer, fingerprint, device
    if getattr(layers, "cls_emb", None) is not None:
        return None
    if mask is not None and torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1)):
        end_ids = {"argmax": None, "eos": getattr(layers, end, None)}
        return CausalTextTower(*facts, end_id=end_ids[pool_type]) if pool_type in end_ids else None
    is_siglip = layers is not model and mask is None and not getattr(layers, "use_pad_mask", False)
    is_supported = is_siglip and pool_type == "last" and hasattr(tokenizer, "tokenizer")
    return SigLipTextTower(*facts) if is_supported else None


def is_exact_without_padding(model: Any, tower: CausalTextTower) -> bool:
    """Whether a text has the same feature without padding as the model's own ``encode_text`` gives."""
    tokens = tower.tokenizer(["cat"], context_length=tower.context_length).to(tower.device)
    expected = model.encode_text(tokens, normalize=False)
    distance = (tower.encode_tokens(tower.tokenize(["cat"])) - expected).norm()
    return bool(distance <= MAX_RELATIVE_ERROR * expected.norm())  # False for NaN


def plain_blocks(transformer: Any) -> list[Any] | None:
    """The blocks of the transformer if `run_prefix` and `run_after_prefix` compute what they do, else None."""
    from open_clip.transformer import ResidualAttentionBlock, Transformer

    # Not isinstance: a derived class may attend in another way.
    if type(transformer) is not Transformer or transformer.grad_checkpointing:
        return None
    blocks = list(transformer.resblocks)
    inner = [without_prompts(block) for block in blocks]
    are_plain = all(
        type(block) is ResidualAttentionBlock and type(block.attn) is nn.MultiheadAttention for block in inner
    )
    return blocks if are_plain else None


def run_prefix(blocks: Sequence[Any], hidden: Tensor) -> list[KeysValues]:
    """The keys and values of a prefix (p, w) in each layer."""
    keys_values = []
    for number, maybe_prompted in enumerate(blocks, start=1):
        block = without_prompts(maybe_prompted)
        if isinstance(maybe_prompted, PromptedBlock):
            hidden = maybe_prompted.insert(hidden[None])[0]
        q, k, v = _queries_keys_values(block, hidden).movedim(0, 2)  # (h, p, w / h) each
        keys_values.append((k, v))
        if number < len(blocks):  # the output of the last layer is not needed
            mixed = scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
            hidden = _finish_block(block, hidden, mixed.movedim(0, -2))
    return keys_values


def run_after_prefix(blocks: Sequence[Any], prefix: Sequence[KeysValues], hidden: Tensor, lengths: Tensor) -> Tensor:
    """Hidden states at the last token of each row, after all layers.

    Tokens (k, l, w) after the prefix, with positional embeddings, of which ``lengths`` (k,) count, to (k, w).
    """
    rows, length, _ = hidden.shape
    row_starts = torch.arange(rows, device=hidden.device) * length
    is_token = torch.arange(length, device=hidden.device) < lengths[:, None]
    positions = is_token.flatten().nonzero()[:, 0]  # (t,)
    # Only attention needs rows: everything else takes the t tokens that count, without the padding.
    tokens = hidden.flatten(0, 1)[positions]
    plain = map(without_prompts, blocks)  # prompts stand in the prefix
    for number, (block, (keys, values)) in enumerate(zip(plain, prefix, strict=True), start=1):
        qkv = _queries_keys_values(block, tokens)  # (t, 3, h, w / h)
        padded = qkv.new_zeros(rows * length, *qkv.shape[1:]).index_copy(0, positions, qkv)
        mixed = _attend(padded.unflatten(0, (rows, length)), keys, values).flatten(0, 1)
        if number < len(blocks):
            tokens = _finish_block(block, tokens, mixed[positions])
        else:
            tokens = _finish_block(block, tokens[lengths.cumsum(0) - 1], mixed[row_starts + lengths - 1])
    return tokens


def _attend(qkv: Tensor, prefix_keys: Tensor, prefix_values: Tensor) -> Tensor:
    """Attention of each token to the prefix, to the tokens before it in its row and to itself.

    Written out, since PyTorch's attention needs the keys of the prefix once for each row: that takes three times as
    long and three times as much memory. ``qkv`` (k, l, 3, h, w / h) and the prefix's (h, p, w / h) to (k, l, h, w / h).
    """
    rows, length, _, _, size = qkv.shape
    q, k, v = qkv.permute(2, 3, 0, 1, 4)  # (h, k, l, w / h) each
    q = q * size**-0.5
    to_prefix = (q.flatten(1, 2) @ prefix_keys.mT).unflatten(1, (rows, length))  # (h, k, l, p)
    is_later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    to_row = (q @ k.mT).masked_fill(is_later, -torch.inf)  # (h, k, l, l)
    attention = torch.cat([to_prefix, to_row], dim=-1).softmax(dim=-1)
    to_prefix, to_row = attention.split([prefix_keys.shape[1], length], dim=-1)
    mixed = (to_prefix.flatten(1, 2) @ prefix_values).unflatten(1, (rows, length)) + to_row @ v
    return mixed.movedim(0, 2)


def _queries_keys_values(block: Any, hidden: Tensor) -> Tensor:
    """Queries, keys and values of tokens (..., w), as (..., 3, h, w / h)."""
    attention = block.attn
    qkv = linear(block.ln_1(hidden), attention.in_proj_weight, attention.in_proj_bias)
    return qkv.unflatten(-1, (3, attention.num_heads, attention.head_dim))


def _finish_block(block: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """What follows attention in a block: tokens (..., w) and the output of their attention, (..., h, w / h)."""
    out = block.attn.out_proj
    hidden = hidden + block.ls_1(linear(mixed.flatten(-2), out.weight, out.bias))
    return hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
