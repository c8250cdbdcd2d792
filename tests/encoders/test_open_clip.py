"""open_clip's models give what open_clip gives, and whatever does not fit is refused."""

import json
import pickle
import shutil

import open_clip
import pytest
import torch

from clipadapter.encoders import check_encoder, create_encoder
from clipadapter.encoders import weights as hub
from clipadapter.encoders.open_clip import find_pretrained, hub_source
from clipadapter.errors import EncoderUnavailableError, InputError

from .test_open_clip_sources import Harm

TEXTS = ["a photo of a cat.", "A Photo of the BMW-X5!", "  two  spaces ", "word " * 100]


@pytest.fixture
def change(folders, tmp_path):
    """A function that copies the tiny model and changes its configuration."""

    def copy(**changes):
        folder = shutil.copytree(folders["tiny"], tmp_path / "copy", dirs_exist_ok=True)
        place = folder / "open_clip_config.json"
        config = json.loads(place.read_text())
        for key, value in changes.items():
            config[key] |= value
        place.write_text(json.dumps(config))
        return f"open_clip:local-dir:{folder}"

    return copy


@pytest.mark.parametrize(("name", "bias"), [("RN50", None), ("ViT-B-32", None), ("SigLIP", -7.25)])
def test_features_scale_and_bias_are_open_clips_own(name, bias, folders, opened, picture):
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folders[name]}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folders[name]}")
    images = [picture(300, 200), picture(224, 224), picture(90, 400)]
    with torch.no_grad():
        pixels = torch.stack([transform(image) for image in images])
        wanted_images = model.eval().encode_image(pixels)
        wanted_texts = model.encode_text(tokenizer(TEXTS))
    encoder = opened(name)
    result = torch.stack([encoder.preprocess(image) for image in images])
    torch.testing.assert_close(result, pixels, rtol=0, atol=0)
    torch.testing.assert_close(encoder.encode_images(images), wanted_images, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder.encode_text(TEXTS), wanted_texts, atol=1e-4, rtol=1e-4)
    assert (encoder.info.dim, encoder.info.image_size, encoder.info.logit_bias) == (64, 224, bias)
    assert encoder.info.logit_scale == pytest.approx(37.5)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_backends_see_the_pixels_of_open_clips_transform(mode, interpolation, change, picture):
    facts = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "resize_mode": mode, "interpolation": interpolation}
    encoder = create_encoder(change(preprocess_cfg=facts))
    transform = open_clip.image_transform(32, is_train=False, **facts)
    spec = encoder.tower().pixels
    for image in (picture(301, 200), picture(90, 400), picture(32, 32)):
        expected = transform(image)
        torch.testing.assert_close(encoder.preprocess(image), expected, rtol=0, atol=0)
        squares = spec.to_square(image)[None]
        torch.testing.assert_close(torch.from_numpy(spec.normalize(squares))[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_strip_is_cropped_before_it_is_scaled(mode, interpolation, change, picture, resized_to):
    encoder = create_encoder(change(preprocess_cfg={"resize_mode": mode, "interpolation": interpolation}))
    for shape in ((5000, 1), (1, 5000), (3, 700)):
        assert encoder.preprocess(picture(*shape)).shape == (3, 32, 32)
    assert max(max(size) for size in resized_to) <= 32


class OtherTokenizer(open_clip.SimpleTokenizer):
    def __call__(self, texts, context_length=None):
        return super().__call__([text.upper() + "!" for text in texts], context_length)


def test_fingerprint_knows_architecture_preprocessing_weights_and_tokenizer(
    change, opened, write_model, folders, tmp_path, monkeypatch
):
    """And opening draws nothing from the global generator."""
    before, tiny = torch.get_rng_state(), opened("tiny").info.fingerprint
    assert create_encoder(change()).info.fingerprint == tiny
    assert torch.equal(before, torch.get_rng_state())
    pixels = ({"mean": [0.5, 0.5, 0.4]}, {"resize_mode": "squash"})
    for changes in (*({"preprocess_cfg": facts} for facts in pixels), {"model_cfg": {"quick_gelu": True}}):
        assert create_encoder(change(**changes)).info.fingerprint != tiny
    config = json.loads((folders["tiny"] / "open_clip_config.json").read_text())
    other = write_model(tmp_path / "other", config["model_cfg"], config["preprocess_cfg"], seed=1)
    assert create_encoder(f"open_clip:local-dir:{other}").info.fingerprint != tiny
    # A library of tokenizers that gives other tokens makes another encoder of the same files.
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda model: OtherTokenizer())
    assert create_encoder(f"open_clip:local-dir:{folders['tiny']}").info.fingerprint != tiny


def test_pretrained_weights_are_read_from_the_hubs_cache(folders, narrow_clip, opened, hub_cache, monkeypatch):
    source, name = hub_source("ViT-B-32/laion2b_s34b_b79k"), "open_clip_model.safetensors"
    assert source.cached() is None
    snapshot = hub_cache("laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    (snapshot / name).symlink_to(folders["ViT-B-32"] / name)
    assert source.cached() == snapshot / name

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", narrow_clip["ViT-B-32"])
    info = create_encoder("open_clip:ViT-B-32/laion2b_s34b_b79k").info
    assert (info.name, info.licence) == ("open_clip:ViT-B-32/laion2b_s34b_b79k", "MIT")
    assert info.fingerprint == opened("ViT-B-32").info.fingerprint

    auto = create_encoder("auto").info
    assert auto.name == "open_clip:ViT-B-32/laion2b_s34b_b79k"
    assert "its weights are on this machine" in auto.note


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("open_clip:ViT-B-32/openai", "is not on this machine, and the hub does not answer"),
        ("open_clip:ViT-B-32:nowhere.pt", "there is no file 'nowhere.pt'"),
        ("hf-hub:nobody/nothing", "is not on this machine, and the hub does not answer"),
        ("toy[final,open_clip:ViT-B-32/nope/final]", "'ViT-B-32' has no weights 'nope'"),
        ("auto:clip", "auto encoder has no variants"),
        ("lite:large", "lite encoder has no variants"),
        ("simclr:nowhere", "there is no .*nowhere"),
    ],
)
def test_a_check_refuses_what_cannot_be_opened_without_opening_it(uri, error, monkeypatch):
    monkeypatch.setattr(hub, "hub_answers", lambda repo, name: False)
    monkeypatch.setattr(hub.HubSource, "cached", lambda self: None)
    with pytest.raises((InputError, EncoderUnavailableError), match=error):
        check_encoder(uri)


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", ("open_clip_model.safetensors of laion/", "local-dir:PATH", "lite")),
        ("hf-hub:imageomics/bioclip", ("open_clip_config.json of imageomics/bioclip", "no such repository")),
        ("hf:openai/clip-vit-base-patch32", ("say open_clip:ViT-B-32/openai for these weights", "say hf:FOLDER")),
        ("timm:test_vit", ("of timm/test_vit.r160_in1k, which timm:test_vit needs, is not on this", "local-dir")),
    ],
)
def test_weights_out_of_reach_say_what_to_do(uri, parts, hub_cache):
    with pytest.raises(EncoderUnavailableError) as error:
        create_encoder(uri)
    assert [part for part in parts if part not in str(error.value)] == []


