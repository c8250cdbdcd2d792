"""Text towers of open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from clipadapter.encoders.inputs import batches, count_special_tokens
from clipadapter.towers import Prefix, TextTower


class OpenClipTextTower(TextTower):
    """See `open_text_tower`.

    Args:
        parts: the module that has the tower's layers.
        causal: the same as a causal tower; None if it is one of SigLIP.
        tokenizer: the model's.
        fingerprint: the encoder's.
        device: where the weights are.
    """

    def __init__(self, parts: Any, causal: CausalTower | None, tokenizer: Any, fingerprint: str, device: str) -> None:
        self.fingerprint, self.device = fingerprint, device
        self._parts, self._causal, self._tokenizer = parts, causal, tokenizer
        self.context_length = int(parts.context_length)
        self.width = int(parts.token_embedding.weight.shape[1])
        self.dim = int(_projected(torch.zeros(1, self.width, device=device), parts.text_projection).shape[1])
        self._padding = 0 if causal is not None else int(tokenizer.tokenizer.pad_token_id)
        self._special_token_counts = count_special_tokens(self.tokenize)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text with its marks, without padding."""
        tokens = self._tokenizer(list(texts), context_length=self.context_length)  # (k, context)
        if self._causal is not None:
            lengths = self._causal.ends(tokens) + 1
        else:
            told = (tokens != self._padding).int()
            lengths = told.shape[1] - told.flip(1).argmax(dim=1)
            lengths[told.sum(dim=1) == 0] = 0
        return [row[:length].tolist() for row, length in zip(tokens, lengths.tolist(), strict=True)]

    @property
    def special_token_counts(self) -> tuple[int, int]:
        """How many tokens begin and end every text."""
        return self._special_token_counts

    def network(self) -> nn.Module:
        """The transformer."""
        found: nn.Module = self._parts.transformer
        return found

    def embed(self, ids: Tensor) -> Tensor:
        """(...,) to (..., w)."""
        found: Tensor = self._parts.token_embedding(ids.to(self.device))
        return found

    def encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """(k, l, w) to raw features (k, d)."""
        lengths = lengths.to(self.device)
        if self._causal is not None:
            return self._causal.encode(embeddings[:, : int(lengths.max())], lengths - 1)
        k, length, width = embeddings.shape
        padding = self.embed(torch.tensor([self._padding])).to(embeddings.dtype)  # (1, w)
        more = padding.expand(k, self.context_length - length, width)
        places = torch.arange(self.context_length, device=self.device)
        told = (places < lengths[:, None])[..., None]  # (k, context, 1)
        hidden = torch.where(told, torch.cat([embeddings, more], dim=1), padding) + self._parts.positional_embedding
        hidden = self._parts.ln_final(self._parts.transformer(hidden, attn_mask=None))
        return _projected(hidden[:, -1], self._parts.text_projection)

    def encode_prefix(self, embeddings: Tensor) -> Prefix:
        """(p, w), run through the layers if they are causal and of the kind that most models have."""
        blocks = self._blocks()
        if blocks is None:
            return super().encode_prefix(embeddings)
        return Prefix(embeddings, run_prefix(blocks, self._placed(embeddings, 0)))

    def encode_after_prefix(self, beginning: Prefix, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """(k, l, w) behind a beginning to raw features (k, d)."""
        blocks = self._blocks()
        if blocks is None or not beginning.keys_values:
            return super().encode_after_prefix(beginning, embeddings, lengths)
        lengths = lengths.to(self.device)
        hidden = self._placed(embeddings[:, : int(lengths.max())], len(beginning.embeddings))
        ends = self._parts.ln_final(run_after_prefix(blocks, beginning.keys_values, hidden, lengths))
        return _projected(ends, self._parts.text_projection)

    def _blocks(self) -> list[Any] | None:
        return None if self._causal is None else plain_blocks(self._parts.transformer)

    def _placed(self, embeddings: Tensor, start: int) -> Tensor:
        """Embeddings (..., l, w) with their places added, the first of which is `start`."""
        kind = self._parts.transformer.get_cast_dtype()
        places: Tensor = self._parts.positional_embedding[start : start + embeddings.shape[-2]]
        return embeddings.to(kind) + places.to(kind)


def open_text_tower(model: Any, tokenizer: Any, fingerprint: str, device: str) -> OpenClipTextTower | None:
    """The model's text tower if it is causal or one of SigLIP, else None.

    Args:
        model: of open_clip, in evaluation mode.
        tokenizer: its tokenizer.
        fingerprint: of the encoder.
        device: where the model is.
    """
    causal = find_causal(model)
    if causal is not None:
        return OpenClipTextTower(causal.parts, causal, tokenizer, fingerprint, device)
    parts = _siglip(model)
    if parts is None or not hasattr(tokenizer, "tokenizer"):
        return None
    return OpenClipTextTower(parts, None, tokenizer, fingerprint, device)


def _siglip(model: Any) -> Any:
    """The module with the layers of a tower that attends in both directions and ends at the last place, or None."""
    import open_clip
    from open_clip.transformer import TextTransformer

    if type(model) is not open_clip.CustomTextCLIP or type(model.text) is not TextTransformer:
        return None
    parts = model.text
    both_ways = parts.attn_mask is None and not getattr(parts, "use_pad_mask", False)
    return parts if both_ways and parts.cls_emb is None and parts.pool_type == "last" else None


def _projected(features: Tensor, projection: Any) -> Tensor:
    if projection is None:
        return features
    found: Tensor = projection(features) if isinstance(projection, nn.Linear) else features @ projection
    return found


TOLERANCE = 1e-4
"""How far a feature without padding may be from the model's own, in lengths of it; rounding gives 1e-6."""


class PlainTextTower:
    """Tokens to the features that the model's own ``encode_text`` gives.

    A tower that can do without padding is run without it, once it gave the model's own feature for one text; any
    other, and one that did not, is left to the model.

    Args:
        model: of open_clip, in evaluation mode.
        device: where it is.
    """

    def __init__(self, model: Any, device: str) -> None:
        self._model = model
        self._device = device
        self._causal = find_causal(model)
        self._compared = False

    def __call__(self, tokens: Tensor, batch_size: int) -> Tensor:
        """Tokens (k, context) to raw features (k, d) float32 on the CPU."""
        causal = self._causal
        if causal is None:
            return torch.cat([self._own(some) for some in tokens.split(batch_size)])
        ends = causal.ends(tokens)
        order: list[int] = []
        rows = []
        for batch in batches((ends + 1).tolist(), batch_size):
            short = tokens[batch, : int(ends[batch].max()) + 1]
            found = causal(short.to(self._device), ends[batch].to(self._device)).float().cpu()
            if not self._compared and short.shape[1] < tokens.shape[1]:
                own = self._own(tokens[batch[:1]])[0]
                if not (found[0] - own).norm() <= TOLERANCE * own.norm():  # so that NaN counts as other, too
                    self._causal = None
                    return self(tokens, batch_size)
                self._compared = True
            order += batch
            rows.append(found)
        return torch.cat(rows)[torch.tensor(order).argsort()]

    def _own(self, tokens: Tensor) -> Tensor:
        features: Tensor = self._model.encode_text(tokens.to(self._device), normalize=False)
        return features.float().cpu()


@dataclass(frozen=True)
class CausalTower:
    """A tower whose features depend on no token behind the end mark.

    Args:
        parts: the module that has its layers.
        eos: the end mark; None if it is the highest token of a text.
    """

    parts: Any
    eos: int | None

    def ends(self, tokens: Tensor) -> Tensor:
        """Place of the end mark, (k, context) to (k,).

        >>> CausalTower(parts=None, eos=None).ends(torch.tensor([[7, 2, 9, 0, 0], [7, 9, 0, 0, 0]]))
        tensor([2, 1])
        """
        marks = tokens if self.eos is None else (tokens == self.eos).int()
        return marks.argmax(dim=1)  # the first of equals, as in open_clip

    def __call__(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """Tokens (k, l) with their end marks at (k,) to raw features (k, d); l may be any part of the context."""
        return self.encode(self.parts.token_embedding(tokens), ends)

    def encode(self, embeddings: Tensor, ends: Tensor) -> Tensor:
        """The same for the embeddings (k, l, w) of tokens."""
        parts, length = self.parts, embeddings.shape[1]
        kind = parts.transformer.get_cast_dtype()
        hidden = embeddings.to(kind) + parts.positional_embedding[:length].to(kind)
        hidden = parts.transformer(hidden, attn_mask=parts.attn_mask[:length, :length])
        features: Tensor = parts.ln_final(hidden)[torch.arange(len(ends), device=ends.device), ends]
        projection = parts.text_projection
        if projection is None:
            return features
        return projection(features) if isinstance(projection, nn.Linear) else features @ projection


def find_causal(model: Any) -> CausalTower | None:
    """The model's text tower if it is known to be causal and to end where its text ends, else None.

    None is the answer for SigLIP (attention in both directions), CoCa (a class token at the end) and the towers of
    the library transformers.
    """
    import open_clip
    from open_clip.transformer import TextTransformer

    # Not isinstance: a derived class may encode texts in another way.
    if type(model) is open_clip.CLIP:
        parts, pool, eos = model, "text_pool_type", "text_eos_id"
    elif type(model) is open_clip.CustomTextCLIP and type(model.text) is TextTransformer:
        parts, pool, eos = model.text, "pool_type", "eos_id"
    else:
        return None
    if getattr(parts, "cls_emb", None) is not None or not _is_causal(parts.attn_mask):
        return None
    kind = getattr(parts, pool, None)
    if kind == "argmax":
        return CausalTower(parts, eos=None)
    return CausalTower(parts, getattr(parts, eos)) if kind == "eos" else None


def _is_causal(mask: Tensor | None) -> bool:
    """Whether an additive mask hides from each token those behind it, and no other."""
    return mask is not None and torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1))


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


