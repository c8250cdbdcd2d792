"""A fitted model as a folder and back: ``config.json``, ``README.md`` and files of arrays.

These are the head's, its shots', what held-out shots taught, and the heads of single folds; the last three if there.

Nothing in it is ever executed or unpickled. Reading checks sizes, types, shapes and hashes before anything is used:
``config.json`` has the hashes of all arrays, and one of its own content. How they are written is said in `_folder`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from clipadapter.errors import ArtifactError
from clipadapter.files import why_no_model

FORMAT = 3
CONFIG, CARD = "config.json", "README.md"
TENSORS, SUPPORT, TRUST, FOLDS = "head.safetensors", "support.safetensors", "trust.safetensors", "folds.safetensors"
OURS = (CONFIG, CARD, TENSORS, SUPPORT, TRUST, FOLDS)
"""All files that a model's folder can have."""
HISTORY = "history"
"""The folder in it with what it was before."""
STAGING = ".clipadapter-save"
"""The folder in it with files of a save that is under way."""
FIRST_WITH_CHECKSUM = 3
"""The first format whose ``config.json`` has a hash of its own content."""
CHECKSUM = "checksum"
"""Key in ``config.json`` with the SHA-256 of all its other content."""
MAX_CONFIG_BYTES = 64 << 20
MAX_TENSOR_BYTES = 8 << 30
MAX_WIDTH = 1 << 20
"""Numbers in a feature; what is written in a config is not trusted, and memory is asked for by it."""
MAX_IMAGE_SIZE = 1 << 16
"""Pixels of a side."""
MAX_NAME_LENGTH = 8192
"""Characters in an encoder's name, which may hold paths."""
Arrays = dict[str, NDArray[Any]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class EncoderPart(_Part):
    """The encoder that the head was fitted on."""

    name: str = Field(min_length=1, max_length=MAX_NAME_LENGTH, pattern=r"^[^\x00]*$")
    fingerprint: str
    dim: int = Field(gt=0, le=MAX_WIDTH)
    image_size: int = Field(gt=0, le=MAX_IMAGE_SIZE)
    logit_scale: float = Field(gt=0, allow_inf_nan=False)
    logit_bias: float | None = Field(default=None, allow_inf_nan=False)
    licence: str = "unknown"
    note: str = ""
    text_dim: int | None = Field(default=None, gt=0, le=MAX_WIDTH)
    backend: str = Field("torch", validation_alias=AliasChoices("backend", "engine"), serialization_alias="engine")
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    calibration: str = Field(default="", pattern="^[0-9a-f]{0,64}$")


class HeadPart(_Part):
    """The head: its registered name and its parameters."""

    name: str
    params: dict[str, bool | int | float | str | None]


class FilePart(_Part):
    """What a file of arrays must be."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    tensors: dict[str, tuple[str, list[int]]]


class ArtifactConfig(_Part):
    """All of ``config.json``.

    Args:
        format: number of this layout.
        class_names: in the order of the logits.
        prompts: texts of each class that its text vector was made from.
        uncertainty: facts of `clipadapter.uncertainty.Uncertainty`; named "trust" in the file.
        sources: the shots' pictures, as they were given; in the order of their features.
        provenance: shots a class, hash of the shots' features, versions, time.
    """

    format: int = FORMAT
    class_names: list[str] = Field(min_length=2)
    head: HeadPart
    encoder: EncoderPart
    prompts: dict[str, list[str]]
    uncertainty: dict[str, Any] = Field(
        default_factory=dict, validation_alias=AliasChoices("uncertainty", "trust"), serialization_alias="trust"
    )
    sources: list[str] = Field(default_factory=list)
    provenance: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, FilePart] = Field(default_factory=dict)


def packed(files: Mapping[str, Mapping[str, NDArray[Any]]]) -> tuple[dict[str, bytes], dict[str, FilePart]]:
    """Arrays by name, for each safetensors file: its bytes, and what the config says of it."""
    blobs = {
        name: save_tensors({k: np.asarray(v, order="C") for k, v in arrays.items()}) for name, arrays in files.items()
    }
    return blobs, {name: _describe(blobs[name], files[name]) for name in files}


def config_bytes(config: ArtifactConfig) -> bytes:
    """The content of ``config.json``, in the latest format."""
    content = {**json.loads(config.model_dump_json(by_alias=True)), "format": FORMAT}
    return json.dumps({**content, CHECKSUM: _content_sha256(content)}, indent=1).encode()


def _content_sha256(content: dict[str, Any]) -> str:
    """SHA-256 of what a JSON object says; layout and order of keys make no difference."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_place(folder: str | Path) -> Path:
    """The folder, if a model may be written there.

    Raises:
        ArtifactError: if it is a file, or holds something else than a model.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file; give a folder for the model")
    # Many things have a config.json, and what is there is replaced. A first save that was killed leaves STAGING alone.
    names = {path.name for path in target.iterdir()} - {STAGING} if target.is_dir() else set()
    has_arrays = any((target / place / TENSORS).is_file() for place in (".", STAGING))
    if names and not (has_arrays and (target / CONFIG).is_file()):
        raise ArtifactError(f"{target} holds other files than a model; give a new or empty folder")
    return target


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file; it is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _describe(blob: bytes, arrays: Mapping[str, NDArray[Any]]) -> FilePart:
    tensors = {name: (str(array.dtype), list(array.shape)) for name, array in arrays.items()}
    return FilePart(sha256=hashlib.sha256(blob).hexdigest(), tensors=tensors)


def read_config(folder: str | Path) -> ArtifactConfig:
    """The checked ``config.json`` of a model.

    Raises:
        ArtifactError: if there is no model, or its config is damaged or of a later format.
    """
    if why := why_no_model(folder):
        raise ArtifactError(why)
    return config_at(Path(folder) / CONFIG)


def known_format(path: Path, raw: object, latest: int) -> object:
    """The number of the layout that a JSON file says it has.

    Raises:
        ArtifactError: if it is a later one than this version reads.
    """
    number = raw.get("format") if isinstance(raw, dict) else None
    if isinstance(number, int) and number > latest:
        raise ArtifactError(f"{path} has format {number}, this version reads up to {latest}: update clipadapter")
    return number


def config_at(path: Path) -> ArtifactConfig:
    """The checked config in a file.

    Raises:
        ArtifactError: if it is damaged or of a later format.
    """
    return parse_config(path, read_limited(path, MAX_CONFIG_BYTES, "it is no model's config"))


def parse_config(path: Path, data: bytes) -> ArtifactConfig:
    """The checked config in the content of a file.

    Args:
        path: of the file, for messages.
        data: its content.

    Raises:
        ArtifactError: as `config_at`.
    """
    try:
        raw = json.loads(data)
        number = known_format(path, raw, FORMAT)
        if isinstance(raw, dict) and isinstance(number, int) and number >= FIRST_WITH_CHECKSUM:
            _check_content(path, raw)
        return ArtifactConfig.model_validate(_updated(raw) if number == 1 else raw)
    except ValidationError as error:
        raise ArtifactError(f"{path} is not a model's config: {first_error(error)}") from error
    except (ValueError, OSError, RecursionError) as error:
        raise ArtifactError(f"{path} can't be read: {error}") from error


def _check_content(path: Path, raw: dict[str, Any]) -> None:
    """Take the checksum out of a config, and compare it with the rest.

    Raises:
        ArtifactError: if they differ.
    """
    if raw.pop(CHECKSUM, None) != _content_sha256(raw):
        raise ArtifactError(
            f"{path} was altered since the model was saved: its checksum differs. Copy it again, or fit again; "
            "'clipadapter rename-class' changes the name of a class"
        )


def read_limited(path: Path, limit: int, why_not: str) -> bytes:
    """The content of a file.

    Raises:
        ArtifactError: if it is larger than the limit, or can't be read.
    """
    try:
        if not path.is_file():  # a pipe or a device may never end
            raise ArtifactError(f"{path} is no file, or a file that can't be read")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise ArtifactError(f"{path} is larger than {limit >> 20} MiB: {why_not}")
            return file.read()
    except (OSError, MemoryError) as error:
        raise ArtifactError(f"{path} can't be read: {str(error) or type(error).__name__}") from error


def first_error(error: ValidationError) -> str:
    """Where the first thing that is wrong lies, and what it is."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _updated(raw: dict[str, Any]) -> dict[str, Any]:
    """A config of format 1, whose models were not calibrated, as one of today."""
    return {key: value for key, value in raw.items() if key not in ("temperature", "thresholds")}


def read_arrays(folder: str | Path, config: ArtifactConfig, name: str) -> Arrays:
    """The arrays of one file of a model, checked against its config.

    Raises:
        ArtifactError: if the file is missing, altered, or does not hold what the config says.
    """
    return unpacked(Path(folder) / name, read_blob(folder, config, name), config.files[name])


def read_blob(folder: str | Path, config: ArtifactConfig, name: str) -> bytes:
    """The content of one file of arrays, whose hash is the one in the config.

    Raises:
        ArtifactError: if the file is missing or altered.
    """
    if name not in config.files:
        raise ArtifactError(f"{Path(folder)} was saved without {name}")
    path, sha256 = Path(folder) / name, config.files[name].sha256
    staged = Path(folder) / STAGING / name  # before its place: it may be moved there meanwhile
    if staged.is_file():
        with suppress(ArtifactError):
            return checked_blob(staged, sha256)
    return checked_blob(path, sha256)


def arrays_at(path: Path, part: FilePart) -> Arrays:
    """The arrays in a file, checked against what a config says of it.

    Raises:
        ArtifactError: as `read_arrays`.
    """
    return unpacked(path, checked_blob(path, part.sha256), part)


def checked_blob(path: Path, sha256: str) -> bytes:
    """The content of a file that has this hash.

    Raises:
        ArtifactError: if it is missing, too large, altered, or can't be read.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: copy the whole folder, or fit again")
    data = read_limited(path, MAX_TENSOR_BYTES, "it is no model of this program")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(
            f"{path} was altered since the model was saved: its hash differs. Copy it again, or fit again"
        )
    return data


def unpacked(path: Path, data: bytes, part: FilePart) -> Arrays:
    """The arrays in the content of a file, checked against what a config says of it.

    Args:
        path: of the file, for messages.
        data: its content.
        part: what the config says.

    Raises:
        ArtifactError: if it does not hold what the config says, or values that are not finite.
    """
    try:
        arrays = load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} is no safetensors file: {error}") from error
    found = {key: (str(array.dtype), list(array.shape)) for key, array in arrays.items()}
    if found != {key: (dtype, list(shape)) for key, (dtype, shape) in part.tensors.items()}:
        raise ArtifactError(f"{path} does not hold the arrays that {CONFIG} names")
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ArtifactError(f"{path}: the array {key} has values that are not finite")
    return arrays
