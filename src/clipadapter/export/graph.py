"""A fitted model as one torch module: from pictures to all outputs of the exported file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from clipadapter.backends import Tower
from clipadapter.backends.formats import BLOCKS_OUTPUT, FEATURES_OUTPUT, TorchGraph, input_names
from clipadapter.backends.tracing import SquareTower, count_bytes, example_squares
from clipadapter.encoders import Encoder
from clipadapter.errors import InputError
from clipadapter.export.ood_graph import OodScores
from clipadapter.heads import Head
from clipadapter.uncertainty import Uncertainty
from clipadapter.utils.pixels import PixelSpec, different_squares


class ModelGraph(nn.Module):
    """Image tower, head, calibration, and the scores of "none of these" if the model has a rejector."""

    def __init__(
        self, towers: Sequence[Tower], head: Head, uncertainty: Uncertainty, input_kind: str = "uint8"
    ) -> None:
        super().__init__()
        self.inputs, self.input_kind = different_squares([tower.pixels for tower in towers])[0], input_kind
        self.tower = ImageTowers(towers, input_kind)
        self.head = head
        self.final_width = head.blocks_[0].width
        self.has_blocks = len(head.blocks_) > 1
        self.probabilities = Probabilities(uncertainty)
        self.ood_scores = None if uncertainty.rejector is None else OodScores(uncertainty.rejector)
        self.eval()

    def describe(self) -> TorchGraph:
        """What formats need to convert it."""
        scores = () if self.ood_scores is None else ("ood_scores", "ood_score_parts")
        blocks = (BLOCKS_OUTPUT,) if self.has_blocks else ()
        return TorchGraph(
            self,
            self.tower,
            tower_output=BLOCKS_OUTPUT if self.has_blocks else FEATURES_OUTPUT,
            input_names=input_names(self.input_kind, [pixels.size for pixels in self.inputs]),
            output_names=(FEATURES_OUTPUT, "logits", "probabilities", *scores, *blocks),
            example_inputs=tuple(
                example_squares(pixels) if self.input_kind == "uint8" else torch.zeros(2, 3, pixels.size, pixels.size)
                for pixels in self.inputs
            ),
            weight_bytes=count_bytes(self) + sum(array.nbytes for array in self.head.state().values()),
        )

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The squares or pixels of pictures, one tensor (n, ...) per input, to the outputs."""
        blocks = self.tower(*inputs)
        logits = self.head._logits(self.head.read_columns(blocks))
        probabilities = self.probabilities(logits)
        final = blocks[:, : self.final_width] if self.has_blocks else blocks
        outputs: tuple[Tensor, ...] = (final, logits, probabilities)
        if self.ood_scores is not None:
            outputs += self.ood_scores(final, logits)
        return (*outputs, blocks) if self.has_blocks else outputs


class Probabilities(nn.Module):
    """Logits (n, c) to calibrated probabilities (n, c); see `clipadapter.uncertainty.Uncertainty.probabilities`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, uncertainty: Uncertainty) -> None:
        super().__init__()
        calibrator, multilabel = uncertainty.calibrator, uncertainty.multilabel
        weight, bias, temperature = calibrator.weight, calibrator.bias, calibrator.temperature
        if multilabel is not None:
            weight, bias, temperature = multilabel.slope, multilabel.bias, 1.0
        self.is_multilabel, self.temperature = multilabel is not None, float(temperature)
        self.has_vector = weight is not None
        self.equal_share = 0.0 if self.is_multilabel else calibrator.equal_share
        for name, values in (("weight", weight), ("bias", bias)):
            self.register_buffer(name, None if values is None else torch.tensor(values, dtype=torch.float32))

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


class ImageTowers(nn.Module):
    """The squares or pixels of pictures, one tensor (n, ...) per input, to the features of all towers (n, d)."""

    def __init__(self, towers: Sequence[Tower], input_kind: str) -> None:
        super().__init__()
        inputs, self.input_numbers = different_squares([tower.pixels for tower in towers])
        self.towers = nn.ModuleList(
            SquareTower(tower.module, tower.pixels) if input_kind == "uint8" else PixelTower(tower, inputs[i])
            for tower, i in zip(towers, self.input_numbers, strict=True)
        )

    def forward(self, *pictures: Tensor) -> Tensor:
        """The inputs to the features of all towers side by side."""
        features = [tower(pictures[i]) for tower, i in zip(self.towers, self.input_numbers, strict=True)]
        return features[0] if len(features) == 1 else torch.cat(features, dim=1)


class PixelTower(nn.Module):
    """Pixels (n, 3, s, s), normalised for the first tower that takes squares of this size, to features (n, d)."""

    def __init__(self, tower: Tower, pixels: PixelSpec) -> None:
        super().__init__()
        self.module = tower.module
        (mean, std), (own_mean, own_std) = _mean_and_std(pixels), _mean_and_std(tower.pixels)
        # (x std + mean - mean') / std': from the normalisation of the input to that of the tower; None if it is equal.
        self.step = None if pixels == tower.pixels else (std / own_std, (mean - own_mean) / own_std)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, d)."""
        features: Tensor = self.module(pixels if self.step is None else pixels * self.step[0] + self.step[1])
        return features.float()


def _on_cpu(module: nn.Module) -> nn.Module:
    tensors = [*module.parameters(), *module.buffers()]
    return module if all(tensor.device.type == "cpu" for tensor in tensors) else copy.deepcopy(module).cpu()


def _mean_and_std(pixels: PixelSpec) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (pixels.mean, pixels.std))
    return mean, std
