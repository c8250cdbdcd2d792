"""Compare an exported file with its model on pictures, with the backend that the file is opened with by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipadapter.backends.parity import MIN_AGREEMENT, MIN_COSINES, measure_parity
from clipadapter.classifier import FewShotClassifier
from clipadapter.data.images import ImageSource, read_image, source_name
from clipadapter.data.load import read_listing
from clipadapter.errors import ArtifactError, DataError, ImageError, InputError
from clipadapter.features import FeatureSet, extract
from clipadapter.runtime import Outputs, Predictor
from clipadapter.uncertainty import Uncertainty
from clipadapter.utils.blocks import FINAL, Block, column_slices
from clipadapter.utils.pixels import PixelSpec

Array = NDArray[Any]
FIRST_BATCH_SIZES = (1, 2)
BATCH_SIZE = 32
"""Size of the batches after the first two."""
MIN_ROWS = sum(FIRST_BATCH_SIZES) + 3
"""Pictures that are compared at least. The last 3 are a batch of more than two, as `_run_in_batches` tries."""
DEFAULT_REJECTION_RATE = 0.05
"""Rate at which rejections are compared if the model has none set."""
MAX_COMPARED_PICTURES = {"fp32": 32, "int8": 64}
"""Number of pictures that a file is compared on, by precision."""
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


def choose_pictures(
    pictures: str | Path | Sequence[ImageSource] | None, support: FeatureSet, size: int, precision: str
) -> ExportPictures:
    """Take the given pictures; else the model's shots if their files still exist; else synthetic ones."""
    if pictures is not None:
        kind, sources = "given", _list_sources(pictures)
        if not sources:
            raise DataError(
                "there are no pictures to compare the file on: give pictures, or leave the option out to use the shots"
            )
    else:
        kind, sources = "shots", [Path(name) for name in support.provenance.get("sources", ()) if _is_file(name)]
    if not sources and precision == "int8":
        raise InputError(
            "int8 is calibrated with pictures, but the model's shots are not on this machine: give pictures like those "
            "that the model will see (pictures=..., or --pictures FOLDER); 64 are enough"
        )
    if not sources:
        synthetic = draw_pictures(SYNTHETIC_PICTURES, size)
        return ExportPictures("drawn", synthetic, synthetic)
    n_compared = MAX_COMPARED_PICTURES[precision]
    sources = _shuffle(sources)[: n_compared + MAX_CALIBRATION_PICTURES]
    comparison, others = sources[:n_compared], sources[n_compared:]
    return ExportPictures(kind, comparison, others if len(others) >= MIN_CALIBRATION_PICTURES else comparison)


def load_squares(sources: Sequence[ImageSource], pixels: PixelSpec) -> NDArray[np.uint8]:
    """Pictures as (n, s, s, 3), without those that can't be read."""
    squares = []
    for source in sources:
        try:
            squares.append(pixels.to_square(read_image(source)))
        except ImageError:
            continue  # the ranges of int8 values come from the others
    if not squares:
        raise DataError(f"none of the {len(sources)} pictures to calibrate int8 with can be read: give others")
    return np.stack(squares)


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


def _list_sources(pictures: str | Path | Sequence[ImageSource]) -> list[ImageSource]:
    if isinstance(pictures, str | Path):
        return list(read_listing(pictures).dataset.paths)
    if not isinstance(pictures, Sequence):
        raise InputError(
            f"pictures must be given as a list, a folder or a table, but came as {type(pictures).__name__}"
        )
    return list(pictures)


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def _shuffle(sources: Sequence[ImageSource]) -> list[ImageSource]:
    """Order sources by a hash of their names, which mixes the classes and is the same in every export."""
    keys = [blake2b(f"{source_name(source)} {i}".encode()).digest() for i, source in enumerate(sources)]
    return [sources[i] for i in sorted(range(len(sources)), key=keys.__getitem__)]


