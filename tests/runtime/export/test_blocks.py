"""A file of a model that reads several blocks: one graph, one input for each different square of a picture."""

import json

import numpy as np
import onnx
import pytest

from clipadapter.classifier import FewShotClassifier
from clipadapter.encoders import open_blocks
from clipadapter.errors import ArtifactError
from clipadapter.runtime import Predictor
from clipadapter.runtime.engines import quantize
from clipadapter.runtime.engines.formats import get_format
from clipadapter.runtime.export import export_model
from clipadapter.runtime.export.graph import ModelGraph
from clipadapter.uncertainty import UncertaintyOptions
from clipadapter.utils.pixels import PixelSpec

from ...tiny_encoder import INNER_WIDTH, WIDTH, NearestMeanOfAll, TinyEncoder

SQUASHED = PixelSpec(48, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "squash", "bilinear")
OTHER_MEAN = PixelSpec(32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
SEVERAL = ["final", "inner", "final@48", "final@48+mirrored", "squashed/final", "mean/final"]


def model_of(names, draw, **options):
    others = [TinyEncoder("squashed", SQUASHED, 1), TinyEncoder("mean", OTHER_MEAN, 2)]
    encoder = open_blocks(TinyEncoder(), names, others)
    model = FewShotClassifier(encoder, NearestMeanOfAll(), cache=None, backend="torch", precision="fp32", **options)
    return model.fit(*draw(4, size=60))


@pytest.fixture(scope="module")
def several(draw):
    return model_of(SEVERAL, draw, uncertainty=UncertaintyOptions(reject=0.1))


@pytest.mark.parametrize(("format", "source"), [("onnx", "uint8"), ("onnx", "float"), ("openvino", "uint8")])
def test_all_passes_are_one_graph(format, source, several, draw, tmp_path):
    pictures, _ = draw(2, seed=5, size=60)
    path = tmp_path / f"model{get_format(format).suffix}"
    result = export_model(several, path, format=format, input=source, pictures=pictures)
    assert list(result.parity["blocks"]) == SEVERAL
    predictor = Predictor(path)
    outputs = predictor.run(np.stack([predictor.preprocess(picture) for picture in pictures]))
    features = several.extract_features(pictures, ["red"] * 6, ["red", "blue"], views=1)
    np.testing.assert_allclose(outputs.blocks, features.X, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs.features, features.final, rtol=1e-4, atol=1e-5)
    scores = several.uncertainty_.rejector.scores(features.final, several.head_.logits(features.X))
    np.testing.assert_allclose(outputs.ood_scores, scores, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(predictor.predict_proba(pictures), several.predict_proba(pictures), atol=1e-5)
    assert predictor.predict(pictures) == several.predict(pictures)
    assert [one.label for one in predictor.iter_predictions(pictures, batch_size=4)] == several.predict(pictures)


def test_each_different_square_is_one_input_and_weights_are_in_the_file_once(several, tmp_path):
    file = onnx.load(export_model(several, tmp_path / "model.onnx").path)
    inputs = {each.name: [d.dim_value for d in each.type.tensor_type.shape.dim][1:] for each in file.graph.input}
    assert inputs == {"squares": [32, 32, 3], "squares_48": [48, 48, 3], "squares_48_2": [48, 48, 3]}
    about = json.loads({each.key: each.value for each in file.metadata_props}["clipadapter"])
    resizes = {each["name"]: each["pixels"]["resize"] for each in about["inputs"]}
    assert resizes == {"squares": "shortest", "squares_48": "shortest", "squares_48_2": "squash"}
    assert about["blocks"][:2] == [["final", WIDTH], ["inner", INNER_WIDTH]]
    # Three encoders; one of them is run at two sizes.
    assert sum(list(each.dims) == [WIDTH, INNER_WIDTH, 1, 1] for each in file.graph.initializer) == 3


def test_layers_of_one_pass_need_one_input(draw, tmp_path):
    model = model_of(["final", "inner"], draw)
    path = export_model(model, tmp_path / "model.onnx").path
    (source,), about = onnx.load(path).graph.input, Predictor(path).metadata
    assert source.name == "squares"
    assert [tuple(block) for block in about.blocks] == [("final", WIDTH), ("inner", INNER_WIDTH)]
    pictures, _ = draw(1, seed=7)
    openvino = Predictor(path, backend="openvino")
    np.testing.assert_allclose(openvino.predict_proba(pictures), model.predict_proba(pictures), atol=1e-5)


def test_in_int8_the_first_convolution_of_each_network_stays_in_float(several, draw, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "FLOAT_CONVOLUTIONS", 1)
    pictures, _ = draw(12, seed=5, size=60)
    # "plain" is the name of an intermediate file.
    path = export_model(several, tmp_path / "plain.onnx", precision="int8", pictures=pictures).path
    nodes = onnx.load(path).graph.node
    dequantised = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    has_int8_weights = [node.input[1] in dequantised for node in nodes if node.op_type == "Conv"]
    # Two convolutions each: `tiny` at 32, at 48 and mirrored at 48, and the other two towers. ONNX Runtime finds that
    # the mirrored pass looks at the plain square too.
    assert sorted(has_int8_weights) == [False] * 5 + [True] * 5
    assert Predictor(path).predict(pictures[:3]) == several.predict(pictures[:3])


@pytest.mark.slow
def test_openvino_calibrates_all_inputs(several, draw, tmp_path):
    pictures, _ = draw(12, seed=5, size=60)
    result = export_model(several, tmp_path / "model.xml", format="openvino", precision="int8", pictures=pictures)
    assert all(0.98 < each["cosine_least"] < 1 for each in result.parity["blocks"].values())
    assert Predictor(result.path).predict(pictures[:3]) == several.predict(pictures[:3])


def test_a_file_with_another_block_than_the_model_is_refused(several, tmp_path, monkeypatch):
    whole = ModelGraph.features

    def changed(self, *squares):
        features = whole(self, *squares).clone()
        features[:, WIDTH : WIDTH + INNER_WIDTH] = features[:, WIDTH : WIDTH + INNER_WIDTH].flip(1)
        return features

    monkeypatch.setattr(ModelGraph, "features", changed)
    with pytest.raises(ArtifactError, match="smallest cosine of features of the block inner is"):
        export_model(several, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
