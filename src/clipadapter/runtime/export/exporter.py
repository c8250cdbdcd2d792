"""Export a fitted classifier: convert it, add metadata, compare it with the model, and only then give it its name."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipadapter.classifier import FewShotClassifier
from clipadapter.data.images import ImageSource, read_image, source_name
from clipadapter.data.load import read_listing
from clipadapter.data.pictures import Pictures, list_pictures
from clipadapter.errors import ArtifactError, DataError, ImageError, InputError, MissingExtraError, brief
from clipadapter.features import FeatureSet
from clipadapter.heads.registry import registered_name
from clipadapter.persistence.model import make_provenance
from clipadapter.runtime import ExportMetadata, Predictor
from clipadapter.runtime.cached import cached_export, can_answer
from clipadapter.runtime.engines.export_format import METADATA_KEY, ExportFormat, WriteFile
from clipadapter.runtime.engines.formats import (
    DEFAULT_FORMAT,
    append_checksum,
    get_format,
    is_intact,
    list_openers,
    load_formats,
)
from clipadapter.runtime.engines.graphs import INPUT_NAMES, Rows
from clipadapter.runtime.export.evaluation import MIN_ROWS, compare_file, describe_parity, find_faults
from clipadapter.runtime.export.graph import ModelGraph, export_towers
from clipadapter.runtime.golden import Golden
from clipadapter.runtime.predictor import MAX_METADATA_CHARACTERS
from clipadapter.utils.files import keep_mode, remove_abandoned, without_paths

VERSIONED_DISTRIBUTIONS = ("clipadapter", "torch", "open_clip_torch")
"""Packages whose versions are in the metadata of a file, besides those of the formats."""
NO_SETS = (
    "the file gives no sets of classes: sets by CV+ need the heads of all folds. Fit with sets='cross' "
    "(UncertaintyOptions, or --sets cross) to have them"
)


@dataclass(frozen=True)
class ExportResult:
    """Result of `export_model`.

    Args:
        path: the file to open.
        files: all files, ``path`` among them.
        size_bytes: of all files.
        parity: numbers of the comparison with the model, see `clipadapter.runtime.export.evaluation.compare_outputs`.
        parity_summary: the same as a line for people, with the pictures that were compared.
        notes: what the model can do and the file can't.
    """

    path: Path
    files: tuple[Path, ...]
    size_bytes: int
    parity: Mapping[str, Any]
    parity_summary: str
    notes: tuple[str, ...] = ()


def export_model(
    model: FewShotClassifier,
    path: str | Path,
    *,
    format: str = DEFAULT_FORMAT,  # noqa: A002 - what people call it
    precision: str = "fp32",
    input: str = "uint8",  # noqa: A002 - the graph's
    pictures: Pictures | None = None,
) -> ExportResult:
    """Write image tower, head, calibration and rejection of a fitted model as one graph.

    The file is run on pictures first, in batches of one, two and more, and is only written if its outputs are those of
    the model. A model that was fitted on bf16 or int8 features is written from the tower in full precision.

    Args:
        model: fitted.
        path: ends with the suffix of the format, such as ``.onnx``. OpenVINO adds a ``.bin`` with the weights to its
            ``.xml``. Existing files are replaced.
        format: one of `clipadapter.runtime.engines.formats.load_formats`.
        precision: "fp32", or "int8" for the image tower.
        input: "uint8" takes squares (n, s, s, 3), values 0 .. 255; "float" takes normalised pixels (n, 3, s, s).
        pictures: a folder, a table, or pictures as `FewShotClassifier.predict` takes them, to compare outputs on and to
            calibrate int8 with. By default the model's own shots, or synthetic pictures if the shots are not on this
            machine.

    Raises:
        ArtifactError: if the outputs differ from those of the model, or the file can't be written.
        InputError: if the encoder or the head can't be exported, a value is wrong, or int8 has no pictures.
        MissingExtraError: if a package is missing.

    >>> import tempfile
    >>> import numpy as np
    >>> red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    >>> model = FewShotClassifier(encoder="toy", cache=None).fit([red, blue], ["red", "blue"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = export_model(model, f"{folder}/model.onnx", pictures=[red, blue])
    ...     Predictor(result.path).predict([blue])
    ['blue']
    """
    export_format = get_format(format)
    if input not in INPUT_NAMES:
        raise InputError(f"input is {' or '.join(INPUT_NAMES)}, not {brief(input)}")
    target = _check_target(Path(path), export_format)
    if not hasattr(model, "head_"):
        raise InputError("this FewShotClassifier is not fitted: call fit(images, labels), or load(folder)")
    export_format.check_convertible(precision)
    graph = ModelGraph(export_towers(model.encoder_), model.head_, model.uncertainty_, input)
    chosen = choose_pictures(pictures, model.support_, max(spec.size for spec in graph.inputs), precision)
    with working_folder(target) as folder:
        rows = _calibration_rows(chosen, graph) if precision == "int8" else None
        name, advice = f"{model.encoder_.info.name} with {type(model.head_).__name__}", "format, or another head"
        write = export_format.convert_model(graph.describe(), folder / target.name, rows, name, advice)
        metadata = describe_model(model, graph, precision)
        parity, golden = _check_file(_write(write, metadata)[-1], list_openers(format)[0], model, chosen)
        written = _write(write, replace(metadata, parity=parity, golden=golden))
        size_bytes = sum(part.stat().st_size for part in written)
        files = move_into_place(written, target)
    conformal = model.uncertainty_.conformal
    notes = (NO_SETS,) if conformal is not None and conformal.method == "cv+" else ()
    summary = f"on {parity['n']} {KINDS[chosen.kind]}: {describe_parity(parity)}"
    return ExportResult(Path(path), files, size_bytes, parity, summary, notes)


def _check_target(path: Path, export_format: ExportFormat) -> Path:
    """The file to write; a link to a file that is there is followed."""
    suffix, companions = export_format.suffix, export_format.companion_suffixes
    # Formats with two files make the name of the second from the suffix, in lower case only.
    if (path.suffix if companions else path.suffix.lower()) != suffix:
        raise InputError(f"{path} does not end with {suffix}: give a name that ends with {suffix}")
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # Path.resolve raises no error for a link to itself from Python 3.13 on
        target = path.resolve()
        leads_nowhere = path.is_symlink() and not target.exists()
        files = (target, *map(target.with_suffix, export_format.companion_suffixes))
        irregular = [file for file in files if file.exists() and not file.is_file()]
    except (OSError, ValueError) as error:  # too long, a link to itself, a null character
        raise InputError(f"{path} can't be the name of a file ({error}): give another name") from error
    if leads_nowhere:  # maybe to where no folder of this person should be made
        raise InputError(f"{path} is a link to a file that is not there: remove it, or give another name")
    if irregular:
        raise InputError(f"{irregular[0]} is not a regular file: give another name")
    return target


def _write(write: WriteFile, metadata: ExportMetadata) -> list[Path]:
    """Write a converted graph with metadata and checksum; the file to open comes last."""
    text = metadata.to_json()
    if len(text) > MAX_METADATA_CHARACTERS:
        raise InputError(
            f"the metadata of a file can't hold the costs of {len(metadata.class_names)} classes: export the model "
            "without costs, and give them with the pictures (costs=..., or --cost)"
        )
    # Class names have their own key too, where other programs look for them.
    files = write({METADATA_KEY: text, "class_names": json.dumps(list(metadata.class_names))})
    append_checksum(files[-1])
    return files


def _check_file(
    path: Path, backend: str, model: FewShotClassifier, pictures: ExportPictures
) -> tuple[dict[str, Any], Golden]:
    """Compare a file with the model: the figures, if they are within the limits, and its golden outputs."""
    predictor = Predictor(path, backend=backend)
    measured = compare_file(model, predictor, pictures.comparison)
    fitted_in = model.encoder_.info.precision
    faults = find_faults(measured, is_exact=fitted_in == predictor.precision == "fp32")
    if not faults:
        return {"pictures": pictures.kind, **measured}, predictor.compute_golden()
    if predictor.precision == "int8":
        advice = (
            "Use fp32, another format, or other pictures to calibrate with (pictures=..., or --pictures): at least "
            "64 like those that the model will see"
        )
    elif fitted_in != "fp32":
        advice = f"The model was fitted in {fitted_in}: fit it again in fp32 (precision='fp32')"
    else:
        advice = "Try another format. If that fails too, this is a bug: please report it with these figures"
    raise ArtifactError(
        f"the outputs of the file differ from those of the model, so it was not written: {'; '.join(faults)} "
        f"(on {measured['n']} {KINDS[pictures.kind]}). {advice}"
    )


# ---- Metadata ----


def describe_model(model: FewShotClassifier, graph: ModelGraph, precision: str) -> ExportMetadata:
    """Metadata of a file, without the figures of the comparison. They contain no path of this machine."""
    info = model.encoder_.info
    encoder = {
        "name": without_paths(info.name),
        "fingerprint": info.fingerprint,
        "licence": info.licence,
        "logit_scale": info.logit_scale,
        "precision": info.precision,
    }
    saved, versions = make_provenance(model.support_), {}
    of_formats = [each for export_format in load_formats().values() for each in export_format.distributions]
    for distribution in (*VERSIONED_DISTRIBUTIONS, *of_formats):
        with suppress(PackageNotFoundError):
            versions[distribution] = version(distribution)
    provenance = {key: saved[key] for key in ("shots", "skipped", "views", "python", "created")}
    return ExportMetadata(
        model.class_names_,
        graph.inputs,
        model.uncertainty_.without_arrays(),
        graph.input_kind,
        precision,
        encoder,
        {"name": registered_name(model.head_), "params": model.head_.get_params(deep=False)},
        {**provenance, "versions": versions},
        blocks=info.blocks if len(info.blocks) > 1 else (),
    )


# ---- Pictures to compare the file with the model on, and to calibrate int8 with ----

MAX_COMPARED_PICTURES = {"fp32": 32, "int8": 64}  # number of pictures that a file is compared on, by precision
MAX_CALIBRATION_PICTURES = 64
MIN_CALIBRATION_PICTURES = 32
"""With fewer pictures left over, int8 is calibrated with those that the file is compared on."""
SYNTHETIC_PICTURES = 16
KINDS = {"given": "pictures that were given", "shots": "of the model's shots", "drawn": "drawn pictures"}
"""Where pictures come from, as in the metadata of a file, and in words."""


@dataclass(frozen=True)
class ExportPictures:
    """Pictures for one export."""

    kind: str  # one of `KINDS`
    comparison: Sequence[ImageSource]  # pictures that outputs are compared on
    calibration: Sequence[ImageSource]  # pictures that int8 is calibrated with


def choose_pictures(pictures: Pictures | None, support: FeatureSet, size: int, precision: str) -> ExportPictures:
    """Take the given pictures; else the model's shots if their files still exist; else synthetic ones."""
    if pictures is None:
        names = support.provenance.get("sources", ())
        # `Path.is_file` raises an error for some names that no file can have.
        kind, sources = "shots", list[ImageSource](map(Path, filter(os.path.isfile, names)))
    elif isinstance(pictures, str | Path):
        kind, sources = "given", list(read_listing(pictures).dataset.paths)
    else:
        kind, sources = "given", list_pictures(pictures)
    if not sources and kind == "given":
        raise DataError(
            "there are no pictures to compare the file on: give pictures, or leave the option out to use the shots"
        )
    if not sources and precision == "int8":
        raise InputError(
            "int8 is calibrated with pictures, but the model's shots are not on this machine: give pictures like those "
            "that the model will see (pictures=..., or --pictures FOLDER); 64 are enough"
        )
    if not sources:
        synthetic = draw_pictures(SYNTHETIC_PICTURES, size)
        return ExportPictures("drawn", synthetic, synthetic)
    # A hash of their names mixes the classes, and orders the pictures equally in every export.
    keys = [blake2b(f"{source_name(source)} {i}".encode()).digest() for i, source in enumerate(sources)]
    n_compared = MAX_COMPARED_PICTURES[precision]
    order = sorted(range(len(sources)), key=keys.__getitem__)[: n_compared + MAX_CALIBRATION_PICTURES]
    comparison, others = ([sources[i] for i in part] for part in (order[:n_compared], order[n_compared:]))
    return ExportPictures(kind, comparison, others if len(others) >= MIN_CALIBRATION_PICTURES else comparison)


def draw_pictures(n: int, size: int) -> list[ImageSource]:
    """Synthetic pictures (s, s, 3): smooth coloured spots, coarse and fine."""
    rng = np.random.default_rng(0)
    pictures: list[ImageSource] = []
    for i in range(n):
        n_cells = 2 + i % 7
        cells = Image.fromarray(rng.integers(0, 256, (n_cells, n_cells, 3), dtype=np.uint8))
        spots = np.asarray(cells.resize((size, size), Image.Resampling.BICUBIC), np.int16)
        pictures.append(np.clip(spots + rng.integers(-8, 9, spots.shape), 0, 255).astype(np.uint8))
    return pictures


def _calibration_rows(pictures: ExportPictures, graph: ModelGraph) -> Rows:
    """The pictures that int8 is calibrated with, as the graph takes them, by the names of its inputs."""
    squares = []
    for source in pictures.calibration:
        with suppress(ImageError):  # the ranges of int8 values come from the others
            image = read_image(source)
            squares.append([spec.to_square(image) for spec in graph.inputs])
    if not squares:
        raise DataError(
            f"none of the {len(pictures.calibration)} pictures to calibrate int8 with can be read: give others"
        )
    rows: list[Any] = list(map(np.stack, zip(*squares, strict=True)))
    if graph.input_kind == "float":
        rows = [spec.normalize(each) for spec, each in zip(graph.inputs, rows, strict=True)]
    return dict(zip(graph.describe().input_names, rows, strict=True))


# ---- Files beside the target, which are renamed when they are complete ----


@contextmanager
def working_folder(target: Path) -> Iterator[Path]:
    """A folder beside the target, so on the same file system. Those of killed exports are removed after a day."""
    prefix = f".{target.name[:100]}-export-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent, re.escape(prefix) + "[a-z0-9_]{8}")
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix, ignore_cleanup_errors=True) as name:
            yield Path(name)
    except OSError as error:
        raise ArtifactError(
            f"can't write {target}: {error.strerror or error}; give a place you may write to, with room for the model"
        ) from error


def move_into_place(written: Sequence[Path], target: Path) -> tuple[Path, ...]:
    """Rename files to the target, the one that is opened last. A failure leaves the older files, or none."""
    older = written[0].with_name("before")
    for path in written:
        keep_mode(path, target.with_suffix(path.suffix))
    if len(written) > 1 and target.exists():  # a graph must not meet the weights of another
        target.replace(older)
    try:
        for path in written:
            path.replace(target.with_suffix(path.suffix))
    except BaseException:
        if older.exists() and written[0].exists():  # the older weights are still in place
            older.replace(target)
        raise
    return tuple(target.with_suffix(path.suffix) for path in written)


# ---- The exported file of a saved model in the cache folder, where `clipadapter.runtime.cached` finds it ----

MAX_WEIGHTS = 32_000_000
"""Models with larger image towers are exported by `serve` only: that takes many seconds, and a second copy of them."""
MAX_FILES = 20  # older files are removed; they can be made again
REFUSED_SUFFIX = ".refused"
"""Suffix of an empty file that says that a model can't be exported, so that it is not tried again."""


def export_to_cache(model: FewShotClassifier, folder: str | Path) -> bool:
    """Export a saved model into the cache folder, if its tower is small; whether the file is there."""
    try:
        return _export_to_cache(model, Path(folder))
    except Exception as error:  # the model is saved and answers without the file
        logging.getLogger(__name__).info("%s was not exported to the cache: %s", folder, error)
        return False


def _export_to_cache(model: FewShotClassifier, folder: Path) -> bool:
    if model.head_.tunes_encoder or not can_answer(folder):
        return False
    for name, export_format in load_formats().items():
        path = cached_export(folder, name)
        refused = path.with_suffix(REFUSED_SUFFIX)
        if is_intact(path) or refused.exists():
            return not refused.exists()
        try:
            export_format.check_convertible("fp32")
        except MissingExtraError:
            continue
        towers = model.encoder_.towers()
        try:
            if sum(each.numel() for tower in towers for each in tower.module.parameters()) > MAX_WEIGHTS:
                raise InputError(f"the image tower has more than {MAX_WEIGHTS} weights")
            size = max((tower.pixels.size for tower in towers), default=0)
            export_model(model, path, format=name, pictures=draw_pictures(MIN_ROWS, size))
        except Exception as error:
            if not isinstance(error.__cause__ or error, OSError):  # a full disk may have room the next time
                refused.parent.mkdir(parents=True, exist_ok=True)
                refused.touch()
            raise
        with suppress(OSError):
            newest_first = sorted(path.parent.iterdir(), key=lambda each: each.stat().st_mtime, reverse=True)
            for old in filter(Path.is_file, newest_first[MAX_FILES:]):
                old.unlink(missing_ok=True)
        return True
    return False
