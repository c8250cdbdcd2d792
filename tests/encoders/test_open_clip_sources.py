"""Models of the hub and files of one's own open as what they are; what does not fit is refused in plain words."""

import json
import pickle
import shutil
from unittest.mock import Mock

import open_clip
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file

from clipadapter.encoders import create_encoder
from clipadapter.encoders import open_clip as sources
from clipadapter.encoders import weights as hub
from clipadapter.errors import EncoderUnavailableError, InputError

from ..conftest import CLIP, TINY
from .conftest import weights_writer

FIRST, SECOND = "a" * 40, "b" * 40
REPO = "imageomics/bioclip"


@pytest.fixture
def architecture(monkeypatch):
    """The name of an architecture of open_clip, which is the tiny model here."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", TINY)
    return "ViT-B-32"


@pytest.fixture
def weights(folders, tmp_path):
    """A function that writes the weights of the tiny model, changed or not, into a file."""
    return weights_writer(tmp_path, load_file(folders["tiny"] / "open_clip_model.safetensors"))


# Repositories of the hub


@pytest.mark.parametrize("uri", [f"hf-hub:{REPO}", f"open_clip:hf-hub:{REPO}"])
def test_a_repository_opens_from_the_cache_without_a_request(uri, hub_cache, folders, opened, picture, monkeypatch):
    hub_cache(REPO, folders["tiny"])
    monkeypatch.setattr(hub, "_request", lambda *asked: pytest.fail("no request is needed"))
    encoder = create_encoder(uri)
    assert encoder.info.name == f"hf-hub:{REPO}"
    assert encoder.info.fingerprint == opened("tiny").info.fingerprint
    images = [picture(50, 40)]
    torch.testing.assert_close(encoder.encode_images(images), opened("tiny").encode_images(images))


def test_a_revision_is_opened_and_named(hub_cache, folders, opened, write_model, tmp_path):
    hub_cache(REPO, folders["tiny"])
    hub_cache(REPO, write_model(tmp_path / "other", TINY, CLIP, seed=1), commit=SECOND, is_main=False)
    pinned = create_encoder(f"hf-hub:{REPO}@{SECOND}").info
    assert pinned.name == f"hf-hub:{REPO}@{SECOND}" and pinned.note == ""
    assert pinned.fingerprint != opened("tiny").info.fingerprint
    main = create_encoder(f"hf-hub:{REPO}").info
    assert main.fingerprint == opened("tiny").info.fingerprint
    assert f"hf-hub:{REPO}@{FIRST}" in main.note


@pytest.mark.parametrize("own", [True, False])
def test_the_tokenizer_is_that_of_the_named_repository(own, hub_cache, folders, opened, tmp_path):
    """As in open_clip: not the files of the folder, but those of ``hf_tokenizer_name``."""
    copy = shutil.copytree(folders["SigLIP"], tmp_path / "copy")
    config = json.loads((copy / "open_clip_config.json").read_text())
    name = REPO if own else "timm/ViT-B-16-SigLIP"
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = name
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for file in copy.glob("*token*"):
        file.rename(tokenizer / file.name)
    snapshot = hub_cache(REPO, copy)
    if own:
        shutil.copytree(tokenizer, snapshot, dirs_exist_ok=True)
    else:
        hub_cache(name, tokenizer)
    texts = ["A Photo, of a CAT!", "dog"]
    expected = opened("SigLIP")._tokenizer(texts)
    assert torch.equal(create_encoder(f"hf-hub:{REPO}")._tokenizer(texts), expected)


def test_a_missing_tokenizer_is_named(hub_cache, folders, monkeypatch, tmp_path):
    copy = shutil.copytree(folders["SigLIP"], tmp_path / "copy", ignore=shutil.ignore_patterns("*token*"))
    hub_cache(REPO, copy)
    with pytest.raises(
        EncoderUnavailableError, match="tokenizer is that of the repository timm/ViT-B-16-SigLIP, which"
    ):
        create_encoder(f"hf-hub:{REPO}")


@pytest.mark.parametrize(
    ("repo", "advice"),
    [("ann/clip", "take one of"), ("openai/clip-vit-base-patch32", "say open_clip:ViT-B-32/openai for these weights")],
)
def test_a_repository_without_a_model_of_open_clip_is_refused(repo, advice, hub_cache, monkeypatch):
    monkeypatch.setattr(hub, "hub_answers", lambda repo, name: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Mock(side_effect=EntryNotFoundError("no such file")))
    message = f"{repo} has no open_clip_config.json: {advice}"
    with pytest.raises(EncoderUnavailableError, match=message):
        create_encoder(f"hf-hub:{repo}")


def test_a_configuration_without_preprocessing_names_how_open_clip_opens_the_weights(hub_cache, folders, tmp_path):
    """As apple/DFN2B-CLIP-ViT-B-16, whose configuration also lacks the activation."""
    copy = shutil.copytree(folders["tiny"], tmp_path / "copy")
    (copy / "open_clip_config.json").write_text(json.dumps(TINY))
    hub_cache("apple/DFN2B-CLIP-ViT-B-16", copy)
    with pytest.raises(EncoderUnavailableError, match="'mean' and 'std': say open_clip:ViT-B-16/dfn2b for these"):
        create_encoder("hf-hub:apple/DFN2B-CLIP-ViT-B-16")


def test_a_failed_download_names_the_file(hub_cache, folders, monkeypatch):
    snapshot = hub_cache(REPO, folders["tiny"])
    (snapshot / "open_clip_model.safetensors").unlink()

    def fail(repo, name, revision):
        assert revision == FIRST  # of the configuration, even if the main branch moves meanwhile
        raise OSError("disk full")

    monkeypatch.setattr(hub, "hub_answers", lambda repo, name: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(
        EncoderUnavailableError, match=r"safetensors of imageomics/bioclip can't be downloaded: disk full"
    ):
        create_encoder(f"hf-hub:{REPO}")


@pytest.mark.parametrize("scheme", ["hf-hub:", "open_clip:local-dir:"])
def test_code_of_a_tokenizer_is_never_run(scheme, hub_cache, folders, tmp_path):
    copy = shutil.copytree(folders["SigLIP"], tmp_path / "copy")
    config = json.loads((copy / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["trust_remote_code"] = True
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = REPO
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    (copy / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["harm.Harm", None]}}))
    (copy / "harm.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\nclass Harm: pass\n")
    hub_cache(REPO, copy)
    with pytest.raises(EncoderUnavailableError, match="trust_remote_code.*never"):
        create_encoder(scheme + (REPO if scheme == "hf-hub:" else str(copy)))
    assert not (tmp_path / "harm").exists()


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "cat", "##s", "."]


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


def test_biomedclip_opens_from_the_hubs_cache_with_a_text_tower_of_transformers(hub_cache, tmp_path, picture):
    """Its repository names another one, which has the configuration of BERT and the tokenizer."""
    from open_clip import CustomTextCLIP

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


# Files


def as_in_training(state):
    """A checkpoint of open_clip's training."""
    return {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}


