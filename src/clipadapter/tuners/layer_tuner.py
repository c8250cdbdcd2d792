"""Base of the tuners that change matrices of the towers' layers, and the replacement of linear layers by modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from clipadapter.encoders import AttentionLayer, Encoder, attention_layers
from clipadapter.encoders.layers import Matrix
from clipadapter.errors import InputError, brief
from clipadapter.heads.parameters import OneOf
from clipadapter.heads.training import TrainConfig
from clipadapter.tuners.tower_tuner import PartTuner

LAYERS = ("all", "bottom", "top", "ends")
STEPS_PER_SHOT = 500  # optimizer steps for each shot per class, as in CLIP-LoRA's paper
T = TypeVar("T")


@dataclass(eq=False, repr=False, kw_only=True)
class LayerTuner(PartTuner):
    """Base of the methods that change matrices of the towers' layers, trained by AdamW at a rate that falls to 1e-6.

    Args:
        matrices: which matrices of a layer are changed, as letters.
        towers: "both", "image" or "text".
        layers: "all", the half nearer to the input ("bottom") or to the output ("top"), or a third at both "ends".
        lr: highest learning rate of AdamW. It falls to 1e-6 in a cosine.
        weight_decay: of AdamW.
        steps: optimizer steps; None for 500 times the shots per class.
    """

    trainable_matrices: ClassVar[str]
    """Letters of the matrices that the method can change."""

    matrices: str
    layers: Annotated[str, OneOf(*LAYERS)] = "all"
    weight_decay: float = 0.0
    steps: int | None = None

    def _train_config(self, shots_per_class: int) -> TrainConfig:
        steps = STEPS_PER_SHOT * shots_per_class if self.steps is None else self.steps
        return TrainConfig.from_estimator(
            self, optimizer="adamw", steps=steps, min_epochs=1, min_lr=1e-6, view_per_epoch=False
        )

    def _fingerprint_facts(self) -> tuple[object, ...]:
        return self.matrices, self.layers

    def _parts_of(self, tower: str, network: nn.Module, tunable: Encoder) -> list[AttentionLayer]:
        """The layers that are changed; of their matrices those that are changed and that they have."""
        every = attention_layers(network, mlp=bool(set(self.trainable_matrices) - set("qkvo")))
        cut = [{letter: layer[letter] for letter in self.matrices if letter in layer} for layer in every]
        return select_layers([layer for layer in cut if layer], self.layers)

    def _describe_parts(self, parts: list[AttentionLayer]) -> str:
        return f"{len(parts)} of its layers"

    def check_parameters(self) -> None:
        """See `Head.check_parameters`."""
        super().check_parameters()
        letters = self.matrices
        if not letters or set(letters) - set(self.trainable_matrices) or len(set(letters)) < len(letters):
            raise InputError(
                f"matrices must be different letters of {self.trainable_matrices!r}, such as 'qkv', but are "
                f"{brief(letters)}"
            )


def select_layers(layers: Sequence[AttentionLayer], which: str) -> list[AttentionLayer]:
    """Some of the layers of a tower: "all", half of them at the "bottom" or "top", or a third at both "ends".

    >>> [layer["layer"] for layer in select_layers([{"layer": i} for i in range(12)], "ends")]
    [0, 1, 2, 3, 8, 9, 10, 11]
    """
    n = len(layers)
    half, third = n // 2, max(n // 3, 1)
    chosen = {
        "all": range(n),
        "bottom": range(max(half, 1)),
        "top": range(half, n),
        "ends": {*range(third), *range(n - third, n)},
    }[which]
    return [layer for i, layer in enumerate(layers) if i in chosen]


class SplitAttention(nn.Module):
    """Self-attention as in ``nn.MultiheadAttention``, whose linear layers are separate modules.

    ``inner`` gives queries, keys and values (..., 3w) of tokens (..., w), ``outer`` the output.
    """

    def __init__(self, base: nn.MultiheadAttention, inner: nn.Module, outer: nn.Module) -> None:
        super().__init__()
        self.heads, self.batch_first = base.num_heads, base.batch_first
        self.inner, self.outer = inner, outer

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        """As ``nn.MultiheadAttention``, without weights of attention; all three inputs are one, a mask is added."""
        x = query if self.batch_first else query.transpose(0, 1)  # (n, l, w)
        n, length, _w = x.shape
        parts = self.inner(x).chunk(3, dim=-1)
        q, k, v = (part.reshape(n, length, self.heads, -1).transpose(1, 2) for part in parts)  # (n, h, l, w / h)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        output = self.outer(mixed.transpose(1, 2).reshape(n, length, -1))
        return (output if self.batch_first else output.transpose(0, 1)), None


def replace_linear(
    layer: AttentionLayer, changes: Mapping[str, T], make: Callable[[Tensor, Tensor | None, list[T]], nn.Module]
) -> None:
    """Replace the linear layers that hold some matrices of a layer by other modules.

    These are made from weight, bias and the changes of the matrices in it, by their letters; the output projection of
    ``nn.MultiheadAttention`` may have none.
    """

    def replacement(owner: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
        return make(weight, bias, [change for letter, change in changes.items() if layer[letter].owner is owner])

    for letter in changes:
        matrix = layer[letter]
        module = matrix.module
        if isinstance(module, nn.MultiheadAttention):
            inner = replacement(module, module.in_proj_weight, module.in_proj_bias)
            outer = replacement(module.out_proj, module.out_proj.weight, module.out_proj.bias)
            setattr(matrix.parent, matrix.child, SplitAttention(module, inner, outer))
        elif isinstance(module, nn.Linear):
            setattr(matrix.parent, matrix.child, replacement(module, module.weight, module.bias))


def add_to_weight(matrix: Matrix, change: Tensor) -> None:
    """Replace the weight that a matrix is part of by a copy with a change (out, in); the old weight stays as it is."""
    with torch.no_grad():
        weight = matrix.full_weight.detach().clone()
        weight[matrix.rows] += change.to(weight)
        setattr(matrix.owner, matrix.weight, nn.Parameter(weight, requires_grad=False))
