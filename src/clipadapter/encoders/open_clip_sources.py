"""Where models of open_clip come from: pretrained weights by name, a repository of the hub, a folder, or a file.

Code: https://github.com/mlfoundations/open_clip. Where open_clip warns or says nothing, these functions raise an error:
if mean and deviation are not stated, if a file has other position embeddings than the model, and if a configuration
asks for code from the hub. Where open_clip warns that weights were trained with another activation, the activation of
the weights is taken.

torch and open_clip are imported when they are used: `check_variant` needs neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.encoders.catalogue import (
    QUICK_GELU,
    check_architecture,
    check_pretrained,
    find_licence,
    read_models,
    suggest,
    unknown_pretrained,
)
from clipadapter.encoders.hub import REPOSITORY_NAME, HubSource
from clipadapter.encoders.weights import WEIGHTS_SUFFIXES, check_file, check_folder, check_has_weights, read_config
from clipadapter.errors import EncoderUnavailableError, InputError, UnknownNameError

if TYPE_CHECKING:
    from torch import nn

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILES = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
"""Names of the weights in a repository, best first, as in open_clip."""

PREPROCESS_FIELDS = ("mean", "std", "interpolation", "resize_mode")
POSITION_EMBEDDINGS = (
    "visual.positional_embedding",
    "visual.trunk.pos_embed",
    "positional_embedding",
    "text.positional_embedding",
)
"""Weights that open_clip silently scales to another length."""

ARCHITECTURE_ADVICE = "Name the architecture of the weights: 'clipadapter encoders open_clip:*' lists all"


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, before it is loaded."""

    uri: str  # name of the encoder
    model: str  # name of the model in open_clip, or local-dir:PATH
    config: dict[str, Any]  # model configuration of open_clip
    weights: str | None  # file with the weights; None if open_clip finds it in the folder
    preprocess: dict[str, Any] | None  # preprocessing that belongs to the weights; None if the folder states it
    licence: str = "unknown"
    repo: str | None = None  # repository of the hub whose snapshot is the folder
    commit: str | None = None  # of the snapshot
    is_own_file: bool = False  # whether the user named the file with the weights
    note: str = ""  # what a user should know


def check_variant(variant: str) -> None:
    """Refuse what `find_source` can't find, as far as names and paths show. Imports neither torch nor open_clip."""
    kind, has_path, rest = variant.partition(":")
    model, _, tag = (kind if has_path else variant).rpartition("/")
    if kind == "local-dir":
        check_folder(rest, "open_clip:local-dir:FOLDER")
    elif kind == "hf-hub":
        if REPOSITORY_NAME.fullmatch(rest) is None:
            raise InputError(
                f"'hf-hub:{rest}' names no repository of the hub: say hf-hub:ORG/MODEL, such as "
                "hf-hub:imageomics/bioclip, or hf-hub:ORG/MODEL@REVISION"
            )
    elif has_path:
        check_file(rest, f"open_clip:{kind}:FILE", "open_clip:local-dir")
        check_pretrained(model, tag) if model else check_architecture(tag)
    elif variant.endswith(WEIGHTS_SUFFIXES):
        raise InputError(
            f"'open_clip:{variant}' names a file but no architecture: say open_clip:MODEL:{variant}, such as "
            f"open_clip:ViT-B-32:{variant}"
        )
    elif not model or not tag:
        raise InputError(
            f"'open_clip:{variant}' names no weights: say open_clip:MODEL/TAG, such as "
            f"open_clip:{_example(variant)}, open_clip:MODEL:FILE, or open_clip:local-dir:FOLDER"
        )
    else:
        check_pretrained(model, tag)


def hub_source(variant: str) -> HubSource | None:
    """The file of the hub that a variant needs first; None if it names a file or folder."""
    kind, has_path, rest = variant.partition(":")
    if kind == "hf-hub":
        repo, _, revision = rest.partition("@")
        return HubSource(variant, repo, [CONFIG_FILE], revision or None)
    if has_path:
        return None
    model, tag, facts, _ = look_up(*variant.rpartition("/")[::2])
    return HubSource(_name(model, tag), *weights_files(facts))


def find_source(variant: str) -> ModelSource:
    """The source of ``MODEL/TAG``, ``MODEL:FILE``, ``MODEL/TAG:FILE``, ``local-dir:FOLDER`` or ``hf-hub:ORG/MODEL``.

    Files of the hub are downloaded if need be; a repository may be followed by ``@REVISION``.
    """
    check_variant(variant)
    kind, has_path, rest = variant.partition(":")
    if kind == "local-dir":
        return _find_folder(rest)
    if kind == "hf-hub":
        return _find_repository(variant)
    return find_file(kind, rest) if has_path else find_pretrained(*variant.rpartition("/")[::2])


def find_pretrained(model: str, tag: str) -> ModelSource:
    """A pretrained model by its names in open_clip.

    Weights that were trained with QuickGELU are opened with it: ``ViT-B-32/openai`` and ``ViT-B-32-quickgelu/openai``
    are one encoder, of the first name.
    """
    model, tag, facts, config = look_up(model, tag)
    source = HubSource(_name(model, tag), *weights_files(facts))
    return ModelSource(source.uri, model, config, str(source.path()), facts, find_licence(source.repo))


