"""Predict with an exported file, without torch: pictures in, predictions out; and the metadata of such a file."""

from __future__ import annotations

import base64
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipadapter.adaptation import Adapt, TdaCache
from clipadapter.data.image_notes import ImageNotes, find_image_notes
from clipadapter.data.images import MAX_DECODE_SECONDS, ImageSource, image_bytes, read_image_shrunk, source_name
from clipadapter.data.pictures import Pictures, list_pictures
from clipadapter.errors import ArtifactError, ClipAdapterError, ImageError, InputError, brief
from clipadapter.runtime.engines.base import backend_info
from clipadapter.runtime.engines.export_format import EXPORT_PRECISIONS
from clipadapter.runtime.engines.formats import check_file, list_inference_backends, list_openers, require_format
from clipadapter.runtime.engines.graphs import BLOCKS_OUTPUT, FEATURES_OUTPUT, INPUT_NAMES, input_names
from clipadapter.runtime.golden import (
    LIMITS,
    Golden,
    compute_golden,
    differences,
    instruction_sets,
    proof_file,
    remember,
)
from clipadapter.uncertainty import Answers, Uncertainty
from clipadapter.uncertainty.ood import MARK_RATE
from clipadapter.utils.blocks import Blocks, as_blocks, total_width
from clipadapter.utils.files import explain_missing, stamp_files
from clipadapter.utils.pixels import (
    PixelSpec,
    different_squares,
    min_jpeg_side,
    pack_squares,
    packed_shape,
    unpack_squares,
)
from clipadapter.utils.prediction import Prediction, labels_of

DEFAULT_BATCH_SIZE = 8
"""In larger batches ONNX Runtime takes 1.5 times as long per picture."""
PREFETCHED_BATCHES = 2
"""Batches that are read ahead, the one that runs included: threads read the next while the graph runs."""


class Outputs(NamedTuple):
    """Outputs of a graph for n pictures.

    Args:
        logits: (n, c).
        features: (n, d) raw, as from the encoder; of several blocks the block ``final``.
        ood_score_parts: (n, p) scores of "none of these", one per part of the rejector; None without a rejector, or if
            the rejector computes them itself.
        probabilities: (n, c) as the graph computes them, in float32; None if it does not.
        ood_scores: (n,) weighted sum of the parts as the graph computes it; None if it does not.
        blocks: (n, w) all blocks of the features; None if ``final`` is the only one.
    """

    logits: NDArray[Any]
    features: NDArray[Any]
    ood_score_parts: NDArray[Any] | None = None
    probabilities: NDArray[Any] | None = None
    ood_scores: NDArray[Any] | None = None
    blocks: NDArray[Any] | None = None

    def rows(self, index: slice) -> Outputs:
        """Outputs of some of the pictures."""
        return Outputs(*(None if array is None else array[index] for array in self))  # type: ignore[arg-type]

    @classmethod
    def concatenate(cls, outputs: Sequence[Outputs]) -> Outputs:
        """Outputs of all pictures of several batches."""
        batches = zip(*outputs, strict=True)
        return cls(*(None if arrays[0] is None else np.concatenate(arrays) for arrays in batches))  # type: ignore[arg-type]


