"""Finding, loading and describing models of open_clip; imports open_clip only when asked to."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipadapter.encoders._hub import cached_file, hub_answers
from clipadapter.errors import EncoderUnavailableError, InputError, UnknownNameError

CODE_VERSION = 1
"""Raised whenever the same weights would give another feature."""

TOKENIZER_PROBES = (
    "a photo of a cat.",
    "A Photo, of the ÜBER-cat's hat!",
    "  two   spaces & <p>marks</p> ",
    "one two three four five six seven eight nine ten " * 12,
)
"""Texts whose tokens tell any two tokenizers apart: case, accents, marks, spaces, cutting."""

INSTEAD = (
    "Copy a folder with its weights here and say open_clip:local-dir:PATH, make the hub reachable, "
    "or say lite, which needs neither"
)


@dataclass(frozen=True)
class Source:
    """Where a model comes from, before it is loaded.

    Args:
        uri: the encoder's name.
        model: what open_clip calls it: a name of its own, or ``local-dir:PATH``.
        config: open_clip's model configuration.
        weights: file with the weights; None if open_clip finds it in the folder.
        preprocess: facts about the pictures that belong to the weights; None if the folder tells them.
        licence: of the weights.
    """

    uri: str
    model: str
    config: dict[str, Any]
    weights: str | None
    preprocess: dict[str, Any] | None
    licence: str


def find_tag(model: str, tag: str) -> Source:
    """A pretrained model by open_clip's names; the weights are fetched if they are not on this machine.

    Raises:
        UnknownNameError: if open_clip has no such model, or the model no such weights.
        InputError: if the weights were trained with another activation than the model has.
        EncoderUnavailableError: if the weights are not on this machine and the hub does not give them.
    """
    model, tag, facts, config = _pretrained(model, tag)
    uri = f"open_clip:{model}/{tag}"
    if facts.get("quick_gelu") and not config.get("quick_gelu"):
        raise InputError(
            f"the weights '{tag}' were trained with the QuickGELU activation, which '{model}' does not have, "
            f"and would silently be worse: say open_clip:{model}-quickgelu/{tag}"
        )
    repo, names = _files(facts)
    path = cached_file(repo, names) or _fetch(uri, facts)
    return Source(uri, model, config, path, facts, licence(tag, repo))


def find_folder(path: str) -> Source:
    """A model from a folder in open_clip's layout: ``open_clip_config.json`` beside the weights.

    Raises:
        EncoderUnavailableError: if the folder or one of the files is missing or can't be used.
    """
    folder = Path(path).expanduser().resolve()
    place = folder / "open_clip_config.json"
    if not path or not folder.is_dir():
        raise EncoderUnavailableError(f"there is no folder {path!r}: say open_clip:local-dir:PATH")
    try:
        config = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderUnavailableError(f"{folder} needs a readable open_clip_config.json: {error}") from error
    facts = config.get("preprocess_cfg") if isinstance(config, dict) else None
    if not isinstance(facts, dict) or not {"mean", "std"} <= set(facts) or "model_cfg" not in config:
        # open_clip itself would fall back on the mean and deviation of another model, without a word.
        raise EncoderUnavailableError(f"{place} must have 'model_cfg', and 'preprocess_cfg' with 'mean' and 'std'")
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise EncoderUnavailableError(f"{folder} has no weights: put an open_clip_model.safetensors into it")
    return Source(f"open_clip:local-dir:{folder}", f"local-dir:{folder}", config["model_cfg"], None, None, "unknown")


def build(source: Source) -> tuple[Any, Any]:
    """The model in fp32 on the CPU, ready to use, and its tokenizer.

    Raises:
        InputError: if the model takes pictures that are not square.
        EncoderUnavailableError: if the weights or the tokenizer can't be loaded.
    """
    import open_clip

    size = source.config.get("vision_cfg", {}).get("image_size", 224)
    if isinstance(size, Sequence) and len(set(size)) > 1:
        raise InputError(f"{source.uri} takes pictures of {size[0]} x {size[1]}; only square ones are supported")
    try:
        with torch.random.fork_rng(devices=[]):  # a new network draws from the global stream
            model = open_clip.create_model(
                source.model,
                pretrained=source.weights,
                force_preprocess_cfg=source.preprocess,
                require_pretrained=True,
                weights_only=True,
            )
        tokenizer = open_clip.get_tokenizer(source.model)
    except Exception as error:  # whatever open_clip and the loaders under it raise
        raise EncoderUnavailableError(f"{source.uri} can't be loaded: {error}. {INSTEAD}.") from error
    words = source.config.get("text_cfg", {}).get("vocab_size", 49408)
    if isinstance(tokenizer, open_clip.SimpleTokenizer) and tokenizer.vocab_size != words:
        raise EncoderUnavailableError(
            f"{source.uri} has {words} tokens but names no tokenizer, and CLIP's has {tokenizer.vocab_size}: "
            "name one in text_cfg.hf_tokenizer_name and put its files into the folder"
        )
    return model.eval().requires_grad_(False), tokenizer


def fingerprint(
    model: nn.Module,
    tokenizer: Callable[[list[str]], Tensor],
    config: dict[str, Any],
    preprocess: dict[str, Any],
) -> str:
    """Hex digest of the weights' bytes, the architecture, the preprocessing and what the tokenizer does.

    SHA-256, since processors have it built in: 0.5 s for ViT-B/32, half of what BLAKE2 takes.
    """
    total = hashlib.sha256(json.dumps([CODE_VERSION, config, preprocess], sort_keys=True).encode())
    arrays: dict[str, Tensor] = {"tokens": tokenizer(list(TOKENIZER_PROBES)), **model.state_dict()}
    for name in sorted(arrays):
        array = arrays[name].detach().cpu().contiguous()
        total.update(f"{name} {tuple(array.shape)} {array.dtype}".encode())
        total.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:32]


def weights_on_disk(model: str, tag: str) -> bool:
    """Whether open_clip's weights of this name are on this machine; asks no network.

    Raises:
        UnknownNameError: if open_clip has no such model, or the model no such weights.
    """
    return cached_file(*_files(_pretrained(model, tag)[2])) is not None


def list_tags() -> list[tuple[str, str, int, str]]:
    """Model, tag, width and licence of all pretrained models that fit their weights' activation."""
    import open_clip

    found = []
    for model, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(model)
        facts = open_clip.get_pretrained_cfg(model, tag)
        if not facts.get("quick_gelu") or config.get("quick_gelu"):
            found.append((model, tag, int(config["embed_dim"]), licence(tag, _files(facts)[0])))
    return found


