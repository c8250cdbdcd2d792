"""A fitted model as one torch module: from pictures to all outputs of the exported file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipadapter.encoders import Encoder
from clipadapter.errors import InputError
from clipadapter.heads import Head
from clipadapter.runtime.engines import Tower
from clipadapter.runtime.engines.graphs import BLOCKS_OUTPUT, FEATURES_OUTPUT, TorchGraph, input_names
from clipadapter.runtime.engines.tracing import SquareTower, example_squares
from clipadapter.uncertainty import Rejector, Uncertainty
from clipadapter.uncertainty.class_gaussians import ClassGaussians
from clipadapter.utils.functional import unit
from clipadapter.utils.pixels import different_squares
from clipadapter.utils.prediction import unit_rows


class ModelGraph(nn.Module):
    """Image towers, head, calibration, and the scores of "none of these" if the model has a rejector."""

    def __init__(self, towers: Sequence[Tower], head: Head, uncertainty: Uncertainty, input_kind: str) -> None:
        super().__init__()
        self.inputs, self.input_numbers = different_squares([tower.pixels for tower in towers])
        self.input_kind, self.head, self.has_blocks = input_kind, head, len(head.blocks_) > 1
        self.towers = nn.ModuleList(
            SquareTower(tower.module, tower.pixels, normalized=None if input_kind == "uint8" else self.inputs[i])
            for tower, i in zip(towers, self.input_numbers, strict=True)
        )
        self.probabilities = Probabilities(uncertainty)
        self.ood_scores = None if uncertainty.rejector is None else OodScores(uncertainty.rejector)
        self.eval()

    def describe(self) -> TorchGraph:
        """What formats need to convert it."""
        scores = () if self.ood_scores is None else ("ood_scores", "ood_score_parts")
        blocks = (BLOCKS_OUTPUT,) if self.has_blocks else ()
        return TorchGraph(
            self,
            tower_output=BLOCKS_OUTPUT if self.has_blocks else FEATURES_OUTPUT,
            input_names=input_names(self.input_kind, [pixels.size for pixels in self.inputs]),
            output_names=(FEATURES_OUTPUT, "logits", "probabilities", *scores, *blocks),
            example_inputs=tuple(
                example_squares(pixels) if self.input_kind == "uint8" else torch.zeros(2, 3, pixels.size, pixels.size)
                for pixels in self.inputs
            ),
            constant_bytes=sum(array.nbytes for array in self.head.state().values()),
        )

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The squares or pixels of pictures, one tensor (n, ...) per input, to the outputs."""
        blocks = self.features(*inputs)
        logits = self.head._logits(self.head.read_columns(blocks))
        probabilities = self.probabilities(logits)
        final = blocks[:, : self.head.blocks_[0].width] if self.has_blocks else blocks
        outputs: tuple[Tensor, ...] = (final, logits, probabilities)
        if self.ood_scores is not None:
            outputs += self.ood_scores(final, logits)
        return (*outputs, blocks) if self.has_blocks else outputs

    def features(self, *inputs: Tensor) -> Tensor:
        """The inputs to the features of all towers side by side."""
        features = [tower(inputs[i]) for tower, i in zip(self.towers, self.input_numbers, strict=True)]
        return features[0] if len(features) == 1 else torch.cat(features, dim=1)


class Probabilities(nn.Module):
    """Logits (n, c) to calibrated probabilities (n, c); see `clipadapter.uncertainty.Uncertainty.probabilities`."""

    def __init__(self, uncertainty: Uncertainty) -> None:
        super().__init__()
        calibrator, multilabel = uncertainty.calibrator, uncertainty.multilabel
        weight, bias, temperature = calibrator.weight, calibrator.bias, calibrator.temperature
        if multilabel is not None:
            weight, bias, temperature = multilabel.slope, multilabel.bias, 1.0
        self.is_multilabel, self.temperature = multilabel is not None, float(temperature)
        self.equal_share = 0.0 if self.is_multilabel else calibrator.equal_share
        self.has_vector, self.weight, self.bias = weight is not None, _constant(weight), _constant(bias)

    def forward(self, logits: Tensor) -> Tensor:
        """(n, c) to (n, c)."""
        z = logits / self.temperature
        if self.has_vector:
            z = z * self.weight + self.bias
        probabilities = z.sigmoid() if self.is_multilabel else z.softmax(dim=1)
        if not self.equal_share:
            return probabilities
        return probabilities * (1 - self.equal_share) + self.equal_share / z.shape[1]


def export_towers(encoder: Encoder) -> tuple[Tower, ...]:
    """The image towers of an encoder in full precision on the CPU, whichever backend the encoder runs on."""
    towers = encoder.towers()
    name = encoder.info.name
    if not towers:
        raise InputError(
            f"the image tower of {name} can't be exported: only the encoder itself can prepare its pictures or run it"
        )
    return tuple(replace(tower, network=_on_cpu(tower.module)) for tower in towers)