def _find_folder(path: str) -> ModelSource:
    """A model from a folder in the layout of open_clip: ``open_clip_config.json`` and the weights."""
    folder = Path(path).expanduser().resolve()
    config = _read_config(folder / CONFIG_FILE, str(folder))
    check_has_weights(folder, "an open_clip_model.safetensors")
    return ModelSource(f"open_clip:local-dir:{folder}", f"local-dir:{folder}", config, None, None)


def _find_repository(uri: str) -> ModelSource:
    """A model from a repository of the Hugging Face hub that has an ``open_clip_config.json``."""
    source = hub_source(uri)
    assert source is not None
    config_path = source.path()
    folder, commit = config_path.parent, config_path.parent.name
    config = _read_config(config_path, uri, source.other_name())
    HubSource(uri, source.repo, WEIGHTS_FILES, commit).path()
    repo, note = source.repo, ""
    if source.revision is None:
        note = f"commit {commit}; hf-hub:{repo}@{commit} opens this one even after a change on the hub"
    licence = find_licence(repo)
    return ModelSource(uri, f"local-dir:{folder}", config, None, None, licence, repo=repo, commit=commit, note=note)


def find_file(model: str, path: str) -> ModelSource:
    """Weights from a file of one's own, safetensors or of ``torch.save``, for an architecture of open_clip.

    For ``MODEL/TAG`` they were fine-tuned from the weights of this name: preprocessing and activation are theirs.
    """
    import open_clip

    file = Path(path).expanduser().resolve()
    name, _, tag = model.partition("/")
    if tag:
        name, tag, facts, config = look_up(name, tag)
        return ModelSource(f"{_name(name, tag)}:{file}", name, config, str(file), facts, is_own_file=True)
    config = open_clip.get_model_config(name)
    if config is None:
        raise UnknownNameError(f"open_clip has no architecture '{name}'.{suggest(name, open_clip.list_models())}")
    facts, note = _preprocessing_of(name, path), ""
    if not config.get("quick_gelu") and open_clip.get_model_config(name + QUICK_GELU):
        note = (
            f"opened without QuickGELU; if the weights were fine-tuned from OpenAI's, say open_clip:{name}/openai:FILE"
        )
    return ModelSource(f"open_clip:{name}:{file}", name, config, str(file), facts, is_own_file=True, note=note)


def check_position_embeddings(shapes: dict[str, tuple[int, ...]], source: ModelSource, network: nn.Module) -> None:
    """Refuse weights for pictures or texts of another size, whose position embeddings open_clip silently scales.

    ``shapes`` are those of the weights in the file, which were loaded into the network.
    """
    for name, value in network.state_dict().items():
        if name in POSITION_EMBEDDINGS and shapes.get(name, value.shape) != tuple(value.shape):
            raise EncoderUnavailableError(
                f"the weights of {source.uri} are for pictures or texts of another size: {name} is {shapes[name]} in "
                f"the file and {tuple(value.shape)} in {source.model}. {ARCHITECTURE_ADVICE}"
            )


def look_up(model: str, tag: str) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """Model and tag in open_clip's spelling, its configuration of the weights, and that of the model.

    The model is the form of the architecture that has the activation of the weights.
    """
    check_pretrained(model, tag)
    import open_clip

    model = model.replace("/", "-").removesuffix(QUICK_GELU)
    facts = open_clip.get_pretrained_cfg(model, tag)
    if not facts:
        names = {name for name, _ in open_clip.list_pretrained()}
        raise unknown_pretrained(model, tag, sorted(names), open_clip.list_pretrained_tags_by_model(model))
    if facts.get("quick_gelu"):
        model += QUICK_GELU
    return model, tag.lower().replace("-", "_"), facts, open_clip.get_model_config(model)


def _name(model: str, tag: str) -> str:
    return f"open_clip:{model.removesuffix(QUICK_GELU)}/{tag}"


def weights_files(facts: dict[str, Any]) -> tuple[str, list[str]]:
    """Repository on the hub and possible file names of its weights, safetensors first as in open_clip."""
    repo, _, name = facts["hf_hub"].rpartition("/")
    if not name:
        return repo, WEIGHTS_FILES
    return repo, list(dict.fromkeys([f"{name.rpartition('.')[0]}.safetensors", name]))


def _example(model: str) -> str:
    """The first pretrained weights of a model; of ViT-B-32 if there is no such model."""
    facts = read_models().get(model.strip("/").removesuffix(QUICK_GELU))
    return f"{model.strip('/')}/{next(iter(facts.tags))}" if facts and facts.tags else "ViT-B-32/laion2b_s34b_b79k"


def _read_config(path: Path, place: str, advice: str = "") -> dict[str, Any]:
    """The configuration of the model in an ``open_clip_config.json``, which must also state the preprocessing."""
    content = read_config(place, path)
    facts, config = content.get("preprocess_cfg"), content.get("model_cfg")
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
