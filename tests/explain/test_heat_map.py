"""The maximum of the heat map is where the object is: a pattern in one corner of a picture, with the lite encoder."""

import numpy as np
import pytest
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.explain import explain
from clipadapter.heads import TextFeatures
from clipadapter.heads.prototype import Prototype


def checks(rng, side=224):
    """Black and white squares, shifted at random."""
    cells = (np.indices((side, side)) + rng.integers(0, 16, (2, 1, 1))) // 16
    return np.repeat((cells.sum(axis=0) % 2 * 255)[..., None], 3, axis=2).astype(np.uint8)


def waves(rng, side=224):
    """Red rings."""
    y, x = np.indices((side, side)) - rng.integers(80, 144, (2, 1, 1))
    red = 128 + 127 * np.sin(np.hypot(x, y) / 6)
    return np.stack([red, np.zeros_like(red), np.zeros_like(red)], axis=2).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    """Without class text, so that no text tower is loaded."""
    rng, names = np.random.default_rng(0), ("checks", "waves")
    images = [make(rng) for make in (checks, waves) for _ in range(4)]
    model = FewShotClassifier("lite", Prototype(mix=0.0), cache=None)
    shots = model.extract_features(images, [name for name in names for _ in range(4)], names)
    return model.fit_features(shots, TextFeatures(names, np.eye(2, 1280)))


@pytest.mark.parametrize("corner", [(0, 1), (1, 0)], ids=str)
def test_the_maximum_is_in_the_corner_of_the_object(model, corner):
    rng = np.random.default_rng(1)
    pixels = waves(rng)
    top, left = (112 * part for part in corner)
    pixels[top : top + 112, left : left + 112] = checks(rng, 112)
    for name, inside in (("checks", True), ("waves", False)):
        heat = explain(model, Image.fromarray(pixels), class_name=name).heat_map
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        assert ((row >= 3.5) == corner[0] and (column >= 3.5) == corner[1]) == inside


def test_the_map_covers_the_central_square_of_a_wide_picture(model):
    """The object is at the left edge of the square, 112 pixels into the picture."""
    rng = np.random.default_rng(2)
    pixels = np.concatenate([waves(rng), waves(rng)], axis=1)  # 224 x 448: the square is 112 to 336
    pixels[:112, 112:224] = checks(rng, 112)
    explanation = explain(model, Image.fromarray(pixels), class_name="checks")
    row, column = np.unravel_index(explanation.heat_map.argmax(), explanation.heat_map.shape)
    assert row <= 3 and column <= 3
    np.testing.assert_array_equal(explanation.square, pixels[:, 112:336])
