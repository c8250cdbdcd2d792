"""What comes before the projection: it is what the projection makes features of, and nothing else changes."""

import open_clip
import pytest
import torch

from clipadapter.encoders import create_encoder, open_blocks, unprojected_blocks, with_backend
from clipadapter.encoders.backend import BackendEncoder
from clipadapter.errors import InputError


def with_unprojected(encoder):
    return open_blocks(encoder, unprojected_blocks(encoder))


CLIPS = ["ViT-B-32", "RN50", "tiny"]
CLIP = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture
def timm(write_model, tmp_path):
    """A function that opens a small network of timm with the given end."""

    def make(**end):
        config = {
            "embed_dim": 32,
            "vision_cfg": {"timm_model_name": "test_vit", "image_size": 160, **end},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        }
        return create_encoder(f"open_clip:local-dir:{write_model(tmp_path / 'timm', config, CLIP)}")

    return make


def split(features, plain):
    """The features, and what comes before the projection."""
    return features[:, : plain.info.dim], features[:, plain.info.dim :]


def check_it_is_taken_apart(plain, images):
    encoder = with_unprojected(plain)
    features, before = split(encoder.encode_images(images), plain)
    p, d = plain.projection().weight.shape
    assert (encoder.info.text_dim, encoder.info.dim) == (d, d + p)
    torch.testing.assert_close(features, plain.encode_images(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.projection()(before), features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CLIPS)
def test_the_projection_of_unprojected_features_is_the_encoders_feature(name, opened, picture):
    check_it_is_taken_apart(opened(name), [picture(300, 200), picture(20, 50)])


@pytest.mark.parametrize(
    ("end", "bias"),
    [
        ({"timm_pool": "token", "timm_proj": "linear"}, False),
        ({"timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": True}, True),
        ({"timm_pool": "token", "timm_proj": ""}, True),
    ],
    ids=["head", "head with bias", "the network's own"],
)
def test_projected_features_are_those_of_networks_of_timm_with_a_linear_end(end, bias, timm, picture):
    plain = timm(**end)
    assert (plain.projection().bias is not None) == bias
    check_it_is_taken_apart(plain, [picture(200, 200), picture(30, 50)])


def test_unprojected_features_are_those_of_clip_without_its_projection(folders, opened, picture):
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folders['ViT-B-32']}")
    model.eval().visual.proj = None
    image = picture(224, 224)
    with torch.no_grad():
        expected = model.visual(transform(image)[None])
    plain = opened("ViT-B-32")
    _, before = split(with_unprojected(plain).encode_images([image]), plain)
    torch.testing.assert_close(before, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["RN50", "tiny"])
def test_the_encoder_itself_is_unchanged(name, opened, picture):
    plain = opened(name)
    before = plain.encode_images([picture(60, 60)])
    with_unprojected(plain)
    assert torch.equal(plain.encode_images([picture(60, 60)]), before)
    assert not plain.projection().weight.requires_grad


def test_text_scale_and_bias_are_those_of_the_encoder(opened):
    plain = opened("tiny")
    encoder = with_unprojected(plain)
    assert torch.equal(encoder.encode_text(["a cat"]), plain.encode_text(["a cat"]))
    assert encoder.text_tower().dim == plain.info.dim
    assert (encoder.info.logit_scale, encoder.info.logit_bias) == (plain.info.logit_scale, plain.info.logit_bias)


def test_name_and_fingerprint_differ_from_those_of_the_encoder(opened):
    plain = opened("tiny")
    info = with_unprojected(plain).info
    assert info.name == f"{plain.info.name}[final,unprojected]"
    assert info.fingerprint != plain.info.fingerprint


def test_applying_it_twice_changes_nothing(opened):
    encoder = with_unprojected(opened("tiny"))
    assert with_unprojected(encoder).info == encoder.info


def test_an_encoder_with_an_identity_projection_is_returned_unchanged(opened):
    assert with_unprojected(opened("lite")) is opened("lite")


@pytest.mark.parametrize("name", ["SigLIP"])
def test_an_encoder_without_projection_names_those_that_have_one(name, opened):
    with pytest.raises(InputError, match=r"no linear projection.* lite, open_clip.* do, but for SigLIP"):
        with_unprojected(opened(name))


@pytest.mark.parametrize("end", [{"timm_pool": "map", "timm_proj": "none"}, {"timm_pool": "avg", "timm_proj": "mlp"}])
def test_a_network_of_timm_with_another_end_has_none(end, timm):
    assert timm(**end).projection() is None


def test_coca_has_none():
    from clipadapter.encoders.projection import find_projection

    visual = open_clip.create_model("coca_ViT-B-32").visual
    assert find_projection(visual) is None


@pytest.mark.parametrize(("backend", "precision", "gap"), [("torch", "bf16", 0.03), ("openvino", "fp32", 1e-4)])
def test_a_backend_runs_it_too(backend, precision, gap, opened, picture):
    plain = opened("tiny")
    encoder = with_unprojected(with_backend(plain, backend, precision))
    assert (encoder.info.backend, encoder.info.precision) == (backend, precision)
    expected = with_unprojected(plain).encode_images([picture(80, 80)])
    assert (encoder.encode_images([picture(80, 80)]) - expected).norm() < gap * expected.norm()
    assert with_unprojected(encoder).info == encoder.info


def test_without_the_pictures_of_its_calibration_int8_becomes_fp32(opened):
    plain = opened("tiny")
    backend = BackendEncoder(plain, plain.tower(), lambda squares: squares, "openvino", "int8", "0" * 16)
    assert with_unprojected(backend).info == with_unprojected(plain).info


def test_a_backend_that_runs_an_identity_is_kept(opened):
    backend = with_backend(opened("lite"))
    assert with_unprojected(backend) is backend
