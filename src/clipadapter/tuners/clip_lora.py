"""CLIP-LoRA: low-rank updates of the attention matrices in both towers, trained on the shots.

Paper: Zanella and Ben Ayed, CVPR workshops 2024, https://arxiv.org/abs/2405.18541.
The defaults are those of the paper and of its authors' code, which scales an update by ``alpha / sqrt(r)``. Differs
from these in precision (fp32 by default, not mixed), in the views of pictures (as many as there are, not new ones each
step), and in that training is of whole epochs of whole batches.

The library peft is not used: its LoRA of ``nn.MultiheadAttention``, which CLIP's towers are made of, has one matrix A
for queries, keys and values together, always changes the output projection too, and merges before each forward pass, so
that no dropout can stand before the branch; CLIP-LoRA needs all three otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from clipadapter.encoders import AttentionLayer, Encoder
from clipadapter.heads import register_head
from clipadapter.heads.parameters import Within, at_least
from clipadapter.tuners.tower_tuner import LayerTuner, Trainable, add_to_weight, replace_linear


@register_head("clip-lora", paper="https://arxiv.org/abs/2405.18541", compare=False)
class ClipLora(LayerTuner):
    """Zero-shot by an encoder whose attention layers got low-rank updates; `FewShotClassifier` fits it, from pictures.

    Every step runs the towers forward and backward, so that it wants a GPU: with 16 shots, 8,000 steps of 32 pictures
    and of the prompts of all classes. A tower without attention layers, such as a ResNet, is left out of "both".

    Args:
        rank: r of the updates.
        alpha: an update is multiplied by ``alpha / sqrt(r)``.
        dropout: share of an update's input that is dropped in training; the weights themselves see all of it.
        matrices: which get an update: letters of "qkvo", for queries, keys, values and output.
        weight_decay: of AdamW, on the updates' factors.
        seed: of the first values, shuffling, dropout and the choice of views.

    Fidelity: verified: One attention layer, its outputs and its gradients, is that of the authors' code. Whole
    trainings were not compared.
    """

    method_name = "clip-lora"
    parts = "attention layers that clip-lora knows"
    trainable_matrices = "qkvo"
    fingerprint_parameters = ("matrices", "layers", "alpha")

    rank: Annotated[int, at_least(1)] = 2
    alpha: float = 1.0
    dropout: Annotated[float, Within(0, 1, closed="left")] = 0.25
    matrices: str = "qkv"
    lr: float = 2e-4
    weight_decay: float = 1e-2

    def _attach(self, tunable: Encoder, generator: torch.Generator) -> Trainable:
        drop = SeededDropout(self.dropout, generator, tunable.device)
        arrays: dict[str, Tensor] = {}
        layers_of = self._tower_parts(tunable)
        for tower, layers in layers_of.items():
            a, b = (each.to(tunable.device) for each in initial_update(layers, self.matrices, self.rank, generator))
            arrays[f"{tower}_a_"], arrays[f"{tower}_b_"] = a.requires_grad_(), b.requires_grad_()
            attach_update(layers, self.matrices, a, b, self.alpha, drop)
        return Trainable(arrays, layers_of.keys(), drop.start_step)

    def _merge_tower(self, tower: str, parts: list[AttentionLayer]) -> bool:
        a, b = (getattr(self, f"{tower}_{letter}_", None) for letter in "ab")
        if a is None or b is None or not a.shape[:2] == b.shape[:2] == (len(parts), len(self.matrices)):
            return False
        if {layer[letter].values.shape for layer in parts for letter in self.matrices} != {(b.shape[2], a.shape[3])}:
            return False
        merge_update(parts, self.matrices, a, b, self.alpha)
        return True


class SeededDropout:
    """Dropout of a share of the values, whose draws of each step are seeded by a generator; see `start_step`."""

    def __init__(self, rate: float, seed: torch.Generator, device: str) -> None:
        self.rate, self._seed = rate, seed
        self._generator = torch.Generator(device)

    def start_step(self) -> None:
        """Seed the masks of the next step from one number, so that checkpoints store the state of one generator."""
        self._generator.manual_seed(int(torch.randint(2**62, (), generator=self._seed)))

    def __call__(self, x: Tensor) -> Tensor:
        """Values that are not dropped are scaled up, so that the mean does not change."""
        if not self.rate:
            return x
        mask = torch.empty_like(x).bernoulli_(1 - self.rate, generator=self._generator)
        return x * mask.div_(1 - self.rate)


class LoraLinear(nn.Module):
    """A frozen linear layer, and functions of the input beside it that add to some of its outputs."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, branches: Sequence[tuple[slice, Callable[[Tensor], Tensor]]]
    ) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.branches = sorted(branches, key=lambda each: each[0].start)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        output = linear(x, self.weight, self.bias)
        if not self.branches:
            return output
        parts, stop = [], 0
        for rows, branch in self.branches:
            parts += [output[..., stop : rows.start], output[..., rows] + branch(x)]
            stop = rows.stop
        return torch.cat([*parts, output[..., stop:]], dim=-1)


# The update of a weight is ``alpha / sqrt(r) * b @ a``. a (L, p, r, in) and b (L, p, out, r) have those of L layers and
# of p matrices in each, which letters such as "qkv" name.


def attach_update(
    layers: Sequence[AttentionLayer], letters: str, a: Tensor, b: Tensor, alpha: float, drop: SeededDropout
) -> None:
    """Put branches into the layers, to train an update there."""
    scale = alpha / math.sqrt(a.shape[2])

    def branch(i: int, j: int, x: Tensor) -> Tensor:
        return scale * linear(linear(drop(x), a[i, j]), b[i, j])

    for i, layer in enumerate(layers):
        branches = {letter: (layer[letter].rows, partial(branch, i, j)) for j, letter in enumerate(letters)}
        replace_linear(layer, branches, LoraLinear)


@torch.no_grad()
def merge_update(layers: Sequence[AttentionLayer], letters: str, a: Tensor, b: Tensor, alpha: float) -> None:
    """Put weights into the layers that an update is added to."""
    for i, layer in enumerate(layers):
        for j, letter in enumerate(letters):
            add_to_weight(layer[letter], alpha / math.sqrt(a.shape[2]) * b[i, j] @ a[i, j])


def initial_update(
    layers: Sequence[AttentionLayer], letters: str, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """An update that is zero: ``a`` is drawn as linear layers are at first (within 1 / sqrt(in)), ``b`` is zero."""
    shapes = {tuple(layer[letter].values.shape) for layer in layers for letter in letters}
    assert len(shapes) == 1, f"attention layers differ in width: {shapes}"
    ((out, width),) = shapes
    a = torch.rand(len(layers), len(letters), rank, width, generator=generator).mul(2).sub(1).div(math.sqrt(width))
    return a, torch.zeros(len(layers), len(letters), out, rank)