class Predictor:
    """A model that ``clipadapter export`` wrote. Neither torch nor open_clip is loaded.

    Args:
        path: the file, of any format of `clipadapter.runtime.engines.formats`; of an OpenVINO pair the ``.xml``.
        backend: "onnxruntime" or "openvino"; "auto" uses the first that is installed of those that run the format.
        threads: number of threads that run the graph; all cores by default.

    Raises:
        ArtifactError: if the file is missing, altered, of a later format, was not written by ``clipadapter export``, or
            gives other outputs on this processor than where it was made, see `clipadapter.runtime.golden`.
        MissingExtraError: if the backend is not installed.
        InputError: if the backend can't run such a file.

    Attributes:
        sha256: checksum of the file, which was compared with its bytes before a backend opened it.
        metadata: of the file.

    ::

        predictor = Predictor("model.onnx")
        predictor.predict("photo.jpg")  # or a folder, or a list
        predictor.classify("photo.jpg", reject=0.05)[0].label  # None if it is none of the classes
    """

    def __init__(self, path: str | Path, *, backend: str = "auto", threads: int | None = None) -> None:
        self.path = Path(path)
        self.backend = _choose_backend(self.path, backend)
        if threads is not None and threads < 1:
            raise InputError(f"threads must be 1 or more, but is {threads}")
        export_format = require_format(self.path)
        stamp = stamp_files(export_format.existing_files(self.path))
        self.sha256 = check_file(self.path)
        self._graph = backend_info(self.backend).cls.open_file(self.path, threads)
        if not self._graph.metadata:
            raise ArtifactError(
                f"{self.path} was not written by 'clipadapter export': it has no metadata with the classes"
            )
        self.metadata = ExportMetadata.from_json(self._graph.metadata)
        if stamp_files(export_format.existing_files(self.path)) != stamp:
            raise ArtifactError(f"{self.path} changed while it was opened: open it again when it is complete")
        self.class_names, self.inputs = self.metadata.class_names, self.metadata.inputs
        self.uncertainty, self.precision = self.metadata.uncertainty, self.metadata.precision
        self._input_names = input_names(self.metadata.input, [spec.size for spec in self.inputs])
        self._check_graph()
        self._check_golden()

    def _check_graph(self) -> None:
        """Refuse a graph whose inputs and outputs do not fit the metadata."""
        blocks, rejector = self.metadata.blocks, self.uncertainty.rejector
        widths: dict[str, set[int]] = {name: {len(self.class_names)} for name in ("logits", "probabilities")}
        if rejector is not None:
            widths["ood_score_parts"] = {len(rejector.parts)}
        if blocks:  # of one block the metadata do not state the width; a graph need not state it, which gives 0
            widths |= {FEATURES_OUTPUT: {0, blocks[0].width}, BLOCKS_OUTPUT: {0, total_width(blocks)}}
        graph, names = self._graph, sorted(self._input_names)
        wrong = [name for name, accepted in widths.items() if graph.widths.get(name) not in accepted]
        if wrong or FEATURES_OUTPUT not in graph.widths or sorted(graph.inputs) != names:
            outputs = f" in its outputs {', '.join(wrong)}" if wrong else ""
            raise ArtifactError(f"{self.path} does not fit its metadata{outputs}: export the model again")

    def compute_golden(self) -> dict[str, NDArray[np.float32]]:
        """Some outputs for the golden pictures, see `clipadapter.runtime.golden`."""
        return compute_golden(self.run, self.inputs, self.metadata.blocks)

    def _check_golden(self) -> None:
        """Refuse a file that gives other outputs here than where it was made. One that passed is not run again."""
        if not self.metadata.parity:  # the file is being made
            return
        backend = backend_info(self.backend).cls
        proof = proof_file(self.sha256, f"{backend.title} {backend.version()}")
        if proof.exists():
            return
        expected, here = self.metadata.golden, self.compute_golden()
        if {name: rows.shape for name, rows in expected.items()} != {name: rows.shape for name, rows in here.items()}:
            raise ArtifactError(f"the golden outputs in {self.path} are damaged: copy or export it again")
        limit = LIMITS[self.precision]
        wrong = {name: share for name, share in differences(expected, here).items() if not share <= limit}
        if wrong:
            name, share = max(wrong.items(), key=lambda item: item[1])
            raise ArtifactError(
                f"{self.path} gives other outputs here than where it was made: {name} differ by {share:.1%}, more than "
                f"{limit:.1%} ({instruction_sets()}; {backend.title} {backend.version()}). Export the model on such a "
                f"processor, or in fp32: clipadapter export MODEL --precision fp32 --out {self.path.name}"
            )
        remember(proof)

    @property
    def is_multilabel(self) -> bool:
        """Whether a picture may have several labels."""
        return self.uncertainty.multilabel is not None

    def grey_pictures(self, n: int) -> NDArray[np.uint8]:
        """What `preprocess` returns for n pictures of one grey."""
        return np.full((n, *packed_shape(self.inputs)), 128, np.uint8)

    def preprocess(
        self,
        image: ImageSource,
        data: bytes | None = None,
        max_pixels: int | None = None,
        max_seconds: float = MAX_DECODE_SECONDS,
    ) -> NDArray[np.uint8]:
        """Preprocess a picture to the square (s, s, 3) that `run` takes; may be called from several threads.

        For several `inputs` the result is (l,): all squares, one after another, of the picture that is decoded once.

        Args:
            image: a path, PIL picture or array.
            data: the bytes of the file, if they were read already: then the path is only a name.
            max_pixels: larger pictures are refused before they are decoded; None: see `set_max_pixels`.
            max_seconds: processor time for a file of a slow format, such as JPEG 2000.

        Raises:
            ImageError: if it can't be read.
        """
        min_sides = [min_jpeg_side(self.precision, spec.size) for spec in self.inputs]
        images = read_image_shrunk(image, min_sides, max_pixels, data, max_seconds)
        return pack_squares(
            [spec.to_square(images[min_side]) for spec, min_side in zip(self.inputs, min_sides, strict=True)]
        )

    def answer(self, outputs: Outputs, *, cache: TdaCache | None = None, **decisions: Any) -> Answers:
        """Probabilities, decisions and sets of classes.

        Args:
            outputs: of `run`.
            cache: of test-time adaptation, which remembers the pictures.
            decisions: ``reject``, ``coverage`` or ``costs``; without one, as the model was fitted.

        Raises:
            InputError: if a decision needs what was not learned from the shots.
        """
        options = self.uncertainty.decisions.with_changes(decisions)
        columns = outputs.ood_score_parts
        return self.uncertainty.answer(outputs.logits, outputs.features, options, columns=columns, cache=cache)

    def classify(self, images: Pictures, top: int = 5, *, adapt: Adapt = None, **decisions: Any) -> list[Prediction]:
        """One prediction per picture, in their order; see `FewShotClassifier.classify`. There are no ``views``."""
        return list(self.iter_predictions(images, top, adapt=adapt, **decisions))

    def predict(self, images: Pictures, **decisions: Any) -> list[Any]:
        """The class of each picture; None if it is rejected; a tuple of classes where it may have several.

        Args:
            images: in all forms that `FewShotClassifier.predict` takes; one picture gives a list of one.
            decisions: as for `answer`; or ``adapt``, see `iter_predictions`.

        Raises:
            ImageError: if a picture can't be read.
        """
        return labels_of(self.iter_predictions(images, 1, **decisions), self.is_multilabel)

    def predict_proba(self, images: Pictures) -> NDArray[np.float64]:
        """Calibrated probabilities (m, c); one picture gives (1, c).

        Raises:
            ImageError: if a picture can't be read.
        """
        _, skipped, outputs = self.outputs_of(images)
        if skipped:
            raise ImageError(*skipped[0])
        return self.uncertainty.probabilities(outputs.logits)

    def iter_predictions(
        self,
        images: Pictures | Iterable[ImageSource] | Iterator[ImageSource | None],
        top: int = 5,
        batch_size: int = DEFAULT_BATCH_SIZE,
        *,
        adapt: Adapt = None,
        **decisions: Any,
    ) -> Iterator[Prediction]:
        """Predictions in the order of the pictures, of which a few batches are in memory at a time.

        Threads read the next pictures while the graph runs on one batch. A picture that can't be read gives a
        prediction with an error, and changes no other.

        Args:
            images: any number, in all forms that `FewShotClassifier.predict` takes; or an iterator of pictures. None in
                it means that the next picture is not there yet: the predictions for all before it come first.
            top: number of classes to name.
            batch_size: number of pictures per run of the graph.
            adapt: "tda" lets earlier pictures change the answers to later ones; a cache goes on from call to call.
            decisions: as for `answer`.

        Raises:
            InputError: if a decision needs what was not learned from the shots, or the batch size is below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, but is {batch_size}")
        cache = self.uncertainty.open_cache(adapt, len(self.class_names))
        for pictures, outputs in self.iter_outputs(images, batch_size):
            columns = self.answer(outputs, cache=cache, **decisions).columns(self.class_names, top)
            yield from columns.with_unreadable([each.name for each in pictures], [each.error for each in pictures])

    def iter_outputs(
        self, images: Pictures | Iterable[ImageSource] | Iterator[ImageSource | None], batch_size: int
    ) -> Iterator[tuple[list[LoadedPicture], Outputs]]:
        """Batches of pictures in their order, and the outputs for those that can be read."""
        # An iterator may have more pictures than fit into memory.
        remaining = images if isinstance(images, Iterator) else list_pictures(images)
        notes, pending = ImageNotes(), deque[list[Future[LoadedPicture]]]()
        with ThreadPoolExecutor(min(batch_size, os.cpu_count() or 1)) as pool:
            for batch in _batches(remaining, batch_size):
                pending.append([pool.submit(self._load, image) for image in batch])
                # After a smaller batch nothing is read ahead: it is the last, or the next picture is not there yet.
                while pending and (len(pending) == PREFETCHED_BATCHES or len(batch) < batch_size):
                    pictures = [future.result() for future in pending.popleft()]
                    for picture in pictures:
                        notes.add(picture.name, picture.notes)
                    squares = [picture.square for picture in pictures if picture.square is not None]
                    if pictures:
                        yield pictures, self.run(np.stack(squares) if squares else self.grey_pictures(0))
        notes.warn()

    def outputs_of(self, images: Pictures) -> tuple[list[int], list[tuple[str, str]], Outputs]:
        """Positions of the pictures that can be read, names and reasons of the others, and the outputs."""
        errors, outputs = list[tuple[str, str | None]](), list[Outputs]()
        for batch, batch_outputs in self.iter_outputs(images, DEFAULT_BATCH_SIZE):
            errors += [(picture.name, picture.error) for picture in batch]
            outputs.append(batch_outputs)
        skipped = [(name, error) for name, error in errors if error is not None]
        rows = [i for i, (_, error) in enumerate(errors) if error is None]
        return rows, skipped, Outputs.concatenate(outputs or [self.run(self.grey_pictures(0))])

    def _load(self, image: ImageSource) -> LoadedPicture:
        try:
            data = image_bytes(image) if isinstance(image, (str, Path)) else None
            notes = [] if data is None else find_image_notes(data)
            return LoadedPicture(source_name(image), self.preprocess(image, data), notes=notes)
        except ImageError as error:
            return LoadedPicture(error.source, error=error.reason)

    def run(self, squares: NDArray[np.uint8]) -> Outputs:
        """Squares (n, s, s, 3), values 0 .. 255, to outputs; may be called from several threads.

        A model with several `inputs` takes (n, l), rows of `preprocess`.

        Raises:
            InputError: if they are of another shape or type.
            ArtifactError: if the graph can't be run, or its outputs don't fit the squares.
        """
        expected = packed_shape(self.inputs)
        if squares.shape[1:] != expected or squares.dtype != np.uint8:
            raise InputError(
                f"this model takes {'squares' if len(expected) == 3 else 'rows of preprocess()'} "
                f"(n, {', '.join(map(str, expected))}) of uint8, but got {squares.shape} of {squares.dtype}"
            )
        n = len(squares)
        if not n:  # not every runtime can run a graph on nothing
            return self.run(self.grey_pictures(1)).rows(slice(0))
        inputs: dict[str, NDArray[Any]] = {}
        for name, spec, rows in zip(self._input_names, self.inputs, unpack_squares(squares, self.inputs), strict=True):
            inputs[name] = np.ascontiguousarray(rows if self.metadata.input == "uint8" else spec.normalize(rows))
        try:
            outputs = self._graph.run(inputs)
        except Exception as error:  # the exceptions of backends have no common base
            reason = str(error).strip().split("\n")[0]
            raise ArtifactError(
                f"{self.path} can't be run on {n} pictures ({reason}): give fewer at a time, or export it again"
            ) from error
        outputs = {name: outputs[name] for name in Outputs._fields if name in outputs}  # a file may have others
        for name, values in outputs.items():
            # Too few rows could be those of other pictures.
            if len(np.atleast_1d(values)) != n or not np.isfinite(values).all():
                raise ArtifactError(
                    f"{self.path} gives {name} {values.shape} for {n} pictures, or values that are not finite: "
                    "copy or export it again"
                )
        return Outputs(**outputs)


@dataclass(frozen=True, eq=False)
class LoadedPicture:
    """The squares of a picture and the notes on it, or why it can't be read."""

    name: str
    square: NDArray[np.uint8] | None = None
    error: str | None = None
    notes: Sequence[str] = ()


