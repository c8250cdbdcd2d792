"""What comes before the projection; its values for CLIP's towers are in `test_open_clip_layers.py`."""

import pytest
import torch

from clipadapter.encoders import create_encoder, open_blocks, unprojected_blocks, with_backend
from clipadapter.encoders.block_encoder import BackendEncoder
from clipadapter.errors import InputError


def with_unprojected(encoder):
    return open_blocks(encoder, unprojected_blocks(encoder))


@pytest.fixture
def timm(write_model, tmp_path):
    """A function that opens a small network of timm with the given end."""

    def make(**end):
        config = {
            "embed_dim": 32,
            "vision_cfg": {"timm_model_name": "test_vit", "image_size": 160, **end},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        }
        folder = write_model(tmp_path / "timm", config, {"mean": [0.5] * 3, "std": [0.5] * 3})
        return create_encoder(f"open_clip:local-dir:{folder}")

    return make


@pytest.mark.parametrize(
    ("end", "bias"),
    [
        ({"timm_pool": "token", "timm_proj": "linear"}, False),
        ({"timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": True}, True),
        ({"timm_pool": "token", "timm_proj": ""}, True),
    ],
    ids=["head", "head with bias", "the network's own"],
)
def test_the_projection_makes_the_feature_of_what_comes_before_it(end, bias, timm, picture):
    plain = timm(**end)
    p, d = plain.projection().weight.shape
    encoder, images = with_unprojected(plain), [picture(200, 200), picture(30, 50)]
    features, before = encoder.encode_images(images).split([d, p], dim=1)
    assert ((plain.projection().bias is not None), encoder.info.text_dim) == (bias, d)
    torch.testing.assert_close(features, plain.encode_images(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.projection()(before), features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("end", [{"timm_pool": "map", "timm_proj": "none"}, {"timm_pool": "avg", "timm_proj": "mlp"}])
def test_a_network_of_timm_with_another_end_has_none(end, timm):
    assert timm(**end).projection() is None


def test_the_encoder_itself_is_unchanged(opened, picture):
    plain = opened("tiny")
    before = plain.encode_images([picture(60, 60)])
    encoder = with_unprojected(plain)
    assert encoder.info.name == f"{plain.info.name}[final,unprojected]"
    assert encoder.info.fingerprint != plain.info.fingerprint
    assert with_unprojected(encoder).info == encoder.info
    assert torch.equal(plain.encode_images([picture(60, 60)]), before)
    assert not plain.projection().weight.requires_grad


def test_an_encoder_with_an_identity_projection_is_returned_unchanged(opened):
    backend = with_backend(opened("lite"))
    assert with_unprojected(opened("lite")) is opened("lite") and with_unprojected(backend) is backend


def test_an_encoder_without_projection_names_those_that_have_one(opened):
    with pytest.raises(InputError, match=r"no linear projection.* lite, open_clip.* do, but for SigLIP"):
        with_unprojected(opened("SigLIP"))


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
