"""CLIP-SVD: the singular values of the attention and MLP matrices in both towers, trained on the shots.

Paper: Koleilat, Rivaz and Xiao, 2025, https://arxiv.org/abs/2509.03740.
As in the authors' code (https://github.com/HealthX-Lab/CLIP-SVD): a linear layer W x + b becomes U (s * V' x) + b, and
only s is trained. The matrices of queries, keys, values, output and MLP are decomposed each, in both towers; by default
of the first and the last third of the layers ("top_bottom" there), which have 0.04 % of the parameters of CLIP. AdamW
without weight decay, its rate falls from 2e-3 to 1e-6 in a cosine step by step, batches of 32, a number of steps times
the shots. That number, and the rate, layers and weight decay, are in a configuration for each data set there; here one
default serves all: 500 steps, as for CLIP-LoRA.

Differs from that code: weight decay, if any, draws the singular values to those of the encoder, not to 0. Prompts are
the classifier's, not a template for each data set. Precision, views and whole epochs are as in CLIP-LoRA here.

A matrix is U diag(s) V', and only the product enters a tower. It does not depend on the signs of U and V. But where
singular values are equal, U and V may be rotated, and another machine may rotate them in another way. So equal singular
values change together, by their mean change, and those that are zero, whose U and V are independent, stay. The
decomposition is in fp64: in fp32 neighbouring singular values of a trained tower are equal up to rounding, and the
product would differ by 1e-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from clipadapter.encoders import AttentionLayer, Encoder
from clipadapter.encoders.layers import Matrix
from clipadapter.heads import register_head
from clipadapter.heads.parameters import OneOf
from clipadapter.tuners.tower_tuner import LAYERS, LayerTuner, Trainable, add_to_weight, replace_linear
from clipadapter.utils.parallel import parallel_map


@register_head("clip-svd", paper="https://arxiv.org/abs/2509.03740", compare=False)
class ClipSvd(LayerTuner):
    """Zero-shot by an encoder with changed singular values; `FewShotClassifier` fits it, from pictures.

    Every step runs the towers forward and backward, so that it wants a GPU. A number for each singular value is learned
    and saved; the rest of the decomposition is made again when a model is opened, which takes seconds to a minute. A
    tower without attention layers, such as a ResNet, is left out of "both".

    Args:
        matrices: whose singular values are trained: letters of "qkvoud", for queries, keys, values and output, and for
            the MLP's matrices up and down. A layer with no such MLP goes without.
        weight_decay: of AdamW, on the changes: towards zero-shot.
        seed: of shuffling and the choice of views.

    Fidelity: partial: Outputs, gradients and singular values of one block after some steps are those of the authors'
    code, whose layer was at hand in a copy of their repository only. Their steps and rates for single data sets are not
    used. Whole trainings were not compared.
    """

    method_name = "clip-svd"
    parts = "attention layers that clip-svd knows"
    trainable_matrices = "qkvoud"

    matrices: str = "qkvoud"
    layers: Annotated[str, OneOf(*LAYERS)] = "ends"
    lr: float = 2e-3

    def _attach(self, tunable: Encoder, generator: torch.Generator) -> Trainable:
        arrays: dict[str, Tensor] = {}
        layers_of = self._tower_parts(tunable)
        for tower, layers in layers_of.items():
            change = torch.zeros(count_singular_values(layers), device=tunable.device, requires_grad=True)
            arrays[f"{tower}_s_"] = change
            attach_factors(layers, change)
        return Trainable(arrays, layers_of.keys())

    def _merge_tower(self, tower: str, parts: list[AttentionLayer]) -> bool:
        change = getattr(self, f"{tower}_s_", None)
        if change is None or change.shape != (count_singular_values(parts),):
            return False
        merge_change(parts, change)
        return True


MAX_EQUAL_DIFFERENCE = 1e-9
"""Difference of neighbouring singular values, as a share of the largest, below which they are taken as equal."""
MIN_SVD_WORK = 10**9  # multiplications of a decomposition, at least


@dataclass(frozen=True, eq=False)
class SvdFactors:
    """A matrix as ``u @ diag(s) @ vt``, with k = min(out, in) singular values, the largest first."""

    u: Tensor  # (out, k), orthonormal columns
    s: Tensor  # (k,)
    vt: Tensor  # (k, in), orthonormal rows
    group: Tensor  # (k,) a number that equal singular values share
    share: Tensor  # (k,) one over their number; zero for those that stay

    def average_equal(self, change: Tensor) -> Tensor:
        """Changes (k,) of which those of equal singular values are their mean, and those of zeros are zero."""
        return torch.zeros_like(change).index_add(0, self.group, change * self.share)[self.group]

    def product(self, change: Tensor) -> Tensor:
        """What changes of the singular values (k,) add to the matrix, (out, in)."""
        return (self.u * self.average_equal(change)) @ self.vt


def decompose(weight: Tensor) -> SvdFactors:
    """The singular value decomposition of a matrix (out, in), in fp64 on the CPU."""
    matrix = weight.detach().to("cpu", torch.float64)
    wide = matrix.shape[0] < matrix.shape[1]
    u, s, vt = torch.linalg.svd(matrix.T if wide else matrix, full_matrices=False)  # tall ones take half the time
    if wide:
        u, vt = vt.T, u.T
    apart = s[:-1] - s[1:] > MAX_EQUAL_DIFFERENCE * s[0]
    group = torch.cat([torch.zeros(1, dtype=torch.int64), apart.cumsum(0)])
    share = (1 / torch.bincount(group).to(s))[group].where(s > MAX_EQUAL_DIFFERENCE * s[0], 0.0)
    return SvdFactors(u, s, vt, group, share)


class FactoredLinear(nn.Module):
    """A linear layer of which some rows are factors: (outputs, which of the changes (n,) are their own, factors)."""

    def __init__(
        self, change: Tensor, weight: Tensor, bias: Tensor | None, factored: Sequence[tuple[slice, slice, SvdFactors]]
    ) -> None:
        super().__init__()
        self.change, self.weight, self.bias = change, weight, bias
        self.factored = sorted(factored, key=lambda each: each[0].start)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        outputs, stop = [], 0
        for rows, part, factors in self.factored:
            scaled = linear(x, factors.vt) * (factors.s + factors.average_equal(self.change[part]))
            outputs += [self._plain(x, slice(stop, rows.start)), linear(scaled, factors.u, self._bias(rows))]
            stop = rows.stop
        outputs.append(self._plain(x, slice(stop, len(self.weight))))
        outputs = [output for output in outputs if output.shape[-1]]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def _plain(self, x: Tensor, rows: slice) -> Tensor:
        return linear(x, self.weight[rows], self._bias(rows)) if rows.start < rows.stop else x[..., :0]

    def _bias(self, rows: slice) -> Tensor | None:
        return None if self.bias is None else self.bias[rows]


def attach_factors(layers: Sequence[AttentionLayer], change: Tensor) -> None:
    """Put factors into layers, to train the changes (n,) of their singular values, layer by layer, matrix by matrix."""
    parts = _parts(layers)

    def factor(weight: Tensor) -> SvdFactors:
        """Of the type and on the device of the weight."""
        exact = decompose(weight)
        u, s, vt, share = (each.to(weight).contiguous() for each in (exact.u, exact.s, exact.vt, exact.share))
        return SvdFactors(u, s, vt, exact.group.to(weight.device), share)

    factors = parallel_map([partial(factor, matrix.values.detach()) for matrix, _ in parts], work=MIN_SVD_WORK)
    factored = ((matrix.rows, part, each) for (matrix, part), each in zip(parts, factors, strict=True))
    for layer in layers:
        replace_linear(layer, {letter: next(factored) for letter in layer}, partial(FactoredLinear, change))


def merge_change(layers: Sequence[AttentionLayer], change: Tensor) -> None:
    """Put weights into layers that have singular values with these changes (n,)."""
    parts, change = _parts(layers), change.detach().to("cpu", torch.float64)

    def weight_change(weight: Tensor, change: Tensor) -> Tensor:
        return decompose(weight).product(change).to(weight.dtype)

    tasks = [partial(weight_change, matrix.values, change[part]) for matrix, part in parts]
    for (matrix, _), added in zip(parts, parallel_map(tasks, work=MIN_SVD_WORK), strict=True):
        add_to_weight(matrix, added)


def count_singular_values(layers: Sequence[AttentionLayer]) -> int:
    """How many singular values all matrices of some layers have."""
    return sum(min(matrix.values.shape) for layer in layers for matrix in layer.values())


def _parts(layers: Sequence[AttentionLayer]) -> list[tuple[Matrix, slice]]:
    """Each matrix of the layers, and which of the singular values are its own."""
    matrices = [matrix for layer in layers for matrix in layer.values()]
    stops = [*accumulate(min(matrix.values.shape) for matrix in matrices)]
    return [(matrix, slice(start, stop)) for matrix, start, stop in zip(matrices, [0, *stops], stops, strict=False)]