LIMITS = (
    ("logits", 1e-3, None, "logits differ by {:.2g} of their spread, more than {:g}"),
    ("calibration", 1e-3, 1e-3, "probabilities differ by {:.2g} from those of its logits"),
    ("ood_scores", 0.05, None, "scores of 'none of these' differ by {:.2g}, more than {}"),
    ("agreement", MIN_AGREEMENT, MIN_AGREEMENT, "{:.1%} of the answers are the same, less than {:.0%}"),
    ("rejected", 0.98, 0.95, "{:.1%} of the rejections are the same, less than {:.0%}"),
)
"""For each number of `compare_outputs`: the limit where model and file are both in fp32, so that only a picture at a
boundary between two classes may change its class; the limit where one of them is not, None if it does not matter; and
the fault in words. Cosines of features have the limits of backends."""
SHARES = ("agreement", "rejected")
"""Numbers whose limit is the smallest value, not the largest."""


@dataclass(frozen=True)
class ExportParity:
    """Result of a comparison."""

    measured: Mapping[str, Any]  # numbers by name, see `compare_outputs`
    faults: tuple[str, ...]  # differences above the limits, in words; empty if the file is accepted
    pictures: str

    def summary(self) -> str:
        """One line for people."""
        return f"on {self.pictures}: {describe_parity(self.measured)}"


def describe_parity(measured: Mapping[str, Any]) -> str:
    """The numbers of `compare_outputs` in one line."""
    parts = [
        f"same answers {measured['agreement']:.1%}",
        f"smallest cosine of features {measured['cosine_least']:.6f}",
        f"logits differ by {measured['logits']:.1e} of their spread",
        f"probabilities by {measured['probabilities']:.1e}",
    ]
    if "rejected" in measured:
        parts.append(f"same rejections {measured['rejected']:.1%}")
    return ", ".join(parts)


def check_parity(model: FewShotClassifier, predictor: Predictor, pictures: ExportPictures) -> ExportParity:
    """Compare a file with the model that it was exported from."""
    extracted = extract(model.encoder_, pictures.comparison, batch_size=model.batch_size)
    if not extracted.rows:
        raise DataError(
            f"none of the {len(pictures.comparison)} pictures to compare the file on can be read: give others "
            "(pictures=..., or --pictures DATA)"
        )
    features = extracted.features[:, 0]
    n = len(features)
    rows = np.arange(max(n, MIN_ROWS)) % n  # few pictures are repeated, so that batches of all sizes are tried
    outputs = _run_in_batches(predictor, [pictures.comparison[extracted.rows[i]] for i in rows])
    logits, blocks = model.head_.logits(features)[rows], model.encoder_.info.blocks
    measured = {**compare_outputs(model.uncertainty_, features[rows], logits, outputs, blocks), "n": n}
    is_exact = (model.encoder_.info.precision, predictor.precision) == ("fp32", "fp32")
    faults = find_faults(measured, "fp32" if is_exact else "int8")
    return ExportParity({"pictures": pictures.kind, **measured}, tuple(faults), f"{n} {KINDS[pictures.kind]}")


