"""Inner layers of open_clip's towers are what plain hooks see in the unwrapped tower, at both sizes.

The tower of the second size is built by open_clip or timm for that size, with their own resampling of the weights.
"""

import copy
from functools import cache

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import resize_pos_embed
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers import resample_abs_pos_embed
from torch.nn.functional import interpolate

from clipadapter.errors import InputError

from .expected_layers import TowerEncoder, outputs_of, pixels_of, random_tower, statistics


def normalize_tokens(tokens, norm):
    """A layer norm in numpy."""
    tokens = tokens.numpy().astype(np.float64)
    if not isinstance(norm, torch.nn.LayerNorm):
        return tokens
    centred = tokens - tokens.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + norm.eps)
    return scaled * norm.weight.numpy() + norm.bias.numpy()


def check_layers(network, pixels, expected):
    """Each layer alone and all together have the expected values."""
    columns = np.concatenate([np.asarray(values) for values in expected.values()], axis=1)
    np.testing.assert_allclose(network(tuple(expected))(pixels), columns, rtol=1e-3, atol=1e-3)
    for name, values in expected.items():
        np.testing.assert_allclose(network([name])(pixels), values, rtol=1e-3, atol=1e-3)


def stage_layers(maps, pooled, has_last=False):
    """Expected layers from maps; the means are those of the stages, and then what the last step reads."""
    means, maxima, deviations = zip(*(np.split(statistics(each), 3, axis=1) for each in maps), strict=True)
    means = means[:-1] if has_last else means
    return {
        "inner-mean": np.concatenate([*means, *pooled], axis=1),
        "inner-max": np.concatenate(maxima, axis=1),
        "inner-std": np.concatenate(deviations, axis=1),
    }


@pytest.mark.parametrize("size", [224, 384])
def test_clips_transformer_gives_class_token_and_mean_of_patches_at_two_layers(size, opened, narrow_clip, picture):
    encoder = opened("ViT-B-32")
    pixels = pixels_of(encoder, size, [picture(300, 200)])
    config = copy.deepcopy(narrow_clip["ViT-B-32"])
    config["vision_cfg"]["image_size"] = size
    model = open_clip.CLIP(**config).eval().requires_grad_(False)
    weights = dict(encoder._model.state_dict())
    resize_pos_embed(weights, model)
    model.load_state_dict(weights)
    visual = model.visual
    # Four layers: one third is one of them, two thirds are three.
    blocks = [visual.transformer.resblocks[i] for i in (0, 2)]
    final, (*tokens, last) = outputs_of(visual, [*blocks, visual.ln_post], pixels)
    tokens = [normalize_tokens(each, visual.ln_post) for each in tokens]
    unprojected = last[:, 0].numpy()
    expected = {
        "final": final,
        "inner-token": np.concatenate([*(each[:, 0] for each in tokens), unprojected], axis=1),
        "inner-mean": np.concatenate([each[:, 1:].mean(axis=1) for each in tokens], axis=1),
        "unprojected": unprojected,
    }
    assert encoder.layers() == {"final": 64, "inner-token": 3 * 128, "inner-mean": 2 * 128, "unprojected": 128}
    assert encoder.second_size() == 384
    check_layers(lambda layers: encoder.layer_network(layers, size), pixels, expected)


