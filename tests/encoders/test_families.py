"""Each family of open_clip's models gets its own pixels and its own tokens.

The networks are random and narrow. Mean, deviation, interpolation and way of resizing are written here as the makers
state them; the pixels are those that open_clip's `image_transform` makes with these values. The real vocabularies of
SigLIP, SigLIP 2, BERT and XLM-V are on the hub; in their place stand small ones with the same rules.
"""

import json
import shutil

import open_clip
import pytest
import torch

from clipadapter.encoders import create_encoder, hub
from clipadapter.errors import EncoderUnavailableError

from ..conftest import CLIP, letter_tokenizer

OPENAI = (tuple(CLIP["mean"]), tuple(CLIP["std"]))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
FAMILIES = {
    "ViT-B-32/openai": (224, OPENAI, "bicubic", "shortest"),
    "ViT-L-14/laion2b_s32b_b82k": (224, HALF, "bicubic", "shortest"),
    "ViT-B-16-SigLIP/webli": (224, HALF, "bicubic", "squash"),
    "ViT-B-16-SigLIP2/webli": (224, HALF, "bicubic", "squash"),
    "ViT-L-14-CLIPA/datacomp1b": (224, IMAGENET, "bilinear", "squash"),
    "MobileCLIP2-S0/dfndr2b": (256, PLAIN, "bilinear", "shortest"),
    "MobileCLIP2-S4/dfndr2b": (256, OPENAI, "bilinear", "shortest"),
    "PE-Core-T-16-384/meta": (384, HALF, "bilinear", "squash"),
    "ViT-H-14-378/dfn5b": (378, OPENAI, "bicubic", "squash"),
    "ViT-H-14-worldwide/metaclip2_worldwide": (224, OPENAI, "bicubic", "shortest"),
}
"""Side, mean and deviation, interpolation and way of resizing."""

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "cat", "##s", "."]
START, END = 49406, 49407


@pytest.fixture
def open_family(hub_cache, write_model, tmp_path, monkeypatch):
    """A function that opens ``MODEL/TAG`` with a narrow random network, and a small vocabulary if it needs one."""

    def open_narrow(name):
        model, _, tag = name.rpartition("/")
        facts = open_clip.get_pretrained_cfg(model, tag)
        model += "-quickgelu" if facts.get("quick_gelu") else ""
        config = narrow(open_clip.get_model_config(model))
        tokenizer = config["text_cfg"].get("hf_tokenizer_name")
        if tokenizer:
            kind = word_tokenizer() if "bert" in tokenizer else letter_tokenizer()
            kind.save_pretrained(hub_cache(tokenizer))
            config["text_cfg"]["vocab_size"] = len(kind)
        folder = write_model(tmp_path / "model", config, CLIP)
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, model, config)
        weights = str(folder / "open_clip_model.safetensors")
        monkeypatch.setattr(hub, "cached_file", lambda repo, names, revision=None: weights)
        return create_encoder(f"open_clip:{name}")

    return open_narrow


