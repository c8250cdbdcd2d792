"""A fitted model as one torch module: from pictures to all that the file gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipadapter.backends import Tower
from clipadapter.export._strangeness import Strangeness
from clipadapter.export._towers import Pixels, Squares
from clipadapter.heads import Head
from clipadapter.runtime._about import INPUTS
from clipadapter.uncertainty import Uncertainty

FEATURES = "features"
"""What the image tower gives; all behind it stays in float32."""


class ModelGraph(nn.Module):
    """Image tower, head, calibration, and the rejector's scores if there is one.

    Args:
        towers: see `towers_of`.
        head: fitted.
        uncertainty: what held-out shots taught.
        source: "uint8" or "float", what the input is.
    """

    def __init__(self, towers: Sequence[Tower], head: Head, uncertainty: Uncertainty, source: str = "uint8") -> None:
        super().__init__()
        self.pixels, self.source = towers[0].pixels, source
        self.tower = Squares(towers) if source == "uint8" else Pixels(towers)
        self.head = head
        self.probabilities = Probabilities(uncertainty)
        self.strangeness = None if uncertainty.rejector is None else Strangeness(uncertainty.rejector)
        self.eval()

    @property
    def input(self) -> str:
        """What the input is called."""
        return INPUTS[self.source]

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the outputs are called, in their order."""
        named = (FEATURES, "logits", "probabilities")
        return named if self.strangeness is None else (*named, "strangeness", "strangeness_parts")

    @property
    def example(self) -> Tensor:
        """An input of two pictures."""
        s = self.pixels.size
        return torch.zeros(2, s, s, 3, dtype=torch.uint8) if self.source == "uint8" else torch.zeros(2, 3, s, s)

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Pictures to the outputs."""
        features = self.tower(pictures)
        logits = self.head._logits(features)
        probabilities = self.probabilities(logits)
        if self.strangeness is None:
            return features, logits, probabilities
        return features, logits, probabilities, *self.strangeness(features, logits, probabilities)


class Probabilities(nn.Module):
    """Logits (n, c) to calibrated probabilities (n, c); see `clipadapter.uncertainty.Trust.probabilities`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, uncertainty: Uncertainty) -> None:
        super().__init__()
        self.several = uncertainty.multilabel is not None
        rule = uncertainty.multilabel
        weight, bias, temperature = (
            uncertainty.calibrator.weight,
            uncertainty.calibrator.bias,
            uncertainty.calibrator.temperature,
        )
        if rule is not None:
            weight, bias, temperature = rule.slope, rule.bias, 1.0
        self.temperature, self.vector = float(temperature), weight is not None
        for name, values in (("weight", weight), ("bias", bias)):
            self.register_buffer(name, None if values is None else torch.tensor(values, dtype=torch.float32))

    def forward(self, logits: Tensor) -> Tensor:
        """(n, c) to (n, c)."""
        z = logits / self.temperature
        if self.vector:
            z = z * self.weight + self.bias
        return z.sigmoid() if self.several else z.softmax(dim=1)
