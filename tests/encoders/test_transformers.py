"""Encoders of transformers give what its own processors and models give; what does not fit is refused in plain words.

The networks are random and narrow. The real vocabularies are on the hub; small ones with the same rules stand in.
"""

import itertools
import json
import shutil

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipTokenizer,
)

from clipadapter.encoders import create_encoder, open_blocks, unprojected_blocks, with_backend
from clipadapter.encoders.transformers import FAMILIES, read_pixels
from clipadapter.errors import EncoderUnavailableError, InputError
from clipadapter.testing import check_encoder

from ..conftest import LETTERS, letter_tokenizer
from .expected_layers import outputs_of

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SQUARE = {"height": 32, "width": 32}
PICTURES = {"image_size": 32, "patch_size": 8, **NARROW}
WORDS = ["<|startoftext|>", "<|endoftext|>", "!", "a", "photo", "of", "cat", "dog", "."]


def word_tokenizer():
    """A tokenizer of words as CLIP's: lower case, marks at both ends, padded with the end mark."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="!"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    ends = [("<|startoftext|>", 0), ("<|endoftext|>", 1)]
    words.post_processor = processors.TemplateProcessing(single="<|startoftext|> $A <|endoftext|>", special_tokens=ends)
    marks = {"bos_token": WORDS[0], "eos_token": WORDS[1], "pad_token": WORDS[1], "unk_token": "!"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **marks)


def clip():
    text = {**NARROW, "vocab_size": len(WORDS), "max_position_embeddings": 12, "eos_token_id": 1, "bos_token_id": 0}
    config = CLIPConfig(text_config={**text, "pad_token_id": 1}, vision_config=PICTURES, projection_dim=24)
    size = {"size": {"shortest_edge": 36}, "crop_size": SQUARE, "do_center_crop": True, "resample": 3}
    return CLIPModel(config), {"image_processor_type": "CLIPImageProcessor", **size, **IMAGENET}, word_tokenizer()


def siglip(resample=3):
    text = {**NARROW, "vocab_size": len(LETTERS), "max_position_embeddings": 16}
    config = SiglipConfig(text_config=text, vision_config=PICTURES)
    facts = {"image_processor_type": "SiglipImageProcessor", "size": SQUARE, "resample": resample, **HALF}
    return SiglipModel(config), facts, letter_tokenizer()


def dinov2():
    # All margins that are cropped are even: where they are odd, the library and torchvision differ by one pixel.
    size = {"size": {"shortest_edge": 36}, "crop_size": SQUARE, "do_center_crop": True, "resample": 3}
    facts = {"image_processor_type": "BitImageProcessor", **size, **IMAGENET}
    return Dinov2Model(Dinov2Config(**PICTURES)), facts, None


def dinov3():
    facts = {"image_processor_type": "DINOv3ViTImageProcessor", "size": SQUARE, "resample": 2, **IMAGENET}
    return DINOv3ViTModel(DINOv3ViTConfig(**PICTURES)), facts, None


MAKERS = {"clip": clip, "siglip": siglip, "siglip2": lambda: siglip(resample=2), "dinov2": dinov2, "dinov3": dinov3}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function that writes a model into a folder, once; it returns the folder, the network and the tokenizer."""
    kept = {}

    def write(name):
        if name not in kept:
            folder = tmp_path_factory.mktemp(name)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network, processor, tokenizer = MAKERS[name]()
                for parameter in network.parameters():
                    if parameter.ndim:
                        torch.nn.init.normal_(parameter, std=0.2)
            network.eval().save_pretrained(folder)
            (folder / "preprocessor_config.json").write_text(json.dumps(processor))
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            kept[name] = folder, network, tokenizer
        return kept[name]

    return write


@pytest.fixture(scope="module")
def opened(written):
    """A function that opens the encoder in a folder, once."""
    kept = {}

    def get(name):
        if name not in kept:
            kept[name] = create_encoder(f"hf:{written(name)[0]}")
        return kept[name]

    return get


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2"])
def test_it_keeps_every_rule_of_encoders(name, opened):
    check_encoder(opened(name))


@pytest.mark.parametrize("name", MAKERS)
def test_pixels_and_picture_features_are_those_of_the_library(name, written, opened, picture):
    folder, network, _ = written(name)
    encoder, images = opened(name), [picture(90, 60), picture(41, 130)]
    pixels = torch.stack([encoder.preprocess(image) for image in images])
    expected = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    assert (pixels - expected).abs().mean() < 0.02  # the library scales tensors, which rounds in another way
    assert pixels.shape == expected.shape
    with torch.no_grad():
        outputs = (network.get_image_features if encoder.has_text else network)(pixel_values=pixels)
    torch.testing.assert_close(encoder.encode_pixels(pixels), outputs.pooler_output, atol=1e-5, rtol=1e-5)
    assert encoder.info.dim == outputs.pooler_output.shape[1]


def test_pixels_are_those_of_the_librarys_processor_for_pillow(written, opened, picture):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(written("clip")[0])
    for image in (picture(90, 60), picture(41, 130)):
        expected = torch.from_numpy(processor(image)["pixel_values"][0])
        torch.testing.assert_close(opened("clip").preprocess(image), expected, atol=1e-5, rtol=1e-5)


