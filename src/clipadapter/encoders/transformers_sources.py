"""Where models of the library transformers come from: a repository of the Hugging Face hub, or a folder.

Code: https://github.com/huggingface/transformers. Code of a repository is never run, and only safetensors are read. The
library fills weights that are missing with random values; here they are an error.

torch and transformers are imported when they are used: `check_variant` needs neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipadapter.encoders.catalogue import find_licence, find_repository_name
from clipadapter.encoders.hub import REPOSITORY_NAME, HubSource, advise
from clipadapter.encoders.weights import check_folder, loading, read_config
from clipadapter.errors import EncoderUnavailableError, InputError, brief, require
from clipadapter.utils.pixels import RESAMPLING_FILTERS, PixelSpec

CONFIG_FILE = "config.json"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
WEIGHTS_FILES = ["model.safetensors", "model.safetensors.index.json"]
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
NEEDED_FILES = ["*.json", "*.txt", "*.model", "model.safetensors", "model-*.safetensors"]
"""Patterns of the files that are downloaded."""
PATH_START = re.compile(r"[/\\~.]|[A-Za-z]:[/\\]")
"""How a path starts that is no repository."""
RESAMPLING_NAMES = {2: "bilinear", 3: "bicubic"}
"""Numbers of Pillow, as in the configuration of image processors."""
RESCALE_FACTOR = 1 / 255


@dataclass(frozen=True)
class Family:
    """Models of one kind."""

    title: str  # name in texts
    model_class: str  # class of transformers
    crops: bool  # whether its image processor crops the centre unless the configuration says otherwise
    resample: int  # number of the interpolation that it uses by default
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
    """Where a model comes from, before it is loaded."""

    uri: str
    folder: Path  # has all files
    family: Family
    config: Mapping[str, Any]
    pixels: PixelSpec
    licence: str
    note: str = ""  # what a user should know


def as_folder(variant: str) -> Path | None:
    """The folder that a variant names; None if it names a repository."""
    path = Path(variant).expanduser()
    return path if variant and (PATH_START.match(variant) or path.is_dir()) else None


def check_variant(variant: str) -> None:
    """Refuse what can't be found, as far as names and paths show. Imports neither torch nor transformers."""
    if as_folder(variant) is not None:
        check_folder(variant, "hf:FOLDER")
    elif REPOSITORY_NAME.fullmatch(variant) is None:
        raise InputError(
            f"'hf:{variant}' names no repository of the hub and no folder: say hf:ORG/MODEL, such as "
            "hf:google/siglip2-base-patch16-224, hf:ORG/MODEL@REVISION, or hf:FOLDER"
        )


def hub_source(variant: str) -> HubSource | None:
    """The configuration on the hub of the model that a variant names; None if it names a folder, which is read."""
    check_variant(variant)
    folder = as_folder(variant)
    if folder is not None:
        _read_source(f"hf:{folder.resolve()}", folder.resolve(), "unknown")
        return None
    repo, _, revision = variant.partition("@")
    return HubSource(f"hf:{variant}", repo, [CONFIG_FILE], revision or None)


def find_source(variant: str) -> TransformersSource:
    """The source of ``ORG/MODEL``, ``ORG/MODEL@REVISION`` or a folder; files of the hub are downloaded if need be."""
    check_variant(variant)
    folder = as_folder(variant)
    if folder is not None:
        return _read_source(f"hf:{folder.resolve()}", folder.resolve(), "unknown")
    repo, _, revision = variant.partition("@")
    weights, config = (
        HubSource(f"hf:{variant}", repo, names, revision or None) for names in (WEIGHTS_FILES, [CONFIG_FILE])
    )
    cached = config.cached() and weights.cached()
    folder = cached.parent if cached else weights.folder(NEEDED_FILES)
    note = "" if revision else f"commit {folder.name}; hf:{repo}@{folder.name} opens this one even after a change"
    return _read_source(f"hf:{variant}", folder, find_licence(repo), note)


def load_model(source: TransformersSource) -> Any:
    """The model in fp32 on the CPU, ready to use.

    Raises:
        MissingExtraError: if transformers is not installed.
        EncoderUnavailableError: if the weights can't be loaded, or some are missing.
    """
    transformers: Any = require("transformers", "transformers", f"The encoder {source.uri}")
    with loading(f"{source.uri} can't be loaded", advise(source.uri)), _without_bars(transformers.utils.logging):
        model, result = getattr(transformers, source.family.model_class).from_pretrained(
            str(source.folder), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    missing = sorted(map(str, [*result["missing_keys"], *result["mismatched_keys"]]))
    if missing:
        raise EncoderUnavailableError(
            f"{source.uri} can't be loaded: {len(missing)} of its weights are missing or have another shape, such as "
            f"{missing[0]}. {advise(source.uri)}."
        )
    return model.float().eval().requires_grad_(False)


@contextmanager
def _without_bars(logging: Any) -> Iterator[None]:
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shows_bars:
            logging.enable_progress_bar()


def open_tokenizer(source: TransformersSource) -> Any:
    """The tokenizer in the folder."""
    transformers: Any = require("transformers", "transformers", f"The encoder {source.uri}")
    if not any((source.folder / name).is_file() for name in TOKENIZER_FILES):
        # The library would make an empty one.
        raise EncoderUnavailableError(f"{source.uri} has no tokenizer: {', '.join(TOKENIZER_FILES)} are missing")
    with loading(f"the tokenizer of {source.uri} can't be opened", advise(source.uri)):
        return transformers.AutoTokenizer.from_pretrained(
            str(source.folder), local_files_only=True, trust_remote_code=False
        )


def read_pixels(uri: str, processor: Mapping[str, Any], family: Family) -> PixelSpec:
    """How the image processor of this configuration prepares pictures; the family decides what is not stated."""
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
        # `PixelSpec.scaled_size` must be `scaled`, in spite of rounding.
        crop = size / scaled if int(size / (size / scaled)) == scaled else size / (scaled + 0.5)
        return PixelSpec(size, tuple(mean), tuple(std), mode, resample, crop)
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


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _read_source(uri: str, folder: Path, licence: str, note: str = "") -> TransformersSource:
    config = read_config(uri, folder / CONFIG_FILE)
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
    processor = read_config(uri, folder / name)
    processor = processor.get("image_processor", processor)
    if not isinstance(processor, Mapping):
        raise EncoderUnavailableError(f"{folder / name} has no configuration of an image processor")
    if not any((folder / name).is_file() for name in WEIGHTS_FILES):
        raise EncoderUnavailableError(
            f"{uri} has no {WEIGHTS_FILES[0]}. Other formats can hold code and are not read: convert the weights with "
            "model.save_pretrained(FOLDER)"
        )
    return TransformersSource(uri, folder, family, config, read_pixels(uri, processor, family), licence, note)
