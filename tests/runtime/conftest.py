"""Exported files made by hand: what `clipadapter.export` writes is tested there."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

SIDE = 4
NAMES = ("red", "green", "blue")


def graph(about, *, input="uint8", logits=3, parts=1, leave_out=()):
    """A model whose features are the mean of each channel in 0 .. 1, whose logits are ten times these.

    The out-of-distribution score is one minus the highest feature.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, squares = [], "squares" if input == "uint8" else "pixels"
    axes = [1, 2] if input == "uint8" else [2, 3]
    if input == "uint8":
        nodes.append(helper.make_node("Cast", [squares], ["float"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Div", ["float", "full"], ["shares"]))
    else:
        nodes.append(helper.make_node("Identity", [squares], ["shares"]))
    nodes += [
        helper.make_node("ReduceMean", ["shares"], ["features"], axes=axes, keepdims=0),
        helper.make_node("MatMul", ["features", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ReduceMax", ["features"], ["highest"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["one", "highest"], ["ood_score_parts"]),
        helper.make_node("ReduceSum", ["ood_score_parts", "axis"], ["ood_scores"], keepdims=0),
    ]
    weight = 10 * np.eye(3, logits, dtype=np.float32)
    constants = {
        "full": np.array(255, np.float32),
        "weight": weight,
        "one": np.array(1, np.float32),
        "axis": np.array([1], np.int64),
    }
    shape = ["n", SIDE, SIDE, 3] if input == "uint8" else ["n", 3, SIDE, SIDE]
    kind = TensorProto.UINT8 if input == "uint8" else TensorProto.FLOAT
    shapes = {
        "features": ["n", 3],
        "logits": ["n", logits],
        "probabilities": ["n", logits],
        "ood_score_parts": ["n", parts],
        "ood_scores": ["n"],
    }
    made = helper.make_graph(
        nodes,
        "hand",
        [helper.make_tensor_value_info(squares, kind, shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
            if name not in leave_out
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if about is not None:
        helper.set_model_props(model, {"clipadapter": about})
    return model


@pytest.fixture
def write(tmp_path):
    """Write a model made by hand, and give its path."""

    def written(about, name="model.onnx", **options):
        path = tmp_path / name
        onnx.save(graph(about, **options), path)
        return path

    return written
