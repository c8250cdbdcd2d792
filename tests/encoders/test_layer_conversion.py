"""Towers of timm with inner layers become graphs for any number of pictures, also at the second size.

Those of CLIP's towers are in tests/runtime/export/test_encoders.py.
"""

import numpy as np
import pytest
import torch
from open_clip.timm_model import TimmModel

from clipadapter.encoders.block_encoder import MirroredMean
from clipadapter.runtime.engines.onnxruntime import write_onnx
from clipadapter.runtime.engines.openvino import import_openvino
from clipadapter.runtime.engines.quantize import statistic_names
from clipadapter.runtime.engines.telemetry import telemetry_disabled
from clipadapter.runtime.engines.tracing import SquareTower, example_squares, trace
from clipadapter.utils.pixels import PixelSpec

from .expected_layers import TowerEncoder, random_tower

TOWERS = {
    "timm transformer": lambda: TowerEncoder(
        random_tower(lambda: TimmModel("test_vit3", 96, 160, "map", "none")), 96, 160
    ),
    "timm convolutions": lambda: TowerEncoder(random_tower(lambda: TimmModel("test_convnext", 8, 160, "")), 8, 160),
}


@pytest.fixture(params=TOWERS)
def square_tower(request):
    """A tower with all its layers at its second size, mirrored, as backends run it, and the width of its features."""
    layers = TOWERS[request.param]()
    size = layers.second_size()
    assert size is not None
    widths = layers.layers()
    names = [name for name in widths if name == "final" or name.startswith("inner")]
    pixels = PixelSpec(size, (0.5,) * 3, (0.5,) * 3)
    return (
        SquareTower(MirroredMean(layers.layer_network(names, size)), pixels).eval(),
        pixels,
        sum(widths[name] for name in names),
    )


@pytest.fixture
def squares(square_tower):
    size = square_tower[1].size
    return np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)


def check(result, square_tower, squares):
    module, _, width = square_tower
    with torch.no_grad():
        expected = module(torch.from_numpy(squares)).numpy()
    assert result.shape == (3, width)
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=2e-3)


def test_onnx_gives_the_same_layers_for_any_number_of_pictures(square_tower, squares, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    module, pixels, width = square_tower
    write_onnx(module, [example_squares(pixels)], tmp_path / "tower.onnx", ["squares"], ["features"])
    session = onnxruntime.InferenceSession(tmp_path / "tower.onnx", providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape[1] == width
    check(session.run(None, {"squares": squares})[0], square_tower, squares)


@pytest.mark.slow
@pytest.mark.parametrize("square_tower", ["timm convolutions"], indirect=True)
def test_openvino_gives_the_same_layers_for_any_number_of_pictures(square_tower, squares):
    pytest.importorskip("openvino")
    module, pixels, _ = square_tower
    example = example_squares(pixels)
    shape = [-1, pixels.size, pixels.size, 3]
    with telemetry_disabled():
        openvino = import_openvino()
        model = openvino.convert_model(trace(module, example), example_input=example, input=[(shape, openvino.Type.u8)])
        run = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    check(run(squares)[0], square_tower, squares)
    n_maps = 4  # each in the picture and in its mirror image
    # In int8 the reductions of all maps stay in float, and no convolution because of them.
    kinds = {node.get_friendly_name(): node.get_type_name() for node in model.get_ordered_ops()}
    in_float = [kinds[name] for name in statistic_names(model)]
    assert [in_float.count(kind) for kind in ("ReduceL2", "ReduceMax", "Convolution")] == [2 * n_maps, 2 * n_maps, 0]
