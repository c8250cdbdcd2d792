"""Text towers of open_clip: encoding without padding, and prompts given as token embeddings.

CLIP's towers are causal: a token attends to itself and to the tokens before it. The feature is read at the end token,
so what follows that token has no effect. Three things follow:

- `UnpaddedTextTower` cuts the padding off. A prompt has about ten tokens, the context 77.
- `OpenClipTextTower` takes rows of embeddings that are as long as their text.
- Texts with a common prefix share the keys and values of that prefix: it passes the layers once (`encode_prefix`), and
  each text attends to it (`encode_after_prefix`).

SigLIP attends in both directions and reads its feature at the last position of the context, so rows are padded.

The sums are those of ``CLIP.encode_text``, ``TextTransformer.forward`` and ``ResidualAttentionBlock`` of open_clip 3.3
(MIT), with the weights and modules of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from clipadapter.encoders.base import length_batches
from clipadapter.encoders.layers import PromptedBlock, without_prompts
from clipadapter.utils.towers import Prefix, TextTower

MAX_RELATIVE_ERROR = 1e-4
"""Largest distance of a feature without padding to the model's own, relative to its length; rounding gives 1e-6."""

KeysValues = tuple[Tensor, Tensor]  # keys and values of the prefix in one layer, (h, p, w / h) each, for h heads


