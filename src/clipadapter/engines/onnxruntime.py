"""ONNX Runtime: runs where OpenVINO does not."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipadapter.engines._base import Calibration, ConvertingEngine, Runner, Tower
from clipadapter.engines._registry import register_engine
from clipadapter.errors import InputError, require

FILE = "tower.onnx"
INPUT = "squares"
LARGEST = 1 << 31
"""Bytes an ONNX file can have; beyond that weights lie in other files."""
FIRST = 3
"""Convolutions that stay in float where int8 is asked for."""
STEP = 8
"""Pictures that are calibrated at a time."""


@register_engine("onnxruntime")
class OnnxRuntimeEngine(ConvertingEngine):
    """Microsoft's runtime; int8 by its own static quantisation, of products with weights only."""

    precisions = ("fp32", "int8")
    packages = ("onnxruntime", "onnx")
    extra = "onnx"

    @classmethod
    def title(cls) -> str:
        """As its makers write it."""
        return "ONNX Runtime"

    def _convert(self, tower: Tower, precision: str, calibration: Calibration | None, folder: Path) -> None:
        from clipadapter.engines._modules import write_onnx

        plain = folder / ("plain.onnx" if precision == "int8" else FILE)
        _check_size(tower)
        with _quiet():
            write_onnx(tower, plain, INPUT)
            if precision == "int8" and calibration is not None and calibration.squares is not None:
                _quantise(plain, folder / FILE, calibration.squares)

    def load(self, folder: Path, precision: str) -> Runner:
        """See `ConvertingEngine.load`."""
        ort = require("onnxruntime", self.extra, "The ONNX Runtime engine")
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors
        # Threads that wait for the next batch must leave the cores to those that decode it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = ort.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])

        def run(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
            features: NDArray[np.float32] = session.run(None, {INPUT: squares})[0]
            return features

        return run


def _check_size(tower: Tower) -> None:
    size = sum(weight.numel() * weight.element_size() for weight in tower.module.parameters())
    if size >= LARGEST:
        raise InputError(
            f"the image tower of {tower.name} has {size / 2**30:.1f} GiB of weights, but the ONNX Runtime engine "
            "converts less than 2 GiB: use the engine 'openvino' or 'torch'"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No advice to the developer on the way, and no handler that such advice would leave at the root logger."""
    handler, root, before = logging.NullHandler(), logging.getLogger(), logging.root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)


def _quantise(plain: Path, result: Path, squares: NDArray[np.uint8]) -> None:
    """Static quantisation by ranges that the pictures set: dynamic ones would let the batch change the features."""
    quantization = require("onnxruntime.quantization", OnnxRuntimeEngine.extra, "int8 of the ONNX Runtime engine")
    ready = plain.with_name("ready.onnx")
    # Symbolic shapes need a further package and stumble over attention.
    quantization.quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    batches = iter([{INPUT: squares[i : i + STEP]} for i in range(0, len(squares), STEP)])

    class Batches(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
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
        nodes_to_exclude=_delicate(ready),
        extra_options={"MatMulConstBOnly": True},
    )
    ready.unlink()
    plain.unlink()


def _delicate(path: Path) -> list[str]:
    """What stays in float: convolutions that are the first, or have few channels for each filter."""
    onnx = require("onnx", OnnxRuntimeEngine.extra, "int8 of the ONNX Runtime engine")
    layers = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    grouped = [node for node in layers if any(each.name == "group" and each.i > 1 for each in node.attribute)]
    return [node.name for node in (*layers[:FIRST], *grouped)]
