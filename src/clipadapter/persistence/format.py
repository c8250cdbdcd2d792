"""What is in the folder of a saved model, how it is read and checked. `model_folder` has the names, `versions` writes.

| file | content |
|---|---|
| ``config.json`` | `ModelConfig`: all that is no array, with the hashes of the arrays' files and a checksum of itself |
| ``README.md`` | model card |
| ``arrays/head-HASH.safetensors`` | weights of the head, and the text features of the classes |
| ``arrays/support-HASH.safetensors`` | features and labels of the shots; missing if the model was saved without them |
| ``arrays/unlabelled-HASH.safetensors`` | features of pictures without labels, if the head learned from some |
| ``arrays/uncertainty-HASH.safetensors`` | arrays of the uncertainty, if any |
| ``arrays/folds-HASH.safetensors`` | weights of the fold heads, if prediction sets are CV+ |
| ``history/`` | log and configs of earlier versions, see `versions`; their arrays are beside those of the model |

HASH is the start of the SHA-256 of the file, so versions share equal arrays, and no save overwrites a file that a
reader may need. Nothing in the files is executed or unpickled. Sizes and hashes are checked before anything is used,
types and shapes by what takes the arrays.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from clipadapter.errors import ArtifactError, InputError
from clipadapter.metrics import check_metrics, metrics_shown
from clipadapter.runtime.model_folder import (
    ARRAY_NAMES,
    ARRAYS_FOLDER,
    CONFIG_FILE,
    HEAD,
    LOCK_FILE,
    SUPPORT,
    UNCERTAINTY,
    UNLABELLED,
    array_file,
    list_own_files,
    model_path,
    why_no_model,
)
from clipadapter.utils.blocks import MAX_BLOCKS
from clipadapter.utils.files import Stamp, open_regular, printable, stamp_files

FORMAT: Final = 1
CHECKSUM_KEY = "checksum"  # key of the checksum: SHA-256 of all other content of ``config.json``
EVALUATION_KEY = "evaluation"  # key of the scores of the model in its provenance
MAX_CONFIG_BYTES = 64 << 20
MAX_TENSOR_BYTES = 8 << 30
MAX_READS = 100  # reads of a folder that a save interrupts, before it is an error
Arrays = dict[str, NDArray[Any]]
ArrayName = Annotated[str, Field(pattern=f"^({'|'.join(ARRAY_NAMES)})$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
T = TypeVar("T")


class FrozenModel(BaseModel):
    """No other keys, and no changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SavedEncoder(FrozenModel):
    """The encoder that the head was fitted on; see `encoders.EncoderInfo` for the facts of every encoder."""

    name: str = Field(min_length=1, max_length=8192, pattern=r"^[^\x00]*$")  # URI; paths in it are long
    # of weights, preprocessing, code version, backend and precision. An encoder with another one is refused when the
    # model is loaded
    fingerprint: str
    dim: int = Field(gt=0, le=1 << 20)  # width of the features of pictures, by which memory is allocated
    image_size: int = Field(gt=0, le=1 << 16)  # side in pixels of the encoder's input
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


class SavedHead(FrozenModel):
    """The head: its registered name and its parameters."""

    name: str
    params: dict[str, bool | int | float | str | list[float] | None]


