"""What encoders say of the parts of a picture."""

import numpy as np
import torch
from open_clip.timm_model import TimmModel
from PIL import Image
from torch.nn import functional as F

from clipadapter.encoders import create_encoder, open_blocks, with_backend
from clipadapter.encoders.open_clip_layers import encode_patches
from clipadapter.encoders.simclr_network import write_tensors
from clipadapter.pretraining.simclr import SimClrModel


def normalised(encoder, image):
    return encoder.preprocess(image)[None]


def test_the_maps_of_lite_and_simclr_have_the_feature_as_their_mean(opened, tmp_path, picture):
    write_tensors(tmp_path / "encoder.safetensors", SimClrModel(0, "cpu", None, 0.1).tower.state_dict(), {"size": 64})
    for encoder, shape in ((opened("lite"), (7, 7, 1280)), (create_encoder(f"simclr:{tmp_path}"), (2, 2, 512))):
        patches, feature = encoder.patch_features(picture(300, 200)), encoder.encode_images([picture(300, 200)])[0]
        assert patches.shape == shape
        torch.testing.assert_close(patches.mean(dim=(0, 1)), feature, atol=1e-4, rtol=1e-4)


def test_rn50_patches_make_the_feature_where_attention_is_even(opened, picture):
    """With queries of zero every place counts the same, the mean's token included."""
    encoder, image = opened("RN50").tunable_copy(), picture(224, 224)
    visual, pool = encoder._model.visual, encoder._model.visual.attnpool
    pool.q_proj.weight = torch.nn.Parameter(torch.zeros_like(pool.q_proj.weight), requires_grad=False)
    pool.q_proj.bias = torch.nn.Parameter(torch.zeros_like(pool.q_proj.bias), requires_grad=False)
    patches = encoder.patch_features(image)
    assert patches.shape == (7, 7, 64)
    with torch.no_grad():
        features = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(normalised(encoder, image))))))
        mean = pool.c_proj(pool.v_proj(features.mean(dim=(2, 3)) + pool.positional_embedding[0]))[0]
    expected = (patches.sum(dim=(0, 1)) + mean) / 50
    torch.testing.assert_close(expected, encoder.encode_images([image])[0], atol=1e-4, rtol=1e-4)


def test_vit_patches_are_clearclips_in_plain_loops(opened, picture):
    encoder, image = opened("ViT-B-32"), picture(224, 224)
    visual, result = encoder._model.visual, encoder.patch_features(image)
    last = visual.transformer.resblocks[-1]
    kept = []
    hook = last.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    with torch.no_grad():
        visual(normalised(encoder, image))
        hook.remove()
        x = last.ln_1(kept[0][0])  # (50, 128)
        (wq, _, wv), (bq, _, bv) = last.attn.in_proj_weight.chunk(3), last.attn.in_proj_bias.chunk(3)
        heads = []
        for h in range(2):
            own = slice(64 * h, 64 * h + 64)
            q, v = x @ wq[own].T + bq[own], x @ wv[own].T + bv[own]
            heads.append((q @ q.T / 8).softmax(dim=1) @ v)
        out = F.linear(torch.cat(heads, dim=1), last.attn.out_proj.weight, last.attn.out_proj.bias)
        expected = visual.ln_post(out) @ visual.proj
    assert result.shape == (7, 7, 64)
    torch.testing.assert_close(result.flatten(0, 1), expected[1:], atol=1e-4, rtol=1e-4)


def test_asking_for_patches_changes_no_tower_and_with_a_backend_the_encoder_itself_computes_them(opened, picture):
    for name in ("ViT-B-32", "tiny", "lite"):
        encoder, image = opened(name), picture(224, 224)
        before = encoder.encode_images([image])
        patches = encoder.patch_features(image)
        torch.testing.assert_close(encoder.encode_images([image]), before, atol=0, rtol=0)
        torch.testing.assert_close(with_backend(encoder).patch_features(image), patches)


def test_a_patch_of_siglip_is_pooled_alone(opened, picture):
    """Attention over one token is that token's value."""
    encoder, image = opened("SigLIP"), picture(224, 224)
    trunk = encoder._model.visual.trunk
    result = encoder.patch_features(image)
    assert result.shape == (14, 14, 64)
    with torch.no_grad():
        token = trunk.forward_features(normalised(encoder, image))[0, 1 + 14 * 3 + 5]
        pool = trunk.attn_pool
        value = pool.proj(pool.kv(token).chunk(2)[1])
        expected = value + pool.mlp(pool.norm(value))
    torch.testing.assert_close(result[3, 5], expected, atol=1e-4, rtol=1e-4)


def test_a_network_of_timm_that_takes_the_mean_has_patches_whose_mean_is_the_feature():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        visual = TimmModel("resnet18", 16, image_size=64, pool="", proj="linear").eval()
        pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        patches = encode_patches(visual, pixels)
        assert patches.shape == (2, 2, 16)
        torch.testing.assert_close(patches.mean(dim=(0, 1)), visual(pixels)[0], atol=1e-4, rtol=1e-4)


def test_towers_that_are_not_known_have_no_patches(opened, picture):
    image = picture(64, 64)
    assert opened("toy").patch_features(image) is None
    assert opened("toy[final,lite/final]").patch_features(image) is None
    assert open_blocks(opened("tiny"), ["unprojected"]).patch_features(image) is None
    visual = TimmModel("test_vit", 16, image_size=160, pool="token", proj="linear").eval()
    assert encode_patches(visual, torch.zeros(1, 3, 160, 160)) is None


def test_rows_and_columns_of_the_map_are_those_of_the_picture(opened):
    """A change in one corner moves that corner of the map most."""
    for name, side in (("lite", 7), ("RN50", 7), ("ViT-B-32", 7)):
        plain = Image.new("RGB", (224, 224), (120, 120, 120))
        spot = plain.copy()
        noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        spot.paste(Image.fromarray(noise), (168, 8))  # right, top
        moved = (opened(name).patch_features(spot) - opened(name).patch_features(plain)).norm(dim=-1)
        row, column = divmod(int(moved.argmax()), side)
        assert row <= 2 and column >= 4, f"{name}: {row}, {column}"