def test_a_check_passes_what_can_be_opened_and_loads_nothing(folders, monkeypatch):
    monkeypatch.setattr(hub.HubSource, "cached", lambda self: None)
    monkeypatch.setattr(hub, "hub_answers", lambda repo, name: True)
    monkeypatch.setattr(open_clip, "create_model_from_pretrained", None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    tiny = f"open_clip:local-dir:{folders['tiny']}"
    for uri in ("open_clip:ViT-B-32/openai", "hf-hub:imageomics/bioclip", tiny, "toy"):
        check_encoder(uri)


def test_every_model_has_the_activation_and_preprocessing_of_its_weights(monkeypatch):
    monkeypatch.setattr(hub.HubSource, "cached", lambda self: "weights.safetensors")
    for model, tag in open_clip.list_pretrained():
        # open_clip states the activation of roberta-ViT-B-32 with the architecture, not with the weights.
        expected = open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", model == "roberta-ViT-B-32")
        assert find_pretrained(model, tag).config.get("quick_gelu", False) == expected, (model, tag)
    siglip = find_pretrained("ViT-B-16-SigLIP2-256", "webli")
    assert (siglip.licence, siglip.preprocess["resize_mode"]) == ("Apache-2.0", "squash")
    assert siglip.preprocess["mean"] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "name", ["ViT-B-32/openai", "ViT-B-32/laion2b_s34b_b79k", "ViT-B-16/dfn2b", "ViT-H-14-378/dfn5b"]
)
def test_both_names_of_quick_gelu_are_one_source(name, monkeypatch):
    monkeypatch.setattr(hub.HubSource, "cached", lambda self: f"{self.repo}/{self.names[0]}")
    model, tag = name.split("/")
    source = find_pretrained(model, tag)
    assert source == find_pretrained(f"{model}-quickgelu", tag)
    assert source.uri == f"open_clip:{name}"


def test_a_malicious_checkpoint_is_not_run(folders, tmp_path):
    folder = tmp_path / "evil"
    folder.mkdir()
    shutil.copy(folders["tiny"] / "open_clip_config.json", folder)
    (folder / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises(EncoderUnavailableError, match="can't be loaded"):
        create_encoder(f"open_clip:local-dir:{folder}")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "readable open_clip_config.json"),
        ("{", "readable open_clip_config.json"),
        ("[]", "must be an object of JSON"),
        ('{"model_cfg": {}}', "preprocess_cfg"),
        ('{"model_cfg": {}, "preprocess_cfg": {"mean": [0, 0, 0]}}', "preprocess_cfg"),
        ('{"model_cfg": {}, "preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1]}}', "no weights"),
    ],
)
def test_an_incomplete_folder_is_refused(text, message, tmp_path):
    if text is not None:
        (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(EncoderUnavailableError, match=message):
        create_encoder(f"open_clip:local-dir:{tmp_path}")


def test_a_vocabulary_without_its_tokenizer_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders["SigLIP"], tmp_path / "copy")
    place = folder / "open_clip_config.json"
    config = json.loads(place.read_text())
    del config["model_cfg"]["text_cfg"]["hf_tokenizer_name"], config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]
    place.write_text(json.dumps(config))
    with pytest.raises(EncoderUnavailableError, match="hf_tokenizer_name"):
        create_encoder(f"open_clip:local-dir:{folder}")


def test_pictures_that_are_not_square_or_are_padded_are_refused(change):
    with pytest.raises(InputError, match="pads pictures to a square, which is not supported"):
        create_encoder(change(preprocess_cfg={"resize_mode": "longest"}))
    vision = {"image_size": [32, 64], "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    with pytest.raises(InputError, match="32 x 64"):
        create_encoder(change(model_cfg={"vision_cfg": vision}))
