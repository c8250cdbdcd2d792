"""Prompts inside both towers of CLIP's transformers: vectors that take the places of tokens before some blocks.

Text prompts stand after the start token. Before the first block they are token embeddings, to which positional
embeddings are added; before a later block they replace the outputs at their positions. Image prompts stand after the
patch tokens: they are appended after the positional embeddings and before the first layer norm, and replaced before
later blocks. The image's feature is still read from the class token. These are the places in MaPLe (Khattak et al.,
CVPR 2023, section 3.2) and in PromptSRC.

The prompts replace the first words of a text if these are the given ones, such as "a photo of a". Into any other text
they are inserted, so that no word of it is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipadapter.encoders.layers import FixedPrompts, PromptedBlock, PromptedInput, PromptSource
from clipadapter.encoders.open_clip_text import CausalTextTower, OpenClipTextTower


class PromptTokenizer:
    """A tokenizer with n places after the start token, instead of the tokens ``first_ids`` if a text has them."""

    def __init__(self, tower: CausalTextTower, first_ids: Sequence[int], n: int) -> None:
        self._tokenizer, self._count_tokens = tower.tokenizer, tower.count_tokens
        self._first_ids, self._n = list(first_ids), n

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """(k, context); the ids at the places of prompts have no meaning."""
        tokens: Tensor = self._tokenizer(texts, context_length=context_length)
        counts = self._count_tokens(tokens).tolist()
        return torch.stack([self._with_places(row, n - 1) for row, n in zip(tokens, counts, strict=True)])

    def _with_places(self, row: Tensor, end: int) -> Tensor:
        n_first = len(self._first_ids)
        begins_with_them = row[1 : 1 + n_first].tolist() == self._first_ids and n_first < end
        body = row[1 + n_first if begins_with_them else 1 : end]
        places = row.new_full((self._n,), int(row[0]))
        body = body[: len(row) - self._n - 2]  # a long text is truncated before its end token
        padding = row.new_zeros(len(row) - self._n - 2 - len(body))
        return torch.cat([row[:1], places, body, row[end : end + 1], padding])

    def __getattr__(self, name: str) -> Any:
        """Other attributes are those of the tokenizer."""
        if name.startswith("_"):  # not set yet, while it is copied
            raise AttributeError(name)
        return getattr(self._tokenizer, name)


@dataclass(frozen=True, eq=False)
class PromptPlaces:
    """Where prompts go in both towers of a model."""

    visual: Any  # the image tower
    text: CausalTextTower
    set_tokenizer: Callable[[Any], None]  # replaces that of the encoder

    @property
    def text_blocks(self) -> Any:
        """The blocks of the text tower."""
        return self.text.layers.transformer.resblocks

    @property
    def image_blocks(self) -> Any:
        """The blocks of the image tower."""
        return self.visual.transformer.resblocks

    @property
    def image_width(self) -> int:
        """Width of an image prompt."""
        return int(self.visual.positional_embedding.shape[1])

    def token_ids(self, words: str) -> list[int]:
        """The tokens of some words, without start and end tokens."""
        return self.text.tokenize([words])[0][1:-1]

    def insert(self, text: Sequence[PromptSource], image: Sequence[PromptSource], first_ids: Sequence[int]) -> None:
        """Put prompts into the towers, before as many of their first blocks as there are sources."""
        n = len(text[0]())
        positions = self.text.layers.positional_embedding[1 : 1 + n].detach()
        at_input = text[0]

        def with_positions() -> Tensor:
            return at_input() + positions

        fixed = isinstance(at_input, FixedPrompts)
        first: PromptSource = FixedPrompts(with_positions()) if fixed else with_positions
        for i, source in enumerate([first, *text[1:]]):
            self.text_blocks[i] = PromptedBlock(self.text_blocks[i], source, is_text=True)
        self.visual.ln_pre = PromptedInput(self.visual.ln_pre, image[0])
        for i, source in enumerate(image[1:], start=1):
            self.image_blocks[i] = PromptedBlock(self.image_blocks[i], source, is_text=False)
        self.set_tokenizer(PromptTokenizer(self.text, first_ids, n))


def find_prompt_places(
    visual: Any, text: OpenClipTextTower | None, set_tokenizer: Callable[[Any], None]
) -> PromptPlaces | None:
    """The places; None unless the image tower is CLIP's and reads a class token, and the text tower is causal."""
    from open_clip.transformer import Transformer, VisionTransformer

    if not isinstance(text, CausalTextTower) or text.special_token_counts != (1, 1):
        return None
    # Not isinstance: a derived class may order its tokens in another way.
    if type(visual) is not VisionTransformer or isinstance(visual.ln_pre, PromptedInput):
        return None
    reads_class_token = visual.attn_pool is None and visual.pool_type == "tok" and not visual.output_tokens
    are_plain = all(
        type(each) is Transformer and each.batch_first and not each.grad_checkpointing
        for each in (visual.transformer, text.layers.transformer)
    )
    return PromptPlaces(visual, text, set_tokenizer) if reads_class_token and are_plain else None
