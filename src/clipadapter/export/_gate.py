"""Is what a file says what the model says? Compared on pictures, by the runtime that the file is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.backends import parity
from clipadapter.backends._parity import AGREEMENT, LEAST
from clipadapter.classifier import FewShotClassifier
from clipadapter.data.images import ImageSource
from clipadapter.errors import ArtifactError, DataError
from clipadapter.export._pictures import KINDS, Pictures
from clipadapter.features import extract
from clipadapter.runtime import Outputs, Predictor
from clipadapter.uncertainty import Uncertainty

Array = NDArray[Any]
BATCHES = (1, 2)
"""Sizes of the first batches; what is left comes in batches of `BATCH`."""
BATCH = 32
LEAST_ROWS = sum(BATCHES) + 3
RATE = 0.05
"""Rate of rejection that decisions are compared at, if the model is not asked for another."""


@dataclass(frozen=True)
class Limits:
    """How far a file may be off.

    Args:
        least: smallest cosine of features.
        mean: mean cosine of features.
        logits: largest difference of a logit, in standard deviations of all logits; None does not look at it.
        agreement: least share of the same answers.
        rejected: least share of pictures that are "none of these" for both or for none.
        strangeness: largest difference of the score of that, in standard deviations of the shots'; or None.
        calibration: largest difference of a probability from what the model would make of the file's logits.
    """

    least: float
    mean: float
    logits: float | None
    agreement: float
    rejected: float
    strangeness: float | None
    calibration: float = 1e-3


EXACT = Limits(0.99999, 0.99999, 1e-3, 0.98, 0.98, 0.05)
"""Where model and file are in full precision: only a picture between two classes may fall to the other side."""
NEAR = Limits(*LEAST["int8"], None, AGREEMENT, 0.95, None)
"""Where one of them is not: features as near as backends must be, and the same answers."""


@dataclass(frozen=True)
class Gate:
    """What was found.

    Args:
        figures: numbers by name, see `judge`.
        faults: what is off by too much, in words; empty if the file is right.
        pictures: what was compared, in words.
    """

    figures: Mapping[str, Any]
    faults: tuple[str, ...]
    pictures: str

    def words(self) -> str:
        """In a line, for a person."""
        found = self.figures
        parts = [
            f"on {self.pictures}: same answers {found['agreement']:.1%}",
            f"features' least cosine {found['cosine_least']:.6f}",
            f"logits differ by {found['logits']:.1e} of their spread, probabilities by {found['probabilities']:.1e}",
        ]
        if "rejected" in found:
            parts.append(f"same rejections {found['rejected']:.1%}")
        return ", ".join(parts)


def judge(model: FewShotClassifier, predictor: Predictor, pictures: Pictures) -> Gate:
    """Compare a file with the model it was made of.

    Args:
        model: answers by its own encoder, in its own precision.
        predictor: the open file.
        pictures: to compare on.

    Raises:
        DataError: if none of them can be read.
    """
    found = extract(model.encoder_, pictures.compared, batch_size=model.batch_size)
    if not found.rows:
        raise DataError(
            f"none of the {len(pictures.compared)} pictures to compare the file on can be read: give others "
            "(pictures=..., or --pictures DATA)"
        )
    features = found.features[:, 0]
    n = len(features)
    again = np.arange(max(n, LEAST_ROWS)) % n  # few pictures come several times, for batches of all sizes
    outputs = _outputs(predictor, [pictures.compared[found.rows[i]] for i in again])
    figures = {**compare(model.uncertainty_, features[again], model.head_.logits(features)[again], outputs), "n": n}
    exact = (model.encoder_.info.precision, predictor.precision) == ("fp32", "fp32")
    told = tuple(faults(figures, EXACT if exact else NEAR))
    return Gate({"pictures": pictures.kind, **figures}, told, f"{n} {KINDS[pictures.kind]}")


def compare(uncertainty: Uncertainty, features: Array, logits: Array, outputs: Outputs) -> dict[str, Any]:
    """Figures of a file beside a model's.

    Args:
        uncertainty: of the model.
        features: (n, d) of the model.
        logits: (n, c) of the model.
        outputs: what the file says of the same pictures.

    Returns:
        ``n``; ``cosine_least`` and ``cosine_mean`` of features; ``logits``, the largest difference in standard
        deviations of all logits; ``probabilities``, the largest difference; ``calibration``, the largest difference of
        the file's from what `trust` makes of the file's logits; ``agreement``, the share of the same best class, or of
        pairs of picture and class if there may be several. With a rejector: ``strangeness``, the largest
        difference of the score in standard deviations of the shots', and ``rejected``, the share of the same decisions
        at ``rate``.
    """
    alike = parity(np.asarray(features, np.float32), np.asarray(outputs.features, np.float32))
    wanted = uncertainty.probabilities(logits)
    assert outputs.probabilities is not None
    figures = {
        "n": len(features),
        "cosine_least": alike.least,
        "cosine_mean": alike.mean,
        "logits": _largest(logits, outputs.logits) / max(float(np.std(logits)), 1e-12),
        "probabilities": _largest(wanted, outputs.probabilities),
        "calibration": _largest(uncertainty.probabilities(outputs.logits), outputs.probabilities),
        "agreement": float((_said(uncertainty, logits) == _said(uncertainty, outputs.logits)).mean()),
    }
    if uncertainty.rejector is not None and outputs.strangeness is not None and outputs.parts is not None:
        rate = uncertainty.decisions.reject or RATE
        limit = uncertainty.rejector.threshold(rate).value
        own = uncertainty.rejector.scores(features, logits, wanted)
        spread = float(np.std(uncertainty.rejector.total(uncertainty.rejector.held_out)))
        # Other readers take the sum, `Predictor` the parts.
        theirs = np.stack([outputs.strangeness, uncertainty.rejector.total(outputs.parts)])
        figures |= {
            "strangeness": _largest(own, theirs) / (spread if spread > 1e-6 else 1.0),
            "rejected": float(((own > limit) == (theirs > limit)).all(axis=0).mean()),
            "rate": rate,
        }
    return {name: value if isinstance(value, int) else round(float(value), 9) for name, value in figures.items()}


def faults(figures: Mapping[str, Any], limits: Limits) -> list[str]:
    """What is off by too much, in words."""
    found = []
    if not (figures["cosine_least"] >= limits.least and figures["cosine_mean"] >= limits.mean):
        found.append(
            f"features have a least cosine of {figures['cosine_least']:.5f} and a mean of "
            f"{figures['cosine_mean']:.5f}, where {limits.least} and {limits.mean} are needed"
        )
    if limits.logits is not None and not figures["logits"] <= limits.logits:
        found.append(f"logits differ by {figures['logits']:.2g} of their spread, more than {limits.logits:g}")
    if not figures["calibration"] <= limits.calibration:
        found.append(f"probabilities differ by {figures['calibration']:.2g} from those of its logits")
    if limits.strangeness is not None and not figures.get("strangeness", 0.0) <= limits.strangeness:
        found.append(
            f"scores of 'none of these' differ by {figures['strangeness']:.2g}, more than {limits.strangeness}"
        )
    if figures["agreement"] < limits.agreement:
        found.append(f"{figures['agreement']:.1%} of the answers are the same, less than {limits.agreement:.0%}")
    if figures.get("rejected", 1.0) < limits.rejected:
        found.append(f"{figures['rejected']:.1%} are rejected alike, less than {limits.rejected:.0%}")
    return found


def _outputs(predictor: Predictor, sources: Sequence[ImageSource]) -> Outputs:
    """What a file says of pictures, in batches of all sizes that may matter."""
    squares = np.stack([predictor.square(source) for source in sources])
    ends = [*np.cumsum(BATCHES).tolist(), *range(sum(BATCHES) + BATCH, len(squares) + BATCH, BATCH)]
    batches = np.split(squares, [end for end in ends if end < len(squares)])
    try:
        parts = [predictor.run(batch) for batch in batches]
    except Exception as error:  # those of runtimes have no common base
        reason = str(error.__cause__ or error).strip().split("\n")[-1]
        raise ArtifactError(
            f"the file could not be run on batches of {', '.join(map(str, map(len, batches)))}, so it was not written "
            f"({reason}): the head or the image tower is no graph for any number of pictures. See docs/export.md"
        ) from error
    names = ("logits", "features", "parts", "probabilities", "strangeness")
    every = {name: [getattr(part, name) for part in parts] for name in names}
    return Outputs(**{k: None if v[0] is None else np.concatenate(v) for k, v in every.items()})  # type: ignore[arg-type]


def _said(uncertainty: Uncertainty, logits: Array) -> Array:
    """The best class (n,) of each picture, or which classes it is said to have (n, c)."""
    if uncertainty.multilabel is not None:
        return uncertainty.multilabel.decide(logits)
    return uncertainty.calibrator.probabilities(logits).argmax(axis=1)


def _largest(one: Array, other: Array) -> float:
    """The largest difference; infinite where something is not finite."""
    difference = np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64))
    return float(np.where(np.isfinite(difference), difference, np.inf).max(initial=0.0))
