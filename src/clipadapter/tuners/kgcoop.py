"""KgCoOp: CoOp with a penalty on the distance of the class vectors to those of hand-written prompts.

Paper: Yao et al., CVPR 2023, https://arxiv.org/abs/2303.13283, equation 5.
The defaults are the paper's: context from "a photo of a", weight 8 (the released code has 1), 100 epochs of batches of
128. The hand-written prompts are those of the class text, with its templates. Differs from the paper as CoOp
does.
"""

from __future__ import annotations

from torch import Tensor

from clipadapter.heads import register_head
from clipadapter.tuners.prompt_tuner import Batch, PromptTuner


@register_head(
    "kgcoop",
    paper="https://arxiv.org/abs/2303.13283",
    compare=False,
    fidelity="verified: Loss, gradients and the context after some steps are those of the authors' code. Views are "
    "made once, where that code augments in each epoch.",
)
class KgCoOp(PromptTuner):
    """CoOp with a penalty on the distance between learned class vectors and class text.

    Args:
        weight: of the penalty, one minus the mean cosine; 0 is CoOp.
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
    >>> head = KgCoOp(epochs=5).fit(text.embeddings, ["red", "blue"], text=text)
    >>> head.predict(text.embeddings)
    array(['red', 'blue'], dtype='<U4')
    """

    def __init__(
        self,
        weight: float = 8.0,
        n_ctx: int = 4,
        ctx_init: str | None = "a photo of a",
        class_token: str = "end",
        csc: bool = False,
        lr: float = 2e-3,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: str = "cosine-epoch",
        warmup_epochs: int = 1,
        epochs: int | None = 100,
        batch_size: int = 128,
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
        self.weight = weight

    def _loss(self, batch: Batch) -> Tensor:
        near = (batch.weight * batch.text).sum(dim=1).mean()
        return super()._loss(batch) + self.weight * (1 - near)  # eq. 5