def test_every_pair_of_sides_is_the_crop_that_it_was():
    for size, scaled in itertools.product((32, 224, 378), range(32, 600)):
        if size <= scaled < 2 * size:
            processor = {"size": {"shortest_edge": scaled}, "crop_size": size, **HALF}
            spec = read_pixels("hf:any", processor, FAMILIES["clip"])
            assert (spec.size, spec.scaled_size, spec.resize) == (size, scaled, "shortest")


def test_texts_and_projection_of_clip_are_those_of_the_library(written, opened, picture):
    _, network, tokenizer = written("clip")
    texts = ["a photo of a CAT.", "dog", "a cat " * 20]
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        expected = network.get_text_features(inputs["input_ids"], attention_mask=inputs["attention_mask"]).pooler_output
    torch.testing.assert_close(opened("clip").encode_text(texts), expected, atol=1e-5, rtol=1e-5)
    assert opened("clip").info.logit_scale == pytest.approx(network.logit_scale.exp().item())
    assert opened("clip").info.logit_bias is None
    encoder = opened("clip")
    assert unprojected_blocks(encoder) == ("final", "unprojected")
    features = open_blocks(encoder, ["unprojected"]).encode_images([picture(90, 60)])
    torch.testing.assert_close(features[:, 24:] @ encoder.projection().weight, features[:, :24], atol=1e-4, rtol=1e-4)
    assert opened("siglip").projection() is None and opened("dinov2").projection() is None


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_texts_of_siglip_are_lower_case_and_padded_to_the_context(name, written, opened):
    _, network, tokenizer = written(name)
    inputs = tokenizer(["a cat", "a dog"], padding="max_length", max_length=16, return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 16)
    with torch.no_grad():
        expected = network.get_text_features(inputs["input_ids"]).pooler_output
    torch.testing.assert_close(opened(name).encode_text(["A Cat", "a DOG"]), expected, atol=1e-5, rtol=1e-5)
    info = opened(name).info
    assert info.logit_scale == pytest.approx(network.logit_scale.exp().item())
    assert info.logit_bias == pytest.approx(network.logit_bias.item())


def test_the_librarys_tokenizer_of_siglip_opens(written, tmp_path):
    """Its vocabulary is a file of sentencepiece; it removes punctuation."""
    texts = iter(["a photo of a cat", "a photo of a dog"] * 20)
    model = str(tmp_path / "spiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_prefix=model, vocab_size=20, hard_vocab_limit=False, pad_id=-1, bos_id=-1,
        eos_id=1, unk_id=0, minloglevel=2,
    )  # fmt: skip
    copy = shutil.copytree(written("siglip")[0], tmp_path / "copy", ignore=shutil.ignore_patterns("*token*"))
    SiglipTokenizer(f"{model}.model").save_pretrained(copy)
    plain, shouted = create_encoder(f"hf:{copy}").encode_text(["a cat", "A Cat!"])
    assert torch.equal(plain, shouted)


def test_a_repository_opens_from_the_cache_without_a_request(written, opened, hub_cache, monkeypatch):
    monkeypatch.setattr("clipadapter.encoders.weights._request", lambda *asked: pytest.fail("no request is needed"))
    hub_cache("facebook/dinov2-small", written("dinov2")[0])
    info = create_encoder("hf:facebook/dinov2-small").info
    assert (info.name, info.licence) == ("hf:facebook/dinov2-small", "Apache-2.0")
    assert info.fingerprint == opened("dinov2").info.fingerprint
    assert f"hf:facebook/dinov2-small@{'a' * 40}" in info.note


def change(folder, target, name, **facts):
    """A copy of a folder with other values in one of its JSON files."""
    copy = shutil.copytree(folder, target)
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**content, **facts}))
    return copy


@pytest.mark.parametrize(
    ("name", "facts", "message"),
    [
        ("config.json", {"model_type": "bert", "auto_map": {"AutoModel": "harm.Harm"}}, "'bert'; those.*CLIP, SigLIP"),
        ("config.json", {"model_type": None}, "type None"),
        ("preprocessor_config.json", {"size": {"longest_edge": 32}}, "size {'longest_edge': 32}"),
        ("preprocessor_config.json", {"crop_size": {"height": 32, "width": 16}}, "crop_size"),
        ("preprocessor_config.json", {"resample": 0}, "interpolation 0"),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "values from 0 to 1"),
        ("preprocessor_config.json", {"image_mean": None}, "no usable preprocessing"),
    ],
)
def test_what_is_not_supported_is_refused(name, facts, message, written, tmp_path):
    with pytest.raises(EncoderUnavailableError, match=message):
        create_encoder(f"hf:{change(written('dinov2')[0], tmp_path / 'copy', name, **facts)}")


