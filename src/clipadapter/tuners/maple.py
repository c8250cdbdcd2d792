"""MaPLe: prompts inside both towers, of which those of the image tower are linear functions of those of the text tower.

Paper: Khattak et al., CVPR 2023, https://arxiv.org/abs/2210.03117, section 3.2.
The defaults are those of the authors' code: 2 prompts before each of 9 blocks, "a photo of a" gives the first two, one
linear layer for each block couples the towers, SGD with batches of 4. Their code trains 5 epochs. Of a few shots that
would be a few steps, the first epoch at a rate of 1e-5: with one shot of 10 classes, 10 steps. So the default makes at
least 1,000 steps, as many as 5 epochs of 16 shots have for 50 classes, the median of the base classes of the paper's
data sets. `Maple.official` makes 5 epochs.

Differs from the code in precision (fp32 by default, not fp16), in the views of pictures (as many as there are, not new
ones each step), and in prompts: the classifier's templates. With the default template they are those of the code.
Texts are run without the padding after their end, which does not change the features.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import linear

from clipadapter.encoders import Encoder, open_prompt_places
from clipadapter.heads import register_head
from clipadapter.heads.parameters import at_least
from clipadapter.tuners.deep_prompts import DeepPromptTuner, prompts_of_blocks
from clipadapter.tuners.tower_tuner import Trainable


@register_head("maple", paper="https://arxiv.org/abs/2210.03117", compare=False)
class Maple(DeepPromptTuner):
    """Zero-shot by an encoder with coupled prompts in both towers; `FewShotClassifier` fits it, from pictures.

    Needs a ViT of CLIP with its text tower. Every step runs both towers forward and backward: the image tower over 4
    pictures, the text tower over the prompts of all classes. The head predicts new classes by the prompted text tower
    (`for_classes`), which is what the method is made for.

    Args:
        n_ctx: prompts before a block, the same number in both towers.
        epochs: passes over the shots; None for 5, or as many as make 1,000 steps.

    Fidelity: verified: Features, loss, gradients and the prompts after some steps are those of the authors' code on a
    tiny tower. Views are drawn from a fixed number, and few shots are trained for more epochs.
    """

    method_name = "maple"
    training = {"optimizer": "sgd", "min_epochs": 5, "steps": 1000}
    recipes = {"official": {"epochs": 5}}
    """The recipe of the authors' released code: 5 epochs."""

    n_ctx: Annotated[int, at_least(1)] = 2
    lr: float = 3.5e-3

    def _attach(self, tunable: Encoder, generator: torch.Generator) -> Trainable:
        places = open_prompt_places(tunable)
        # A pair of prompts needs a block in both towers.
        blocks = min(self.depth, len(places.text_blocks), len(places.image_blocks))
        text = self.initial_text(places, generator)[:blocks].clone()
        coupling = initial_coupling(blocks, places.image_width, places.text.width, generator)
        weight, bias = (each.to(tunable.device).requires_grad_() for each in coupling)
        text.requires_grad_()

        def couple(block: int) -> Tensor:
            return linear(text[block], weight[block], bias[block])

        def learned() -> dict[str, Tensor]:
            with torch.no_grad():
                return {"text_prompts_": text, "image_prompts_": torch.stack([couple(i) for i in range(blocks)])}

        self.insert_sources(places, prompts_of_blocks(text), [partial(couple, i) for i in range(blocks)])
        arrays = {"text_prompts_": text, "image_weight_": weight, "image_bias_": bias}
        return Trainable(arrays, ("image", "text"), learned=learned)


def initial_coupling(
    blocks: int, image_width: int, text_width: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Weights (blocks, image width, text width), biases (blocks, image width) of the layers that couple the towers."""
    # Within 1 / sqrt(text width). As in the authors' code, all blocks but the first begin with the same draw.
    bound = 1 / math.sqrt(text_width)
    n_draws = min(blocks, 2)
    weight = torch.rand(n_draws, image_width, text_width, generator=generator).mul(2).sub(1).mul(bound)
    bias = torch.rand(n_draws, image_width, generator=generator).mul(2).sub(1).mul(bound)
    draw = torch.arange(blocks).clamp(max=1)
    return weight[draw], bias[draw]
