"""Import OpenVINO, and quantise its models to int8. Call both inside `telemetry_disabled`."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clipadapter.conversion.onnx import first_of_each_network, source_convolutions
from clipadapter.errors import require
from clipadapter.telemetry import require_without_telemetry

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOAT_CONVOLUTIONS = 3
"""Convolutions at the beginning of each network that stay in float in int8."""


def import_openvino() -> Any:
    """The package, imported with telemetry off.

    Raises:
        MissingExtraError: if it is not installed.
    """
    return require_without_telemetry("openvino", "openvino", "OpenVINO")


def quantize_openvino(
    model: Any, rows: Sequence[NDArray[Any]], is_transformer: bool, float_after: str | None = None
) -> Any:
    """Quantise a model of OpenVINO.

    Args:
        model: in float.
        rows: (m, ...) of each input in their order, made from the same m pictures, for the value ranges.
        is_transformer: whether its image tower has attention.
        float_after: name of an output; everything after it stays in float.
    """
    nncf = require("nncf", "openvino", "int8 of OpenVINO")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    n = len(rows[0])
    dataset = nncf.Dataset([rows[0][i : i + 1] if len(rows) == 1 else [r[i : i + 1] for r in rows] for i in range(n)])
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars would mix with results
        return nncf.quantize(
            model,
            dataset,
            subset_size=n,
            model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
            ignored_scope=_float_scope(model, is_transformer, float_after, nncf),
        )


def _float_scope(model: Any, is_transformer: bool, float_after: str | None, nncf: Any) -> Any:
    """What stays in float: the first convolutions, grouped ones, statistics of feature maps, and all after an output.

    Errors of the first layers reach all later layers. A grouped convolution has few channels per filter, so that int8
    errors do not average out and little time is saved. A deviation is a small difference of two moments.
    """
    names = statistic_names(model)
    if float_after is not None:
        names += _names_after(model.output(float_after).get_node().input_value(0))
    if not is_transformer:
        names += _first_convolutions(model)
    if is_transformer and not names:
        return None
    types = [] if is_transformer else ["GroupConvolution"]
    return nncf.IgnoredScope(names=names, types=types, validate=False)


def _first_convolutions(model: Any) -> list[str]:
    """Names of the first convolutions of each network."""
    kinds = {"Convolution", "GroupConvolution"}
    sources: dict[str, frozenset[str]] = {}
    convolutions = []
    for op in model.get_ordered_ops():
        name, is_convolution = op.get_friendly_name(), op.get_type_name() in kinds
        inputs = [value.get_node().get_friendly_name() for value in op.input_values()]
        sources[name] = source_convolutions(name, is_convolution, [sources[each] for each in inputs])
        if is_convolution:
            convolutions.append((name, sources[name]))
    return first_of_each_network(convolutions, FLOAT_CONVOLUTIONS)


def statistic_names(model: Any) -> list[str]:
    """Names of all nodes that statistics of feature maps are computed by, and of those that read them.

    A norm over the positions of a map identifies them; see `clipadapter.encoders.inner_layers.map_statistics`.
    """
    names: dict[str, None] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ReduceL2":
            continue
        axes = node.input_value(1).get_node()
        if axes.get_type_name() != "Constant" or sorted(axes.get_data().ravel().tolist()) != [2, 3]:
            continue
        for target in node.input_value(0).get_target_inputs():
            reduction = target.get_node()
            if reduction.get_type_name().startswith("Reduce"):
                after = [name for output in reduction.outputs() for name in _names_after(output)]
                names |= dict.fromkeys([reduction.get_friendly_name(), *after])
    return list(names)


def _names_after(start: Any) -> list[str]:
    """Names of all nodes that are computed from an output of a node."""
    pending = [start]
    names: dict[str, None] = {}
    while pending:
        for target in pending.pop().get_target_inputs():
            node = target.get_node()
            if node.get_friendly_name() not in names:
                names[node.get_friendly_name()] = None
                pending += node.outputs()
    return list(names)
