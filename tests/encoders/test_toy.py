"""The toy knows colours."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipadapter.encoders import open_blocks
from clipadapter.encoders.inputs import to_tensor
from clipadapter.encoders.toy import COLOURS
from clipadapter.errors import InputError


def test_zero_shot_finds_the_colour(opened):
    toy = opened("toy")
    images = toy.encode_images([Image.new("RGB", (50, 40), value) for value in COLOURS.values()])
    texts = toy.encode_text([f"a photo of a {name} square." for name in COLOURS])
    best = torch.cosine_similarity(images[:, None], texts[None], dim=-1).argmax(dim=1)
    assert best.tolist() == list(range(len(COLOURS)))


def test_a_colour_counts_only_as_a_word(opened):
    reddish, red = opened("toy").encode_text(["a credit card", "a red card"])
    assert torch.cosine_similarity(reddish, red, dim=0) < 0.9


@pytest.mark.parametrize("size", [32, 48])
def test_inner_is_mean_maximum_and_deviation_of_the_pixels_of_sixteen_squares(size, opened):
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    side = size // 4
    cells = [
        pixels[:, channel, y : y + side, x : x + side].reshape(2, -1).numpy().astype(np.float64)
        for channel in range(3)
        for y in range(0, size, side)
        for x in range(0, size, side)
    ]
    expected = np.concatenate(
        [np.stack([f(cell, axis=1) for cell in cells], axis=1) for f in (np.mean, np.max, np.std)], axis=1
    )
    network = opened("toy").layer_network(["inner"], size)
    np.testing.assert_allclose(network(pixels), expected, rtol=1e-4, atol=1e-5)
    both = opened("toy").layer_network(["final", "inner"], size)(pixels)
    torch.testing.assert_close(both[:, 32:], network(pixels), rtol=0, atol=0)


def test_blocks_of_two_sizes_and_of_mirrored_pictures_lie_side_by_side(opened, picture):
    toy, images = opened("toy"), [picture(48, 48), picture(90, 60)]
    encoder = open_blocks(toy, ["inner", "final@48+mirrored"])
    features = encoder.encode_images(images)
    assert [block.name for block in encoder.info.blocks] == ["final", "inner", "final@48+mirrored"]
    torch.testing.assert_close(features[:, :32], toy.encode_images(images))
    network = toy.layer_network(["final"], 48)
    plain = to_tensor(picture(48, 48), (0.5,) * 3, (0.5,) * 3)[None]
    expected = (network(plain) + network(plain.flip(3)))[0] / 2
    torch.testing.assert_close(features[0, -32:], expected)
    assert encoder.tower() is None and [tower.dim for tower in encoder.towers()] == [32 + 144, 32]


def test_a_size_that_the_grid_does_not_divide_is_refused(opened):
    with pytest.raises(InputError, match="multiples of 8 pixels, but the size is 44"):
        opened("toy").layer_network(["inner"], 44)
