"""Where models of timm come from: pretrained weights by name, a folder, or a file.

Code: https://github.com/huggingface/pytorch-image-models. If timm builds a model without its classifier, it does not
say which weights were missing. So models are built with the classifier of their weights, which is removed afterwards.

torch and timm are imported when they are used: `check_variant` needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipadapter.encoders.catalogue import check_timm_model, suggest
from clipadapter.encoders.hub import HubSource, advise
from clipadapter.encoders.weights import (
    WEIGHTS_SUFFIXES,
    check_file,
    check_folder,
    check_has_weights,
    loading,
    read_config,
    read_shapes,
)
from clipadapter.errors import EncoderUnavailableError, InputError, UnknownNameError, require

LOCAL = "local-dir"
CONFIG_FILE = "config.json"
EXAMPLE = "timm:vit_small_patch14_dinov2.lvd142m"
MAX_SIZE = 4096
"""Pixels."""
SAFE_NAMES = {"pytorch_model.bin": "model.safetensors", "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}
"""How the hub calls the same weights as safetensors, as in timm."""


@dataclass(frozen=True)
class TimmVariant:
    """What follows ``timm:`` in the URI of an encoder."""

    model: str  # with or without the tag of its weights; empty for a folder
    size: int | None  # side of the square in pixels, if it is stated
    path: str  # file with weights, or folder; may be empty


@dataclass(frozen=True)
class TimmSource:
    """Where a model comes from, before it is loaded."""

    uri: str
    model: str  # name in timm, with its tag if it has one, or local-dir:FOLDER
    overlay: Mapping[str, Any] = field(default_factory=dict)  # replaces facts of timm about the pretrained weights
    n_classes: int | None = None  # of the classifier in the weights; None if the folder states it
    licence: str = "unknown"


def check_variant(variant: str) -> TimmVariant:
    """Parse ``MODEL``, ``MODEL@SIZE``, ``MODEL:FILE``, ``MODEL@SIZE:FILE`` or ``local-dir:FOLDER``.

    What can't be found is refused, as far as names and paths show. Imports neither torch nor timm.
    """
    model, _, path = variant.partition(":")
    if model == LOCAL:
        check_folder(path, "timm:local-dir:FOLDER")
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
    if model.endswith(WEIGHTS_SUFFIXES):
        raise InputError(f"'timm:{variant}' names a file but no model: say timm:MODEL:{variant}")
    if path:
        check_file(path, f"timm:{model}:FILE", "timm:local-dir")
    check_timm_model(model, needs_weights=not path)
    return TimmVariant(model, int(size) if has_size else None, path)


def hub_source(variant: str) -> HubSource | None:
    """The weights on the hub that a variant names; None if it names a file or folder."""
    parts = check_variant(variant)
    return None if parts.path or not parts.model else _weights_on_hub(_look_up(parts.model))


def find_source(variant: str) -> TimmSource:
    """The source that follows the scheme in the URI of an encoder; weights of the hub are downloaded if need be."""
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
        return TimmSource(f"timm:{name}{suffix}:{file}", name, own, n_classes)
    overlay = {"file": str(_weights_on_hub(facts).path()), **size}
    return TimmSource(f"timm:{name}{suffix}", name, overlay, int(facts["num_classes"]), spell_licence(facts))


def load_model(source: TimmSource) -> Any:
    """The model in fp32 on the CPU, without its classifier, in inference mode.

    Raises:
        EncoderUnavailableError: if the weights can't be loaded, or are not those of the model.
    """
    import timm

    options: dict[str, Any] = {} if source.n_classes is None else {"num_classes": source.n_classes}
    if source.overlay:
        options["pretrained_cfg_overlay"] = dict(source.overlay)
    with loading(f"{source.uri} can't be loaded", advise(source.uri)):
        model = timm.create_model(source.model, pretrained=True, **options)
        model.reset_classifier(0)
    return model.float().eval().requires_grad_(False)


def spell_licence(facts: Mapping[str, Any]) -> str:
    """The licence that timm states for weights, spelled as in the lists of encoders."""
    name = str(facts.get("license") or "unknown")
    known = {"apache-2.0": "Apache-2.0", "mit": "MIT", "cc-by-nc-4.0": "CC-BY-NC-4.0", "bsd-3-clause": "BSD-3-Clause"}
    return known.get(name, name)


def _look_up(model: str) -> dict[str, Any]:
    """What timm knows of pretrained weights."""
    timm: Any = require("timm", "train", "Encoders of timm")
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
    config = read_config(str(folder), file)
    facts, architecture = config.get("pretrained_cfg", config), config.get("architecture")
    if not isinstance(architecture, str) or not isinstance(facts, dict):
        raise EncoderUnavailableError(
            f"{file} states no 'architecture' and 'pretrained_cfg', so it is no model of timm: write the folder with "
            "timm.models.save_for_hf"
        )
    _look_up(architecture)
    check_has_weights(folder, "a model.safetensors")
    return TimmSource(f"timm:local-dir:{folder}", f"local-dir:{folder}", licence=spell_licence(facts))


def _count_classes(file: Path, classifier: Any) -> int:
    """Classes of the classifier in a file of weights; 0 if it has none."""
    shapes = read_shapes(file)
    names = [classifier] if isinstance(classifier, str) else list(classifier or [])
    weights = [f"{name}.weight" for name in names if f"{name}.weight" in shapes]
    return int(shapes[weights[0]][0]) if weights else 0


def _weights_on_hub(facts: Mapping[str, Any]) -> HubSource:
    """The file with the weights on the hub, safetensors if it is there."""
    repo, name = facts.get("hf_hub_id"), facts.get("hf_hub_filename") or "pytorch_model.bin"
    uri = f"timm:{facts['architecture']}"
    if not repo:
        raise EncoderUnavailableError(
            f"the weights of {uri} are not on the hub: download them from {facts.get('url') or 'their page'}, and say "
            f"{uri}:FILE"
        )
    safe_name = SAFE_NAMES.get(name, f"{name.rpartition('.')[0]}.safetensors")
    return HubSource(uri, str(repo), list(dict.fromkeys([safe_name, name])))
