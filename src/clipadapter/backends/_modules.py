"""Towers as torch modules that begin with plain pixels."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from clipadapter.backends._base import Tower
from clipadapter.errors import InputError

OPSET = 17
"""Of ONNX: the first with layer norms in one piece, and known to every torch from 2.6 on."""


class Uint8Tower(nn.Module):
    """Squares (n, s, s, 3) of values 0 .. 255 to features: mean and deviation, then the tower.

    Args:
        tower: what comes after the pixels.
        dtype: number type the tower works in.
    """

    def __init__(self, tower: Tower, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.module, self.dtype = tower.module, dtype
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (tower.pixels.mean, tower.pixels.std))
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, squares: Tensor) -> Tensor:
        """(n, s, s, 3) to (n, d) float32."""
        # The view is channels-last already, which convolutions like best.
        pixels = squares.permute(0, 3, 1, 2).float() * self.scale + self.shift
        features: Tensor = self.module(pixels.to(self.dtype)).float()
        return features


def traced(tower: Tower) -> torch.jit.ScriptModule:
    """The tower as a graph, for any number of squares."""
    return trace(Uint8Tower(tower).eval(), _example(tower))


def trace(module: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    """A module of one tensor as a graph, for any number of rows; the example has two."""
    with _plain_attention(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on constants in the trace; what was converted is compared with the original
        graph: torch.jit.ScriptModule = torch.jit.trace(module, example, check_trace=False)
    return graph


def write_onnx(tower: Tower, path: Path, name: str) -> None:
    """The tower as an ONNX file, for any number of squares.

    Args:
        tower: what is written.
        path: the file.
        name: what its input is called.

    Raises:
        InputError: if it does something that ONNX can't say.
    """
    try:
        write_graph(Uint8Tower(tower).eval(), _example(tower), path, name, ["features"])
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f"the image tower of {tower.name} can't be written as ONNX ({reason}): use backend 'openvino' or 'torch'"
        ) from error


def write_graph(module: nn.Module, example: Tensor, path: Path, source: str, outputs: Sequence[str]) -> None:
    """A module of one tensor as an ONNX file, for any number of rows.

    Args:
        module: in inference mode.
        example: an input of two rows.
        path: the file.
        source: what its input is called.
        outputs: what its outputs are called.

    Raises:
        RuntimeError: if it does something that ONNX can't say.
    """
    # Torch's newer exporter gives the same numbers, but takes four times as long and needs a further package. On a
    # failure this one prints the whole graph.
    with _plain_attention(), torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[source],
            output_names=list(outputs),
            dynamic_axes={name: {0: "n"} for name in (source, *outputs)},
        )


def _example(tower: Tower) -> Tensor:
    return torch.zeros(2, tower.pixels.size, tower.pixels.size, 3, dtype=torch.uint8)


def is_transformer(network: nn.Module) -> bool:
    """Whether it attends, which int8 must know."""
    return any("attention" in type(module).__name__.lower() for module in network.modules())


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in parts: torch's fused kernel has no counterpart elsewhere."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
