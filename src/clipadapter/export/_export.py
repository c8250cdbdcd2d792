"""A fitted classifier to a file: converted, described, compared with the model, and only then given its name."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from numpy.typing import NDArray

from clipadapter.classifier import FewShotClassifier
from clipadapter.data.images import ImageSource
from clipadapter.errors import ArtifactError, ClipAdapterError, InputError
from clipadapter.export._describe import about, notes_of
from clipadapter.export._files import ModelFile, OnnxFile, OpenVinoFile
from clipadapter.export._gate import Gate, judge
from clipadapter.export._graph import ModelGraph
from clipadapter.export._pictures import Pictures, find_pictures, squares_of
from clipadapter.export._towers import towers_of
from clipadapter.files import OPENVINO_WEIGHTS_SUFFIX
from clipadapter.pixels import PixelSpec
from clipadapter.runtime import About, Predictor
from clipadapter.runtime._about import INPUTS, KEY, MAX_CHARACTERS

FORMATS: Mapping[str, type[ModelFile]] = {"onnx": OnnxFile, "openvino": OpenVinoFile}
PRECISIONS = ("fp32", "int8")
LOCK = ".clipadapter-export.lock"
"""Held in the folder that an export writes to; free where its writer was killed."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: the file to open.
        files: all files, ``path`` among them.
        format: "onnx" or "openvino".
        precision: "fp32" or "int8".
        input: "uint8" or "float".
        size: bytes of all files.
        gate: how near its answers are to the model's, see `clipadapter.export._gate.compare`.
        compared: the same for a person, with what it was compared on.
        notes: what the file can't do that the model can.
    """

    path: Path
    files: tuple[Path, ...]
    format: str
    precision: str
    input: str
    size: int
    gate: Mapping[str, Any]
    compared: str
    notes: tuple[str, ...] = ()


def export_model(
    model: FewShotClassifier,
    path: str | Path,
    *,
    format: str = "onnx",  # noqa: A002 - what people call it
    precision: str = "fp32",
    input: str = "uint8",  # noqa: A002 - the graph's
    pictures: str | Path | Sequence[ImageSource] | None = None,
) -> Exported:
    """Write image tower, head, calibration and rejection of a fitted model as one graph.

    What is written answers as the model does, or nothing is written: it is run on pictures first, in batches of one,
    two and more. A model that was fitted on bf16 or int8 features is written from the tower in full precision.

    Args:
        model: fitted.
        path: ends in ``.onnx``, or in ``.xml`` for OpenVINO, whose weights lie beside it in ``.bin``. A file there is
            replaced.
        format: "onnx" or "openvino".
        precision: "fp32", or "int8" for the image tower.
        input: "uint8" takes squares (n, s, s, 3), values 0 .. 255; "float" takes normalised pixels (n, 3, s, s).
        pictures: what it is compared on, and int8 is calibrated with: a folder, a table, or a list. The model's own
            shots if not given; drawn ones if these are not on this machine.

    Raises:
        ArtifactError: if the file does not answer as the model does, or can't be written.
        InputError: if the encoder or the head can't be exported, a value is wrong, or int8 has no pictures.
        MissingExtraError: if a package is missing.

    >>> import numpy as np
    >>> red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    >>> model = FewShotClassifier(encoder="toy", cache=None).fit([red, blue], ["red", "blue"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = export_model(model, f"{folder}/model.onnx", pictures=[red, blue])
    ...     Predictor(done.path).predict([blue])
    ['blue']
    """
    kind = _checked(format, precision, input)
    target = _target(Path(path), kind)
    if not hasattr(model, "head_"):
        raise InputError("this FewShotClassifier is not fitted: call fit(images, labels), or load(folder)")
    kind.check()
    towers = towers_of(model.encoder_)
    graph = ModelGraph(towers, model.head_, model.uncertainty_, input)
    found = find_pictures(pictures, model.support_, graph.pixels, precision)
    with _beside(target) as folder:
        file = kind(graph, folder, target.name)
        _convert(file, model, _rows(found, graph.pixels, input) if precision == "int8" else None)
        told = about(model, graph.pixels, precision, input)
        gate = _compared(file, told, model, found)
        written = file.write(_texts(replace(told, gate=gate.figures)))
        size = sum(part.stat().st_size for part in written)
        files = _named(written, target)
    return Exported(
        Path(path), files, format, precision, input, size, gate.figures, gate.words(), tuple(notes_of(model))
    )


def _checked(format: str, precision: str, source: str) -> type[ModelFile]:  # noqa: A002
    for name, value, known in (
        ("format", format, FORMATS),
        ("precision", precision, PRECISIONS),
        ("input", source, INPUTS),
    ):
        if value not in known:
            raise InputError(f"{name} is {' or '.join(known)}, not {value!r}")
    return FORMATS[format]


def _target(path: Path, kind: type[ModelFile]) -> Path:
    """Where to write; a link is followed."""
    pair = kind is OpenVinoFile
    if (path.suffix if pair else path.suffix.lower()) != kind.suffix:  # OpenVINO writes no .XML
        raise InputError(f"{path} would be no {kind.suffix} file by its name: give a name that ends with {kind.suffix}")
    try:
        target = path.resolve()
        for each in (target, target.with_suffix(OPENVINO_WEIGHTS_SUFFIX)) if pair else (target,):
            if each.exists() and not each.is_file():
                raise InputError(f"{each} is no ordinary file: give another name")
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # too long, a link to itself, a null character
        raise InputError(f"{path} can't be the name of a file ({error}): give another name") from error
    return target


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder beside the target, so that what is in it can be renamed; it goes with what is left.

    Its lock is held as long as it is written to, so that others can tell it from one whose writer was killed.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(target)
        with _locked_folder(target) as folder:
            yield folder
    except OSError as error:
        if isinstance(error, ClipAdapterError):
            raise
        raise ArtifactError(
            f"can't write {target}: {error.strerror or error}; give a place you may write to, with room for the model"
        ) from error


@contextlib.contextmanager
def _locked_folder(target: Path) -> Iterator[Path]:
    """A new folder beside the target, locked until it goes."""
    while True:
        prefix = _prefix_of(target)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix, ignore_cleanup_errors=True) as name:
            lock = FileLock(Path(name) / LOCK)
            with contextlib.suppress(FileNotFoundError):
                lock.acquire()
            if not (Path(name) / LOCK).exists():  # another export removed the folder before it was locked
                lock.release()
                continue
            try:
                yield Path(name)
            finally:
                lock.release()
            return


def _remove_left_behind(target: Path) -> None:
    """Remove folders of killed exports to the same target.

    What is not named as ours, is locked, or holds something but no lock of ours, is left alone.
    """
    name = re.compile(re.escape(_prefix_of(target)) + r"[a-z0-9_]{8}")
    for folder in target.parent.iterdir():
        if not name.fullmatch(folder.name) or folder.is_symlink():
            continue
        if not (folder / LOCK).is_file():
            with contextlib.suppress(OSError):
                folder.rmdir()  # its writer was killed before it had a lock; what is not empty stays
            continue
        lock = FileLock(folder / LOCK, timeout=0)
        with contextlib.suppress(Timeout, OSError), lock:
            shutil.rmtree(folder, ignore_errors=True)


def _prefix_of(target: Path) -> str:
    return f".{target.name[:100]}-"


def _rows(found: Pictures, pixels: PixelSpec, source: str) -> NDArray[Any]:
    """What int8 is calibrated with, as the graph takes it."""
    squares = squares_of(found.calibrating, pixels)
    return squares if source == "uint8" else pixels.normalize(squares)


def _convert(file: ModelFile, model: FewShotClassifier, rows: NDArray[Any] | None) -> None:
    head, encoder = type(model.head_).__name__, model.encoder_.info.name
    try:
        file.convert(rows)
    except (ClipAdapterError, OSError):
        raise
    except Exception as error:  # converters raise whatever they like
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{encoder} with {head} can't be written as {file.suffix} ({reason}): try the other format, or another head"
        ) from error


def _compared(file: ModelFile, told: About, model: FewShotClassifier, found: Pictures) -> Gate:
    """The gate.

    Raises:
        ArtifactError: if the file does not answer as the model does.
    """
    gate = judge(model, Predictor(file.write(_texts(told))[-1], backend=file.runtime), found)
    if not gate.faults:
        return gate
    if told.precision == "int8":
        advice = (
            "Use fp32, the other format, or other pictures to calibrate with (pictures=..., or --pictures): at least "
            "64 such as will come by"
        )
    elif model.encoder_.info.precision != "fp32":
        advice = f"The model was fitted in {model.encoder_.info.precision}: fit it again in fp32 (precision='fp32')"
    else:
        advice = "Try the other format; if that fails too, this is a fault of ours: please report it with these figures"
    raise ArtifactError(
        f"the file would not answer as the model does, so it was not written: {'; '.join(gate.faults)} "
        f"(on {gate.pictures}). {advice}"
    )


def _texts(told: About) -> dict[str, str]:
    """The description; class names a second time, where people look for them.

    Raises:
        InputError: if it is too long to be read again.
    """
    text = told.to_json()
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            f"a file can't hold what the model is asked for: costs of {len(told.class_names)} classes are too many. "
            "Export it without costs, and give them with the pictures (costs=..., or --cost)"
        )
    return {KEY: text, "class_names": json.dumps(list(told.class_names))}


def _named(written: Sequence[Path], target: Path) -> tuple[Path, ...]:
    """Give files their names, the one that is opened last; what stops it leaves an older pair, or none."""
    before = written[0].with_name("before")
    if len(written) > 1 and target.exists():  # a graph must not meet the weights of another
        target.replace(before)
    try:
        for path in written:
            path.replace(target.with_suffix(path.suffix))
    except BaseException:
        if before.exists() and written[0].exists():  # the older weights are in their place still
            before.replace(target)
        raise
    return tuple(target.with_suffix(path.suffix) for path in written)