def _batches(images: Iterable[ImageSource | None], size: int) -> Iterator[list[ImageSource]]:
    """Batches of pictures: a smaller one at the end, and where the next picture is not there yet; it may be empty."""
    batch: list[ImageSource] = []
    for image in images:
        if image is not None:
            batch.append(image)
        if image is None or len(batch) == size:
            yield batch
            batch = []
    yield batch


def _choose_backend(path: Path, backend: str) -> str:
    """The name of the backend that opens a file."""
    known = list_inference_backends()
    if backend not in ("auto", *known):
        raise InputError(f"backend must be auto, {' or '.join(known)}, but is {brief(backend)}")
    openers = list_openers(require_format(path).name)
    try:
        is_file = path.is_file()
    except OSError as error:
        raise ArtifactError(f"{path} can't be opened: {error.strerror}") from error
    if not is_file:
        raise ArtifactError(f"there is no file {path}{explain_missing(path)}")
    if backend == "auto":
        return next((name for name in openers if backend_info(name).cls.is_installed()), openers[0])
    if backend not in openers:
        raise InputError(f"{path.name} is run by {' or '.join(openers)}, not by {backend}: use backend 'auto'")
    return backend


# ---- The metadata of an exported file: JSON under the key ``clipadapter`` ----

FORMAT = 1
MAX_INPUTS = 64
REJECTION_RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Rates of rejection whose thresholds are written out, for readers without this package."""
MAX_METADATA_CHARACTERS = 64 << 20
DESCRIPTIONS = ("encoder", "head", "provenance", "parity")  # fields with facts that are only shown
ARRAY_DTYPES = ("<f8", "<f4", "<i8", "<i4", "|b1")
DAMAGE_ERRORS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, ClipAdapterError)
"""What reading altered metadata may raise."""


@dataclass(frozen=True, eq=False)
class ExportMetadata:
    """Metadata of an exported file.

    Args:
        class_names: in the order of the logits.
        inputs: how a picture becomes the square of each input of the graph.
        uncertainty: as `Uncertainty.without_arrays` returns it; the graph has the other arrays.
        input: "uint8" for squares (n, s, s, 3), values 0 .. 255; "float" for normalised pixels (n, 3, s, s).
        precision: of the image tower, "fp32" or "int8".
        encoder: its name, fingerprint, licence and logit scale.
        head: its name and parameters.
        provenance: shots, versions, time.
        parity: figures of the comparison with the model.
        blocks: name and width of each block of the features, ``final`` first; empty if it is the only one.
        golden: some outputs for the golden pictures, see `clipadapter.runtime.golden`; none without ``parity``.

    >>> pixels = PixelSpec(8, (0.5,) * 3, (0.5,) * 3)
    >>> ExportMetadata.from_json(ExportMetadata(("cat", "dog"), (pixels,), Uncertainty()).to_json()).class_names
    ('cat', 'dog')
    """

    class_names: tuple[str, ...]
    inputs: tuple[PixelSpec, ...]
    uncertainty: Uncertainty
    input: str = "uint8"
    precision: str = "fp32"
    encoder: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    blocks: Blocks = ()
    golden: Golden = field(default_factory=dict)

    def to_json(self) -> str:
        """Serialise; `from_json` is the inverse.

        ``reject`` is for readers without this package: it maps rates, the share of pictures of the classes that is
        rejected, to thresholds of the output ``ood_scores``.
        """
        state, arrays = self.uncertainty.state()
        rejector = self.uncertainty.rejector
        thresholds = {}
        if rejector is not None:
            thresholds = {str(rate): rejector.threshold(rate).value for rate in REJECTION_RATES}
            thresholds[str(MARK_RATE)] = rejector.mark_threshold
        multilabel = self.uncertainty.multilabel
        names = input_names(self.input, [spec.size for spec in self.inputs])
        inputs = [{"name": name, "pixels": spec.to_dict()} for name, spec in zip(names, self.inputs, strict=True)]
        return json.dumps(
            {
                "format": FORMAT,
                "class_names": list(self.class_names),
                "task": "single-label" if multilabel is None else "multilabel",
                "inputs": inputs,
                **({"blocks": [list(block) for block in self.blocks]} if self.blocks else {}),
                "input": self.input,
                "precision": self.precision,
                "reject": {rate: value for rate, value in thresholds.items() if math.isfinite(value)},
                "thresholds": None if multilabel is None else multilabel.thresholds.tolist(),
                **{key: dict(getattr(self, key)) for key in DESCRIPTIONS},
                "checksum": "sha256",
                "uncertainty": state,
                "uncertainty_arrays": {name: _pack(array) for name, array in arrays.items()},
                "golden": {name: _pack(array) for name, array in self.golden.items()},
            },
            allow_nan=False,
            default=repr,  # parameters of a head that JSON has no values for
        )

    @classmethod
    def from_json(cls, text: str) -> ExportMetadata:
        """Parse and check.

        Raises:
            ArtifactError: if the text is damaged, not of this package, or of another format.
        """
        if len(text) > MAX_METADATA_CHARACTERS:
            raise ArtifactError(
                f"the metadata of the file have {len(text) >> 20} million characters: 'clipadapter export' writes fewer"
            )
        try:
            raw = json.loads(text)
            _check_format(raw["format"])
            names = _check_names(raw["class_names"])
            arrays = {name: _unpack(name, value) for name, value in raw["uncertainty_arrays"].items()}
            inputs = tuple(_parse_pixels(each["pixels"]) for each in raw["inputs"])
            if not 0 < len(inputs) <= MAX_INPUTS or len(different_squares(inputs)[0]) < len(inputs):
                raise ValueError(f"its inputs are {[spec.size for spec in inputs]}")
            metadata = cls(
                names,
                inputs,
                Uncertainty.from_state(raw["uncertainty"], arrays, len(names), arrays_removed=True),
                raw["input"],
                raw["precision"],
                blocks=as_blocks(raw["blocks"]) if raw.get("blocks") else (),
                golden={name: _unpack(name, value) for name, value in raw["golden"].items()},
                **{key: dict(raw[key]) for key in DESCRIPTIONS},
            )
            conformal = metadata.uncertainty.conformal
            if conformal is not None and conformal.method == "cv+":
                raise ValueError("sets by cv+ need the heads of all folds")
        except ArtifactError:
            raise
        except DAMAGE_ERRORS as error:
            raise ArtifactError(f"the metadata of the file are damaged ({error!r}): export the model again") from error
        # A tuple: a value that can't be hashed must not raise another error.
        if metadata.input not in tuple(INPUT_NAMES) or metadata.precision not in EXPORT_PRECISIONS:
            raise ArtifactError(
                f"the file has input {metadata.input!r} and precision {metadata.precision!r}: update clipadapter"
            )
        return metadata


def _check_format(number: Any) -> None:
    if type(number) is not int:
        raise ValueError(f"its format is {number!r}")
    if number != FORMAT:
        raise ArtifactError(
            f"the file has format {number}, this version reads {FORMAT}: update clipadapter, or export the model again"
        )


def _check_names(names: Any) -> tuple[str, ...]:
    are_texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not are_texts or not 1 < len(names) == len(set(names)):
        raise ValueError("class names must be two or more different texts")
    return tuple(names)


def _parse_pixels(facts: Any) -> PixelSpec:
    pixels = PixelSpec.from_dict(facts)
    numbers = (*pixels.mean, *pixels.std)
    if type(pixels.size) is not int or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
        raise ValueError(f"its pixels are {pixels}")
    return pixels


def _pack(array: NDArray[Any]) -> dict[str, Any]:
    data = base64.b64encode(array.tobytes()).decode("ascii")
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def _unpack(name: str, value: Mapping[str, Any]) -> NDArray[Any]:
    dtype, shape = value["dtype"], value["shape"]
    if dtype not in ARRAY_DTYPES or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise ValueError(f"the array {name!r} is of {dtype} {shape}")
    data = base64.b64decode(value["data"], validate=True)
    if len(data) != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"the array {name!r} has {len(data)} bytes, which is not {shape} of {dtype}")
    array = np.frombuffer(data, dtype).reshape(shape)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"the array {name!r} has values that are not finite")
    return array