def _on_cpu(module: nn.Module) -> nn.Module:
    tensors = [*module.parameters(), *module.buffers()]
    return module if all(tensor.device.type == "cpu" for tensor in tensors) else copy.deepcopy(module).cpu()


class OodScores(nn.Module):
    """Features and logits to scores of "none of these": what `uncertainty.Rejector.scores` computes in NumPy."""

    def __init__(self, rejector: Rejector) -> None:
        super().__init__()
        self.names = tuple(part.name for part in rejector.parts)
        memory, gaussians = rejector.memory, rejector.memory.gaussians
        self.scale, self.text = memory.scale, _constant(memory.text)
        self.negative_labels, self.outliers = _constant(memory.negative_labels), _constant(memory.outliers)
        self.mean_directions = _constant(None if gaussians is None else unit_rows(gaussians.means))
        self.distance = MahalanobisDistance(gaussians) if gaussians and "mahalanobis" in self.names else None
        self.centre = _constant(np.array([part.centre for part in rejector.parts]))
        self.factor = _constant(np.array([part.weight / part.deviation for part in rejector.parts]))

    def forward(self, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(n, d) and (n, c) to the total score (n,) and its parts (n, p)."""
        rows = unit(features)
        parts = torch.stack([self._score(name, rows, logits) for name in self.names], dim=1)
        return ((parts - self.centre) * self.factor).sum(dim=1), parts

    def _score(self, name: str, rows: Tensor, logits: Tensor) -> Tensor:
        """One score (n,); the formulas are those of `clipadapter.uncertainty.ood_scores`."""
        if name == "max-logit":
            return -logits.amax(dim=1)
        if name == "mahalanobis" and self.distance is not None:
            distances: Tensor = self.distance(rows)
            return distances
        if name == "outliers":
            return (rows @ self.outliers.T).amax(dim=1) - (rows @ self.mean_directions.T).amax(dim=1)
        cosines = rows @ self.text.T
        if name == "negative-labels":
            return _log_sum_exp(self.scale * rows @ self.negative_labels.T) - _log_sum_exp(self.scale * cosines)
        assert name == "text", f"export has no graph for the score {name!r}"
        return 1 - cosines.amax(dim=1)


class MahalanobisDistance(nn.Module):
    """Unit rows (n, d) to the squared Mahalanobis distance (n,) from the nearest class mean.

    In NumPy, in float64, distances are differences of products, which would lose their digits in float32. Here the
    whitening matrix is applied to a difference, and the distance is the squared length of the result. The inverse
    covariance is (I - B'B) / floor. With B B' = U diag(g) U' the whitening matrix is its root (I - D'D) / sqrt(floor),
    D = diag(1 + sqrt(1 - g))^(-1/2) U' B.
    The nearest mean is still found by products: there a rounding error only decides between two nearly equal distances.
    """

    def __init__(self, gaussians: ClassGaussians) -> None:
        super().__init__()
        basis = np.asarray(gaussians.basis, np.float64)
        g, u = np.linalg.eigh(basis @ basis.T)
        directions = (u / np.sqrt(1 + np.sqrt(1 - g.clip(0, 1)))).T @ basis
        means = np.asarray(gaussians.means, np.float64)
        origin = means.mean(axis=0)  # rows are far from zero and close to each other: float32 is finest near zero
        centres = means - origin
        centres = (centres - centres @ directions.T @ directions) / np.sqrt(gaussians.floor)
        self.origin, self.directions = map(_constant, (origin, directions))
        self.centres, self.squared_lengths = _constant(centres), _constant((centres**2).sum(axis=1))
        self.scale = float(1 / np.sqrt(gaussians.floor))

    def forward(self, rows: Tensor) -> Tensor:
        """(n, d) to (n,)."""
        whitened = rows - self.origin
        if len(self.directions):
            whitened = whitened - whitened @ self.directions.T @ self.directions
        whitened = whitened * self.scale
        nearest = (self.squared_lengths - 2 * whitened @ self.centres.T).argmin(dim=1)
        return (whitened - self.centres[nearest]).square().sum(dim=1)


def _constant(values: NDArray[np.floating] | None) -> Tensor:
    """A buffer in float32; an empty one for None."""
    return nn.Buffer(torch.from_numpy(np.array([] if values is None else values, np.float32, order="C")))


def _log_sum_exp(values: Tensor) -> Tensor:
    maximum = values.amax(dim=1, keepdim=True)
    return (values - maximum).exp().sum(dim=1).log() + maximum[:, 0]
