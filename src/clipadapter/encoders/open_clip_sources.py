"""Where models of open_clip come from: pretrained weights by name, a repository of the hub, a folder, or a file.

Code: https://github.com/mlfoundations/open_clip. Where open_clip warns or says nothing, these functions raise an error:
if mean and deviation are not stated, if a file has other position embeddings than the model, and if a configuration
asks for code from the hub. Where open_clip warns that weights were trained with another activation, the activation of
the weights is taken.

torch and open_clip are imported when they are used: `check_variant` needs neither.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.encoders.catalogue import (
    QUICK_GELU,
    check_architecture,
    check_pretrained,
    find_licence,
    find_repository_name,
    read_models,
    suggest,
)
from clipadapter.encoders.hub import cached_file, download_file, hub_answers
from clipadapter.errors import EncoderUnavailableError, InputError, UnknownNameError, brief

if TYPE_CHECKING:
    from torch import nn

REPOSITORY_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>\S+))?")
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILES = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
"""Names of the weights in a repository, best first, as in open_clip."""

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
PREPROCESS_FIELDS = ("mean", "std", "interpolation", "resize_mode")
POSITION_EMBEDDINGS = (
    "visual.positional_embedding",
    "visual.trunk.pos_embed",
    "positional_embedding",
    "text.positional_embedding",
)
"""Weights that open_clip silently scales to another length."""

ADVICE = (
    "Copy a folder with its weights here and say open_clip:local-dir:PATH, make the hub reachable, "
    "or say lite, which needs neither"
)
ARCHITECTURE_ADVICE = "Name the architecture of the weights: 'clipadapter encoders open_clip:*' lists all"


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, before it is loaded.

    Args:
        uri: name of the encoder.
        model: name of the model in open_clip, or ``local-dir:PATH``.
        config: model configuration of open_clip.
        weights: file with the weights; None if open_clip finds it in the folder.
        preprocess: preprocessing that belongs to the weights; None if the folder states it.
        licence: licence of the weights.
        repo: repository of the hub whose snapshot is the folder; None for others.
        commit: commit of the snapshot.
        is_own_file: whether the user named the file with the weights.
        note: what a user should know; may be empty.
    """

    uri: str
    model: str
    config: dict[str, Any]
    weights: str | None
    preprocess: dict[str, Any] | None
    licence: str
    repo: str | None = None
    commit: str | None = None
    is_own_file: bool = False
    note: str = ""


def find_source(variant: str) -> ModelSource:
    """The source that follows the scheme in the URI of an encoder.

    Args:
        variant: ``MODEL/TAG``, ``MODEL:FILE``, ``MODEL/TAG:FILE``, ``local-dir:FOLDER``, ``hf-hub:ORG/MODEL`` or
            ``hf-hub:ORG/MODEL@REVISION``.

    Raises:
        InputError: if it is none of these, or the file does not fit.
        UnknownNameError: if open_clip has no such model, or the model no such weights.
        EncoderUnavailableError: if the weights can't be had.
    """
    check_variant(variant)
    kind, has_path, rest = variant.partition(":")
    if kind == "local-dir":
        return find_folder(rest)
    if kind == "hf-hub":
        return find_repository(rest)
    if has_path:
        return find_file(kind, rest)
    model, _, tag = variant.rpartition("/")
    return find_pretrained(model, tag)


def check_variant(variant: str) -> None:
    """Refuse what `find_source` can't find, as far as names and paths show. Imports neither torch nor open_clip.

    Raises:
        InputError: if the form is none that `find_source` takes.
        UnknownNameError: if open_clip has no such model, or the model no such weights.
        EncoderUnavailableError: if the file or folder is missing.
    """
    kind, has_path, rest = variant.partition(":")
    if kind == "local-dir":
        if not rest or not Path(rest).expanduser().is_dir():
            raise EncoderUnavailableError(f"there is no folder {brief(rest)}: say open_clip:local-dir:FOLDER")
    elif kind == "hf-hub":
        if REPOSITORY_NAME.fullmatch(rest) is None:
            raise InputError(
                f"'hf-hub:{rest}' names no repository of the hub: say hf-hub:ORG/MODEL, such as "
                "hf-hub:imageomics/bioclip, or hf-hub:ORG/MODEL@REVISION"
            )
    elif has_path:
        _check_file(kind, rest)
    elif variant.endswith(WEIGHTS_SUFFIXES):
        raise InputError(
            f"'open_clip:{variant}' names a file but no architecture: say open_clip:MODEL:{variant}, such as "
            f"open_clip:ViT-B-32:{variant}"
        )
    else:
        model, _, tag = variant.rpartition("/")
        if not model or not tag:
            raise InputError(
                f"'open_clip:{variant}' names no weights: say open_clip:MODEL/TAG, such as "
                f"open_clip:{_example(variant)}, open_clip:MODEL:FILE, or open_clip:local-dir:FOLDER"
            )
        check_pretrained(model, tag)