class ModelConfig(FrozenModel):
    """Content of ``config.json``."""

    format: Literal[1] = FORMAT  # format number
    class_names: list[str] = Field(min_length=2)  # class names in the order of the logits
    head: SavedHead  # registered name and parameters of the head
    encoder: SavedEncoder  # facts of the encoder
    prompts: dict[str, list[str]]  # prompts by class that the text features were made from
    # State of `clipadapter.uncertainty.Uncertainty` without arrays
    uncertainty: dict[str, Any]
    # Paths of the pictures of the shots, in the order of their features
    sources: list[str] = Field(default_factory=list)
    # Number of shots per class, and of pictures if these have several labels; hash of their features, versions, time
    provenance: dict[str, Any] = Field(default_factory=dict)
    # Hashes of the files of arrays by their name, such as "head"
    files: dict[ArrayName, Sha256] = Field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """One version of a model as files."""

    config: ModelConfig
    raw: bytes  # content of ``config.json``
    folder: Path = Path()  # where the files are
    blobs: Mapping[str, bytes] | None = None  # bytes of the files of arrays, if they are in memory only

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the config without its evaluation, which may be recorded later."""
        content = self.config.model_dump(mode="json", exclude_defaults=True)
        content.get("provenance", {}).pop(EVALUATION_KEY, None)
        return _content_checksum(content)

    def read(self, name: str) -> bytes:
        """The bytes of one file of arrays, such as "head", checked against the hash in the config."""
        if self.blobs is not None:
            return self.blobs[name]
        if name not in self.config.files:
            raise ArtifactError(f"{self.folder} was saved without the arrays of its {name}")
        file = array_file(name, self.config.files[name])
        data = read_file(self.folder, file, MAX_TENSOR_BYTES, "it is no model of this program")
        if hashlib.sha256(data).hexdigest() != self.config.files[name]:
            raise ArtifactError(
                f"{self.folder / file} was altered since the model was saved: its hash differs. Copy it again, or fit "
                "again"
            )
        return data

    def arrays(self, name: str) -> Arrays:
        """The arrays of one file, such as "head"."""
        data = self.read(name)
        path = self.folder / array_file(name, self.config.files[name])
        try:
            arrays: Arrays = load_tensors(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise ArtifactError(f"{path} is no safetensors file: {error}") from error
        for key, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ArtifactError(f"{path}: the array {key} has values that are not finite")
        return arrays

    def is_same_model(self, other: ModelConfig) -> bool:
        """Whether another config describes this model, regardless of its time and evaluation."""
        return self.config.model_dump(exclude={"provenance"}) == other.model_dump(exclude={"provenance"})

    def without_shots(self) -> Snapshot:
        """Without the features and names of the shots and of pictures without labels."""
        files = {name: sha256 for name, sha256 in self.config.files.items() if name not in (SUPPORT, UNLABELLED)}
        config = self.config.model_copy(update={"files": files, "sources": []})
        return replace(self, config=config, raw=config_bytes(config))


def config_bytes(config: ModelConfig) -> bytes:
    """Bytes of ``config.json``."""
    content = json.loads(config.model_dump_json())
    return json.dumps({**content, CHECKSUM_KEY: _content_checksum(content)}, indent=1).encode()


def _content_checksum(content: dict[str, Any]) -> str:
    """SHA-256 of a JSON object, independent of layout and order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_target_folder(folder: str | Path) -> Path:
    """Check that a model may be written to a folder, and return its path."""
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file; give a folder for the model")
    names = {path.name for path in target.iterdir()} if target.is_dir() else set()
    own = list_own_files(target)
    arrays = {path.name for path in (target / ARRAYS_FOLDER).iterdir()} if names == {ARRAYS_FOLDER} else set()
    # A first save that was killed leaves ARRAYS_FOLDER only, with files of its own.
    is_killed_save = names <= {ARRAYS_FOLDER} and arrays <= {LOCK_FILE, *(file.rpartition("/")[2] for file in own)}
    if not is_killed_save and not (CONFIG_FILE in names and own):  # many programs write a config.json
        raise ArtifactError(f"{target} holds other files than a model; give a new or empty folder")
    return target


def read_config(folder: str | Path) -> ModelConfig:
    """Read and check ``config.json`` of a model."""
    return read_snapshot(folder).config


def read_snapshot(folder: str | Path, name: str = CONFIG_FILE) -> Snapshot:
    """Read and check a config in a folder; its arrays are read when they are needed."""
    if why := why_no_model(folder):
        raise ArtifactError(why)
    path, data = Path(folder) / name, read_file(folder, name, MAX_CONFIG_BYTES, "it is no model's config")
    try:
        raw = json.loads(data)
        check_format(path, raw, FORMAT)
        if isinstance(raw, dict) and raw.pop(CHECKSUM_KEY, None) != _content_checksum(raw):
            raise ArtifactError(
                f"{path} was altered since the model was saved: its checksum differs. Copy it again, or fit again; "
                "'clipadapter rename-class' changes the name of a class"
            )
        config = ModelConfig.model_validate(raw)
    except ValidationError as error:
        raise ArtifactError(f"{path} is not a model's config: {describe_first_error(error)}") from error
    except (ValueError, OSError, RecursionError) as error:
        raise ArtifactError(f"{path} can't be read: {error}") from error
    return Snapshot(config, data, Path(folder))


def read_consistently(folder: str | Path, read: Callable[[str | Path], T]) -> T:
    """Call a function that reads the folder of a model, again if another process saved a model meanwhile."""
    for _ in range(MAX_READS):
        before = config_stamp(folder)
        try:
            content = read(folder)
        except (ArtifactError, OSError):
            if config_stamp(folder) == before:
                raise
            continue
        if config_stamp(folder) == before:
            return content
    raise ArtifactError(f"{folder} is being changed all the time: try again when the other process has ended")


