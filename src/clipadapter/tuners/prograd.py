"""ProGrad: CoOp without the part of each step that opposes the gradient towards zero-shot by hand-written prompts.

Paper: Zhu et al., ICCV 2023, https://arxiv.org/abs/2205.14865, equation 4.
The defaults are CoOp's, with lambda 1. The teacher is the class text, with its templates. Differs from the
paper as CoOp does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipadapter.heads import register_head
from clipadapter.heads.parameters import POSITIVE
from clipadapter.tuners.prompt_tuner import Batch, PromptTuner


@register_head("prograd", paper="https://arxiv.org/abs/2205.14865", compare=False)
class ProGrad(PromptTuner):
    """CoOp whose steps don't go against the gradient of the divergence from zero-shot.

    Args:
        strength: lambda, how much of the opposed part is taken off; 0 is CoOp.
        temperature: of both softmaxes in the divergence.

    Fidelity: verified: Losses, gradients and the context after some steps are those of ProGrad in the code of KgCoOp.
    The code of ProGrad's own authors was not used.
    """

    strength: float = 1.0
    temperature: Annotated[float, POSITIVE] = 1.0

    def _loss(self, batch: Batch) -> Tensor:
        """Cross-entropy and distillation (2,)."""
        # Its gradient in the logits is that of the divergence of the softened probabilities.
        t = self.temperature
        distillation = t**2 * cross_entropy(batch.logits / t, (batch.zero_shot / t).softmax(dim=1))
        return torch.stack([super()._loss(batch), distillation])

    def _backward(self, parameters: Sequence[Tensor], value: Tensor) -> None:
        gradients = torch.autograd.grad(value[0], parameters, retain_graph=True)
        general = torch.autograd.grad(value[1], parameters)
        for parameter, gradient, direction in zip(parameters, gradients, general, strict=True):
            parameter.grad = without_opposed(gradient, direction, self.strength)


def without_opposed(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    """A gradient without a share, lambda, of the part that points against another one (equation 4)."""
    direction = general / general.norm().clamp_min(torch.finfo(general.dtype).tiny)
    return gradient - strength * (gradient * direction).sum().clamp(max=0) * direction
