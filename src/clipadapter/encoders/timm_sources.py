"""Where models of timm come from: pretrained weights by name, a folder, or a file.

Code: https://github.com/huggingface/pytorch-image-models. If timm builds a model without its classifier, it does not
say which weights were missing. So models are built with the classifier of their weights, which is removed afterwards.

torch and timm are imported when they are used: `check_variant` needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipadapter.encoders.catalogue import check_timm_model, suggest
from clipadapter.encoders.hub import cached_file, download_file, hub_answers
from clipadapter.encoders.open_clip_sources import WEIGHTS_SUFFIXES, explain_load_error, read_shapes
from clipadapter.errors import DataError, EncoderUnavailableError, InputError, UnknownNameError, brief
from clipadapter.parsing import read_json

LOCAL = "local-dir"
CONFIG_FILE = "config.json"
EXAMPLE = "timm:vit_small_patch14_dinov2.lvd142m"
ADVICE = (
    "Copy a folder with config.json and model.safetensors here and say timm:local-dir:FOLDER, make the hub reachable, "
    "or say lite, which needs neither"
)
MAX_SIZE = 4096
"""Pixels."""
SAFE_NAMES = {
    "pytorch_model.bin": "model.safetensors",
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
}
"""How the hub calls the same weights as safetensors, as in timm."""


@dataclass(frozen=True)
class TimmVariant:
    """What follows ``timm:`` in the URI of an encoder.

    Args:
        model: name of the model, with or without the tag of its weights; empty for a folder.
        size: side of the square in pixels, if it is stated.
        path: file with weights, or folder; may be empty.
    """

    model: str
    size: int | None
    path: str


@dataclass(frozen=True)
class TimmSource:
    """Where a model comes from, before it is loaded.

    Args:
        uri: name of the encoder.
        model: name of the model in timm, with its tag if it has one, or ``local-dir:FOLDER``.
        overlay: what replaces facts of timm about the pretrained weights.
        n_classes: classes of the classifier in the weights; None if the folder states it.
        licence: licence of the weights.
    """

    uri: str
    model: str
    overlay: Mapping[str, Any]
    n_classes: int | None
    licence: str


def parse_variant(variant: str) -> TimmVariant:
    """Parse ``MODEL``, ``MODEL@SIZE``, ``MODEL:FILE``, ``MODEL@SIZE:FILE`` or ``local-dir:FOLDER``.

    Raises:
        InputError: if it is none of these.

    >>> parse_variant("vit_small_patch14_dinov2.lvd142m@224")
    TimmVariant(model='vit_small_patch14_dinov2.lvd142m', size=224, path='')
    """
    model, _, path = variant.partition(":")
    if model == LOCAL:
        return TimmVariant("", None, path)
    model, has_size, size = model.partition("@")
    if has_size and not (size.isdecimal() and 0 < int(size) <= MAX_SIZE):
        raise InputError(f"'timm:{variant}' names no size: say timm:MODEL@PIXELS, such as {EXAMPLE}@224")
    model = model.removeprefix("timm/")  # the organisation of the repositories on the hub
    if not model or "/" in model:
        raise InputError(
            f"'timm:{variant}' names no model of timm: say timm:MODEL, such as {EXAMPLE}, timm:MODEL:FILE or "
            "timm:local-dir:FOLDER"
        )
    return TimmVariant(model, int(size) if has_size else None, path)


def check_variant(variant: str) -> TimmVariant:
    """Refuse what can't be found, as far as names and paths show. Imports neither torch nor timm.

    Raises:
        InputError: if the variant has no valid form.
        UnknownNameError: if timm has no such model, or the model no such weights.
        EncoderUnavailableError: if the file or folder is missing.
    """
    parts = parse_variant(variant)
    path = Path(parts.path).expanduser()
    if not parts.model:
        if not parts.path or not path.is_dir():
            raise EncoderUnavailableError(f"there is no folder {brief(parts.path)}: say timm:local-dir:FOLDER")
        return parts
    if parts.model.endswith(WEIGHTS_SUFFIXES):
        raise InputError(f"'timm:{variant}' names a file but no model: say timm:MODEL:{variant}")
    if parts.path:
        if path.is_dir():
            raise InputError(f"{brief(parts.path)} is a folder, not a file of weights: say timm:local-dir:{parts.path}")
        if not path.is_file():
            raise EncoderUnavailableError(f"there is no file {brief(parts.path)}: say timm:{parts.model}:FILE")
        if path.suffix not in WEIGHTS_SUFFIXES:
            raise InputError(f"{path.name} is no file of weights: its name must end in {', '.join(WEIGHTS_SUFFIXES)}")
    check_timm_model(parts.model, needs_weights=not parts.path)
    return parts


def check_available(variant: str) -> None:
    """Refuse weights of the hub that are not on this machine, if the hub does not answer. Nothing is downloaded.

    Raises:
        EncoderUnavailableError: if so.
    """
    parts = check_variant(variant)
    if parts.model and not parts.path:
        repo, names = _hub_files(_look_up(parts.model))
        if cached_file(repo, names) is None and not hub_answers(repo, names[0]):
            raise _not_here(repo, names)


def find_source(variant: str) -> TimmSource:
    """The source that follows the scheme in the URI of an encoder; weights that are not on this machine are downloaded.

    Raises:
        InputError: if the variant has no valid form.
        UnknownNameError: if timm has no such model, or the model no such weights.
        EncoderUnavailableError: if the weights can't be had.
    """
    parts = check_variant(variant)
    if not parts.model:
        return _find_folder(Path(parts.path).expanduser().resolve())
    facts = _look_up(parts.model)
    name = ".".join(part for part in (facts["architecture"], facts.get("tag", "")) if part)
    size: dict[str, Any] = {} if parts.size is None else {"input_size": (3, parts.size, parts.size)}
    suffix = "" if parts.size is None else f"@{parts.size}"
    if parts.path:
        file = Path(parts.path).expanduser().resolve()
        n_classes = _count_classes(file, facts.get("classifier"))
        own = {"file": str(file), "num_classes": n_classes, "label_offset": 0, **size}
        return TimmSource(f"timm:{name}{suffix}:{file}", name, own, n_classes, "unknown")
    overlay = {"file": _download(f"timm:{name}", facts), **size}
    return TimmSource(f"timm:{name}{suffix}", name, overlay, int(facts["num_classes"]), spell_licence(facts))


def load_model(source: TimmSource) -> Any:
    """The model in fp32 on the CPU, without its classifier, in inference mode.

    Raises:
        EncoderUnavailableError: if the weights can't be loaded, or are not those of the model.
    """
    import timm
    import torch

    options: dict[str, Any] = {} if source.n_classes is None else {"num_classes": source.n_classes}
    if source.overlay:
        options["pretrained_cfg_overlay"] = dict(source.overlay)
    try:
        with torch.random.fork_rng(devices=[]):  # a new network draws from the global generator
            model = timm.create_model(source.model, pretrained=True, **options)
            model.reset_classifier(0)
    except Exception as error:  # timm and its loaders raise errors of many classes
        cause = error.__cause__ if type(error.__cause__).__name__ == "UnpicklingError" else error
        assert isinstance(cause, Exception)
        raise EncoderUnavailableError(
            f"{source.uri} can't be loaded: {explain_load_error(cause)}. {ADVICE}."
        ) from error
    return model.float().eval().requires_grad_(False)


def spell_licence(facts: Mapping[str, Any]) -> str:
    """The licence that timm states for weights, spelled as in the lists of encoders.

    >>> spell_licence({"license": "apache-2.0"}), spell_licence({"license": "dinov3-license"}), spell_licence({})
    ('Apache-2.0', 'dinov3-license', 'unknown')
    """
    name = str(facts.get("license") or "unknown")
    known = {"apache-2.0": "Apache-2.0", "mit": "MIT", "cc-by-nc-4.0": "CC-BY-NC-4.0", "bsd-3-clause": "BSD-3-Clause"}
    return known.get(name, name)


def describe_models() -> dict[str, dict[str, Any]]:
    """Facts about all pretrained models of timm, for `clipadapter.encoders.catalogue`: see `EncoderListing`.

    No weights are needed: width and parameters are those of networks without storage.
    """
    import timm

    measured: dict[str, dict[str, int]] = {}
    described = {}
    for name in timm.list_models(pretrained=True):
        config = timm.get_pretrained_cfg(name)
        architecture = name.partition(".")[0]
        if architecture not in measured:
            measured[architecture] = _measure(architecture)
        described[name] = {
            **measured[architecture],
            "image_size": int(config.input_size[-1]),
            "licence": spell_licence(config.to_dict()),
        }
    return described


def list_untrained() -> list[str]:
    """The architectures of timm without pretrained weights."""
    import timm

    trained = {name.partition(".")[0] for name in timm.list_models(pretrained=True)}
    return sorted(set(timm.list_models()) - trained)


def _measure(architecture: str) -> dict[str, int]:
    """Width of the features and number of parameters; nothing for networks that need storage to be built."""
    import timm
    import torch

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = timm.create_model(architecture, num_classes=0)
    except (RuntimeError, NotImplementedError, TypeError):
        return {}
    width = getattr(network, "head_hidden_size", None) or network.num_features
    return {"dim": int(width), "parameters": sum(parameter.numel() for parameter in network.parameters())}


def _look_up(model: str) -> dict[str, Any]:
    """What timm knows of pretrained weights.

    Raises:
        UnknownNameError: if it has no such model or weights.
    """
    import timm

    name = model.partition(".")[0]
    if not timm.is_model(name):
        raise UnknownNameError(f"timm has no model '{name}'.{suggest(name, timm.list_models())}")
    try:
        config = timm.get_pretrained_cfg(model, allow_unregistered=False)
    except RuntimeError as error:
        known = timm.list_models(f"{name}.*", pretrained=True)
        raise UnknownNameError(f"timm has no weights '{model}'.{suggest(model, known)}") from error
    return {"architecture": name, "num_classes": config.num_classes, **config.to_dict()}


def _find_folder(folder: Path) -> TimmSource:
    file = folder / CONFIG_FILE
    try:
        config = read_json(file)
    except DataError as error:
        raise EncoderUnavailableError(
            f"{folder} needs a readable {CONFIG_FILE}, as timm.models.save_for_hf writes it: {error}"
        ) from error
    facts = config.get("pretrained_cfg", config) if isinstance(config, dict) else None
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(architecture, str) or not isinstance(facts, dict):
        raise EncoderUnavailableError(
            f"{file} states no 'architecture' and 'pretrained_cfg', so it is no model of timm"
        )
    _look_up(architecture)
    if not any(one.suffix in WEIGHTS_SUFFIXES for one in folder.iterdir()):
        raise EncoderUnavailableError(f"{folder} has no weights: put a model.safetensors into it")
    return TimmSource(f"timm:local-dir:{folder}", f"local-dir:{folder}", {}, None, spell_licence(facts))


def _count_classes(file: Path, classifier: Any) -> int:
    """Classes of the classifier in a file of weights; 0 if it has none."""
    from timm.models import load_state_dict

    if file.suffix == ".safetensors":
        shapes: Mapping[str, tuple[int, ...]] = read_shapes(file)
    else:
        try:
            arrays = load_state_dict(str(file), device="meta")
            shapes = {name: tuple(value.shape) for name, value in arrays.items()}
        except Exception as error:  # the classes depend on the format and on the version of torch
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            raise EncoderUnavailableError(f"{file} can't be read as weights: {explain_load_error(cause)}") from error
    names = [classifier] if isinstance(classifier, str) else list(classifier or [])
    weights = [f"{name}.weight" for name in names if f"{name}.weight" in shapes]
    return int(shapes[weights[0]][0]) if weights else 0


def _hub_files(facts: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Repository on the hub and possible names of the file with the weights, safetensors first."""
    repo, name = facts.get("hf_hub_id"), facts.get("hf_hub_filename") or "pytorch_model.bin"
    if not repo:
        raise EncoderUnavailableError(
            f"the weights of timm:{facts['architecture']} are not on the hub: download them from "
            f"{facts.get('url') or 'their page'}, and say timm:{facts['architecture']}:FILE"
        )
    safe_name = SAFE_NAMES.get(name, f"{name.rpartition('.')[0]}.safetensors")
    return str(repo), list(dict.fromkeys([safe_name, name]))


def _download(uri: str, facts: Mapping[str, Any]) -> str:
    """Path of the weights, downloaded if they are not on this machine."""
    repo, names = _hub_files(facts)
    path = cached_file(repo, names)
    if path is not None:
        return path
    if not hub_answers(repo, names[0]):
        raise _not_here(repo, names)
    for name in names:
        try:
            path = download_file(repo, name)
        except Exception as error:  # the class depends on the version of huggingface_hub
            raise EncoderUnavailableError(f"{name} of {uri} can't be downloaded: {error}. {ADVICE}.") from error
        if path is not None:
            return path
    raise EncoderUnavailableError(f"the repository {repo} has no {' or '.join(names)}. {ADVICE}.")


def _not_here(repo: str, names: list[str]) -> EncoderUnavailableError:
    return EncoderUnavailableError(
        f"{names[0]} of {repo} is not on this machine, and the hub does not answer or has no such repository. {ADVICE}."
    )