def check_available(variant: str) -> None:
    """Refuse weights of the hub that are not on this machine, if the hub does not answer. Nothing is downloaded.

    Args:
        variant: of which `check_variant` approves.

    Raises:
        EncoderUnavailableError: if so.
    """
    kind, has_path, rest = variant.partition(":")
    if kind == "hf-hub":
        repo, _, revision = rest.partition("@")
        names = [CONFIG_FILE]
    elif has_path:
        return
    else:
        model, _, tag = variant.rpartition("/")
        (repo, names), revision = weights_files(look_up(model, tag)[2]), ""
    if cached_file(repo, names, revision or None) is None and not hub_answers(repo, names[0]):
        raise EncoderUnavailableError(
            f"{names[0]} of {repo} is not on this machine, and the hub does not answer or has no such repository. "
            f"{ADVICE}."
        )


def find_pretrained(model: str, tag: str) -> ModelSource:
    """A pretrained model by its names in open_clip; the weights are downloaded if they are not on this machine.

    Weights that were trained with QuickGELU are opened with it: ``ViT-B-32/openai`` and ``ViT-B-32-quickgelu/openai``
    are one encoder, of the first name.

    Raises:
        UnknownNameError: if open_clip has no such model, or the model no such weights.
        EncoderUnavailableError: if the weights are not on this machine and can't be downloaded.
    """
    model, tag, facts, config = look_up(model, tag)
    uri = f"open_clip:{model.removesuffix(QUICK_GELU)}/{tag}"
    repo, names = weights_files(facts)
    path = cached_file(repo, names) or _download(uri, facts)
    return ModelSource(uri, model, config, path, facts, find_licence(repo))


def find_folder(path: str) -> ModelSource:
    """A model from a folder in the layout of open_clip: ``open_clip_config.json`` and the weights.

    Raises:
        EncoderUnavailableError: if the folder or one of the files is missing or can't be used.
    """
    folder = Path(path).expanduser().resolve()
    config = _read_config(folder / CONFIG_FILE, str(folder))
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise EncoderUnavailableError(f"{folder} has no weights: put an open_clip_model.safetensors into it")
    return ModelSource(f"open_clip:local-dir:{folder}", f"local-dir:{folder}", config, None, None, "unknown")


def find_repository(name: str) -> ModelSource:
    """A model from a repository of the Hugging Face hub that has an ``open_clip_config.json``.

    What is in the hub's cache on this machine is used without a request. Everything else is downloaded.

    Args:
        name: ``ORG/MODEL`` or ``ORG/MODEL@REVISION``; a revision is a branch, a tag or a commit.

    Raises:
        EncoderUnavailableError: if the repository can't be reached, or has no model of open_clip.
    """
    parts = REPOSITORY_NAME.fullmatch(name)
    assert parts is not None  # `check_variant` saw to it
    repo, revision = parts["repo"], parts["revision"]
    uri = f"hf-hub:{name}"
    config_path = Path(_hub_file(uri, repo, [CONFIG_FILE], revision))
    commit = config_path.parent.name
    config = _read_config(config_path, uri, _other_name(repo))
    _hub_file(uri, repo, WEIGHTS_FILES, commit)
    return ModelSource(
        uri,
        f"local-dir:{config_path.parent}",
        config,
        weights=None,
        preprocess=None,
        licence=find_licence(repo),
        repo=repo,
        commit=commit,
        note=""
        if revision
        else f"commit {commit}; hf-hub:{repo}@{commit} opens this one even after a change on the hub",
    )


