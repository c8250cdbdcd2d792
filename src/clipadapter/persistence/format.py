"""The files of a saved model: their layout, and how they are read and checked. `model_folder` has their names.

| file | content |
|---|---|
| ``config.json`` | `ModelConfig`: all that is no array, with the hashes of the other files and a checksum of itself |
| ``README.md`` | model card |
| ``head.safetensors`` | weights of the head, and the text features of the classes |
| ``support.safetensors`` | features and labels of the shots; missing if the model was saved without them |
| ``unlabelled.safetensors`` | features of pictures without labels, if the head learned from some; not without shots |
| ``uncertainty.safetensors`` | arrays of the uncertainty, if any |
| ``folds.safetensors`` | weights of the fold heads, if prediction sets are CV+ |

Nothing in them is executed or unpickled. Sizes, types, shapes and hashes are checked before anything is used.
`transaction` writes them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from clipadapter.errors import ArtifactError
from clipadapter.runtime.model_folder import CONFIG_FILE, HEAD_FILE, STAGING_FOLDER, model_path, why_no_model
from clipadapter.utils.blocks import MAX_BLOCKS

FORMAT: Final = 1
CHECKSUM_KEY = "checksum"
"""Key of the checksum: SHA-256 of all other content of ``config.json``."""
MAX_CONFIG_BYTES = 64 << 20
MAX_TENSOR_BYTES = 8 << 30
MAX_FEATURE_WIDTH = 1 << 20
"""Largest feature dimension. A config is untrusted input, and memory is allocated by this number."""
MAX_IMAGE_SIZE = 1 << 16
"""Largest side in pixels."""
MAX_NAME_LENGTH = 8192
"""Characters. The name of an encoder may contain paths."""
Arrays = dict[str, NDArray[Any]]


class _FrozenModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SavedEncoder(_FrozenModel):
    """The encoder that the head was fitted on; see `encoders.EncoderInfo` for the facts of every encoder."""

    name: str = Field(min_length=1, max_length=MAX_NAME_LENGTH, pattern=r"^[^\x00]*$")  # URI
    # of weights, preprocessing, code version, backend and precision. An encoder with another one is refused when the
    # model is loaded
    fingerprint: str
    dim: int = Field(gt=0, le=MAX_FEATURE_WIDTH)  # width of the features of pictures
    image_size: int = Field(gt=0, le=MAX_IMAGE_SIZE)  # side in pixels of the encoder's input
    logit_scale: float = Field(gt=0, allow_inf_nan=False)  # factor of the cosines
    # added to the logits by sigmoid-loss models (SigLIP), else None
    logit_bias: float | None = Field(default=None, allow_inf_nan=False)
    licence: str = "unknown"
    note: str = ""  # what a user should know; may be empty
    # name and width of each block of features, ``final`` first
    blocks: list[tuple[str, int]] = Field(min_length=1, max_length=MAX_BLOCKS)
    backend: str = "torch"
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    # digest of the pictures that set the ranges of int8 values, else empty
    int8_calibration_digest: str = Field(default="", pattern="^[0-9a-f]{0,1024}$")


class SavedHead(_FrozenModel):
    """The head: its registered name and its parameters."""

    name: str
    params: dict[str, bool | int | float | str | list[float] | None]


class ArrayFile(_FrozenModel):
    """Hash of a file of arrays, and the dtype and shape of each array."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    tensors: dict[str, tuple[str, list[int]]]


class ModelConfig(_FrozenModel):
    """Content of ``config.json``.

    Args:
        format: format number.
        class_names: class names in the order of the logits.
        head: registered name and parameters of the head.
        encoder: facts of the encoder.
        prompts: prompts by class that the text features were made from.
        uncertainty: state of `clipadapter.uncertainty.Uncertainty` without arrays.
        sources: paths of the pictures of the shots, in the order of their features.
        provenance: number of shots per class, hash of their features, versions of packages, time.
        files: files of arrays by name.
    """

    format: Literal[1] = FORMAT
    class_names: list[str] = Field(min_length=2)
    head: SavedHead
    encoder: SavedEncoder
    prompts: dict[str, list[str]]
    uncertainty: dict[str, Any] = Field(default_factory=dict)
    sources: list[str] = Field(default_factory=list)
    provenance: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, ArrayFile] = Field(default_factory=dict)


def pack_arrays(files: Mapping[str, Mapping[str, NDArray[Any]]]) -> tuple[dict[str, bytes], dict[str, ArrayFile]]:
    """Convert arrays by file and name to the bytes of each safetensors file, and its entry in the config."""
    blobs = {
        name: save_tensors({k: np.asarray(v, order="C") for k, v in arrays.items()}) for name, arrays in files.items()
    }
    return blobs, {name: _describe_arrays(blobs[name], files[name]) for name in files}


def config_bytes(config: ModelConfig) -> bytes:
    """Bytes of ``config.json``."""
    content = json.loads(config.model_dump_json())
    return json.dumps({**content, CHECKSUM_KEY: _content_checksum(content)}, indent=1).encode()


