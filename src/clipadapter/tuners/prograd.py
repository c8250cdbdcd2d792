"""ProGrad: CoOp without the part of each step that opposes the gradient towards zero-shot by hand-written prompts.

Paper: Zhu et al., ICCV 2023, https://arxiv.org/abs/2205.14865, equation 4.
The defaults are CoOp's, with lambda 1. The teacher is the class text, with its templates. Differs from the
paper as CoOp does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clipadapter.heads import register_head
from clipadapter.tuners.prompt_tuner import Batch, PromptTuner


@register_head(
    "prograd",
    paper="https://arxiv.org/abs/2205.14865",
    compare=False,
    fidelity="verified: Losses, gradients and the context after some steps are those of ProGrad in the code of "
    "KgCoOp. The code of ProGrad's own authors was not used.",
)
class ProGrad(PromptTuner):
    """CoOp whose steps don't go against the gradient of the divergence from zero-shot.

    Args:
        strength: lambda, how much of the opposed part is taken off; 0 is CoOp.
        temperature: of both softmaxes in the divergence.
        n_ctx: context vectors, if ``ctx_init`` is None.
        ctx_init: words to start from, a vector for each token; None draws ``n_ctx`` from N(0, 0.02^2).
        class_token: where the name stands: "end", "middle" or "front".
        csc: class-specific context: each class has vectors of its own.
        lr: learning rate of SGD.
        momentum: of SGD.
        weight_decay: L2, on the context.
        schedule: "cosine-epoch" (the rate changes once an epoch), "cosine" or "constant".
        warmup_epochs: epochs at a constant 1e-5 before the schedule starts.
        epochs: passes over the shots; None for CoOp's by shots.
        batch_size: shots per step.
        patience: None trains all epochs on all shots; a number of epochs stops on held-out shots, as in CoOp.
        precision: of the text tower while training: "fp32", or "bf16" where class vectors stay near to those of fp32.
        memory: gigabytes that the text tower may keep for its gradient.
        checkpoint: seconds between two checkpoints, from which a killed `fit` goes on; None keeps none.
        seed: of the first vectors, shuffling, the choice of views and of held-out shots.
        progress: show a bar on stderr while training.

    >>> from clipadapter.encoders import create_encoder
    >>> from clipadapter.features import encode_classes
    >>> text = encode_classes(create_encoder("toy"), {"red": ["red"], "blue": ["blue"]})
    >>> head = ProGrad(epochs=5).fit(text.embeddings, ["red", "blue"], text=text)
    >>> head.predict(text.embeddings)
    array(['red', 'blue'], dtype='<U4')
    """

    def __init__(
        self,
        strength: float = 1.0,
        temperature: float = 1.0,
        n_ctx: int = 16,
        ctx_init: str | None = None,
        class_token: str = "end",
        csc: bool = False,
        lr: float = 2e-3,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: str = "cosine-epoch",
        warmup_epochs: int = 1,
        epochs: int | None = None,
        batch_size: int = 32,
        patience: int | None = None,
        precision: str = "fp32",
        memory: float = 2.0,
        checkpoint: float | None = 30.0,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        super().__init__(
            n_ctx,
            ctx_init,
            class_token,
            csc,
            lr,
            momentum,
            weight_decay,
            schedule,
            warmup_epochs,
            epochs,
            batch_size,
            patience,
            precision,
            memory,
            checkpoint,
            seed,
            progress,
        )
        self.strength = strength
        self.temperature = temperature

    def _loss(self, batch: Batch) -> Tensor:
        """Cross-entropy and distillation (2,)."""
        return torch.stack([super()._loss(batch), distillation(batch.logits, batch.zero_shot, self.temperature)])

    def _backward(self, parameters: Sequence[Tensor], value: Tensor) -> None:
        gradients = torch.autograd.grad(value[0], parameters, retain_graph=True)
        general = torch.autograd.grad(value[1], parameters)
        for parameter, gradient, direction in zip(parameters, gradients, general, strict=True):
            parameter.grad = without_opposed(gradient, direction, self.strength)


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between softened probabilities, times the temperature squared; the KL's gradient in the logits.

    Args:
        logits: (b, c).
        teacher: (b, c) logits.
        temperature: divides both.

    >>> distillation(torch.zeros(1, 2), torch.zeros(1, 2), 2.0)
    tensor(2.7726)
    """
    return temperature**2 * cross_entropy(logits / temperature, (teacher / temperature).softmax(dim=1))


def without_opposed(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    """A gradient without the part that points against another one (equation 4).

    Args:
        gradient: of any shape.
        general: the direction not to go against, of the same shape.
        strength: lambda, the share of that part to take off.

    >>> without_opposed(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0]), strength=1.0)
    tensor([1., 0.])
    >>> without_opposed(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]), strength=1.0)
    tensor([1., 1.])
    """
    direction = general / general.norm().clamp_min(torch.finfo(general.dtype).tiny)
    return gradient - strength * (gradient * direction).sum().clamp(max=0) * direction
