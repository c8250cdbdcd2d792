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
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clipadapter.encoders.layers import FixedPrompts, PromptedBlock, PromptedInput, PromptSource
from clipadapter.encoders.open_clip_text import CausalTextTower, OpenClipTextTower


def tokenize_with_places(
    tower: CausalTextTower, first_ids: Sequence[int], n: int, texts: Sequence[str], context_length: int
) -> Tensor:
    """Tokens (k, context) with n places after the start token, instead of the tokens ``first_ids`` if a text has them.

    The ids at the places have no meaning.
    """
    tokens = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, (start, *body, end) in zip(tokens, tower.tokenize(texts), strict=True):
        words = body[len(first_ids) :] if body[: len(first_ids)] == list(first_ids) else body
        # A long text is truncated before its end token.
        ids = [start, *[start] * n, *words[: context_length - n - 2], end]
        row[: len(ids)] = torch.tensor(ids)
    return tokens


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

        first: PromptSource = FixedPrompts(with_positions()) if isinstance(at_input, FixedPrompts) else with_positions
        for i, source in enumerate([first, *text[1:]]):
            self.text_blocks[i] = PromptedBlock(self.text_blocks[i], source, is_text=True)
        self.visual.ln_pre = PromptedInput(self.visual.ln_pre, image[0])
        for i, source in enumerate(image[1:], start=1):
            self.image_blocks[i] = PromptedBlock(self.image_blocks[i], source, is_text=False)
        self.set_tokenizer(
            partial(tokenize_with_places, self.text, first_ids, n, context_length=self.text.context_length)
        )


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
