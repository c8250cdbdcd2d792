"""CLIP-LoRA: low-rank updates of the attention matrices in both towers, trained on the shots.

Paper: Zanella and Ben Ayed, CVPR workshops 2024, https://arxiv.org/abs/2405.18541.
The defaults are those of the paper and of its authors' code, which scales an update by ``alpha / sqrt(r)``. Differs
from these in precision (fp32 by default, not mixed), in the views of pictures (as many as are given, not new ones each
step), and in that training is of whole epochs of whole batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipadapter.encoders import Encoder, Layer
from clipadapter.errors import InputError
from clipadapter.heads import register_head
from clipadapter.tuners._lora import Dropout, Update, first_update
from clipadapter.tuners.layer_tuner import LayerTuner
from clipadapter.tuners.tower_tuner import Trainable


@register_head(
    "clip-lora",
    paper="https://arxiv.org/abs/2405.18541",
    compare=False,
    fidelity="verified: One attention layer, its answers and its gradients, is that of the authors' code. Whole "
    "trainings were not compared.",
)
class ClipLora(LayerTuner):
    """Zero-shot by an encoder whose attention layers got low-rank updates; `FewShotClassifier` fits it, from pictures.

    Every step runs the towers forward and backward, so that it wants a GPU: with 16 shots, 8,000 steps of 32 pictures
    and of the prompts of all classes. A tower without attention layers, such as a ResNet, is left out of "both".

    Args:
        rank: r of the updates.
        alpha: an update is multiplied by ``alpha / sqrt(r)``.
        dropout: share of an update's input that is dropped in training; the weights themselves see all of it.
        matrices: which get an update: letters of "qkvo", for queries, keys, values and output.
        towers: "both", "image" or "text".
        layers: "all", the half nearer to the input ("bottom") or to the output ("top"), or a third at both "ends".
        lr: highest learning rate of AdamW; it falls to 1e-6 in a cosine.
        weight_decay: of AdamW, on the updates' factors.
        steps: optimizer steps; None for 500 times the shots a class.
        batch_size: pictures a step.
        precision: of the towers while training: "fp32" or "bf16", which is faster and takes less memory.
        checkpoint: seconds between two checkpoints in the user's cache folder, from which a killed `tune` goes on when
            it is called again; None keeps none.
        seed: of the first values, shuffling, dropout and the choice of views.
        progress: show a bar on stderr while training.
    """

    called = "clip-lora"
    known = "qkvo"

    def __init__(
        self,
        rank: int = 2,
        alpha: float = 1.0,
        dropout: float = 0.25,
        matrices: str = "qkv",
        towers: str = "both",
        layers: str = "all",
        lr: float = 2e-4,
        weight_decay: float = 1e-2,
        steps: int | None = None,
        batch_size: int = 32,
        precision: str = "fp32",
        checkpoint: float | None = 30.0,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.matrices = matrices
        self.towers = towers
        self.layers = layers
        self.lr = lr
        self.weight_decay = weight_decay
        self.steps = steps
        self.batch_size = batch_size
        self.precision = precision
        self.checkpoint = checkpoint
        self.seed = seed
        self.progress = progress

    def _begin(self, twin: Encoder, generator: torch.Generator) -> Trainable:
        self._check()
        drop = Dropout(self.dropout, generator, twin.device)
        arrays: dict[str, Tensor] = {}
        found = self._layers(twin)
        for tower, layers in found.items():
            update = first_update(layers, self.matrices, self.rank, self.alpha, generator, twin.device)
            arrays[f"{tower}_a_"], arrays[f"{tower}_b_"] = update.a.requires_grad_(), update.b.requires_grad_()
            update.attach(layers, drop)
        return Trainable(arrays, found.keys(), drop.start_step)

    def _merge(self, tower: str, layers: list[Layer]) -> bool:
        a, b = (getattr(self, f"{tower}_{letter}_", None) for letter in "ab")
        update = None if a is None or b is None else Update(a, b, self.matrices, self.alpha)
        if update is None or not update.fits(layers):
            return False
        update.merge(layers)
        return True

    def _facts(self) -> tuple[object, ...]:
        return *super()._facts(), float(self.alpha)

    def _check(self) -> None:
        super()._check()
        if self.rank < 1:
            raise InputError(f"rank must be 1 or more, but is {self.rank}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be 0 or more and less than 1, but is {self.dropout}")
