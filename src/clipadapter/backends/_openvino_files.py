"""OpenVINO itself, and its models in int8. Use both inside `nothing_told`."""

from __future__ import annotations

import contextlib
import io
import logging
from typing import Any

from numpy.typing import NDArray

from clipadapter.backends._silent import require_silent
from clipadapter.errors import require

FIRST = 3
"""Convolutions that stay in float where int8 is asked for."""


def open_openvino() -> Any:
    """The package, imported so that it tells nobody.

    Raises:
        MissingExtraError: if it is not installed.
    """
    return require_silent("openvino", "openvino", "OpenVINO")


def quantised(model: Any, rows: NDArray[Any], transformer: bool, kept_after: str | None = None) -> Any:
    """A model in int8.

    Args:
        model: of OpenVINO, in float.
        rows: (m, ...) pictures as it takes them, which set the ranges.
        transformer: whether its image tower attends.
        kept_after: name of an output behind which everything stays in float.
    """
    nncf = require("nncf", "openvino", "int8 of OpenVINO")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    data = nncf.Dataset([rows[i : i + 1] for i in range(len(rows))])
    with contextlib.redirect_stdout(io.StringIO()):  # its bars would mix with results
        return nncf.quantize(
            model,
            data,
            subset_size=len(rows),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            ignored_scope=_delicate(model, transformer, kept_after, nncf),
        )


def _delicate(model: Any, transformer: bool, kept_after: str | None, nncf: Any) -> Any:
    """What stays in float: of a convolutional network its first layers, whose errors all others see, and grouped ones.

    A channel of its own for each filter leaves int8 nothing to average over, and little to gain.
    """
    names = [] if kept_after is None else _behind(model, kept_after)
    if not transformer:
        kinds = {"Convolution", "GroupConvolution"}
        names += [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in kinds][:FIRST]
    if transformer and not names:
        return None
    types = [] if transformer else ["GroupConvolution"]
    return nncf.IgnoredScope(names=names, types=types, validate=False)


def _behind(model: Any, output: str) -> list[str]:
    """Names of all that is computed from an output."""
    waiting = [model.output(output).get_node().input_value(0)]
    found: dict[str, None] = {}
    while waiting:
        for target in waiting.pop().get_target_inputs():
            node = target.get_node()
            if node.get_friendly_name() not in found:
                found[node.get_friendly_name()] = None
                waiting += node.outputs()
    return list(found)
