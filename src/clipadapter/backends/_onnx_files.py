"""ONNX files in int8, and what torch and ONNX Runtime say on the way."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from clipadapter.backends._silent import require_silent
from clipadapter.errors import require

LARGEST = 1 << 31
"""Bytes an ONNX file can have; beyond that weights lie in other files."""
FIRST = 3
"""Convolutions at the beginning that stay in float in int8, if nothing else is said."""
STEP = 8
"""Pictures that are calibrated at a time."""
_ONE = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No advice to the developer on the way, and no handler that such advice would leave at the root logger.

    One thread at a time: what is switched off is the process's.
    """
    handler, root = logging.NullHandler(), logging.getLogger()
    with _ONE:
        before = logging.root.manager.disable
        root.addHandler(handler)
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)
            root.removeHandler(handler)


def quantise(
    plain: Path, result: Path, source: str, rows: NDArray[Any], first: int = FIRST, kept_after: str | None = None
) -> None:
    """Static quantisation by ranges that the pictures set: dynamic ones would let the batch change the features.

    Args:
        plain: the file in float; it is removed.
        result: the file to write.
        source: name of its input.
        rows: (m, ...) pictures as it takes them.
        first: convolutions at the beginning that stay in float.
        kept_after: name of a value behind which everything stays in float.
    """
    quantization = require_silent("onnxruntime.quantization", "onnx", "int8 as ONNX")
    ready = plain.with_name("ready.onnx")
    # Symbolic shapes need a further package and stumble over attention.
    quantization.quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    batches = iter([{source: rows[i : i + STEP]} for i in range(0, len(rows), STEP)])

    class Batches(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(batches, None)

    quantization.quantize_static(
        str(ready),
        str(result),
        Batches(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        # What lies between the products (norms, softmax, sums) loses much in int8 and costs little.
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        nodes_to_exclude=_delicate(ready, first, kept_after),
        extra_options={"MatMulConstBOnly": True},
    )
    ready.unlink()
    plain.unlink()


def _delicate(path: Path, first: int, kept_after: str | None) -> list[str]:
    """What stays in float; convolutions that have few channels for each filter do besides."""
    onnx = require("onnx", "onnx", "int8 as ONNX")
    nodes = onnx.load(path).graph.node
    layers = [node for node in nodes if node.op_type == "Conv"]
    grouped = [node for node in layers if any(each.name == "group" and each.i > 1 for each in node.attribute)]
    behind, values = [], {kept_after}
    for node in nodes:  # each stands behind those that it takes from
        if values.intersection(node.input):
            behind.append(node)
            values.update(node.output)
    return [node.name for node in (*layers[:first], *grouped, *behind)]
