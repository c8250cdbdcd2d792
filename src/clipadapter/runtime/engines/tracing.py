"""Torch modules as graphs for converters, and image towers that take squares of whole numbers."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clipadapter.utils.pixels import PixelSpec

_CONVERSION_LOCK = threading.RLock()


class SquareTower(nn.Module):
    """Pictures to features: normalisation, then the tower.

    Pictures are squares (n, s, s, 3), values 0 .. 255; or pixels (n, 3, s, s) that were ``normalized`` for a tower.
    """

    def __init__(
        self,
        module: nn.Module,
        pixels: PixelSpec,
        dtype: torch.dtype = torch.float32,
        normalized: PixelSpec | None = None,
    ) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype
        self.takes_squares, self.is_normalized = normalized is None, normalized == pixels
        (mean, std), (old_mean, old_std) = _mean_and_std(pixels), _mean_and_std(normalized or pixels)
        # (x / 255 - mean) / std, or (x std' + mean' - mean) / std, as x scale + shift
        self.scale: Tensor = nn.Buffer(1 / (255 * std) if self.takes_squares else old_std / std)
        self.shift: Tensor = nn.Buffer(-mean / std if self.takes_squares else (old_mean - mean) / std)

    def forward(self, pictures: Tensor) -> Tensor:
        """The pictures to (n, d) float32."""
        # The permuted view is channels-last in memory, the fastest layout for convolutions.
        pixels = pictures.permute(0, 3, 1, 2).float() if self.takes_squares else pictures
        if not self.is_normalized:
            pixels = pixels * self.scale + self.shift
        features: Tensor = self.module(pixels.to(self.dtype)).float()
        return features


def _mean_and_std(pixels: PixelSpec) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (pixels.mean, pixels.std))
    return mean, std


def example_squares(pixels: PixelSpec) -> Tensor:
    """Two squares to trace with."""
    return torch.zeros(2, pixels.size, pixels.size, 3, dtype=torch.uint8)


def trace(module: nn.Module, *examples: Tensor) -> torch.jit.ScriptModule:
    """Trace a module to a graph for any number of rows; each of the inputs has two."""
    with unfused_attention(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on constants in the trace; the converted graph is compared with the module
        graph: torch.jit.ScriptModule = torch.jit.trace(module, examples, check_trace=False)
    return graph


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Compute attention step by step: the fused kernel of torch has no counterpart in ONNX and OpenVINO."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def suppress_logs() -> Iterator[None]:
    """Suppress advice to developers from converters, and the handlers that it would add to the root logger."""
    handler, root = logging.NullHandler(), logging.getLogger()
    with _CONVERSION_LOCK:  # logging is switched off for the process
        before = logging.root.manager.disable
        root.addHandler(handler)
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)
            root.removeHandler(handler)
