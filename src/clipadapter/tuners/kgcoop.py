"""KgCoOp: CoOp with a penalty on the distance of the class vectors to those of hand-written prompts.

Paper: Yao et al., CVPR 2023, https://arxiv.org/abs/2303.13283, equation 5.
The defaults are the paper's: context from "a photo of a", weight 8 (the released code has 1), 100 epochs of batches of
128. The hand-written prompts are those of the class text, with its templates. Differs from the paper as CoOp
does.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from clipadapter.heads import register_head
from clipadapter.heads.parameters import at_least
from clipadapter.tuners.prompt_tuner import Batch, PromptTuner


@register_head("kgcoop", paper="https://arxiv.org/abs/2303.13283", compare=False)
class KgCoOp(PromptTuner):
    """CoOp with a penalty on the distance between learned class vectors and class text.

    Args:
        weight: of the penalty, one minus the mean cosine; 0 is CoOp.

    Fidelity: verified: Loss, gradients and the context after some steps are those of the authors' code. Views are made
    once, where that code augments in each epoch.
    """

    weight: float = 8.0
    n_ctx: Annotated[int, at_least(1)] = 4
    ctx_init: str | None = "a photo of a"
    epochs: Annotated[int | None, at_least(1)] = 100
    batch_size: int = 128

    def _loss(self, batch: Batch) -> Tensor:
        near = (batch.weight * batch.text).sum(dim=1).mean()
        return super()._loss(batch) + self.weight * (1 - near)  # eq. 5