def licence(tag: str, repo: str) -> str:
    """Licence of weights as their makers state it, or "unknown".

    >>> licence("laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    'MIT'
    """
    owner = repo.split("/")[0]
    if tag == "openai" or owner == "laion" or (owner == "timm" and tag.startswith("laion")):
        return "MIT"
    if tag == "webli":
        return "Apache-2.0"
    if tag.startswith("metaclip"):
        return "CC-BY-NC-4.0"
    if owner == "apple" or "MobileCLIP" in repo:
        return "apple-amlr"
    return "unknown"


def _pretrained(model: str, tag: str) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """Names as open_clip writes them, what is known of the weights, and the model's configuration."""
    import open_clip

    model = model.replace("/", "-")
    known = sorted({name for name, _ in open_clip.list_pretrained()})
    if model not in known:
        raise _unknown("open_clip has no pretrained model", model, known, "open_clip:*")
    tags = open_clip.list_pretrained_tags_by_model(model)
    facts = open_clip.get_pretrained_cfg(model, tag)
    if not facts:
        raise _unknown(f"'{model}' has no weights", tag, tags, f"open_clip:{model}/*")
    return model, tag.lower().replace("-", "_"), facts, open_clip.get_model_config(model)


def _unknown(sentence: str, name: str, known: list[str], pattern: str) -> UnknownNameError:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UnknownNameError(f"{sentence} '{name}'.{hint} See all: clipadapter encoders '{pattern}'")


def _files(facts: dict[str, Any]) -> tuple[str, list[str]]:
    """Repository on the hub and the names its weights may have, the safe format first as in open_clip."""
    repo, _, name = facts["hf_hub"].rpartition("/")
    if not name:
        return repo, ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    return repo, list(dict.fromkeys([f"{name.rpartition('.')[0]}.safetensors", name]))


def _fetch(uri: str, facts: dict[str, Any]) -> str:
    """Path of the weights, fetched from the hub."""
    import open_clip

    repo, names = _files(facts)
    if not hub_answers(repo, names[0]):
        raise EncoderUnavailableError(
            f"the weights of {uri} are not on this machine and the hub does not answer. {INSTEAD}."
        )
    try:
        return open_clip.download_pretrained(facts)
    except OSError as error:
        raise EncoderUnavailableError(f"the weights of {uri} can't be fetched: {error}. {INSTEAD}.") from error
