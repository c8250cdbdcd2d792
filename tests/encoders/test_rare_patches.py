"""The rarest patches, by numpy: the mean of standardised channels where the Mahalanobis distance is largest."""

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from clipadapter.encoders import Encoder
from clipadapter.encoders.rare_patches import describe_rare_patches, join_maps, patch_distances
from clipadapter.encoders.toy import ToyEncoder
from clipadapter.runtime.engines.onnxruntime import write_onnx

COUNTS = (1, 4, 16, 48)


def random_maps(n=2, c=6, h=14, w=12, seed=0):
    """Channels that are correlated and of different scales."""
    rng = np.random.default_rng(seed)
    values = np.einsum("nchw,cd->ndhw", rng.standard_normal((n, c, h, w)), rng.standard_normal((c, c)))
    return torch.from_numpy(values * 10.0 ** np.linspace(-2, 2, c)[:, None, None] + 5).float()


def expected_distances(maps):
    """Standardised patches (p, c) of each picture, without two at each border, and their distances (p,)."""
    for picture in np.asarray(maps, np.float64):
        x = picture[:, 2:-2, 2:-2].reshape(len(picture), -1).T
        variance = x.var(axis=0)
        z = (x - x.mean(axis=0)) / np.sqrt(variance + 1e-6 * variance.mean())
        correlation = 0.9 * z.T @ z / len(z) + 0.1 * np.eye(z.shape[1])
        yield z, np.sqrt(np.einsum("pc,cd,pd->p", z, np.linalg.inv(correlation), z) / z.shape[1])


def test_distances_are_those_of_mahalanobis_and_the_feature_is_the_mean_of_the_rarest_patches():
    maps = random_maps()
    distances, features = patch_distances(maps), describe_rare_patches(maps)
    assert distances.shape == (2, 10, 8)
    for actual, feature, (z, expected) in zip(distances, features, expected_distances(maps), strict=True):
        np.testing.assert_allclose(actual.flatten(), expected / np.sqrt(np.mean(expected**2)), rtol=1e-3)
        order = np.argsort(-expected)
        means = np.concatenate([z[order[:count]].mean(axis=0) for count in COUNTS])
        np.testing.assert_allclose(feature, means, rtol=1e-3, atol=1e-4)


def test_border_scale_offset_and_other_pictures_make_no_difference():
    maps = random_maps()
    expected = describe_rare_patches(maps)
    framed = maps.clone()
    framed[:, :, :2], framed[:, :, -2:], framed[..., :2], framed[..., -2:] = 99, -99, 99, -99
    torch.testing.assert_close(describe_rare_patches(framed), expected)
    torch.testing.assert_close(describe_rare_patches(maps[1:]), expected[1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(describe_rare_patches(3 * maps - 7), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "maps", [torch.zeros(1, 3, 9, 9), torch.full((1, 3, 9, 9), 1e-30), 1e4 + torch.zeros(1, 3, 9, 9)]
)
def test_a_picture_of_one_colour_has_no_rare_patches(maps):
    assert patch_distances(maps).abs().max() == 0
    assert describe_rare_patches(maps).abs().max() == 0


def test_a_map_with_few_patches_takes_all():
    features = describe_rare_patches(random_maps(h=7, w=8))  # 3 x 4 patches
    assert features.shape == (2, 24)
    torch.testing.assert_close(features[:, 12:], torch.zeros(2, 12), rtol=0, atol=1e-5)


def test_two_stages_are_joined_as_means_of_three_by_three():
    fine, coarse = random_maps(1, 2, 8, 8), random_maps(1, 3, 4, 4, seed=1)
    joined = join_maps(fine, coarse)
    assert joined.shape == (1, 5, 4, 4)
    assert joined[0, 1, 1, 2] == pytest.approx(float(fine[0, 1, 1:4, 3:6].mean()), rel=1e-4)
    assert joined[0, 2 + 2, 0, 0] == pytest.approx(float(coarse[0, 2, :2, :2].mean()), rel=1e-4)


def test_onnx_has_operators_for_it(tmp_path):
    network = ToyEncoder().layer_network(["rare-patches"], 48)
    pixels = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    write_onnx(network, [pixels[:2]], tmp_path / "x.onnx", ["pixels"], ["features"])
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {"pixels": pixels.numpy()})
    np.testing.assert_allclose(actual, network(pixels), rtol=1e-3, atol=1e-4)


def test_the_map_of_a_picture_is_over_the_inner_part_of_the_square(opened, picture):
    toy = opened("toy")
    distances = toy.rare_patch_map(picture(90, 60), 48)
    assert distances.shape == (44, 44)
    square = picture(90, 60).resize((72, 48), Image.Resampling.BICUBIC).crop((12, 0, 60, 48))
    pixels = torch.from_numpy(np.asarray(square) / 127.5 - 1).permute(2, 0, 1)[None].float()
    torch.testing.assert_close(distances, patch_distances(pixels)[0], rtol=1e-3, atol=1e-3)
    assert Encoder.rare_patch_map(toy, picture(90, 60), 48) is None  # by default
