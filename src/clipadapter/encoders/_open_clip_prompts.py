"""Text towers of open_clip, open to token embeddings: causal ones as CLIP has, and those of SigLIP.

A causal tower sees nothing behind the end mark, so a row is as long as its text. SigLIP attends in both directions and
takes its feature at the last place of the whole context, so rows are filled up with the padding token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clipadapter.encoders._marks import find_marks
from clipadapter.encoders._open_clip_beginning import plain_blocks, run_after, run_beginning
from clipadapter.encoders._open_clip_text import CausalTower, find_causal
from clipadapter.towers import Beginning, TextTower


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
        self._marks = find_marks(self.tokenize)

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
    def marks(self) -> tuple[int, int]:
        """How many tokens begin and end every text."""
        return self._marks

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

    def begin(self, embeddings: Tensor) -> Beginning:
        """(p, w), run through the layers if they are causal and of the kind that most models have."""
        blocks = self._blocks()
        if blocks is None:
            return super().begin(embeddings)
        return Beginning(embeddings, run_beginning(blocks, self._placed(embeddings, 0)))

    def encode_after(self, beginning: Beginning, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """(k, l, w) behind a beginning to raw features (k, d)."""
        blocks = self._blocks()
        if blocks is None or not beginning.layers:
            return super().encode_after(beginning, embeddings, lengths)
        lengths = lengths.to(self.device)
        hidden = self._placed(embeddings[:, : int(lengths.max())], len(beginning.embeddings))
        ends = self._parts.ln_final(run_after(blocks, beginning.layers, hidden, lengths))
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
