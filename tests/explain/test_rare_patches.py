"""Where a picture differs most from its rest: one odd square on noise."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.encoders import create_encoder
from clipadapter.explain import explain
from clipadapter.explain.explanation import plot_rare_patches

from ..tiny_encoder import NearestMeanOfAll

NAMES = ("defect", "flawless")
X, Y = 30, 13
"""Of the odd pixel in a picture of 48 x 48 pixels."""


def fabric(seed, odd=False):
    """Grey noise; an odd pixel is green, but not brighter than the others."""
    grey = np.random.default_rng(seed).integers(60, 200, (48, 48, 1))
    pixels = np.repeat(grey, 3, axis=2)
    if odd:
        pixels[Y, X] = (90, 160, 90)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def model():
    encoder = create_encoder("toy[final,rare-patches@48]")
    images = [fabric(seed, odd=seed < 4) for seed in range(8)]
    return FewShotClassifier(encoder, NearestMeanOfAll(), cache=None).fit(
        images, [NAMES[seed >= 4] for seed in range(8)]
    )


def test_the_maximum_of_the_map_is_the_odd_pixel_also_in_the_square_of_a_wide_picture(model):
    explanation = explain(model, fabric(9, odd=True))
    distances = explanation.rare_patches
    assert distances.shape == (44, 44)
    assert divmod(int(distances.argmax()), 44) == (Y - 2, X - 2)
    usual = explain(model, fabric(9)).rare_patches
    assert usual.max() < distances.max() / 2
    assert np.sqrt(np.mean(distances**2)) == pytest.approx(1)
    wide = np.full((48, 96, 3), 128, np.uint8)
    wide[:, 24:72] = np.asarray(fabric(9, odd=True))
    assert divmod(int(explain(model, wide).rare_patches.argmax()), 44) == (Y - 2, X - 2)
    sentence = next(each for each in explanation.sentences() if "differs most" in each)
    assert f"{(X + 0.5) / 48:.0%} from the left and {(Y + 0.5) / 48:.0%} from the top" in sentence
    record = json.loads(json.dumps(explanation.to_dict()))["rare_patches"]
    np.testing.assert_allclose(record, distances, atol=1e-3)


def test_the_map_is_drawn_over_the_inner_part_of_the_square(model):
    square = np.full((32, 32, 3), 99, np.uint8)  # the toy does not say what its square is
    axes = Figure().subplots()
    plot_rare_patches(axes, explain(model, fabric(9, odd=True)).rare_patches, square)
    image = axes.images[-1]
    pixel = 32 / 48  # the drawn square has 32 pixels, the map has patches of one pixel of 48
    assert image.get_extent() == pytest.approx([2 * pixel - 0.5, 46 * pixel - 0.5, 46 * pixel - 0.5, 2 * pixel - 0.5])
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 31.5), (31.5, -0.5))


def test_a_model_that_does_not_read_the_block_has_no_map():
    model = FewShotClassifier("toy", "knn", cache=None).fit([fabric(0), fabric(1)], NAMES)
    explanation = explain(model, fabric(2))
    assert explanation.rare_patches is None and explanation.to_dict()["rare_patches"] is None
    assert not any("differs most" in each for each in explanation.sentences())