@pytest.mark.parametrize(("name", "change"), [("own.safetensors", dict), ("own.pt", dict), ("e_3.pt", as_in_training)])
def test_a_file_opens_for_a_named_architecture(name, change, weights, architecture, opened):
    path = weights(name, change)
    encoder = create_encoder(f"open_clip:{architecture}:{path}")
    info = encoder.info
    assert info.name == f"open_clip:{architecture}:{path}"
    assert (info.dim, info.licence) == (32, "unknown")
    torch.testing.assert_close(encoder.encode_text(["a cat"]), opened("tiny").encode_text(["a cat"]))
    assert "without QuickGELU" in info.note and "open_clip:ViT-B-32/openai:FILE" in info.note


def test_a_file_of_named_weights_has_their_activation_and_preprocessing(weights, monkeypatch):
    """The same bytes are the same encoder, whether they come by name or from a file."""
    path = weights("copy.safetensors")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32-quickgelu", {**TINY, "quick_gelu": True})
    monkeypatch.setattr(hub.HubSource, "cached", lambda self: path)
    named = create_encoder("open_clip:ViT-B-32/openai").info
    own = create_encoder(f"open_clip:ViT-B-32/openai:{path}").info
    assert own.fingerprint == named.fingerprint
    assert own.name == f"open_clip:ViT-B-32/openai:{path}" and own.note == ""


def test_the_preprocessing_of_a_file_is_that_of_all_weights_of_the_architecture_or_asked_for(tmp_path):
    path = tmp_path / "own.pt"
    path.touch()
    facts = sources.find_file("ViT-B-16-SigLIP2", str(path)).preprocess
    # open_clip 3.3, pretrained.py, _slpcfg
    assert facts == {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    with pytest.raises(InputError, match=r"open_clip:ViT-L-14/openai:.*open_clip:ViT-L-14/laion2b_s32b_b82k:"):
        create_encoder(f"open_clip:ViT-L-14:{path}")
    assert sources.find_file("ViT-L-14/laion2b_s32b_b82k", str(path)).preprocess["mean"] == (0.5, 0.5, 0.5)


def without_last_norm(state):
    return {name: value for name, value in state.items() if not name.startswith("ln_final")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_last_norm, r"another architecture, with arrays 2 missing \(ln_final.weight\)"),
        (
            lambda state: state | {"visual.conv1.weight": torch.zeros(8, 3, 4, 4), "extra": torch.zeros(1)},
            r"1 of another shape \(visual.conv1.weight: 8, 3, 4, 4 in the file, 32, 3, 16, 16 in .*1 unknown \(extra\)",
        ),
        (
            lambda state: state | {"visual.positional_embedding": torch.zeros(10, 32)},
            r"another size: visual.positional_embedding is \(10, 32\) in the file and \(5, 32\) in ViT-B-32",
        ),
    ],
)
def test_weights_of_another_architecture_are_refused_with_what_differs(change, message, weights, architecture):
    with pytest.raises(EncoderUnavailableError, match=message) as error:
        create_encoder(f"open_clip:{architecture}:{weights('own.pt', change)}")
    assert "clipadapter encoders open_clip:*" in str(error.value) and len(str(error.value)) < 600


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


OBJECTS = "Python objects beside tensors, which could run code"


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("own.pt", lambda path: path.write_bytes(pickle.dumps({"weights": Harm(path.with_suffix(".harm"))})), OBJECTS),
        ("own.pt", lambda path: torch.save(torch.nn.Linear(2, 2), path), OBJECTS),
        ("own.pt", lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(path), "TorchScript.*ViT-B-32/openai"),
        ("own.pt", lambda path: torch.save([1, 2], path), "no weights by name, but a list"),
        ("own.pt", lambda path: path.write_text("hello"), "can't be read as weights"),
        ("own.pt", lambda path: path.touch(), "can't be read as weights: it is damaged or empty"),
        ("own.safetensors", lambda path: path.write_text("hello"), "can't be read as weights"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_holds_no_weights_is_refused_and_never_run(name, write, message, tmp_path, architecture):
    write(tmp_path / name)
    with pytest.raises(EncoderUnavailableError, match=message):
        create_encoder(f"open_clip:{architecture}:{tmp_path / name}")
    assert not (tmp_path / "own.harm").exists()
