"""An exported graph, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class Graph:
    """A graph that is ready to run.

    Args:
        metadata: JSON, see `ExportMetadata`.
        input: name of its input; "" if it has none, or several.
        widths: columns of each output by name; 0 for one with a number a picture.
        run: the input (n, ...) to the outputs by name; raises what the backend raises; may be called from several
            threads.
    """

    metadata: str
    input: str
    widths: Mapping[str, int]
    run: Callable[[NDArray[Any]], dict[str, NDArray[Any]]]
