"""Where models of the library transformers come from: a repository of the Hugging Face hub, or a folder.

Code: https://github.com/huggingface/transformers. Code of a repository is never run, and only safetensors are read. The
library fills weights that are missing with random values; here they are an error.

torch and transformers are imported when they are used: `check_variant` needs neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipadapter.encoders.catalogue import find_licence, find_repository_name
from clipadapter.encoders.hub import cached_file, hub_answers
from clipadapter.encoders.open_clip_sources import REPOSITORY_NAME
from clipadapter.errors import DataError, EncoderUnavailableError, InputError, brief, require
from clipadapter.parsing import read_json
from clipadapter.pixels import RESAMPLING_FILTERS, PixelSpec

CONFIG_FILE = "config.json"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
WEIGHTS_FILES = ["model.safetensors", "model.safetensors.index.json"]
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
NEEDED_FILES = ["*.json", "*.txt", "*.model", "model.safetensors", "model-*.safetensors"]
"""Patterns of the files that are downloaded."""
PATH_START = re.compile(r"[/\\~.]|[A-Za-z]:[/\\]")
"""How a path starts that is no repository."""
ADVICE = (
    "Copy a folder with the files of the repository here and say hf:FOLDER, make the hub reachable, or say lite, which "
    "needs neither"
)
RESAMPLING_NAMES = {2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow, as in the configuration of image processors."""
RESCALE_FACTOR = 1 / 255


@dataclass(frozen=True)
class Family:
    """Models of one kind.

    Args:
        title: name in texts.
        model_class: class of transformers.
        crops: whether its image processor crops the centre unless the configuration says otherwise.
        resample: number of the interpolation that it uses by default.
        has_text: whether it has a text tower.
    """

    title: str
    model_class: str
    crops: bool
    resample: int
    has_text: bool


FAMILIES: Mapping[str, Family] = {
    "clip": Family("CLIP", "CLIPModel", True, 3, True),
    "siglip": Family("SigLIP", "SiglipModel", False, 3, True),
    "dinov2": Family("DINOv2", "Dinov2Model", True, 3, False),
    "dinov2_with_registers": Family("DINOv2 with registers", "Dinov2WithRegistersModel", True, 3, False),
    "dinov3_vit": Family("DINOv3", "DINOv3ViTModel", False, 2, False),
    "dinov3_convnext": Family("DINOv3", "DINOv3ConvNextModel", False, 2, False),
}
"""By ``model_type`` of the configuration. SigLIP 2 at a fixed resolution has that of SigLIP."""


@dataclass(frozen=True)
class TransformersSource:
    """Where a model comes from, before it is loaded.

    Args:
        uri: name of the encoder.
        folder: has all files.
        family: kind of the model.
        config: its configuration.
        pixels: how pictures are prepared.
        licence: licence of the weights.
        note: what a user should know; may be empty.
    """

    uri: str
    folder: Path
    family: Family
    config: Mapping[str, Any]
    pixels: PixelSpec
    licence: str
    note: str = ""


def as_folder(variant: str) -> Path | None:
    """The folder that a variant names; None if it names a repository.

    >>> as_folder("/models/clip"), as_folder("openai/clip-vit-base-patch32")
    (PosixPath('/models/clip'), None)
    """
    path = Path(variant).expanduser()
    return path if variant and (PATH_START.match(variant) or path.is_dir()) else None


def check_variant(variant: str) -> None:
    """Refuse what can't be found, as far as names and paths show. Imports neither torch nor transformers.

    Raises:
        InputError: if the variant is neither a path nor the name of a repository.
        EncoderUnavailableError: if the folder is missing.
    """
    folder = as_folder(variant)
    if folder is not None:
        if not folder.is_dir():
            raise EncoderUnavailableError(f"there is no folder {brief(variant)}: say hf:FOLDER")
    elif REPOSITORY_NAME.fullmatch(variant) is None:
        raise InputError(
            f"'hf:{variant}' names no repository of the hub and no folder: say hf:ORG/MODEL, such as "
            "hf:google/siglip2-base-patch16-224, hf:ORG/MODEL@REVISION, or hf:FOLDER"
        )


def check_available(variant: str) -> None:
    """Refuse weights of the hub that are not on this machine, if the hub does not answer. Nothing is downloaded.

    Raises:
        EncoderUnavailableError: if so, or the folder can't be used.
    """
    check_variant(variant)
    folder = as_folder(variant)
    if folder is not None:
        _read_source(f"hf:{folder.resolve()}", folder.resolve(), "unknown")
        return
    repo, _, revision = variant.partition("@")
    if cached_file(repo, [CONFIG_FILE], revision or None) is None and not hub_answers(repo, CONFIG_FILE):
        raise _not_here(repo)