def run_prefix(blocks: Sequence[Any], hidden: Tensor) -> list[KeysValues]:
    """What the layers give of a beginning (p, w) to the tokens behind it."""
    found = []
    for number, block in enumerate(blocks, start=1):
        q, k, v = _queries_keys_values(block, hidden).movedim(0, 2)  # (h, p, w / h) each
        found.append((k, v))
        if number < len(blocks):  # nobody asks for the beginning's own features
            mixed = scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
            hidden = _finish_block(block, hidden, mixed.movedim(0, -2))
    return found


def run_after_prefix(blocks: Sequence[Any], beginning: Sequence[KeysValues], hidden: Tensor, lengths: Tensor) -> Tensor:
    """Hidden states at the last token of each row, after all layers.

    Args:
        blocks: from `plain_blocks`.
        beginning: from `run_prefix`.
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
        parts = _queries_keys_values(block, tokens)  # (t, 3, h, w / h)
        padded = parts.new_zeros(rows * length, *parts.shape[1:]).index_copy(0, told, parts)
        mixed = _attend(padded.unflatten(0, (rows, length)), keys, values).flatten(0, 1)
        if number < len(blocks):
            tokens = _finish_block(block, tokens, mixed[told])
        else:
            tokens = _finish_block(block, tokens[lengths.cumsum(0) - 1], mixed[starts + lengths - 1])
    return tokens


def _attend(parts: Tensor, keys: Tensor, values: Tensor) -> Tensor:
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


def _queries_keys_values(block: Any, hidden: Tensor) -> Tensor:
    """Queries, keys and values of tokens (..., w), as (..., 3, h, w / h)."""
    attention = block.attn
    found = linear(block.ln_1(hidden), attention.in_proj_weight, attention.in_proj_bias)
    return found.unflatten(-1, (3, attention.num_heads, attention.head_dim))


def _finish_block(block: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """The rest of a block: tokens (..., w) and what attention gives for them, (..., h, w / h)."""
    out = block.attn.out_proj
    hidden = hidden + block.ls_1(linear(mixed.flatten(-2), out.weight, out.bias))
    found: Tensor = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
    return found
