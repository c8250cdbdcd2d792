"""A second encoder on the same weights, and the attention layers that methods change in it."""

import pytest
import torch
from torch import nn

from clipadapter.encoders import Encoder, attention_layers, open_tunable_copy, with_backend
from clipadapter.encoders.toy import ToyEncoder
from clipadapter.errors import InputError

TEXTS = ["a photo of a cat.", "two dogs on a very long sofa"]


def networks(encoder):
    return encoder.tower().module, encoder.text_tower().network()


def layers_of(encoder):
    return [attention_layers(network) for network in networks(encoder)]


@pytest.mark.parametrize("name", ["tiny", "RN50", "SigLIP", "lite"])
def test_a_tunable_copy_gives_the_same_features_from_the_same_weights(name, opened, picture):
    encoder = opened(name)
    copy = open_tunable_copy(encoder)
    pictures = [picture(50, 40), picture(40, 70)]
    assert torch.equal(copy.encode_images(pictures), encoder.encode_images(pictures))
    assert torch.equal(copy.encode_text(TEXTS), encoder.encode_text(TEXTS))
    for first, second in zip(networks(encoder), networks(copy), strict=True):
        assert first is not second
        assert all(a is b for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", ["tiny", "SigLIP"])
def test_changing_a_tunable_copy_leaves_the_encoder_unchanged(name, opened, picture):
    encoder = opened(name)
    pictures = [picture(50, 40)]
    before = encoder.encode_images(pictures), encoder.encode_text(TEXTS)
    copy = open_tunable_copy(encoder)
    for layers in layers_of(copy):
        place = layers[0]["v"]
        setattr(place.owner, place.weight, nn.Parameter(place.full_weight.detach() * 1.5, requires_grad=False))
    assert not torch.allclose(copy.encode_images(pictures), before[0])
    assert not torch.allclose(copy.encode_text(TEXTS), before[1])
    assert torch.equal(encoder.encode_images(pictures), before[0])
    assert torch.equal(encoder.encode_text(TEXTS), before[1])


@pytest.mark.parametrize(
    ("name", "image", "text"), [("ViT-B-32", 4, 2), ("RN50", 0, 2), ("SigLIP", 3, 2), ("lite", 0, 6), ("tiny", 1, 1)]
)
def test_all_attention_layers_are_found_and_nothing_else(name, image, text, opened):
    assert [len(layers) for layers in layers_of(opened(name))] == [image, text]


@pytest.mark.parametrize(("name", "part", "width"), [("tiny", 0, 32), ("SigLIP", 0, 64), ("lite", 1, 384)])
def test_the_four_matrices_of_a_layer_do_not_overlap(name, part, width, opened):
    layer = layers_of(opened(name))[part][0]
    assert {letter: tuple(matrix.values.shape) for letter, matrix in layer.items()} == dict.fromkeys(
        "qkvo", (width, width)
    )
    places = {(id(matrix.owner), matrix.rows.start) for matrix in layer.values()}
    assert len(places) == 4
    if name == "tiny":  # queries, keys and values are the thirds of the packed weight
        packed = layer["q"].owner.in_proj_weight
        assert torch.equal(torch.cat([layer[letter].values for letter in "qkv"]), packed)
        assert layer["o"].owner is layer["q"].owner.out_proj


def test_a_layer_that_attends_to_something_else_is_none():
    from open_clip.transformer import ResidualAttentionBlock

    assert len(attention_layers(ResidualAttentionBlock(8, 2))) == 1
    assert attention_layers(ResidualAttentionBlock(8, 2, is_cross_attention=True)) == []


def test_the_tunable_copy_in_a_backend_is_in_full_precision_and_what_can_not_be_tuned_is_refused(opened):
    encoder = opened("tiny")
    assert open_tunable_copy(with_backend(encoder, "torch", "bf16")).info == encoder.info
    with pytest.raises(
        InputError,
        match="toy can't be tuned; those of efficientnet-lite1, efficientnet-lite2, hf-hub, lite, open_clip can",
    ):
        open_tunable_copy(ToyEncoder())
    assert Encoder.tunable_copy(ToyEncoder()) is None