def find_file(model: str, path: str) -> ModelSource:
    """Weights from a file of one's own, for an architecture of open_clip.

    Args:
        model: name of the architecture, or ``MODEL/TAG`` for weights that were fine-tuned from those of this name:
            then preprocessing and activation are theirs.
        path: safetensors, or a file of ``torch.save`` that holds tensors only.

    Raises:
        UnknownNameError: if open_clip has no such architecture, or the model no such weights.
        InputError: if the file is no file of weights, or the preprocessing is not known.
    """
    import open_clip

    file = Path(path).expanduser().resolve()
    name, _, tag = model.partition("/")
    if tag:
        name, tag, facts, config = look_up(name, tag)
        uri = f"open_clip:{name.removesuffix(QUICK_GELU)}/{tag}:{file}"
    else:
        config = open_clip.get_model_config(name)
        if config is None:
            raise UnknownNameError(f"open_clip has no architecture '{name}'.{suggest(name, open_clip.list_models())}")
        uri, facts = f"open_clip:{name}:{file}", _preprocessing_of(name, path)
    note = ""
    if not tag and not config.get("quick_gelu") and open_clip.get_model_config(name + QUICK_GELU):
        note = (
            f"opened without QuickGELU; if the weights were fine-tuned from OpenAI's, say open_clip:{name}/openai:FILE"
        )
    return ModelSource(uri, name, config, str(file), facts, "unknown", is_own_file=True, note=note)


