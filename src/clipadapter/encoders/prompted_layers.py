"""Layers of CLIP's transformers with prompts among their tokens; `open_clip_prompts` puts them into the towers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PromptSource = Callable[[], Tensor]
"""Gives the prompts (n, w) of one block. A module is moved and saved with the tower."""


class FixedPrompts(nn.Module):
    """Prompts (n, w) that do not change."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self) -> Tensor:
        """(n, w)."""
        return self.values


class PromptedBlock(nn.Module):
    """A block of a transformer that gets prompts in place of some of its input tokens.

    Prompts of a text stand after the first token, those of a picture are the last tokens.
    """

    def __init__(self, block: Any, source: PromptSource, is_text: bool) -> None:
        super().__init__()
        self.block, self.source, self.is_text = block, source, is_text

    def forward(self, x: Tensor, *, attn_mask: Tensor | None = None) -> Tensor:
        """Tokens (k, l, w) to the same shape."""
        output: Tensor = self.block(self.insert(x), attn_mask=attn_mask)
        return output

    def insert(self, x: Tensor) -> Tensor:
        """Tokens (k, l, w) with the prompts in their places."""
        prompts = _for_each_row(self.source, x)
        n = prompts.shape[1]
        parts = [x[:, :1], prompts, x[:, 1 + n :]] if self.is_text else [x[:, :-n], prompts]
        return torch.cat(parts, dim=1)

    @property
    def mlp(self) -> Any:
        """The MLP of the block: the transformer reads the type of its weights."""
        return self.block.mlp

    def get_weight_dtype(self) -> Any:
        """Type of the weights, which open_clip asks since version 3.2."""
        return self.block.get_weight_dtype()


def without_prompts(block: Any) -> Any:
    """The block itself, without the prompts that it may get."""
    return block.block if isinstance(block, PromptedBlock) else block


class PromptedInput(nn.Module):
    """The layer norm before the first block of an image tower, with prompts after its input tokens."""

    def __init__(self, norm: nn.Module, source: PromptSource) -> None:
        super().__init__()
        self.norm, self.source = norm, source

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (k, l, w) to (k, l + n, w)."""
        output: Tensor = self.norm(torch.cat([x, _for_each_row(self.source, x)], dim=1))
        return output


def _for_each_row(source: PromptSource, x: Tensor) -> Tensor:
    """Prompts (k, n, w) for the k rows of x."""
    return source().to(x.dtype).expand(x.shape[0], -1, -1)