def narrow(config):
    """The same pictures and texts, for towers of one narrow layer."""
    size = config["vision_cfg"]["image_size"]
    kept = ("context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_kwargs", "no_causal_mask", "pool_type")
    text = {key: config["text_cfg"][key] for key in (*kept, "eos_id") if key in config["text_cfg"]}
    return {
        "embed_dim": 16,
        "vision_cfg": {"image_size": size, "layers": 1, "width": 16, "patch_size": size // 2, "head_width": 16},
        "text_cfg": text | {"width": 16, "heads": 1, "layers": 1},
        **{key: config[key] for key in ("quick_gelu", "custom_text") if key in config},
    }


def word_tokenizer():
    """A tokenizer of words as BERT's: lower case, parts of words, marks at both ends."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def clip_tokens(tokenize, length):
    """Tokens of CLIP's vocabulary: a, photo, of, a, cat and the full stop, without case."""
    expected = [START, 320, 1125, 539, 320, 2368, 269, END]
    rows = tokenize(["A Photo of a CAT.", "a photo of a cat.", "cat " * 200])
    assert rows[0].tolist() == rows[1].tolist() == expected + [0] * (length - len(expected))
    assert rows[2].tolist() == [START, *[2368] * (length - 2), END]


def siglip_tokens(tokenize, length):
    """Neither case nor punctuation; the end mark is also at the end of a text that is too long."""
    letters = letter_tokenizer()
    rows = tokenize(["A_Cat, or: dog!", "a cat or dog", "a" * 200])
    expected = [*letters.convert_tokens_to_ids(list("▁a▁cat▁or▁dog")), letters.eos_token_id]
    expected += [letters.pad_token_id] * (length - len(expected))
    assert rows[0].tolist() == rows[1].tolist() == expected
    assert rows[2, -1] == letters.eos_token_id


def clipa_tokens(tokenize, length):
    """BERT's, whose last mark becomes 0."""
    assert tokenize(["A photo of CATS."]).tolist() == [[2, 5, 6, 7, 8, 9, 10] + [0] * (length - 7)]


def worldwide_tokens(tokenize, length):
    """Case is kept: the small vocabulary has no capital letters."""
    letters = letter_tokenizer()
    small, large = tokenize(["cat", "Cat"])
    assert len(small) == length
    assert letters.unk_token_id not in small and letters.unk_token_id in large


TOKENS = {
    "ViT-B-32/openai": (clip_tokens, 77),
    "MobileCLIP2-S0/dfndr2b": (clip_tokens, 77),
    "PE-Core-T-16-384/meta": (clip_tokens, 32),
    "ViT-B-16-SigLIP/webli": (siglip_tokens, 64),
    "ViT-B-16-SigLIP2/webli": (siglip_tokens, 64),
    "ViT-L-14-CLIPA/datacomp1b": (clipa_tokens, 32),
    "ViT-H-14-worldwide/metaclip2_worldwide": (worldwide_tokens, 77),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_and_tokens_are_those_of_the_family(name, open_family, picture):
    size, (mean, std), interpolation, resize = FAMILIES[name]
    encoder = open_family(name)
    transform = open_clip.image_transform(
        size, is_train=False, mean=mean, std=std, resize_mode=resize, interpolation=interpolation
    )
    spec = encoder.tower().pixels
    for shape in ((301, 200), (90, 400), (size, size)):
        expected = transform(picture(*shape))
        torch.testing.assert_close(encoder.preprocess(picture(*shape)), expected, rtol=0, atol=0)
        squares = spec.to_square(picture(*shape))[None]  # what backends and exported models see
        torch.testing.assert_close(torch.from_numpy(spec.normalize(squares))[0], expected, rtol=0, atol=1e-6)
    if name in TOKENS:
        check, length = TOKENS[name]
        check(encoder._tokenizer, length)


def test_biomedclip_opens_from_the_hubs_cache_with_a_text_tower_of_transformers(hub_cache, tmp_path, picture):
    """Its repository names another one, which has the configuration of BERT and the tokenizer."""
    from open_clip import CustomTextCLIP
    from safetensors.torch import save_file

    bert = {"model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1}
    bert |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 256, "pad_token_id": 0}
    language = hub_cache("microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract")
    (language / "config.json").write_text(json.dumps(bert))
    word_tokenizer().save_pretrained(language)
    name = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    text = {"hf_model_name": name, "hf_tokenizer_name": name, "hf_proj_type": "mlp", "context_length": 256}
    text |= {"hf_pooler_type": "cls_last_hidden_state_pooler"}
    vision = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 16}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    model = CustomTextCLIP(**config | {"text_cfg": text | {"hf_model_pretrained": False}}).eval()
    repo = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
    snapshot = hub_cache(repo)
    (snapshot / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": CLIP}))
    save_file(model.state_dict(), snapshot / "open_clip_model.safetensors")

    encoder = create_encoder(f"hf-hub:{repo}")
    assert (encoder.info.dim, encoder.info.licence) == (8, "MIT")
    tokens = encoder._tokenizer(["A photo of cats."])
    assert tokens.tolist() == [[2, 5, 6, 7, 8, 9, 10, 3] + [0] * 248]
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_text(["A photo of cats."]), model.encode_text(tokens))
        pixels = encoder.preprocess(picture(40, 50))
        torch.testing.assert_close(encoder.encode_images([picture(40, 50)]), model.encode_image(pixels[None]))

    shutil.rmtree(language.parents[1])
    with pytest.raises(EncoderUnavailableError, match=f"{name}, which the text tower of hf-hub:{repo} needs"):
        create_encoder(f"hf-hub:{repo}")