def check_position_embeddings(shapes: dict[str, tuple[int, ...]], source: ModelSource, network: nn.Module) -> None:
    """Refuse weights for pictures or texts of another size, whose position embeddings open_clip silently scales.

    Args:
        shapes: of the weights in the file, from `read_shapes`.
        source: where the weights come from.
        network: the model that they were loaded into.

    Raises:
        EncoderUnavailableError: if so.
    """
    for name, value in network.state_dict().items():
        if name in POSITION_EMBEDDINGS and shapes.get(name, value.shape) != tuple(value.shape):
            raise EncoderUnavailableError(
                f"the weights of {source.uri} are for pictures or texts of another size: {name} is {shapes[name]} in "
                f"the file and {tuple(value.shape)} in {source.model}. {ARCHITECTURE_ADVICE}"
            )


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays in a file of weights.

    Raises:
        EncoderUnavailableError: if the file is damaged, or holds anything but tensors, which could run code.
    """
    import torch

    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as opened:
                return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        content = torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # the classes depend on the format and on the version of torch
        raise EncoderUnavailableError(f"{file} can't be read as weights: {explain_load_error(error)}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise EncoderUnavailableError(
            f"{file} has no weights by name, but a {type(content).__name__}: save model.state_dict() into it"
        )
    return {
        str(name).removeprefix("module."): tuple(value.shape)
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }


def explain_load_error(error: Exception) -> str:
    """What is wrong with a file of weights, in one sentence, from an error of torch, safetensors or open_clip."""
    text = str(error)
    if type(error).__name__ == "UnpicklingError":
        return "it holds Python objects beside tensors, which could run code. Save model.state_dict() as safetensors"
    if "TorchScript" in text:
        return "it is a TorchScript archive, which holds code. For OpenAI's weights say open_clip:ViT-B-32/openai"
    if "loading state_dict" not in text:
        return text.strip().partition("\n")[0].rstrip(".") or f"it is damaged or empty ({type(error).__name__})"
    differing = re.findall(r"size mismatch for (\S+): .*?Size\(\[(.*?)\]\) from .*?Size\(\[(.*?)\]\)", text)
    parts = [
        f"{len(differing)} of another shape ({name}: {theirs} in the file, {ours} in the model)"
        for name, theirs, ours in differing[:1]
    ]
    for kind, meaning in (("Missing", "missing"), ("Unexpected", "unknown")):
        listed = re.search(rf"{kind} key\(s\) in state_dict: (.*?)\. *(?:\n|$)", text, re.DOTALL)
        names = re.findall(r'"(.*?)"', listed[1]) if listed else []
        parts += [f"{len(names)} {meaning} ({names[0]})"] if names else []
    return f"these are weights of another architecture, with arrays {', '.join(parts)}"


def is_downloaded(model: str, tag: str) -> bool:
    """Whether the weights of this name are on this machine; makes no request.

    Raises:
        UnknownNameError: if open_clip has no such model, or the model no such weights.
    """
    return cached_file(*weights_files(look_up(model, tag)[2])) is not None


def describe_models() -> dict[str, dict[str, Any]]:
    """Facts about the architectures of open_clip, for `clipadapter.encoders.catalogue`: see `KnownModel` there.

    No weights are needed: parameters are counted in networks without storage. For text towers of the library
    transformers, whose configuration is on the hub, they are not counted.
    """
    import open_clip

    described = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        text = config["text_cfg"]
        size = config["vision_cfg"].get("image_size", 224)
        tags = open_clip.list_pretrained_tags_by_model(name)
        described[name] = {
            "dim": int(config["embed_dim"]),
            "image_size": int(size if isinstance(size, int) else size[0]),
            "parameters": None if "hf_model_name" in text else count_parameters(name),
            "tokens": int(text.get("context_length", 77)),
            "cleaning": _cleaning(text),
            "tags": {tag: weights_files(open_clip.get_pretrained_cfg(name, tag))[0] for tag in tags},
        }
    return described


def count_parameters(model: str) -> int:
    """Number of parameters of an architecture of open_clip, both towers."""
    import open_clip
    import torch

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = open_clip.create_model(model, load_weights=False, device="meta")
    return sum(parameter.numel() for parameter in network.parameters())


def _cleaning(text_config: dict[str, Any]) -> str:
    """What happens to a text before its tokens are looked up; empty if the tokenizer of the library decides."""
    default = "" if text_config.get("hf_tokenizer_name") else "lower"
    return str((text_config.get("tokenizer_kwargs") or {}).get("clean", default))


def look_up(model: str, tag: str) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """Model and tag in open_clip's spelling, its configuration of the weights, and that of the model.

    The model is the form of the architecture that has the activation of the weights.

    Raises:
        UnknownNameError: if open_clip has no such model, or the model no such weights.
    """
    check_pretrained(model, tag)
    import open_clip

    model = model.replace("/", "-").removesuffix(QUICK_GELU)
    facts = open_clip.get_pretrained_cfg(model, tag)
    if not facts:
        tags = open_clip.list_pretrained_tags_by_model(model)
        models = sorted({name for name, _ in open_clip.list_pretrained()})
        raise UnknownNameError(
            f"'{model}' has no weights '{tag}'.{suggest(tag, tags)}"
            if tags
            else f"open_clip has no pretrained model '{model}'.{suggest(model, models)}"
        )
    if facts.get("quick_gelu"):
        model += QUICK_GELU
    return model, tag.lower().replace("-", "_"), facts, open_clip.get_model_config(model)


def weights_files(facts: dict[str, Any]) -> tuple[str, list[str]]:
    """Repository on the hub and possible file names of its weights, safetensors first as in open_clip."""
    repo, _, name = facts["hf_hub"].rpartition("/")
    if not name:
        return repo, WEIGHTS_FILES
    return repo, list(dict.fromkeys([f"{name.rpartition('.')[0]}.safetensors", name]))


def _check_file(model: str, path: str) -> None:
    file = Path(path).expanduser()
    if file.is_dir():
        raise InputError(f"{brief(path)} is a folder, not a file of weights: say open_clip:local-dir:{path}")
    if not path or not file.is_file():
        raise EncoderUnavailableError(f"there is no file {brief(path)}: say open_clip:{model}:FILE")
    if file.suffix not in WEIGHTS_SUFFIXES:
        raise InputError(f"{file.name} is no file of weights: its name must end in {', '.join(WEIGHTS_SUFFIXES)}")
    name, _, tag = model.partition("/")
    if tag:
        check_pretrained(name, tag)
    else:
        check_architecture(name)


def _example(model: str) -> str:
    """The first pretrained weights of a model; of ViT-B-32 if there is no such model."""
    facts = read_models().get(model.strip("/").removesuffix(QUICK_GELU))
    return f"{model.strip('/')}/{next(iter(facts.tags))}" if facts and facts.tags else "ViT-B-32/laion2b_s34b_b79k"


def _download(uri: str, facts: dict[str, Any]) -> str:
    """Download the weights from the hub; returns their path."""
    import open_clip

    repo, names = weights_files(facts)
    if not hub_answers(repo, names[0]):
        raise EncoderUnavailableError(
            f"the weights of {uri} are not on this machine and the hub does not answer. {ADVICE}."
        )
    try:
        return open_clip.download_pretrained(facts)
    except OSError as error:
        raise EncoderUnavailableError(f"the weights of {uri} can't be downloaded: {error}. {ADVICE}.") from error


def _hub_file(uri: str, repo: str, names: list[str], revision: str | None) -> str:
    """Path of the first of these files that a repository has, downloaded if it is not on this machine."""
    path = cached_file(repo, names, revision)
    if path is not None:
        return path
    if not hub_answers(repo, names[0]):
        raise EncoderUnavailableError(
            f"{names[0]} of {uri} is not in the hub's cache on this machine, and the hub does not answer or has no "
            f"such repository: {_other_name(repo, 'check the name')}. {ADVICE}."
        )
    for name in names:
        try:
            path = download_file(repo, name, revision)
        except Exception as error:  # the class depends on the version of huggingface_hub
            raise EncoderUnavailableError(f"{name} of {uri} can't be downloaded: {error}. {ADVICE}.") from error
        if path is not None:
            return path
    raise EncoderUnavailableError(
        f"the repository {repo} has no {' or '.join(names)}, so it is no model of open_clip: "
        + _other_name(repo, f"take one of 'clipadapter encoders', or say hf:{repo} for a model of transformers")
    )


def _other_name(repo: str, otherwise: str = "") -> str:
    """How open_clip opens the weights of a repository, as advice; if they are not known to be there, another advice."""
    name = find_repository_name(repo)
    return f"say {name} for these weights" if name else otherwise


def _read_config(path: Path, place: str, advice: str = "") -> dict[str, Any]:
    """The configuration of the model in an ``open_clip_config.json``, which must also state the preprocessing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderUnavailableError(f"{place} needs a readable {CONFIG_FILE}: {error}") from error
    facts = content.get("preprocess_cfg") if isinstance(content, dict) else None
    config = content.get("model_cfg") if isinstance(content, dict) else None
    if not isinstance(facts, dict) or not {"mean", "std"} <= set(facts) or not isinstance(config, dict):
        # open_clip would silently use the mean and deviation of another model.
        raise EncoderUnavailableError(
            f"{CONFIG_FILE} of {place} must have 'model_cfg', and 'preprocess_cfg' with 'mean' and 'std'"
            + (f": {advice}" if advice else "")
        )
    options = dict(config.get("text_cfg") or {}).get("tokenizer_kwargs") or {}
    if "trust_remote_code" in options:
        raise EncoderUnavailableError(
            f"{CONFIG_FILE} of {place} asks to run code of the tokenizer (trust_remote_code), which is never done: "
            "remove it from tokenizer_kwargs in a copy of the folder"
        )
    return config


def _preprocessing_of(model: str, path: str) -> dict[str, Any]:
    """The preprocessing of all pretrained weights of an architecture; CLIP's if it has none."""
    import open_clip

    name = model.removesuffix(QUICK_GELU)
    tags = {tag: open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    ways = {tag: {field: facts[field] for field in PREPROCESS_FIELDS} for tag, facts in tags.items()}
    first = next(iter(ways), None)
    if first is None:
        return {}
    others = [tag for tag, way in ways.items() if way != ways[first]]
    if others:
        raise InputError(
            f"the weights of {name} do not all take pictures prepared in the same way, so say what yours were "
            f"fine-tuned from: open_clip:{name}/{first}:{path}, open_clip:{name}/{others[0]}:{path} or another name; "
            f"'clipadapter encoders open_clip:{name}/*' lists them"
        )
    return ways[first]