def test_missing_files_and_pictures_of_another_size_than_the_weights_are_named(written, tmp_path):
    copy = change(written("clip")[0], tmp_path / "size", "preprocessor_config.json", crop_size=48, size=48)
    with pytest.raises(EncoderUnavailableError, match="does not take the pictures of 48 pixels"):
        create_encoder(f"hf:{copy}")
    for name, message in (
        ("config.json", r"needs a readable config\.json"),
        ("preprocessor_config.json", r"needs a readable preprocessor_config\.json"),
        ("model.safetensors", r"has no model\.safetensors. Other formats can hold code"),
    ):
        copy = shutil.copytree(written("dinov2")[0], tmp_path / name)
        (copy / name).unlink()
        with pytest.raises(EncoderUnavailableError, match=message):
            create_encoder(f"hf:{copy}")
    copy = shutil.copytree(written("clip")[0], tmp_path / "clip", ignore=shutil.ignore_patterns("*token*"))
    with pytest.raises(EncoderUnavailableError, match=r"has no tokenizer: tokenizer\.json, "):
        create_encoder(f"hf:{copy}")
    with pytest.raises(EncoderUnavailableError, match="there is no folder"):
        create_encoder(f"hf:{tmp_path / 'none'}")


def test_weights_that_are_missing_are_not_made_up(written, tmp_path):
    copy = shutil.copytree(written("dinov2")[0], tmp_path / "copy")
    state = load_file(copy / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderUnavailableError, match=r"1 of its weights are missing.*layernorm\.weight"):
        create_encoder(f"hf:{copy}")


def test_other_weights_or_preprocessing_have_another_fingerprint(written, opened, tmp_path):
    folder, expected = written("dinov2")[0], opened("dinov2").info.fingerprint
    other = change(folder, tmp_path / "pixels", "preprocessor_config.json", resample=2)
    state = load_file(folder / "model.safetensors")
    state["layernorm.weight"] += 1
    weights = shutil.copytree(folder, tmp_path / "weights")
    save_file(state, weights / "model.safetensors", {"format": "pt"})
    same = change(folder, tmp_path / "same", "config.json", transformers_version="0.0.0", _name_or_path="/elsewhere")
    fingerprints = [create_encoder(f"hf:{each}").info.fingerprint for each in (other, weights, same)]
    assert expected not in fingerprints[:2] and fingerprints[2] == expected


def blocks_of(vision):
    """The layers of an image tower of the library."""
    parent = getattr(vision, "encoder", None) or getattr(vision, "model", vision)
    return getattr(parent, "layers", None) or parent.layer


@pytest.mark.parametrize("name", MAKERS)
def test_inner_is_the_tokens_after_thirds_of_the_layers(name, written, opened, picture):
    _, network, _ = written(name)
    encoder, vision = opened(name), getattr(network, "vision_model", network)
    pixels = torch.stack([encoder.preprocess(picture(90, 60))])
    outputs, tokens = outputs_of(lambda batch: vision(pixel_values=batch), blocks_of(vision), pixels)
    tokens = [each[0] if isinstance(each, tuple) else each for each in tokens]
    norm = {"clip": "post_layernorm", "dinov2": "layernorm", "dinov3": "norm"}.get(name, "post_layernorm")
    # Of two layers, one third and two thirds are both the first.
    first, last = (getattr(vision, norm)(each).detach() for each in tokens)
    n_registers = vision.config.to_dict().get("num_register_tokens", 0)
    n_prefix = 0 if name.startswith("siglip") else 1 + n_registers
    means = [each[:, n_prefix:].mean(dim=1) for each in (first, last)]
    expected = {"inner-mean": means[:1] if name == "clip" else means}
    if n_prefix:
        expected["inner-token"] = [first[:, 0], outputs.pooler_output if name == "clip" else last[:, 0]]
    assert set(encoder.layers()) - {"final", "unprojected"} == set(expected)
    for layer, parts in expected.items():
        features = encoder.layer_network([layer], 32)(pixels)
        torch.testing.assert_close(features, torch.cat(parts, dim=1), atol=1e-4, rtol=1e-4)
        assert encoder.layers()[layer] == features.shape[1]
        both = open_blocks(encoder, [layer]).encode_pixels(pixels)
        expected_both = torch.cat([encoder.encode_pixels(pixels), features], dim=1)
        torch.testing.assert_close(both, expected_both, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_a_second_size_interpolates_as_the_library_does(name, written, opened, picture):
    _, network, _ = written(name)
    encoder = opened(name)
    size = encoder.second_size()
    assert size == 56  # 12/7 of 32 is 54.9; patches have 8 pixels
    pixels = torch.stack([encoder.preprocess(picture(90, 60))])
    pixels = torch.nn.functional.interpolate(pixels, size=(size, size))
    with torch.no_grad():
        if encoder.has_text:
            expected = network.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
        else:
            expected = network(pixels).pooler_output
    features = encoder.layer_network(["final"], size)(pixels)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="multiples of 8 pixels, but not 60"):
        encoder.layer_network(["final"], 60)


@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_inner_layers_run_in_another_backend(name, opened, picture):
    encoder = open_blocks(opened(name), ["inner-mean", f"final@{opened(name).second_size()}"])
    images = [picture(90, 60)]
    converted = with_backend(encoder, "onnxruntime").encode_images(images)
    torch.testing.assert_close(converted, encoder.encode_images(images), atol=1e-4, rtol=1e-4)