def _content_checksum(content: dict[str, Any]) -> str:
    """SHA-256 of a JSON object, independent of layout and order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_target_folder(folder: str | Path) -> Path:
    """Check that a model may be written to a folder, and return its path.

    Raises:
        ArtifactError: if it is a file, or has other files than a model.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file; give a folder for the model")
    # Many programs write a config.json, and a save replaces files. A first save that was killed leaves only STAGING.
    names = {path.name for path in target.iterdir()} - {STAGING_FOLDER} if target.is_dir() else set()
    has_arrays = any((target / subfolder / HEAD_FILE).is_file() for subfolder in (".", STAGING_FOLDER))
    if names and not (has_arrays and (target / CONFIG_FILE).is_file()):
        raise ArtifactError(f"{target} holds other files than a model; give a new or empty folder")
    return target


def write_and_sync(path: Path, data: bytes) -> None:
    """Write a file and sync it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _describe_arrays(blob: bytes, arrays: Mapping[str, NDArray[Any]]) -> ArrayFile:
    tensors = {name: (str(array.dtype), list(array.shape)) for name, array in arrays.items()}
    return ArrayFile(sha256=hashlib.sha256(blob).hexdigest(), tensors=tensors)


def read_config(folder: str | Path) -> ModelConfig:
    """Read and check ``config.json`` of a model.

    Raises:
        ArtifactError: if there is no model, or its config is damaged or of another format.
    """
    if why := why_no_model(folder):
        raise ArtifactError(why)
    return read_config_file(Path(folder) / CONFIG_FILE)


def check_format(path: Path, raw: object, expected: int) -> None:
    """Check the format number of a JSON object."""
    number = raw.get("format") if isinstance(raw, dict) else None
    if type(number) is int and number != expected:
        raise ArtifactError(
            f"{path} has format {number}, this version reads {expected}: update clipadapter, or fit again"
        )


def read_config_file(path: Path) -> ModelConfig:
    """Read and check a config file."""
    return parse_config(path, read_at_most(path, MAX_CONFIG_BYTES, "it is no model's config"))


def parse_config(path: Path, data: bytes) -> ModelConfig:
    """Parse and check the content of a config file."""
    try:
        raw = json.loads(data)
        check_format(path, raw, FORMAT)
        if isinstance(raw, dict):
            _verify_checksum(path, raw)
        return ModelConfig.model_validate(raw)
    except ValidationError as error:
        raise ArtifactError(f"{path} is not a model's config: {describe_first_error(error)}") from error
    except (ValueError, OSError, RecursionError) as error:
        raise ArtifactError(f"{path} can't be read: {error}") from error


def _verify_checksum(path: Path, raw: dict[str, Any]) -> None:
    """Remove the checksum from a config and compare it with the other content."""
    if raw.pop(CHECKSUM_KEY, None) != _content_checksum(raw):
        raise ArtifactError(
            f"{path} was altered since the model was saved: its checksum differs. Copy it again, or fit again; "
            "'clipadapter rename-class' changes the name of a class"
        )


def read_at_most(path: Path, limit: int, why_not: str) -> bytes:
    """Read a file."""
    try:
        if not model_path(path.parent, path.name).is_file():
            raise ArtifactError(f"{path} is no file, or a file that can't be read")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise ArtifactError(f"{path} is larger than {limit >> 20} MiB: {why_not}")
            return file.read()
    except (OSError, MemoryError) as error:
        raise ArtifactError(f"{path} can't be read: {str(error) or type(error).__name__}") from error


def describe_first_error(error: ValidationError) -> str:
    """Location and message of the first validation error."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def read_arrays(folder: str | Path, config: ModelConfig, name: str) -> Arrays:
    """Read the arrays of one file of a model, checked against its config.

    Raises:
        ArtifactError: if the file is missing, altered, or does not hold what the config says.
    """
    return unpack_arrays(Path(folder) / name, read_array_bytes(folder, config, name), config.files[name])


def read_array_bytes(folder: str | Path, config: ModelConfig, name: str) -> bytes:
    """Read the bytes of one file of arrays, checked against the hash in the config."""
    if name not in config.files:
        raise ArtifactError(f"{Path(folder)} was saved without {name}")
    path, sha256 = Path(folder) / name, config.files[name].sha256
    staged = model_path(folder, STAGING_FOLDER, name)  # before its place: it may be moved there meanwhile
    if staged.is_file():
        with suppress(ArtifactError):
            return read_verified(staged, sha256)
    return read_verified(path, sha256)


def read_array_file(path: Path, part: ArrayFile) -> Arrays:
    """Read the arrays in a file, checked against its entry in a config."""
    return unpack_arrays(path, read_verified(path, part.sha256), part)


def read_verified(path: Path, sha256: str) -> bytes:
    """Read a file and check its hash."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: copy the whole folder, or fit again")
    data = read_at_most(path, MAX_TENSOR_BYTES, "it is no model of this program")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(
            f"{path} was altered since the model was saved: its hash differs. Copy it again, or fit again"
        )
    return data


def unpack_arrays(path: Path, data: bytes, part: ArrayFile) -> Arrays:
    """Parse the content of a file of arrays, checked against its entry in a config."""
    try:
        arrays = load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} is no safetensors file: {error}") from error
    actual = {key: (str(array.dtype), list(array.shape)) for key, array in arrays.items()}
    if actual != {key: (dtype, list(shape)) for key, (dtype, shape) in part.tensors.items()}:
        raise ArtifactError(f"{path} does not hold the arrays that {CONFIG_FILE} names")
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ArtifactError(f"{path}: the array {key} has values that are not finite")
    return arrays
