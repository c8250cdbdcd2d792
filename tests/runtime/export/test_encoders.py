"""Every encoder that has image towers gives a file; one that has none says why."""

import numpy as np
import pytest

from clipadapter.classifier import FewShotClassifier
from clipadapter.encoders import create_encoder, open_blocks
from clipadapter.encoders.simclr_network import write_tensors
from clipadapter.errors import InputError
from clipadapter.pretraining.simclr import SimClrModel
from clipadapter.runtime import Predictor
from clipadapter.runtime.export import export_model
from clipadapter.runtime.export.graph import export_towers

from ...heads.estimators import create_short
from ...tiny_encoder import NearestMeanOfAll


@pytest.fixture(scope="module")
def simclr(tmp_path_factory):
    """A function that gives the name of an encoder that has learned nothing."""

    def make(size: int) -> str:
        root = tmp_path_factory.mktemp("simclr")
        write_tensors(root / "encoder.safetensors", SimClrModel(0, "cpu", None, 0.1).tower.state_dict(), {"size": size})
        return f"simclr:{root}"

    return make


def check(encoder, head, draw, folder, **more):
    """A file answers for new pictures as its model does."""
    pictures, labels = draw(3, size=60)
    model = FewShotClassifier(encoder, head, cache=None, backend="torch", precision="fp32").fit(pictures, labels)
    done = export_model(model, folder / "model.onnx", pictures=pictures[::2], **more)
    others, _ = draw(2, seed=8, size=60)
    predictor = Predictor(done.path)
    np.testing.assert_allclose(predictor.predict_proba(others), model.predict_proba(others), atol=1e-4)
    assert max(spec.size for spec in predictor.inputs) == model.encoder_.info.image_size
    return done


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "RN50"])
def test_all_layers_of_a_tower_at_both_sizes_are_one_graph(name, opened, draw, tmp_path):
    """SigLIP's layers as a graph, at the second size and mirrored: tests/encoders/test_layer_conversion.py."""
    layers, size = list(opened(name).layers()), opened(name).second_size()
    assert size is not None
    names = [*layers, *(f"{layer}@{size}+mirrored" for layer in layers)]
    done = check(open_blocks(opened(name), names), NearestMeanOfAll(), draw, tmp_path)
    assert list(done.parity["blocks"]) == names


@pytest.mark.slow
def test_a_tower_of_siglip(opened, draw, tmp_path):
    check(opened("SigLIP"), "prototype", draw, tmp_path)


@pytest.mark.parametrize("source", ["uint8", "float"])
def test_a_pair_is_two_towers_in_one_graph(source, simclr, draw, tmp_path):
    """Its squares are normalised otherwise for each of them."""
    encoder = create_encoder(f"toy[final,{simclr(32)}/final]")
    one, two = export_towers(encoder)
    assert one.pixels.mean != two.pixels.mean
    check(encoder, create_short("svl-adapter"), draw, tmp_path, input=source)


def test_a_pair_that_sees_pictures_in_two_ways_has_two_inputs(simclr, draw, tmp_path):
    encoder = create_encoder(f"toy[final,{simclr(64)}/final]")
    path = check(encoder, create_short("svl-adapter"), draw, tmp_path).path
    assert [spec.size for spec in Predictor(path).inputs] == [32, 64]


def test_an_encoder_that_also_gives_what_it_projects(folders, draw, tmp_path):
    check(f"open_clip:local-dir:{folders['tiny']}[final,unprojected]", create_short("prolip"), draw, tmp_path)


def test_an_encoder_of_somebody_else_is_none_unless_it_says_so(opened):
    class Own(type(opened("toy"))):
        def towers(self):
            return ()

    with pytest.raises(InputError, match="the image tower of toy can't be exported"):
        export_towers(Own())
