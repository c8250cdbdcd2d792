"""How pictures are decoded for an encoder; what `extract` promises is in `test_extract.py`."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from clipadapter.data import read_image
from clipadapter.data.images import read_image as decode
from clipadapter.features import FeatureStore, ViewSpec, extract


@pytest.fixture
def reduced(toy, monkeypatch):
    """The toy encoder, as if it ran in bf16."""
    monkeypatch.setattr(toy, "info", replace(toy.info, precision="bf16", fingerprint="reduced"))
    return toy


@pytest.fixture
def sizes(monkeypatch):
    """Sizes of the pictures that were decoded."""
    recorded = []

    def watched(*args, **kwargs):
        image = decode(*args, **kwargs)
        recorded.append(image.size)
        return image

    monkeypatch.setattr("clipadapter.data.images.read_image", watched)
    return recorded


@pytest.fixture
def large(toy, tmp_path):
    """A JPEG of which a half is large enough, and one of which it is not."""
    side = toy.info.image_size * 4
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    paths = []
    for name, height in (("enough", 2 * side), ("less", 2 * side - 2)):
        paths.append(tmp_path / f"{name}.jpg")
        Image.fromarray(noise).resize((3 * side, height), Image.Resampling.BICUBIC).save(paths[-1], quality=95)
    return paths, side


def test_full_precision_decodes_every_pixel(toy, large, sizes):
    paths, side = large
    features = extract(toy, paths, workers=1).features[:, 0]
    assert sizes == [(3 * side, 2 * side), (3 * side, 2 * side - 2)]
    expected = toy.encode_images([Image.open(path).convert("RGB") for path in paths])
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


def test_reduced_precision_shrinks_large_jpegs_and_nothing_else(reduced, large, sizes):
    paths, side = large
    features = extract(reduced, paths, workers=1).features[:, 0]
    assert sizes == [(3 * side // 2, side), (3 * side, 2 * side - 2)]
    exact = reduced.encode_images([read_image(path) for path in paths]).numpy()
    np.testing.assert_allclose(features[1], exact[1], rtol=1e-5, atol=1e-6)
    cosine = (features[0] @ exact[0]) / np.linalg.norm(features[0]) / np.linalg.norm(exact[0])
    assert cosine > 0.999


def test_crops_come_from_every_pixel_and_the_plain_view_does_not_depend_on_them(
    reduced, toy, large, sizes, tmp_path, monkeypatch
):
    paths, side = large
    views = ViewSpec(count=3)
    features = extract(reduced, paths, views=views, workers=1).features
    whole = [(3 * side, 2 * side), (3 * side, 2 * side - 2)]
    assert sizes == [whole[0], (3 * side // 2, side), whole[1]]  # decoded anew only where it is shrunk
    np.testing.assert_allclose(features[:, 0], extract(reduced, paths).features[:, 0], atol=1e-6)
    sizes.clear()
    Image.open(paths[0]).save(tmp_path / "a.png")
    extract(reduced, [tmp_path / "a.png"], views=views)
    assert sizes == whole[:1]  # of other kinds once
    monkeypatch.setattr(toy, "info", replace(toy.info, precision="fp32", fingerprint="full"))
    # toy computes row by row
    np.testing.assert_array_equal(extract(toy, paths, views=views).features[:, 1:], features[:, 1:])


def test_memory_is_that_of_a_window_of_pictures(toy, tmp_path, monkeypatch):
    """What is alive of prepared pictures does not grow with their number."""
    alive, most, preprocess = set(), [], toy.preprocess

    class Pixels(torch.Tensor):
        def __del__(self):
            alive.discard(id(self))

    def counted(image):
        pixels = preprocess(image).as_subclass(Pixels)
        alive.add(id(pixels))
        most.append(len(alive))
        return pixels

    monkeypatch.setattr(toy, "preprocess", counted)
    pictures = [np.full((4, 4, 3), grey, np.uint8) for grey in range(250)]
    with FeatureStore(":memory:") as store:
        extract(toy, pictures, store=store, batch_size=8, workers=2, keep=False)
        assert len(store) == len(most) == 250
    assert max(most) <= 8 + 8 + 2 * 2 + 2