def compare_outputs(
    uncertainty: Uncertainty, features: Array, logits: Array, outputs: Outputs, blocks: Sequence[Block] = ()
) -> dict[str, Any]:
    """Numbers of a comparison of a model with its file, whose names are keys in the metadata of files.

    Returns:
        ``n``; ``cosine_least`` and ``cosine_mean`` of features, for each picture in its worst block; with several
        blocks ``blocks``, both by the name of the block; ``logits``, the largest difference in standard
        deviations of all logits; ``probabilities``, the largest difference; ``calibration``, the largest difference
        between the file's probabilities and those that ``uncertainty`` computes from the file's logits; ``agreement``,
        the share of equal predictions, or of pairs of picture and class if there may be several labels. With a rejector
        also ``ood_scores``, the largest difference of the score of "none of these" in standard deviations of the
        shots' scores, and ``rejected``, the share of equal rejections at ``rate``.
    """
    features = np.asarray(features, np.float32)
    file_features = np.asarray(outputs.features if outputs.blocks is None else outputs.blocks, np.float32)
    parity = measure_parity(features, file_features, blocks=blocks)
    slices = column_slices(blocks)
    final = features[:, slices[FINAL]] if slices else features
    probabilities = uncertainty.probabilities(logits)
    assert outputs.probabilities is not None
    measured = {
        "n": len(features),
        "cosine_least": parity.min_cosine,
        "cosine_mean": parity.mean_cosine,
        "logits": _max_difference(logits, outputs.logits) / max(float(np.std(logits)), 1e-12),
        "probabilities": _max_difference(probabilities, outputs.probabilities),
        "calibration": _max_difference(uncertainty.probabilities(outputs.logits), outputs.probabilities),
        "agreement": float((_predict(uncertainty, logits) == _predict(uncertainty, outputs.logits)).mean()),
    }
    rejector = uncertainty.rejector
    if rejector is not None and outputs.ood_scores is not None and outputs.ood_score_parts is not None:
        rate = uncertainty.decisions.reject or DEFAULT_REJECTION_RATE
        threshold = rejector.threshold(rate).value
        model_scores = rejector.scores(final, logits)
        spread = float(np.std(rejector.weighted_sum(rejector.held_out_scores)))
        # Both are compared: other programs read the total, `Predictor` the parts.
        file_scores = np.stack([outputs.ood_scores, rejector.weighted_sum(outputs.ood_score_parts)])
        measured |= {
            "ood_scores": _max_difference(model_scores, file_scores) / (spread if spread > 1e-6 else 1.0),
            "rejected": float(((model_scores > threshold) == (file_scores > threshold)).all(axis=0).mean()),
            "rate": rate,
        }
    rounded = {name: value if isinstance(value, int) else round(float(value), 9) for name, value in measured.items()}
    if len(slices) < 2:
        return rounded
    by_block = {name: measure_parity(features[:, part], file_features[:, part]) for name, part in slices.items()}
    figures = {
        name: {"cosine_least": round(each.min_cosine, 9), "cosine_mean": round(each.mean_cosine, 9)}
        for name, each in by_block.items()
    }
    return {**rounded, "blocks": figures}


def find_faults(measured: Mapping[str, Any], precision: str) -> list[str]:
    """Differences above the limits of a precision, in words."""
    (min_cosine, min_mean), faults = MIN_COSINES[precision], []
    # "not x >= limit" also finds values that are not numbers.
    for name, each in measured.get("blocks", {"": measured}).items():
        if not (each["cosine_least"] >= min_cosine and each["cosine_mean"] >= min_mean):
            faults.append(
                f"the smallest cosine of features{f' of the block {name}' if name else ''} is "
                f"{each['cosine_least']:.5f} and their mean {each['cosine_mean']:.5f}, where {min_cosine} and "
                f"{min_mean} are needed"
            )
    for name, full, reduced, words in LIMITS:
        value, limit = measured.get(name), full if precision == "fp32" else reduced
        if value is None or limit is None:
            continue
        if not (value >= limit if name in SHARES else value <= limit):
            faults.append(words.format(value, limit))
    return faults


def _run_in_batches(predictor: Predictor, sources: Sequence[ImageSource]) -> Outputs:
    """Outputs of a file for pictures, in batches of one, two and more: a graph may work for one size only."""
    squares = np.stack([predictor.preprocess(source) for source in sources])
    n_first = sum(FIRST_BATCH_SIZES)
    ends = [*np.cumsum(FIRST_BATCH_SIZES).tolist(), *range(n_first + BATCH_SIZE, len(squares) + BATCH_SIZE, BATCH_SIZE)]
    batches = np.split(squares, [end for end in ends if end < len(squares)])
    try:
        outputs = [predictor.run(batch) for batch in batches]
    except Exception as error:  # those of runtimes have no common base
        reason = str(error.__cause__ or error).strip().split("\n")[-1]
        raise ArtifactError(
            f"the file could not be run on batches of {', '.join(map(str, map(len, batches)))}, so it was not written "
            f"({reason}): the head or the image tower is not a graph for any number of pictures. See docs/export.md"
        ) from error
    return Outputs.concatenate(outputs)


def _predict(uncertainty: Uncertainty, logits: Array) -> Array:
    """The best class (n,) of each picture, or which classes it has (n, c)."""
    if uncertainty.multilabel is not None:
        return uncertainty.multilabel.decide(logits)
    return uncertainty.calibrator.probabilities(logits).argmax(axis=1)


def _max_difference(a: Array, b: Array) -> float:
    """The largest difference; infinite where a value is not finite."""
    difference = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    return float(np.where(np.isfinite(difference), difference, np.inf).max(initial=0.0))
