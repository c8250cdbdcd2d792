"""Exported files made by hand: what `clipadapter.runtime.export` writes is tested there."""

import numpy as np
import pytest

from clipadapter.runtime.engines.formats import append_checksum

onnx = pytest.importorskip("onnx")

SIDE = 4
NAMES = ("red", "green", "blue")
INPUTS = {
    "uint8": (f"uint8[n,{SIDE},{SIDE},3] squares", "values = Cast<to = 1>(squares) shares = Div(values, full)", "1, 2"),
    "float": (f"float[n,3,{SIDE},{SIDE}] pixels", "shares = Identity(pixels)", "2, 3"),
}
"""Of each kind of input: its declaration, its values in 0 .. 1, and the axes of positions."""


def graph(about, *, input="uint8", logits=3, leave_out=()):
    """A model whose features are the mean of each channel in 0 .. 1, whose logits are ten times these.

    The out-of-distribution score is one minus the highest feature.
    """
    import onnx.parser

    declaration, shares, axes = INPUTS[input]
    shapes = {
        "features": "n,3",
        "logits": f"n,{logits}",
        "probabilities": f"n,{logits}",
        "ood_score_parts": "n,1",
        "ood_scores": "n",
    }
    outputs = ", ".join(f"float[{shape}] {name}" for name, shape in shapes.items() if name not in leave_out)
    weight = ", ".join(map(str, 10 * np.eye(3, logits).ravel()))
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 13]>
        hand ({declaration}) => ({outputs})
        <float full = {{255.0}}, float[3,{logits}] weight = {{{weight}}}, float one = {{1.0}}, int64[1] axis = {{1}}>
        {{
            {shares}
            features = ReduceMean<axes = [{axes}], keepdims = 0>(shares)
            logits = MatMul(features, weight)
            probabilities = Softmax<axis = 1>(logits)
            highest = ReduceMax<axes = [1], keepdims = 1>(features)
            ood_score_parts = Sub(one, highest)
            ood_scores = ReduceSum<keepdims = 0>(ood_score_parts, axis)
        }}
    """)
    if about is not None:
        onnx.helper.set_model_props(model, {"clipadapter": about})
    return model


@pytest.fixture
def write(tmp_path):
    """Write a model made by hand, as a pair for OpenVINO too where its name ends in .xml, and give its path."""

    def written(about, name="model.onnx", **options):
        path = tmp_path / name
        onnx.save(graph(about, **options), path.with_suffix(".onnx"))
        if path.suffix == ".xml":
            ov = pytest.importorskip("openvino")
            pair = ov.Core().read_model(path.with_suffix(".onnx"))
            pair.set_rt_info(about, ["clipadapter"])
            ov.save_model(pair, path, compress_to_fp16=False)
        append_checksum(path)
        return path

    return written