class OpenClipTextTower(TextTower):
    """The tower with some layers, which is causal but for SigLIP; see `open_text_tower`."""

    def __init__(self, layers: Any, causal: CausalTower | None, tokenizer: Any, fingerprint: str, device: str) -> None:
        self.fingerprint, self.device = fingerprint, device
        self.layers, self.causal, self.tokenizer = layers, causal, tokenizer
        self.context_length = int(layers.context_length)
        self.width = int(layers.token_embedding.weight.shape[1])
        self.dim = int(_project(torch.zeros(1, self.width, device=device), layers.text_projection).shape[1])
        self._padding_id = 0 if causal is not None else int(tokenizer.tokenizer.pad_token_id)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text with its special tokens, without padding."""
        tokens = self.tokenizer(list(texts), context_length=self.context_length)  # (k, context)
        if self.causal is not None:
            lengths = self.causal.end_positions(tokens) + 1
        else:
            is_token = (tokens != self._padding_id).int()
            lengths = is_token.shape[1] - is_token.flip(1).argmax(dim=1)
            lengths[is_token.sum(dim=1) == 0] = 0
        return [row[:length].tolist() for row, length in zip(tokens, lengths.tolist(), strict=True)]

    def network(self) -> nn.Module:
        return self.layers.transformer

    def final_norm(self) -> nn.Module:
        """The norm between the transformer and the projection."""
        return self.layers.ln_final

    def embed(self, ids: Tensor) -> Tensor:
        return self.layers.token_embedding(ids.to(self.device))

    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        lengths = lengths.to(self.device)
        if self.causal is not None:
            return self.causal.encode(embeddings[:, : int(lengths.max())], lengths - 1)
        k, length, width = embeddings.shape
        padding = self.embed(torch.tensor([self._padding_id])).to(embeddings.dtype)  # (1, w)
        embeddings = torch.cat([embeddings, padding.expand(k, self.context_length - length, width)], dim=1)
        positions = torch.arange(self.context_length, device=self.device)
        is_token = (positions < lengths[:, None])[..., None]  # (k, context, 1)
        hidden = torch.where(is_token, embeddings, padding) + self.layers.positional_embedding
        hidden = self.layers.ln_final(self.layers.transformer(hidden, attn_mask=None))
        return _project(hidden[:, -1], self.layers.text_projection)

    def encode_prefix(self, embeddings: Tensor) -> Prefix:
        """(p, w), run through the layers if they are causal and of the kind that `plain_blocks` knows."""
        blocks = None if self.causal is None else plain_blocks(self.layers.transformer)
        prompted = [block for block in blocks or () if isinstance(block, PromptedBlock)]
        if blocks is None or any(len(block.source()) >= len(embeddings) for block in prompted):
            return super().encode_prefix(embeddings)  # not all prompts stand among the first tokens
        return Prefix(embeddings, run_prefix(blocks, add_positions(self.layers, embeddings)))

    def encode_after_prefix(self, prefix: Prefix, embeddings: Tensor, lengths: Tensor) -> Tensor:
        if not prefix.keys_values:
            return super().encode_after_prefix(prefix, embeddings, lengths)
        lengths, blocks = lengths.to(self.device), list(self.layers.transformer.resblocks)
        hidden = add_positions(self.layers, embeddings[:, : int(lengths.max())], len(prefix.embeddings))
        last_hidden = self.layers.ln_final(run_after_prefix(blocks, prefix.keys_values, hidden, lengths))
        return _project(last_hidden, self.layers.text_projection)


def open_text_tower(model: Any, tokenizer: Any, fingerprint: str, device: str) -> OpenClipTextTower | None:
    """The text tower of a model of open_clip if it is causal or one of SigLIP, else None."""
    causal = find_causal_tower(model)
    layers = _siglip_layers(model) if causal is None else causal.layers
    is_supported = causal is not None or (layers is not None and hasattr(tokenizer, "tokenizer"))
    return OpenClipTextTower(layers, causal, tokenizer, fingerprint, device) if is_supported else None


def _siglip_layers(model: Any) -> Any:
    """The module with the layers of a tower that attends in both directions and reads the last position, or None."""
    import open_clip
    from open_clip.transformer import TextTransformer

    if type(model) is not open_clip.CustomTextCLIP or type(model.text) is not TextTransformer:
        return None
    layers = model.text
    is_bidirectional = layers.attn_mask is None and not getattr(layers, "use_pad_mask", False)
    return layers if is_bidirectional and layers.cls_emb is None and layers.pool_type == "last" else None


def add_positions(layers: Any, embeddings: Tensor, start: int = 0) -> Tensor:
    """Embeddings (..., l, w) plus the positional embeddings of a tower from position `start` on."""
    dtype = layers.transformer.get_cast_dtype()
    positions: Tensor = layers.positional_embedding[start : start + embeddings.shape[-2]]
    return embeddings.to(dtype) + positions.to(dtype)


def _project(features: Tensor, projection: Any) -> Tensor:
    if projection is None:
        return features
    return projection(features) if isinstance(projection, nn.Linear) else features @ projection


class UnpaddedTextTower:
    """Tokens to the features that the model's own ``encode_text`` gives, without padding where that is possible.

    The first feature without padding is compared with the model's own. If they differ, or if the tower is not causal,
    all texts go through ``encode_text``.
    """

    def __init__(self, model: Any, device: str) -> None:
        self._model = model
        self._device = device
        self._causal = find_causal_tower(model)
        self._is_compared = False

    def __call__(self, tokens: Tensor, batch_size: int) -> Tensor:
        """Tokens (k, context) to raw features (k, d) float32 on the CPU."""
        causal = self._causal
        if causal is None:
            return torch.cat([self._encode_padded(batch) for batch in tokens.split(batch_size)])
        ends = causal.end_positions(tokens)
        order: list[int] = []
        rows = []
        for batch in length_batches((ends + 1).tolist(), batch_size):
            unpadded = tokens[batch, : int(ends[batch].max()) + 1]
            embeddings = causal.layers.token_embedding(unpadded.to(self._device))
            features = causal.encode(embeddings, ends[batch].to(self._device)).float().cpu()
            if not self._is_compared and unpadded.shape[1] < tokens.shape[1]:
                expected = self._encode_padded(tokens[batch[:1]])[0]
                # "not <=" rather than ">": NaN counts as different too.
                if not (features[0] - expected).norm() <= MAX_RELATIVE_ERROR * expected.norm():
                    self._causal = None
                    return self(tokens, batch_size)
                self._is_compared = True
            order += batch
            rows.append(features)
        return torch.cat(rows)[torch.tensor(order).argsort()]

    def _encode_padded(self, tokens: Tensor) -> Tensor:
        features: Tensor = self._model.encode_text(tokens.to(self._device), normalize=False)
        return features.float().cpu()


@dataclass(frozen=True)
class CausalTower:
    """A tower whose features depend on no token after the end token."""

    layers: Any  # the module that has its layers
    end_id: int | None  # of the end token; None if it is the highest id of a text

    def end_positions(self, tokens: Tensor) -> Tensor:
        """Position of the end token, (k, context) to (k,).

        >>> CausalTower(layers=None, end_id=None).end_positions(torch.tensor([[7, 2, 9, 0, 0], [7, 9, 0, 0, 0]]))
        tensor([2, 1])
        """
        scores = tokens if self.end_id is None else (tokens == self.end_id).int()
        return scores.argmax(dim=1)  # the first of equal ones, as in open_clip

    def encode(self, embeddings: Tensor, ends: Tensor) -> Tensor:
        """Token embeddings (k, l, w) with end tokens at (k,) to raw features (k, d); l may be less than the context."""
        layers, length = self.layers, embeddings.shape[1]
        hidden = add_positions(layers, embeddings)
        hidden = layers.transformer(hidden, attn_mask=layers.attn_mask[:length, :length])
        features: Tensor = layers.ln_final(hidden)[torch.arange(len(ends), device=ends.device), ends]
        return _project(features, layers.text_projection)


def find_causal_tower(model: Any) -> CausalTower | None:
    """The model's text tower if it is known to be causal and to read its feature at the end token, else None.

    None is the result for SigLIP (attention in both directions), CoCa (a class token at the end) and the towers of
    the library transformers.
    """
    import open_clip
    from open_clip.transformer import TextTransformer

    # Not isinstance: a derived class may encode texts in another way.
    if type(model) is open_clip.CLIP:
        layers, pool_attribute, end_attribute = model, "text_pool_type", "text_eos_id"
    elif type(model) is open_clip.CustomTextCLIP and type(model.text) is TextTransformer:
        layers, pool_attribute, end_attribute = model.text, "pool_type", "eos_id"
    else:
        return None
    mask: Tensor | None = layers.attn_mask  # additive
    hides_later_tokens = mask is not None and torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1))
    if getattr(layers, "cls_emb", None) is not None or not hides_later_tokens:
        return None
    pool_type = getattr(layers, pool_attribute, None)
    if pool_type == "argmax":
        return CausalTower(layers, end_id=None)
    return CausalTower(layers, getattr(layers, end_attribute)) if pool_type == "eos" else None


def plain_blocks(transformer: Any) -> list[Any] | None:
    """The blocks of the transformer if `run_prefix` and `run_after_prefix` compute what they do, else None."""
    from open_clip.transformer import ResidualAttentionBlock, Transformer

    # Not isinstance: a derived class may attend in another way.
    if type(transformer) is not Transformer or transformer.grad_checkpointing:
        return None
    blocks = list(transformer.resblocks)
    inner = [without_prompts(block) for block in blocks]
    are_plain = all(type(block) is ResidualAttentionBlock and _has_plain_attention(block) for block in inner)
    return blocks if are_plain else None


def _has_plain_attention(block: Any) -> bool:
    attention = block.attn
    return (
        type(attention) is nn.MultiheadAttention
        and not hasattr(block, "ln_1_kv")
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
        and not attention.dropout
    )


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