@pytest.mark.parametrize("size", [224, 384])
def test_clips_resnet_gives_statistics_of_its_four_stages(size, opened, narrow_clip, picture):
    encoder = opened("RN50")
    pixels = pixels_of(encoder, size, [picture(300, 200)])
    visual = ModifiedResNet([1, 1, 1, 1], 64, 16 * 32 // 64, size, 16).eval().requires_grad_(False)
    weights = dict(encoder._model.visual.state_dict())
    place = "attnpool.positional_embedding"
    mean, grid = weights[place][:1], weights[place][1:].T.unflatten(1, (7, 7))[None]
    grid = interpolate(grid, (size // 32, size // 32), mode="bicubic", antialias=True)[0].flatten(1).T
    visual.load_state_dict(weights | {place: torch.cat([mean, grid])})
    stages = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
    final, maps = outputs_of(visual, stages, pixels)
    unprojected = encoder.layer_network(["final", "unprojected"], size)(pixels)[:, 64:]
    projection = encoder.projection()
    np.testing.assert_allclose(unprojected @ projection.weight + projection.bias, final, rtol=1e-3, atol=1e-4)
    expected = {"final": final, **stage_layers(maps, [unprojected])}
    assert encoder.second_size() == 384
    check_layers(lambda layers: encoder.layer_network(layers, size), pixels, expected)


@pytest.fixture(scope="module")
def towers():
    """A function that builds a small tower of timm, each once."""
    return cache(lambda name, pool, proj: random_tower(lambda: TimmModel(name, 16, 160, pool=pool, proj=proj)))


@pytest.mark.parametrize(
    ("name", "pool", "proj", "has_class"),
    [("test_vit3", "map", "none", False), ("test_vit", "token", "linear", True), ("test_vit2", "avg", "", False)],
    ids=["attention pool", "class token", "mean"],
)
@pytest.mark.parametrize("size", [160, 272])
def test_a_transformer_of_timm_gives_tokens_at_three_layers(name, pool, proj, has_class, size, towers):
    visual = towers(name, pool, proj)
    dim = 16 if proj != "none" else visual.trunk.num_features
    layers = TowerEncoder(visual, dim, 160)
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    plain = copy.deepcopy(visual)
    plain.trunk.patch_embed.set_input_size((size, size))
    if size != 160:
        plain.trunk.pos_embed = torch.nn.Parameter(
            resample_abs_pos_embed(
                visual.trunk.pos_embed,
                new_size=[size // 16, size // 16],
                old_size=[10, 10],
                num_prefix_tokens=0 if visual.trunk.no_embed_class else visual.trunk.num_prefix_tokens,
            ),
            requires_grad=False,
        )
    n_layers = len(plain.trunk.blocks)
    places = {"test_vit": (1, 3, 5), "test_vit2": (2, 4, 7), "test_vit3": (2, 5, 8)}[name]
    assert places[-1] == n_layers - 1
    final, tokens = outputs_of(plain, [plain.trunk.blocks[i] for i in places], pixels)
    tokens = [normalize_tokens(each, plain.trunk.norm) for each in tokens]
    with torch.no_grad():
        pooled = plain.trunk.forward_head(plain.trunk.forward_features(pixels), pre_logits=True)
    n_prefix = plain.trunk.num_prefix_tokens
    means = [each[:, n_prefix:].mean(axis=1) for each in tokens]
    expected = {"final": final}
    if has_class:
        expected["inner-token"] = np.concatenate([each[:, 0] for each in tokens], axis=1)
        np.testing.assert_allclose(expected["inner-token"][:, -64:], pooled, rtol=1e-3, atol=1e-4)
    elif proj != "none":
        means.append(pooled)
    expected["inner-mean"] = np.concatenate(means, axis=1)
    assert layers.second_size() == 272
    assert {name: layers.layers()[name] for name in expected} == {k: v.shape[1] for k, v in expected.items()}
    check_layers(lambda names: layers.layer_network(names, size), pixels, expected)


@pytest.mark.parametrize(
    ("name", "pool", "places", "last", "size"),
    [
        ("test_convnext", "", "stages.0 stages.1 stages.2 stages.3", None, 160),
        ("test_resnet", "avg", "layer1 layer2 layer3 layer4", None, 160),
        ("test_efficientnet", "avg", "", "bn2", 160),
        ("test_efficientnet", "avg", "", "bn2", 288),  # no weight of a convolutional tower depends on the size
    ],
)
def test_a_convolutional_tower_of_timm_gives_statistics_of_its_stages(name, pool, places, last, size, towers):
    visual = towers(name, pool, "linear")
    layers = TowerEncoder(visual, 16, 160)
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    trunk = visual.trunk
    # For efficientnets timm calls "stages" what changes the resolution.
    names = places.split() or [info["module"] for info in trunk.feature_info]
    modules = [trunk.get_submodule(place) for place in [*names, *([last] if last else [])]]
    final, (*maps, pooled) = outputs_of(visual, [*modules, visual.head.drop], pixels)
    expected = {"final": final, **stage_layers(maps, [pooled], has_last=last is not None), "unprojected": pooled}
    assert layers.second_size() == 288  # 160 * 12 / 7 = 274, of which 288 is the nearest multiple of 32
    check_layers(lambda names: layers.layer_network(names, size), pixels, expected)


def test_the_tower_itself_stays_as_it_is_at_another_size(towers):
    visual = towers("test_vit", "token", "linear")
    before = {name: value.clone() for name, value in visual.state_dict().items()}
    TowerEncoder(visual, 16, 160).layer_network(["final", "inner-mean"], 272)
    after = visual.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert visual.trunk.patch_embed.img_size == (160, 160)


def test_a_size_that_a_tower_can_not_take_is_refused(opened, towers):
    assert TowerEncoder(towers("test_convnext", "rot_attn", ""), 16, 160).second_size() is None
    with pytest.raises(InputError, match="at multiples of 32 pixels, but the size is 240"):
        opened("ViT-B-32").layer_network(["inner-mean"], 240)


def test_coca_gives_the_final_feature_only():
    visual = VisionTransformer(32, 16, 32, 1, 2, 4.0, attentional_pool=True, output_dim=8, output_tokens=True)
    layers = TowerEncoder(visual.eval(), 8, 32)
    assert layers.layers() == {"final": 8} and layers.second_size() is None
    with pytest.raises(InputError, match="one of CoCa"):
        layers.layer_network(["final"], 32)
