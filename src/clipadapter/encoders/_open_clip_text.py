"""Text towers of open_clip without the padding: a prompt has about ten tokens, the context 77.

Where attention is causal and the feature is taken at the end mark, nothing behind that mark can reach it: the tokens
there are cut off. This repeats what ``CLIP.encode_text`` and ``TextTransformer.forward`` of open_clip 3.3 (MIT) do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clipadapter.encoders._text_batches import batches

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
