"""What holds for every test: no network, no user's cache folder, no more threads than help.

And encoders to test: models of open_clip with random weights, written to disk once a session.
"""

import atexit
import gc
import json
import math
import os
import socket
import sys
from pathlib import Path

import pytest

# The client of the hub reads this when it is imported, which happens while tests are collected.
os.environ["HF_HUB_OFFLINE"] = "1"
# OpenMP reads this when it is loaded. With two threads in each of two processes on two cores, threads of scikit-learn
# spin while they wait for one another: t-SNE of 112 rows then takes 20 s of CPU instead of 0.2 s.
os.environ["OMP_NUM_THREADS"] = "1"
# As in the command line: to search a million objects for garbage after each 700 new ones is a part of every test.
gc.set_threshold(20_000)
# What takes long to import is imported in functions: the process that hands out the tests reads this file too.
CLIP = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
SIGLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
LETTERS = ["<pad>", "</s>", "<unk>", *"▁abcdefghijklmnopqrstuvwxyz0123456789"]


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    """Tests have no examples: to look for some takes a second in each process."""
    return [one for one in (yield) if type(one).__name__ != "DoctestModule"]


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect without searching for garbage: 860,000 objects live to the end, and a search of them takes 0.3 s."""
    gc.disable()
    try:
        return (yield)
    finally:
        import hypothesis  # noqa: F401  its plugin does it at the end, where it looks for objects that are frozen then

        gc.freeze()
        gc.enable()


def pytest_configure(config):
    """Files are handed out in their order, not by their number of tests: a few long tests would begin last."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process works alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_unconfigure():
    """What stays frozen to the end of the process is reported as a leak by extension modules such as triton's.

    Pytest searches for garbage after this, for seconds if nothing is frozen.
    """
    atexit.register(gc.unfreeze)


@pytest.fixture(scope="session", autouse=True)
def sealed(tmp_path_factory):
    """No connection leaves the machine, and nothing is written to the user's cache folder."""

    def refuse(self, address):
        raise OSError(f"a test tried to reach {address}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def torch_has_one_thread():
    """Torch has one thread when tests begin, and when those of a file end.

    With two, products of all later tests wait for one another: conv nets take up to ten times as long.
    """
    yield
    if torch := sys.modules.get("torch"):
        number = torch.get_num_threads()
        torch.set_num_threads(1)
        assert number == 1, f"tests of this file left torch with {number} threads"


def save_work(monkeypatch):
    """For commands that are run for what they say: what has tests of its own is not done, or done once.

    Figures are made and written, but not drawn. The speed of a tower is that of one picture.
    """
    mark = lambda metadata: (metadata.get("Software") or metadata["Creator"]).encode()  # noqa: E731
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, file, metadata, **options: file.write(mark(metadata))
    )
    monkeypatch.setattr("clipadapter.features.autotune.FIRST_SAMPLE_SIZE", 1)


@pytest.fixture(scope="session")
def write_model():
    """A function that writes a model of open_clip with random weights into a folder."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    def write(folder: Path, config: dict, preprocess: dict, seed: int = 0) -> Path:
        folder.mkdir(exist_ok=True)
        text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
        (folder / "open_clip_config.json").write_text(text)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
            model = kind(**{key: value for key, value in config.items() if key != "custom_text"})
            model.logit_scale.fill_(math.log(37.5))
            if model.logit_bias is not None:
                model.logit_bias.fill_(-7.25)
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        return folder

    return write


@pytest.fixture(scope="session")
def narrow_clip():
    """Configurations of CLIP's ResNet and ViT by name: their pictures and texts, but few and narrow layers."""
    import open_clip

    configs = {name: open_clip.get_model_config(name) for name in ("RN50", "ViT-B-32")}
    for config, image in (("RN50", {"width": 16, "layers": [1, 1, 1, 1]}), ("ViT-B-32", {"width": 128, "layers": 4})):
        configs[config]["embed_dim"] = 64
        configs[config]["vision_cfg"] |= image
        configs[config]["text_cfg"] |= {"width": 64, "heads": 2, "layers": 2}
    return configs


@pytest.fixture(scope="session")
def folders(tmp_path_factory, write_model, narrow_clip):
    """Folders of models by family: narrow ones of CLIP's ViT and ResNet and of SigLIP, tiny ViT."""
    import open_clip
    from timm.models import register_model

    root = tmp_path_factory.mktemp("models")
    register_model(vit_narrow_patch16_224)
    siglip = open_clip.get_model_config("ViT-B-16-SigLIP")
    siglip["embed_dim"] = 64
    siglip["vision_cfg"]["timm_model_name"] = vit_narrow_patch16_224.__name__
    siglip["text_cfg"] |= {"vocab_size": len(LETTERS), "width": 64, "heads": 2, "layers": 2}
    configs = {
        **{name: (config, CLIP) for name, config in narrow_clip.items()},
        "SigLIP": (siglip, SIGLIP),
        "tiny": (TINY, CLIP),
    }
    written = {name: write_model(root / name, *both) for name, both in configs.items()}
    letter_tokenizer().save_pretrained(written["SigLIP"])
    return written


@pytest.fixture(scope="session")
def opened(folders):
    """A function that opens an encoder by its name here, each once a session."""
    from clipadapter.encoders import create_encoder

    kept = {}

    def get(name: str):
        if name not in kept:
            uri = f"open_clip:local-dir:{folders[name]}" if name in folders else name
            kept[name] = create_encoder(uri)
        return kept[name]

    return get


def vit_narrow_patch16_224(pretrained=False, **kwargs):
    """The ViT of timm that SigLIP has, with three layers of width 64: open_clip names a network and sets no width."""
    from timm.models.vision_transformer import _create_vision_transformer

    size = {"patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 2}
    return _create_vision_transformer("vit_tiny_patch16_224", pretrained=pretrained, **size, **kwargs)


def letter_tokenizer():
    """A tokenizer of letters in the layout of SigLIP's: sentence pieces, then the end mark."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(LETTERS)], unk_id=2))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
