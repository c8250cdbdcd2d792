"""Quantise graphs of image towers to int8, with the value ranges of pictures.

What stays in float: the first convolutions of each network, whose errors reach all later layers; grouped convolutions,
which have few channels per filter, so that int8 errors do not average out and little time is saved; statistics of
feature maps, where a deviation is a small difference of two moments; and all that comes after the image towers.

Processors without VNNI multiply 8 bits without sign by 8 bits with sign and add pairs of products in 16 bits, which
saturate. So weights of 8 bits with sign would give other features there. Weights are in a range in which nothing
saturates: 8 bits without sign as ONNX, seven bits in OpenVINO. Features are then equal everywhere, but for rounding.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import require
from clipadapter.runtime.engines.telemetry import require_without_telemetry

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOAT_CONVOLUTIONS = 12
"""Convolutions at the beginning of each network that stay in float. docs/export.md has the measurements. OpenVINO's
convolution of few channels saturates without VNNI by weights of seven bits too: that of a transformer's patches."""
OUTLIER_SHARE = 0.002
"""Share of the weights of a filter that seven bits clip. NNCF corrects the mean error that this makes, ONNX Runtime
does not."""
CALIBRATION_BATCH_SIZE = 8
CALIBRATION_BATCH_VALUES = CALIBRATION_BATCH_SIZE * 3 * 224 * 224
"""Numbers in the inputs of a batch. Activations are kept: of 8 pictures in two sizes and mirrored they take 6 GB."""
Link = tuple[str, bool, Sequence[str], Sequence[str]]
"""Of a node: its name, whether it is a convolution, and the names of what it reads and gives."""


def quantize_onnx(source: Path, target: Path, rows: Mapping[str, NDArray[Any]], float_after: str) -> None:
    """Quantise a file, with rows (m, ...) of each input by its name; the file in float is removed."""
    quantization = require_without_telemetry("onnxruntime.quantization", "onnx", "int8 as ONNX")
    prepared = source.with_name("ready.onnx")
    # Inference of symbolic shapes needs a further package and fails on attention.
    quantization.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    values_per_picture = sum(each[0].size for each in rows.values())
    batch_size = max(1, min(CALIBRATION_BATCH_SIZE, CALIBRATION_BATCH_VALUES // values_per_picture))
    starts = range(0, len(next(iter(rows.values()))), batch_size)
    batches = iter([{name: each[i : i + batch_size] for name, each in rows.items()} for i in starts])

    class Batches(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(batches, None)

    nodes = require("onnx", "onnx", "int8 as ONNX").load(prepared).graph.node
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    grouped = [each.name for each in convolutions if any(one.name == "group" and one.i > 1 for one in each.attribute)]
    # In topological order; as lists, since the model in memory must not outlive this, beside that of the quantisation.
    links = [(node.name, node.op_type == "Conv", [*node.input], [*node.output]) for node in nodes]
    del nodes, convolutions
    in_float = [*first_convolutions(links, FLOAT_CONVOLUTIONS), *grouped]
    quantization.quantize_static(  # dynamic ranges would let the batch change the features
        str(prepared),
        str(target),
        Batches(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QUInt8,
        # Norms, softmax and sums lose much precision in int8 and cost little time.
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        nodes_to_exclude=[*in_float, *nodes_after(links, [float_after])],
        extra_options={"MatMulConstBOnly": True, "WeightSymmetric": True},
    )
    prepared.unlink()
    source.unlink()


def quantize_openvino(model: Any, rows: Sequence[NDArray[Any]], is_transformer: bool, float_after: str) -> Any:
    """Quantise a model of OpenVINO, with rows (m, ...) of each input; call it inside `telemetry_disabled`."""
    nncf = require("nncf", "openvino", "int8 of OpenVINO")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    n = len(rows[0])
    dataset = nncf.Dataset([rows[0][i : i + 1] if len(rows) == 1 else [r[i : i + 1] for r in rows] for i in range(n)])
    features = model.output(float_after).get_node().input_value(0).get_node()
    names = statistic_names(model) + nodes_after(_links(model), [features.get_friendly_name()])
    names += first_convolutions(_links(model), FLOAT_CONVOLUTIONS)
    types = [] if is_transformer else ["GroupConvolution"]
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars would mix with results
        return nncf.quantize(
            model,
            dataset,
            subset_size=n,
            model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
            advanced_parameters=_seven_bits(),
            ignored_scope=nncf.IgnoredScope(names=names, types=types, validate=False),  # what stays in float
        )


def _seven_bits() -> Any:
    """Parameters of NNCF for weights of seven bits, of which the largest are clipped."""
    from nncf.quantization import advanced_parameters, range_estimator

    kinds, aggregators = range_estimator.StatisticsType, range_estimator.AggregatorType
    lowest = range_estimator.StatisticsCollectorParameters(kinds.MIN, aggregators.MIN)
    highest = range_estimator.StatisticsCollectorParameters(
        kinds.ABS_QUANTILE, aggregators.MAX, quantile_outlier_prob=OUTLIER_SHARE
    )
    return advanced_parameters.AdvancedQuantizationParameters(
        overflow_fix=advanced_parameters.OverflowFix.ENABLE,
        weights_range_estimator_params=range_estimator.RangeEstimatorParameters(lowest, highest),
    )


def _links(model: Any) -> Iterator[Link]:
    """The nodes in topological order. What a node gives has its name."""
    for op in model.get_ordered_ops():
        name, is_convolution = op.get_friendly_name(), op.get_type_name() in ("Convolution", "GroupConvolution")
        yield name, is_convolution, [value.get_node().get_friendly_name() for value in op.input_values()], [name]


def statistic_names(model: Any) -> list[str]:
    """Names of all nodes that statistics of feature maps are computed by, and of those that read them.

    A norm over the positions of a map identifies them; see `clipadapter.encoders.inner_layers.add_statistics`.
    """
    reductions: dict[str, None] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ReduceL2":
            continue
        axes = node.input_value(1).get_node()
        if axes.get_type_name() == "Constant" and sorted(axes.get_data().ravel().tolist()) == [2, 3]:
            readers = [target.get_node() for target in node.input_value(0).get_target_inputs()]
            reductions |= {x.get_friendly_name(): None for x in readers if x.get_type_name().startswith("Reduce")}
    return list(reductions | dict.fromkeys(nodes_after(_links(model), reductions)))


def nodes_after(nodes: Iterable[Link], values: Iterable[str]) -> list[str]:
    """Names of all nodes, given in topological order, that are computed from one of some values."""
    names, computed = [], set(values)
    for name, _, inputs, outputs in nodes:
        if computed.intersection(inputs):
            names.append(name)
            computed.update(outputs)
    return names


def first_convolutions(nodes: Iterable[Link], n: int) -> list[str]:
    """The first n convolutions of each network of a graph: those of one network begin with the same convolution.

    A graph has several networks if pictures are looked at in several sizes, mirrored, or by several encoders.

    >>> first_convolutions([("a1", True, "x", "a"), ("a2", True, "a", "b"), ("b1", True, "y", "c")], 1)
    ['a1', 'b1']
    """
    networks: dict[str, frozenset[str]] = {}  # by value, the first convolutions that it is computed from
    by_network: dict[frozenset[str], list[str]] = {}
    for name, is_convolution, inputs, outputs in nodes:
        own = frozenset[str]().union(*(networks.get(each, ()) for each in inputs))
        if is_convolution:
            own = own or frozenset({name})
            by_network.setdefault(own, []).append(name)
        networks |= dict.fromkeys(outputs, own)
    return [name for names in by_network.values() for name in names[:n]]
