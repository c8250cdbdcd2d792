"""A fitted model as one torch module: from pictures to all outputs of the exported file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from clipadapter.backends import Tower
from clipadapter.conversion.tracing import SquareTower
from clipadapter.encoders import Encoder
from clipadapter.errors import InputError
from clipadapter.export.ood_graph import OodScores
from clipadapter.formats.base import INPUT_NAMES, TOWER_OUTPUT
from clipadapter.heads import Head
from clipadapter.uncertainty import Uncertainty


class ModelGraph(nn.Module):
    """Image tower, head, calibration, and the scores of "none of these" if the model has a rejector.

    Args:
        towers: see `export_towers`.
        head: fitted.
        uncertainty: calibration and rejection of the model.
        input_kind: "uint8" or "float", see `clipadapter.runtime.ExportMetadata.input`.
    """

    def __init__(
        self, towers: Sequence[Tower], head: Head, uncertainty: Uncertainty, input_kind: str = "uint8"
    ) -> None:
        super().__init__()
        self.pixels, self.input_kind = towers[0].pixels, input_kind
        self.tower = SquareTowers(towers) if input_kind == "uint8" else PixelTowers(towers)
        self.head = head
        self.probabilities = Probabilities(uncertainty)
        self.ood_scores = None if uncertainty.rejector is None else OodScores(uncertainty.rejector)
        self.eval()

    @property
    def input_name(self) -> str:
        """Name of the input in the file."""
        return INPUT_NAMES[self.input_kind]

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs in the file, in their order."""
        names = (TOWER_OUTPUT, "logits", "probabilities")
        # "strangeness" is the name of the out-of-distribution scores in exported files, which is older than theirs.
        return names if self.ood_scores is None else (*names, "strangeness", "strangeness_parts")

    @property
    def example_input(self) -> Tensor:
        """An input of two pictures."""
        s = self.pixels.size
        return torch.zeros(2, s, s, 3, dtype=torch.uint8) if self.input_kind == "uint8" else torch.zeros(2, 3, s, s)

    def count_weight_bytes(self) -> int:
        """Bytes of all weights, and of the fitted arrays of the head."""
        tensors = [*self.parameters(), *self.buffers()]
        weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return weight_bytes + sum(array.nbytes for array in self.head.state().values())

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Pictures to the outputs."""
        features = self.tower(pictures)
        logits = self.head._logits(features)
        probabilities = self.probabilities(logits)
        if self.ood_scores is None:
            return features, logits, probabilities
        return features, logits, probabilities, *self.ood_scores(features, logits, probabilities)


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
        for name, values in (("weight", weight), ("bias", bias)):
            self.register_buffer(name, None if values is None else torch.tensor(values, dtype=torch.float32))

    def forward(self, logits: Tensor) -> Tensor:
        """(n, c) to (n, c)."""
        z = logits / self.temperature
        if self.has_vector:
            z = z * self.weight + self.bias
        return z.sigmoid() if self.is_multilabel else z.softmax(dim=1)


def export_towers(encoder: Encoder) -> tuple[Tower, ...]:
    """The image towers of an encoder in full precision on the CPU, whichever backend the encoder runs on.

    Raises:
        InputError: if only the encoder itself can run its tower, or two towers need different squares.
    """
    towers = encoder.towers()
    name = encoder.info.name
    if not towers:
        raise InputError(
            f"the image tower of {name} can't be exported: only the encoder itself can prepare its pictures or run it. "
            "Of open_clip those are the models that pad pictures to a square"
        )
    first = towers[0].pixels
    for tower in towers[1:]:
        if replace(tower.pixels, mean=first.mean, std=first.std) != first:
            raise InputError(
                f"{name} can't be exported: its towers take squares of {first.size} ({first.resize}, {first.resample}) "
                f"and {tower.pixels.size} ({tower.pixels.resize}, {tower.pixels.resample}), but a file has one input. "
                "Use two encoders with the same preprocessing: 'clipadapter simclr' has --size"
            )
    return tuple(replace(tower, network=_on_cpu(tower.module)) for tower in towers)


class SquareTowers(nn.Module):
    """Squares (n, s, s, 3), values 0 .. 255, to the features of all towers side by side (n, d)."""

    def __init__(self, towers: Sequence[Tower]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(SquareTower(tower.module, tower.pixels) for tower in towers)

    def forward(self, squares: Tensor) -> Tensor:
        """(n, s, s, 3) to (n, d)."""
        return _concatenate([tower(squares) for tower in self.towers])


class PixelTowers(nn.Module):
    """Pixels (n, 3, s, s) normalised for the first tower, to the features of all towers side by side (n, d)."""

    def __init__(self, towers: Sequence[Tower]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(tower.module for tower in towers)
        mean, std = _mean_and_std(towers[0])
        # (x std + mean - mean') / std': from the normalisation of the first tower to that of each.
        self.steps = [((std / other[1]), (mean - other[0]) / other[1]) for other in map(_mean_and_std, towers)]

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, s, s) to (n, d)."""
        inputs = [pixels if i == 0 else pixels * scale + shift for i, (scale, shift) in enumerate(self.steps)]
        return _concatenate([tower(rows).float() for tower, rows in zip(self.towers, inputs, strict=True)])


def _on_cpu(module: nn.Module) -> nn.Module:
    tensors = [*module.parameters(), *module.buffers()]
    return module if all(tensor.device.type == "cpu" for tensor in tensors) else copy.deepcopy(module).cpu()


def _mean_and_std(tower: Tower) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (tower.pixels.mean, tower.pixels.std))
    return mean, std


def _concatenate(features: list[Tensor]) -> Tensor:
    return features[0] if len(features) == 1 else torch.cat(features, dim=1)