def find_source(variant: str) -> TransformersSource:
    """The source that follows the scheme in the URI of an encoder; files that are not on this machine are downloaded.

    What is in the hub's cache on this machine is used without a request.

    Args:
        variant: ``ORG/MODEL``, ``ORG/MODEL@REVISION`` or a folder.

    Raises:
        InputError: if it is none of these.
        EncoderUnavailableError: if the files can't be had, or are those of no model that is supported.
    """
    check_variant(variant)
    folder = as_folder(variant)
    if folder is not None:
        folder = folder.resolve()
        return _read_source(f"hf:{folder}", folder, "unknown")
    repo, _, revision = variant.partition("@")
    folder = _snapshot(repo, revision or None)
    note = "" if revision else f"commit {folder.name}; hf:{repo}@{folder.name} opens this one even after a change"
    return _read_source(f"hf:{variant}", folder, find_licence(repo), note)


def load_model(source: TransformersSource) -> Any:
    """The model in fp32 on the CPU, ready to use.

    Raises:
        MissingExtraError: if transformers is not installed.
        EncoderUnavailableError: if the weights can't be loaded, or some are missing.
    """
    transformers: Any = require("transformers", "transformers", f"The encoder {source.uri}")
    import torch

    bars = transformers.utils.logging
    shows_bars = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):  # a new network draws from the global generator
            model, result = getattr(transformers, source.family.model_class).from_pretrained(
                str(source.folder), use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # transformers and its loaders raise errors of many classes
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise EncoderUnavailableError(f"{source.uri} can't be loaded: {reason}. {ADVICE}.") from error
    finally:
        if shows_bars:
            bars.enable_progress_bar()
    missing = sorted(map(str, [*result["missing_keys"], *result["mismatched_keys"]]))
    if missing:
        raise EncoderUnavailableError(
            f"{source.uri} can't be loaded: {len(missing)} of its weights are missing or have another shape, such as "
            f"{missing[0]}. {ADVICE}."
        )
    return model.float().eval().requires_grad_(False)


def open_tokenizer(source: TransformersSource) -> Any:
    """The tokenizer in the folder.

    Raises:
        MissingExtraError: if transformers is not installed.
        EncoderUnavailableError: if it can't be opened.
    """
    transformers: Any = require("transformers", "transformers", f"The encoder {source.uri}")
    if not any((source.folder / name).is_file() for name in TOKENIZER_FILES):
        # The library would make an empty one.
        raise EncoderUnavailableError(f"{source.uri} has no tokenizer: {', '.join(TOKENIZER_FILES)} are missing")
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(source.folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the classes depend on the tokenizer
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise EncoderUnavailableError(f"the tokenizer of {source.uri} can't be opened: {reason}. {ADVICE}.") from error


def read_pixels(uri: str, processor: Mapping[str, Any], family: Family) -> PixelSpec:
    """How the image processor prepares pictures.

    Args:
        uri: name of the encoder, for messages.
        processor: its configuration.
        family: kind of the model, which decides what the configuration does not state.

    Raises:
        EncoderUnavailableError: if no `PixelSpec` describes it.
    """
    geometry = _read_geometry(processor, family)
    resample = RESAMPLING_NAMES.get(_or(processor.get("resample"), family.resample), "")
    is_scaled = all(_or(processor.get(key), True) for key in ("do_resize", "do_rescale"))
    is_byte_range = abs(_or(processor.get("rescale_factor"), RESCALE_FACTOR) - RESCALE_FACTOR) < 1e-6
    problem = ""
    if geometry is None:
        problem = f"size {brief(processor.get('size'))}, crop_size {brief(processor.get('crop_size'))}"
    elif not is_scaled or not is_byte_range:
        problem = "pictures are not scaled, or not to values from 0 to 1"
    elif resample not in RESAMPLING_FILTERS:
        problem = f"interpolation {brief(processor.get('resample'))}"
    if geometry is None or problem:
        raise EncoderUnavailableError(f"{uri} prepares pictures in a way that is not supported: {problem}")
    size, scaled, mode = geometry
    is_plain = not _or(processor.get("do_normalize"), True)
    try:
        mean, std = ((0.0,) * 3, (1.0,) * 3) if is_plain else (processor["image_mean"], processor["image_std"])
        return PixelSpec(size, tuple(mean), tuple(std), mode, resample, _crop_fraction(size, scaled))
    except (InputError, KeyError, TypeError) as error:
        raise EncoderUnavailableError(f"{uri} states no usable preprocessing of pictures: {error}") from error


def _read_geometry(processor: Mapping[str, Any], family: Family) -> tuple[int, int, str] | None:
    """Side of the square, side before it is cropped, and way of resizing; None if they are not supported."""
    size = processor.get("size")
    sides = size if isinstance(size, Mapping) else {"shortest_edge": size}
    shortest, square = sides.get("shortest_edge"), _side_of_square(sides)
    if _or(processor.get("do_center_crop"), family.crops):
        crop = _side_of_square(processor.get("crop_size"))
        # A square that is cropped from a squashed picture is used by no model.
        return (crop, shortest, "shortest") if crop and isinstance(shortest, int) and shortest >= crop else None
    return (square, square, "squash") if square else None


def _side_of_square(sides: Any) -> int | None:
    """The side, from a number or from height and width; None if there is no square."""
    if isinstance(sides, Mapping):
        sides = sides.get("height") if sides.get("height") == sides.get("width") else None
    return sides if type(sides) is int and sides > 0 else None


def _crop_fraction(size: int, scaled: int) -> float:
    """The fraction for which `PixelSpec.scaled_size` is ``scaled``, in spite of rounding."""
    fraction = size / scaled
    return fraction if int(size / fraction) == scaled else size / (scaled + 0.5)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _read_source(uri: str, folder: Path, licence: str, note: str = "") -> TransformersSource:
    config = _read_config(uri, folder, CONFIG_FILE)
    kind = config.get("model_type")
    if kind == "siglip2":
        raise EncoderUnavailableError(
            f"{uri} is a NaFlex model of SigLIP 2, whose pictures keep their shape: that is not supported. Take one "
            "of a fixed resolution, such as hf:google/siglip2-base-patch16-256"
        )
    if not isinstance(kind, str) or kind not in FAMILIES:
        titles = ", ".join(dict.fromkeys(family.title for family in FAMILIES.values()))
        other = find_repository_name(uri.removeprefix("hf:").partition("@")[0])
        hint = f": say {other} for these weights" if other else ""
        raise EncoderUnavailableError(
            f"{uri} has a model of type {brief(kind)}; those that are supported are {titles}{hint}"
        )
    family = FAMILIES[kind]
    name = next((name for name in PROCESSOR_FILES if (folder / name).is_file()), PROCESSOR_FILES[0])
    processor = _read_config(uri, folder, name)
    processor = processor.get("image_processor", processor)
    if not isinstance(processor, Mapping):
        raise EncoderUnavailableError(f"{folder / name} has no configuration of an image processor")
    if not any((folder / name).is_file() for name in WEIGHTS_FILES):
        raise EncoderUnavailableError(
            f"{uri} has no {WEIGHTS_FILES[0]}. Other formats can hold code and are not read: convert the weights with "
            "model.save_pretrained(FOLDER)"
        )
    return TransformersSource(uri, folder, family, config, read_pixels(uri, processor, family), licence, note)


def _read_config(uri: str, folder: Path, name: str) -> dict[str, Any]:
    try:
        content = read_json(folder / name)
    except DataError as error:
        raise EncoderUnavailableError(f"{uri} needs a readable {name}: {error}") from error
    if not isinstance(content, dict):
        raise EncoderUnavailableError(f"{folder / name} must be an object of JSON, but is a {type(content).__name__}")
    return content


def _snapshot(repo: str, revision: str | None) -> Path:
    """The folder of a repository in the hub's cache with all files; they are downloaded if the weights are missing."""
    path = cached_file(repo, [CONFIG_FILE], revision)
    if path is not None and any((Path(path).parent / name).is_file() for name in WEIGHTS_FILES):
        return Path(path).parent
    if not hub_answers(repo, CONFIG_FILE):
        raise _not_here(repo)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=NEEDED_FILES, ignore_patterns=["*/*"]))
    except Exception as error:  # the class depends on the version of huggingface_hub
        raise EncoderUnavailableError(f"hf:{repo} can't be downloaded: {error}. {ADVICE}.") from error


def _not_here(repo: str) -> EncoderUnavailableError:
    name = find_repository_name(repo)
    return EncoderUnavailableError(
        f"{CONFIG_FILE} or the weights of {repo} are not in the hub's cache on this machine, and the hub does not "
        f"answer or has no such repository: {f'say {name} for these weights' if name else 'check the name'}. {ADVICE}."
    )
