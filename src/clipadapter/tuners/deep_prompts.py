"""Base of the tuners that learn prompts inside both towers: parameters, first values, training, and the tuned encoder.

`clipadapter.encoders.open_clip_prompts` says where the prompts stand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from clipadapter.encoders import Encoder, open_prompt_places
from clipadapter.encoders.layers import FixedPrompts, PromptSource
from clipadapter.encoders.open_clip_prompts import PromptPlaces
from clipadapter.errors import InputError
from clipadapter.heads.parameters import at_least
from clipadapter.tuners.tower_tuner import TowerTuner

INITIAL_STD = 0.02  # standard deviation of the first values of prompts that no words give


@dataclass(eq=False, repr=False, kw_only=True)
class DeepPromptTuner(TowerTuner):
    """Base of the methods that learn prompts before the first blocks of both towers, trained by SGD.

    A subclass makes what is trained in `_attach`, by `initial_text` and `insert_sources`. It leaves the arrays
    ``text_prompts_`` (depth, n, w) and ``image_prompts_`` (depth, m, w) on the head.

    Args:
        n_ctx: text prompts before a block.
        depth: number of blocks that get prompts, from the first on. A tower with fewer blocks gets them before each.
        ctx_init: words whose token embeddings the prompts before the first block start from, if they have as many
            tokens; None, and all other prompts, draw from N(0, 0.02^2). A text that begins with these words, as those
            of the template "a photo of a {}." do, has its first ``n_ctx`` tokens replaced. Any other text gets the
            prompts before its words.
        lr: highest learning rate of SGD. It falls to 0 in a cosine, epoch by epoch.
        weight_decay: L2, on all that is trained.
        schedule: "cosine-epoch", "cosine" or "constant".
        warmup_epochs: epochs at a constant 1e-5 before the schedule starts.
        seed: of the first values, shuffling and the choice of views.
    """

    fingerprint_parameters = ("ctx_init",)

    n_ctx: Annotated[int, at_least(1)] = 4
    depth: Annotated[int, at_least(1)] = 9
    ctx_init: str | None = "a photo of a"
    lr: float = 2.5e-3
    weight_decay: float = 5e-4
    schedule: str = "cosine-epoch"
    warmup_epochs: int = 1
    epochs: Annotated[int | None, at_least(1)] = None
    batch_size: int = 4

    def check_encoder(self, tunable: Encoder) -> None:
        """Refuse an encoder without places for so many prompts in both towers."""
        context_length = open_prompt_places(tunable).text.context_length
        if self.n_ctx + 3 > context_length:
            raise InputError(
                f"n_ctx is {self.n_ctx}, but the text tower takes {context_length} tokens, of which two are marks and "
                "at least one is the class name: learn fewer prompts"
            )

    def initial_text(self, places: PromptPlaces, generator: torch.Generator) -> Tensor:
        """The first text prompts, (blocks, n, w): words before the first block if they are enough, else noise."""
        blocks = min(self.depth, len(places.text_blocks))
        values = INITIAL_STD * torch.randn(blocks, self.n_ctx, places.text.width, generator=generator)
        ids = places.token_ids(self.ctx_init or "")
        if len(ids) >= self.n_ctx:
            values[0] = places.text.embed(torch.tensor(ids[: self.n_ctx])).cpu()
        return values.to(places.text.device)

    def insert_sources(self, places: PromptPlaces, text: Sequence[PromptSource], image: Sequence[PromptSource]) -> None:
        """Put prompts into the towers."""
        places.insert(text, image, places.token_ids(self.ctx_init or "")[: len(text[0]())])

    def _merge(self, tunable: Encoder) -> str:
        places = open_prompt_places(tunable)
        sources, changed = {}, []
        for tower, width, blocks in (
            ("text", places.text.width, places.text_blocks),
            ("image", places.image_width, places.image_blocks),
        ):
            prompts = getattr(self, f"{tower}_prompts_", None)
            if prompts is None or prompts.ndim != 3 or prompts.shape[2] != width or len(prompts) > len(blocks):
                raise self._misfit(tower, tunable)
            sources[tower] = [FixedPrompts(each.to(tunable.device)) for each in prompts]
            changed.append(f"{tower} tower ({prompts.shape[1]} prompts before each of {len(prompts)} blocks)")
        self.insert_sources(places, **sources)
        return f"{self.method_name}: {', '.join(changed)}"


def prompts_of_blocks(values: Tensor) -> list[PromptSource]:
    """Sources of the prompts (n, w) of each block, with a gradient in all values (blocks, n, w)."""
    return [partial(torch.select, values, 0, i) for i in range(len(values))]


def gaussian_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Weights of the epochs 1, 2, ..., proportional to a normal density; their sum is 1."""
    exponents = [-0.5 * ((epoch - mean) / std) ** 2 for epoch in range(1, epochs + 1)]
    # The largest density is made 1: far from the mean all of them would be 0.
    densities = [math.exp(exponent - max(exponents)) for exponent in exponents]
    total = sum(densities)
    return [density / total for density in densities]
