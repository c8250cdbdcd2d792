"""Write torch modules as ONNX files, and quantise these to int8."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import require
from clipadapter.telemetry import require_without_telemetry

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

MAX_FILE_BYTES = 1 << 31
"""Limit of the format; larger models need a second file for their weights."""
OPSET = 17
"""The first version of ONNX with layer norm as one operator; torch 2.6 and later can write it."""
DEFAULT_FLOAT_CONVOLUTIONS = 3
"""Convolutions at the beginning of each network that stay in float in int8."""
CALIBRATION_BATCH_SIZE = 8
CALIBRATION_BATCH_VALUES = CALIBRATION_BATCH_SIZE * 3 * 224 * 224
"""Numbers in the inputs of a batch. Activations are kept: of 8 pictures in two sizes and mirrored they take 6 GB."""
NO_NAMES: frozenset[str] = frozenset()
_CONVERSION_LOCK = threading.RLock()


@contextlib.contextmanager
def suppress_logs() -> Iterator[None]:
    """Suppress advice to developers from converters, and the handlers that it would add to the root logger.

    One thread at a time: logging is switched off for the process.
    """
    handler, root = logging.NullHandler(), logging.getLogger()
    with _CONVERSION_LOCK:
        before = logging.root.manager.disable
        root.addHandler(handler)
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)
            root.removeHandler(handler)


def write_onnx(
    module: nn.Module, examples: Sequence[Tensor], path: Path, input_names: Sequence[str], output_names: Sequence[str]
) -> None:
    """Write a module as an ONNX file for any number of rows.

    Args:
        module: in inference mode.
        examples: each of its inputs with two rows.
        path: the file.
        input_names: names of the inputs.
        output_names: names of the outputs.

    Raises:
        RuntimeError: if the module has an operation that ONNX has not.
    """
    import torch

    from clipadapter.conversion.tracing import unfused_attention

    # Torch's newer exporter gives the same numbers, but takes four times as long and needs a further package. This one
    # prints the whole graph when it fails.
    with unfused_attention(), torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(examples),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_axes={name: {0: "n"} for name in (*input_names, *output_names)},
        )


def quantize_onnx(
    source: Path,
    target: Path,
    rows: Mapping[str, NDArray[Any]],
    float_convolutions: int = DEFAULT_FLOAT_CONVOLUTIONS,
    float_after: str | None = None,
) -> None:
    """Quantise statically, with the value ranges of pictures. Dynamic ranges would let the batch change the features.

    Args:
        source: the file in float; it is removed.
        target: the file to write.
        rows: (m, ...) of each input by its name, made from the same m pictures.
        float_convolutions: number of convolutions at the beginning of each network that stay in float.
        float_after: name of a value; everything after it stays in float.
    """
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

    quantization.quantize_static(
        str(prepared),
        str(target),
        Batches(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        # Norms, softmax and sums lose much precision in int8 and cost little time.
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        nodes_to_exclude=_float_nodes(prepared, float_convolutions, float_after),
        extra_options={"MatMulConstBOnly": True},
    )
    prepared.unlink()
    source.unlink()


def _float_nodes(path: Path, float_convolutions: int, float_after: str | None) -> list[str]:
    """Names of the nodes that stay in float: the first convolutions of each network, grouped ones, all after a value.

    A grouped convolution has few channels per filter, so int8 errors do not average out and little time is saved.
    """
    onnx = require("onnx", "onnx", "int8 as ONNX")
    nodes = onnx.load(path).graph.node
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    grouped = [node for node in convolutions if any(each.name == "group" and each.i > 1 for each in node.attribute)]
    after, values = [], {float_after}
    sources: dict[str, frozenset[str]] = {}
    for node in nodes:  # in topological order
        if values.intersection(node.input):
            after.append(node)
            values.update(node.output)
        own = source_convolutions(
            node.name, node.op_type == "Conv", [sources.get(name, NO_NAMES) for name in node.input]
        )
        sources |= dict.fromkeys(node.output, own)
    first = first_of_each_network([(node.name, sources[node.output[0]]) for node in convolutions], float_convolutions)
    return [*first, *(node.name for node in (*grouped, *after))]


def source_convolutions(name: str, is_convolution: bool, inputs: Iterable[frozenset[str]]) -> frozenset[str]:
    """Names of the convolutions that a node is computed from and that are computed from no other convolution.

    Args:
        name: of the node.
        is_convolution: whether it is one.
        inputs: the same of the nodes that it is computed from.

    >>> source_convolutions("conv1", True, [NO_NAMES]) == source_convolutions("relu", False, [frozenset({"conv1"})])
    True
    """
    sources = NO_NAMES.union(*inputs)
    return frozenset({name}) if is_convolution and not sources else sources


def first_of_each_network(convolutions: Sequence[tuple[str, frozenset[str]]], n: int) -> list[str]:
    """The first n convolutions of each network of a graph: those of one network begin with the same convolution.

    A graph has several networks if pictures are looked at in several sizes, mirrored, or by several encoders.

    Args:
        convolutions: name and `source_convolutions` of each in their order.
        n: how many.

    >>> a, b = frozenset({"a1"}), frozenset({"b1"})
    >>> first_of_each_network([("a1", a), ("a2", a), ("b1", b), ("b2", b)], 1)
    ['a1', 'b1']
    """
    by_network: dict[frozenset[str], list[str]] = {}
    for name, sources in convolutions:
        by_network.setdefault(sources, []).append(name)
    return [name for names in by_network.values() for name in names[:n]]
