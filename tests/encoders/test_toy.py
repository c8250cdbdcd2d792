"""The toy knows colours."""

import torch
from PIL import Image

from clipadapter.encoders import open_blocks
from clipadapter.encoders.base import to_tensor
from clipadapter.encoders.toy import COLOURS


def test_zero_shot_finds_the_colour(opened):
    toy = opened("toy")
    images = toy.encode_images([Image.new("RGB", (50, 40), value) for value in COLOURS.values()])
    texts = toy.encode_text([f"a photo of a {name} square." for name in COLOURS])
    best = torch.cosine_similarity(images[:, None], texts[None], dim=-1).argmax(dim=1)
    assert best.tolist() == list(range(len(COLOURS)))


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
