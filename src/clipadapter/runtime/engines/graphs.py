"""Graphs: what converters get, what an open file gives, and the names of inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

INPUT_NAMES = {"uint8": "squares", "float": "pixels"}  # names of the input of a graph, by its kind
FEATURES_OUTPUT = "features"
"""Name of the output with the block ``final`` of the features, which class text is compared with."""
BLOCKS_OUTPUT = "blocks"  # name of the output with all blocks of the features, in files of models that read several
Rows: TypeAlias = "Mapping[str, NDArray[Any]]"  # rows (m, ...) of each input of a graph by its name
INPUT_PATTERN = re.compile(rf"({'|'.join(INPUT_NAMES.values())})(_\d+){{0,2}}")  # the names that `input_names` gives


def input_names(kind: str, sizes: Sequence[int]) -> tuple[str, ...]:
    """Names of the inputs of a graph: the first as graphs with one input have it, the others with the side in pixels.

    >>> input_names("uint8", [224, 384]), input_names("float", [224])
    (('squares', 'squares_384'), ('pixels',))
    >>> input_names("uint8", [224, 260, 260])  # scaled in two ways
    ('squares', 'squares_260', 'squares_260_2')
    """
    names: list[str] = []
    for i, size in enumerate(sizes):
        name = INPUT_NAMES[kind] if i == 0 else f"{INPUT_NAMES[kind]}_{size}"
        names.append(f"{name}_{i}" if name in names else name)
    return tuple(names)


@dataclass(frozen=True)
class TorchGraph:
    """A torch module as formats convert it."""

    module: nn.Module
    tower_output: str  # name of the output of the image towers; in int8 everything after it stays in float32
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    example_inputs: tuple[Tensor, ...]  # the inputs of two pictures, to trace with
    constant_bytes: int = 0  # of tensors that are neither weights nor buffers of the module, such as those of a head


@dataclass(frozen=True)
class InferenceGraph:
    """The graph of an open file."""

    metadata: str  # text under `export_format.METADATA_KEY`; "" if the file has none
    inputs: tuple[str, ...]  # names of its inputs, in any order
    widths: Mapping[str, int]  # columns of each output by name; 0 for an output with one number per picture
    # The inputs (n, ...) by name to the outputs by name; may be called from several threads
    run: Callable[[Rows], dict[str, NDArray[Any]]]