def config_stamp(folder: str | Path) -> tuple[Stamp, ...] | None:
    """What changes with each save; None if there is no config."""
    return stamp_files([Path(folder) / CONFIG_FILE])


def check_format(path: Path, raw: object, expected: int) -> None:
    """Check the format number of a JSON object."""
    number = raw.get("format") if isinstance(raw, dict) else None
    if type(number) is int and number != expected:
        raise ArtifactError(
            f"{path} has format {number}, this version reads {expected}: update clipadapter, or fit again"
        )


def read_file(folder: str | Path, name: str, limit: int, why_not: str) -> bytes:
    """Read a file below the folder of a model. No link in the folder is followed."""
    path = model_path(folder, name)
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise ArtifactError(f"{path} is larger than {limit >> 20} MiB: {why_not}")
            return file.read()
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: copy the whole folder, or fit again") from None
    except (OSError, MemoryError) as error:
        raise ArtifactError(f"{path} can't be read: {str(error) or type(error).__name__}") from error


def describe_first_error(error: ValidationError) -> str:
    """Location and message of the first validation error."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


MAX_WORST_CLASSES = 5  # classes that are recorded by name, those with the lowest F1 first


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


def _read_scores(values: Any, validate: Callable[[Any], dict[str, float]]) -> dict[str, float]:
    """The metrics that a card shows; None is a metric that is not defined."""
    if isinstance(values, Mapping):
        values = {name: values[name] for name in metrics_shown("card") if values.get(name) is not None}
    scores = validate(values)
    check_metrics(scores)
    return scores


Scores = Annotated[dict[str, float], WrapValidator(_read_scores)]
"""Metrics of one method by their name in `clipadapter.metrics.METRICS`."""


class ClassScores(_Record):
    """Scores of a model on one class."""

    name: str
    count: int
    precision: float
    recall: float
    f1: float


class Evaluation(_Record):
    """Scores of a model on a test set."""

    data: str
    n: int = Field(gt=0, lt=1 << 53)  # number of test pictures that could be read
    skipped: int = 0
    among_shots: int = 0  # number of test pictures that are shots of the model
    created: str = ""  # UTC time
    model: Scores
    baselines: dict[str, Scores] = Field(default_factory=dict)  # scores by baseline, on the same pictures
    worst: list[ClassScores] = Field(default_factory=list)  # classes with mistakes, the lowest F1 first
    files: dict[str, str] = Field(default_factory=dict)  # SHA-256 of the files of arrays that the scores belong to

    def recorded_in(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """A provenance with this evaluation."""
        return {**provenance, EVALUATION_KEY: self.model_dump(exclude_none=True)}


def make_evaluation(metrics: Mapping[str, Any], config: ModelConfig) -> Evaluation:
    """Select what is recorded of the metrics of an evaluation."""
    try:
        classes = [ClassScores.model_validate(one) for one in metrics["model"]["classes"]]
        with_mistakes = sorted((one for one in classes if one.count and one.f1 < 1), key=lambda one: one.f1)
        evaluation = Evaluation(
            data=printable(metrics["data"]),
            n=metrics["n_test"],
            skipped=len(metrics["skipped"]),
            among_shots=metrics.get("among_shots", 0),
            created=metrics["created"],
            model=metrics["model"],
            baselines=metrics["baselines"],
            worst=with_mistakes[:MAX_WORST_CLASSES],
            files=_evaluated_files(config.files),
        )
        head = metrics["head"]
    except (AttributeError, KeyError, TypeError, ValidationError) as error:
        raise InputError(f"this is no metrics.json of 'clipadapter eval' ({error!r})") from error
    if head != config.head.name or [one.name for one in classes] != config.class_names:
        raise InputError(f"the figures are of another model, with the head '{head}': evaluate this one")
    if evaluation.created < str(config.provenance.get("created", "")):
        raise InputError(f"the figures are of {evaluation.created}, before this model was made: evaluate it again")
    return evaluation


def read_evaluation(provenance: Mapping[str, Any], files: Mapping[str, str] | None = None) -> Evaluation | None:
    """The evaluation in a provenance; None if there is none, it is invalid, or belongs to others than these files."""
    try:
        evaluation = Evaluation.model_validate(provenance.get(EVALUATION_KEY))
    except ValidationError:
        return None
    return evaluation if files is None or evaluation.files == _evaluated_files(files) else None


def _evaluated_files(files: Mapping[str, str]) -> dict[str, str]:
    """Hashes of the files that decide the scores: the head, and what makes probabilities of its logits."""
    return {name: files[name] for name in (HEAD, UNCERTAINTY) if name in files}
