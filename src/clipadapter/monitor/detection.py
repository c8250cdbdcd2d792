"""Drift detection on a stream of pictures, in the order in which they were taken.

The reference is pictures of normal operation, or the model's shots. A model was fitted to its shots, so that its
probabilities for them are too good. Shots are therefore held out in folds. Pictures of the stream are predicted by the
heads of these folds too, each picture by one of them. The probabilities of both samples then come from fits of the same
kind. This serves the tests if shots are the reference, and class priors for either reference: held-out shots show how
often the model confuses which classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clipadapter.data.images import get_max_pixels, image_bytes, open_image
from clipadapter.errors import ArtifactError, DataError, InputError, brief
from clipadapter.metrics import wilson_interval
from clipadapter.monitor.priors import (
    INTERVAL_QUANTILES,
    Array,
    complete_priors,
    draw_priors,
    estimate_assumed_priors,
    estimate_priors,
    prior_intervals,
)
from clipadapter.monitor.report import (
    CHECKS,
    CheckResult,
    ClassPrior,
    DriftReport,
    OodRate,
    Window,
    describe_label_shift,
    describe_ood_rate,
)
from clipadapter.monitor.shift import (
    CovariateShift,
    compare_priors_with_pictures,
    compare_priors_with_shots,
    fisher_p_value,
    holm,
    measure_covariate_shift,
)
from clipadapter.runtime import Predictor
from clipadapter.uncertainty import DecisionOptions
from clipadapter.utils.formatting import describe_unreadable

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier

AnyModel: TypeAlias = "FewShotClassifier | Predictor"
MIN_PICTURES = 20  # pictures that a stream, a reference and a window must have
MAX_COMPARED_PICTURES = 1000  # pictures of a sample whose features are compared; of more, as many are drawn
MIN_SHOTS_PER_CLASS = 3
"""Mean shots per class that class priors are compared with: two show too little of a model's confusions."""
DEFAULT_WINDOWS = 12  # number of windows that the stream is divided into
DEFAULT_REJECT_RATE = 0.05
"""Share of pictures of the classes that may be called "none of these", if the model has none set."""
MIN_DRAWS, MAX_DRAWS = 199, 99_999
"""Draws per test. With b draws the smallest p-value is 1 / (b + 1): 0.005 and 0.00001."""
WINDOW_DRAWS = MIN_DRAWS  # draws per window: these give the limit of a plot, and no p-value is reported
NOT_TESTED = {
    "label-shift": f"it takes {MIN_SHOTS_PER_CLASS} shots per class or more, or pictures of the usual situation",
    "ood-rate": "the model can't reject pictures of none of its classes, that takes two shots per class or more",
}
ADVICE = "give pictures of the usual situation (--reference FOLDER, reference=)"
SortKey = Literal["time", "name"]
EXIF_BLOCK_TAG, DATE_TIME_ORIGINAL_TAG = 0x8769, 0x9003


def detect_drift(
    model: AnyModel,
    current: Sequence[Path],
    *,
    reference: Sequence[Path] | None = None,
    reference_priors: Mapping[str, float] | None = None,
    times: Sequence[float] | None = None,
    reject: float | None = None,
    alpha: float = 0.01,
    window: int | None = None,
    skip: Collection[str] = (),
    seed: int = 0,
) -> DriftReport:
    """Test whether a stream of pictures still has the distribution that a model was made for.

    Args:
        model: fitted, one label per picture; or an exported file as `clipadapter.runtime.Predictor`.
        current: paths of the pictures of the stream, in the order in which they were taken.
        reference: paths of pictures of normal operation; the model's shots if not given.
        reference_priors: priors of classes by name, for shots as reference. The other classes share the rest. If not
            given, the priors are the shares of the shots.
        times: seconds since 1970 at which each picture of the stream was taken.
        reject: share of pictures of the classes that may be called "none of these"; the model's if not given, else 5 %.
        alpha: probability of a false alarm, of all checks together.
        window: pictures per window; if not given, a twelfth of the stream, but 20 or more.
        skip: names of `CHECKS` that are not run.
        seed: of all random numbers.

    Raises:
        InputError: if the model is multi-label, an argument is out of range, or the shots can't be the
            reference.
        DataError: if fewer than 20 pictures can be read.

    ::

        report = detect_drift(model, list_images("today"), reference=list_images("normal"))
        report.has_drift, report.summary()
    """
    rate = _check_options(model, reject, alpha, window, skip)
    if reference is not None and reference_priors:
        raise InputError(
            "class frequencies are estimated from the pictures of a reference: give usual frequencies (--usual, "
            "reference_priors=) or a reference (--reference, reference=), not both"
        )
    _check_size(len(current), "the stream has")  # before the encoder reads a picture
    if reference is None:
        expected, subject = reference_from_shots(model, rate, reference_priors), "the model has kept shots of"
    else:
        _check_size(len(reference), "the reference has")
        expected, subject = reference_from_pictures(model, reference, rate), "the reference has"
    observed = observe(model, current, rate)
    _check_size(len(observed), "the stream has")
    _check_size(len(expected), subject)
    names = model.class_names if isinstance(model, Predictor) else model.class_names_
    return _Comparison(expected, observed, skip, times, seed).report(names, alpha, rate, window)


def _check_options(
    model: AnyModel, reject: float | None, alpha: float, window: int | None, skip: Collection[str]
) -> float | None:
    """Return the rate of "none of these"; None if the model can't reject."""
    uncertainty = model.uncertainty if isinstance(model, Predictor) else getattr(model, "uncertainty_", None)
    if uncertainty is None:
        raise InputError("this FewShotClassifier is not fitted: call fit(images, labels), or load(folder)")
    if uncertainty.multilabel is not None:
        raise InputError("drift detection needs one label per picture, but this model is multi-label")
    if not 0.0001 <= alpha < 0.5:
        raise InputError(f"alpha, the probability of a false alarm, must be between 0.0001 and 0.5, but is {alpha}")
    if window is not None and window < MIN_PICTURES:
        raise InputError(f"a window needs {MIN_PICTURES} pictures or more, but is {window}")
    if unknown := sorted(set(skip) - set(CHECKS)):
        raise InputError(f"no check is called {brief(unknown[0])}; there are: {', '.join(CHECKS)}")
    if set(skip) == set(CHECKS):
        raise InputError("all checks are skipped: keep one")
    if uncertainty.rejector is None:
        return None
    rate = float(reject or uncertainty.decisions.reject or DEFAULT_REJECT_RATE)
    # An infinite threshold: so few shots were held out that the model never rejects a picture.
    return None if math.isinf(uncertainty.rejector.threshold(rate).value) else rate


def _check_size(count: int, subject: str) -> None:
    if count < MIN_PICTURES:
        raise DataError(
            f"{subject} {count} different pictures that can be used, too few for a test: give {MIN_PICTURES} or more"
        )


@dataclass(frozen=True, eq=False)
class _Comparison:
    """A stream and what it is compared with."""

    expected: Reference
    observed: Observations
    skip: Collection[str]
    times: Sequence[float] | None
    seed: int

    @cached_property
    def probabilities(self) -> Array:
        """Those of the stream, (m, c), by the same kind of fits as those of the reference."""
        if isinstance(self.expected.sample, HeldOutShots):
            return self.expected.sample.predict(self.observed.head_features)
        return self.observed.probabilities

    def report(self, names: Sequence[str], alpha: float, reject: float | None, window: int | None) -> DriftReport:
        """All checks, and the stream over time; ``reject`` None if the model can't reject."""
        expected, observed, m = self.expected, self.observed, len(self.observed)
        # The smallest p-value is then a twentieth of alpha; Holm's correction multiplies the smallest of three by 3.
        p_values, class_p_values = self._test_all(max(MIN_DRAWS, min(MAX_DRAWS, math.ceil(20 / alpha) - 1)))
        corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
        significant = {check for check, p in corrected.items() if p <= alpha}
        # Estimates of priors assume that pictures of a class look as before, and can't be trusted otherwise.
        is_reliable = significant <= {"label-shift"}
        estimates = estimate_with_intervals(observed, expected.held_out, expected.assumed_priors, self.seed)
        columns = (values.tolist() for values in (expected.priors, *estimates))
        rows = zip(names, *columns, class_p_values, strict=True)
        classes, ood_rate = tuple(ClassPrior(*row) for row in rows), None
        usual = expected.sample.rejected
        if reject is not None and observed.rejected is not None and usual is not None:
            ood_rate = OodRate(reject, float(usual.mean()), *_rate(observed.rejected))
        messages = {
            "covariate-shift": f"the pictures look different (p = {corrected.get('covariate-shift', 1.0):.2g})",
            "label-shift": describe_label_shift(classes, alpha, is_reliable),
            "ood-rate": "" if ood_rate is None else describe_ood_rate(ood_rate, expected.sample.kind),
        }
        checks = (
            CheckResult(check, p_values[check], corrected[check], check in significant, messages[check])
            if check in p_values
            else CheckResult(check, None, None, False, "skipped" if check in self.skip else NOT_TESTED[check])
            for check in CHECKS
        )
        size = window or max(MIN_PICTURES, math.ceil(m / DEFAULT_WINDOWS))
        parts = np.array_split(np.arange(m), max(1, m // size))
        return DriftReport(
            n_pictures=m,
            n_repeated=observed.n_repeated,
            skipped=observed.skipped,
            reference=expected.sample.kind,
            n_reference=len(expected),
            alpha=alpha,
            checks=tuple(checks),
            classes=classes,
            ood_rate=ood_rate,
            windows=tuple(self._measure_window(part) for part in parts),
            knows_confusions=expected.held_out is not None,
            is_reliable=is_reliable,
        )

    def _test_all(self, draws: int) -> tuple[dict[str, float], Sequence[float | None]]:
        """P-values of the checks that can be run, and of the classes, None if their priors are not compared."""
        expected, rejected, options = self.expected, self.observed.rejected, {"draws": draws, "seed": self.seed}
        sample = expected.sample
        p_values = dict[str, float]()
        of_classes: Sequence[float | None] = [None] * len(expected.priors)
        if shift := self._covariate_shift(np.arange(len(self.observed)), draws):
            p_values["covariate-shift"] = shift.p_value
        if "label-shift" in self.skip:
            pass
        elif isinstance(sample, Observations):
            p_values["label-shift"], of_classes = compare_priors_with_pictures(
                sample.probabilities, self.probabilities, **options
            )
        elif len(sample.labels) >= MIN_SHOTS_PER_CLASS * len(np.unique(sample.labels)):
            p_values["label-shift"], of_classes = compare_priors_with_shots(
                sample.probabilities, sample.labels, expected.priors, self.probabilities, **options
            )
        if rejected is not None and sample.rejected is not None and "ood-rate" not in self.skip:
            p_values["ood-rate"] = fisher_p_value(rejected, sample.rejected)
        return p_values, of_classes

    def _measure_window(self, rows: NDArray[np.intp]) -> Window:
        observed, times, shift = self.observed, self.times, self._covariate_shift(rows, WINDOW_DRAWS)
        return Window(
            int(rows[0]),
            int(rows[-1]) + 1,
            None if times is None else float(times[observed.indices[rows[0]]]),
            None if observed.rejected is None else _rate(observed.rejected[rows]),
            float(observed.probabilities[rows].max(axis=1).mean()),
            None if shift is None else shift.distance,
            None if shift is None else shift.distance_limit,
            tuple(estimate_priors(observed.probabilities[rows], self.expected.assumed_priors).tolist()),
        )

    def _covariate_shift(self, pictures: NDArray[np.intp], draws: int) -> CovariateShift | None:
        """Whether pictures of the stream look as those of the reference; None if that is skipped."""
        if "covariate-shift" in self.skip:
            return None
        expected, probabilities = self.expected, self.probabilities[pictures]
        (m, c), n = probabilities.shape, len(expected)
        priors = estimate_priors(probabilities, expected.assumed_priors)
        # One picture more of each class, in the reference's proportions: a class that is missing in the stream needs
        # odds above zero.
        counts = m * priors + c * expected.sample_priors
        ratio = (counts / (m + c)) / np.maximum(expected.sample_priors, 1 / (n + c))
        rng = np.random.default_rng(self.seed)
        rows, current_rows = (np.sort(rng.permutation(size)[:MAX_COMPARED_PICTURES]) for size in (n, m))
        P, Q = expected.sample.probabilities[rows], probabilities[current_rows]

        def odds(sample: Array) -> Array:
            """How much likelier each picture is in the stream, given the classes that it may have."""
            joint = sample / expected.assumed_priors * np.maximum(expected.sample_priors, 1e-6)
            return np.asarray(joint @ ratio / joint.sum(axis=1))

        samples = expected.sample.features[rows], self.observed.features[pictures][current_rows]
        return measure_covariate_shift(samples, (P, Q), (odds(P), odds(Q)), draws=draws, seed=self.seed)


def _rate(rejected: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Share of the pictures (m,) that are rejected, and the ends of Wilson's 95 % interval."""
    share = float(rejected.mean())
    return (share, *wilson_interval(share, len(rejected)))


# ---- What a model computes for the stream and for its reference ----


@dataclass(frozen=True, eq=False)
class Observations:
    """Features, probabilities and rejections of m pictures."""

    kind: ClassVar = "pictures"
    features: NDArray[Any]  # (m, d) block ``final``, which is compared with that of other pictures
    head_features: NDArray[Any]  # (m, e) features that the head reads, which are those of all blocks
    probabilities: Array  # (m, c), calibrated
    rejected: NDArray[np.bool_] | None  # (m,) which are called none of the classes; None if the model can't reject
    indices: tuple[int, ...]  # positions of the pictures in the given paths
    skipped: tuple[tuple[str, str], ...]  # (name, reason) of the pictures that can't be read
    n_repeated: int  # how many were left out because an earlier picture has the same features

    def __len__(self) -> int:
        return len(self.features)


def observe(model: AnyModel, paths: Sequence[Path], reject: float | None) -> Observations:
    """Run a model on pictures, with a rate of "none of these" if it can reject; copies of a picture count once."""
    parts: NDArray[Any] | None = None  # scores of "none of these", which an exported graph computes
    if isinstance(model, Predictor):
        indices, skipped, outputs = model.outputs_of(paths)
        if not indices:
            raise DataError(f"{describe_unreadable(len(paths))}: {skipped[0][0]}: {skipped[0][1]}")
        features = head_features = outputs.features
        logits, parts, uncertainty = outputs.logits, outputs.ood_score_parts, model.uncertainty
    else:
        placeholder = "unknown"  # feature sets have labels, and these pictures have none
        extracted = model.extract_features(list(paths), [placeholder] * len(paths), [placeholder], views=1)
        features, head_features, logits = extracted.final, extracted.plain, model.head_.logits(extracted.plain)
        indices, skipped = extracted.provenance["rows"], extracted.provenance["skipped"]
        uncertainty = model.uncertainty_
    # Copies are not independent observations: a picture that was sent again would look like a change.
    first = np.sort(np.unique(features, axis=0, return_index=True)[1])
    features, head_features, logits = features[first], head_features[first], logits[first]
    parts = None if parts is None else parts[first]
    answers = uncertainty.answer(logits, features, DecisionOptions(reject=reject), columns=parts)
    return Observations(
        features,
        head_features,
        _finite(answers.probabilities),
        None if reject is None else answers.rejected,
        tuple(indices[i] for i in first),
        tuple(skipped),
        len(indices) - len(first),
    )


class HeldOutShots:
    """Shots of a model, predicted by heads that were fitted without them."""

    kind: ClassVar = "shots"

    def __init__(self, model: FewShotClassifier, reject: float | None) -> None:
        from clipadapter.heads import out_of_fold

        head, X, y, text = model.head_, model.support_.X, model.support_.y, model.refit_text()
        held_out = out_of_fold(head, X, y, text, strategies=("folds",), keep_heads=True, seed=model.seed)
        assert held_out is not None
        self._heads, self._logit_scale_ratio = held_out.heads, held_out.logit_scale_ratio
        self._calibrator, rejector = model.uncertainty_.calibrator, model.uncertainty_.rejector
        shots = held_out.first_per_shot
        self.features = np.asarray(model.support_.final[shots.rows], np.float64)  # (n, d)
        self.labels = shots.labels  # (n,) class positions
        self.probabilities = _finite(self._calibrator.probabilities(shots.logits))  # (n, c)
        self.rejected: NDArray[np.bool_] | None = None  # as in `Observations`, of those shots that have a score
        if reject is not None and rejector is not None:
            self.rejected = rejector.weighted_sum(rejector.held_out_scores) > rejector.threshold(reject).value

    def predict(self, features: NDArray[Any]) -> Array:
        """Probabilities (m, c) of other pictures from features (m, d), each by one of the heads."""
        logits, n_heads = np.empty((len(features), self.probabilities.shape[1])), len(self._heads)
        for fold, head in enumerate(self._heads[: len(features)]):
            logits[fold::n_heads] = head.logits(features[fold::n_heads])
        return _finite(self._calibrator.probabilities(logits * self._logit_scale_ratio))


@dataclass(frozen=True, eq=False)
class Reference:
    """The pictures or shots that a stream is compared with."""

    sample: Observations | HeldOutShots  # n of them, predicted by fits without them
    assumed_priors: Array  # (c,) priors of the classes that the model's probabilities are for
    priors: Array  # (c,) priors of the classes that the stream should have
    sample_priors: Array  # (c,) shares of the classes in the reference itself
    held_out: HeldOutShots | None  # the model's shots; None if they can't be held out

    def __len__(self) -> int:
        return len(self.sample.features)


def reference_from_pictures(model: AnyModel, paths: Sequence[Path], reject: float | None) -> Reference:
    """Make a reference of pictures of normal operation."""
    observations = observe(model, paths, reject)
    if isinstance(model, Predictor):  # it has neither shots nor their numbers
        assumed, held_out = np.full(len(model.class_names), 1 / len(model.class_names)), None
    else:
        counts = np.array([float(model.support_.shot_counts[name]) for name in model.class_names_])
        counts += (counts <= 0).any()
        assumed = counts / counts.sum()
        held_out = None if _why_not_held_out(model) else HeldOutShots(model, reject)
    priors, _, _ = estimate_with_intervals(observations, held_out, assumed)
    sample_priors = estimate_priors(observations.probabilities, assumed)
    return Reference(observations, assumed, priors, sample_priors, held_out)


def reference_from_shots(model: AnyModel, reject: float | None, priors: Mapping[str, float] | None) -> Reference:
    """Make a reference of a model's shots."""
    if isinstance(model, Predictor):
        raise InputError(f"an exported file has no shots to compare with: {ADVICE}")
    if why := _why_not_held_out(model):
        raise InputError(f"{why}: {ADVICE}")
    shots, names = HeldOutShots(model, reject), model.class_names_
    sample_priors = np.bincount(shots.labels, minlength=len(names)) / len(shots.labels)
    assumed = estimate_assumed_priors(shots.probabilities, shots.labels)
    return Reference(shots, assumed, complete_priors(priors, names, sample_priors), sample_priors, shots)


def _finite(probabilities: NDArray[Any]) -> Array:
    """The probabilities of a model that is not damaged: finite weights may overflow, and no test holds for NaN."""
    if not np.isfinite(probabilities).all():
        raise ArtifactError("the model gives probabilities that are not finite: copy it again, or fit again")
    return np.asarray(probabilities)


def estimate_with_intervals(
    observations: Observations, held_out: HeldOutShots | None, assumed: Array, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Priors (c,) of the classes in a sample of pictures, and the ends of their 95 % intervals."""
    if held_out is None:  # the intervals take the probabilities to be right
        return prior_intervals(observations.probabilities, assumed, seed=seed)
    predictions = held_out.predict(observations.head_features).argmax(axis=1)
    confusions = np.zeros((len(assumed), len(assumed)))  # shots by their class and by the predicted one
    np.add.at(confusions, (held_out.labels, held_out.probabilities.argmax(axis=1)), 1)
    priors = draw_priors(np.bincount(predictions, minlength=len(assumed)), confusions, seed=seed)
    low, high = np.quantile(priors, INTERVAL_QUANTILES, axis=0)
    return priors.mean(axis=0), low, high


def _why_not_held_out(model: FewShotClassifier) -> str:
    """Why a model's shots can't be held out; "" if they can."""
    head, support = model.head_, model.support_
    if not len(support):
        return "the model was saved without its shots (--no-support)"
    if head.tunes_encoder or head.needs_tower:
        return f"the shots can't be held out: the head {type(head).__name__} would have to be trained again"
    if head.transductive:
        return f"the head {type(head).__name__} is transductive, so that no shot can be held out"
    if max(support.counts.values()) < 2:
        return "no shot can be held out, since no class has two"
    return ""


# ---- The order of the stream ----


def sort_pictures(paths: Sequence[Path], by: SortKey = "time") -> tuple[list[Path], list[float] | None]:
    """Sort pictures, the oldest first.

    Args:
        paths: of the pictures.
        by: "time" sorts by the date in the EXIF data of a photo, or by the file's last change if there is none;
            "name" sorts by path.

    Returns:
        Paths, and the time of each in seconds since 1970; None by name. Equal times are in the order of their paths.

    Raises:
        InputError: if there is no such order.
    """
    if by not in ("time", "name"):
        raise InputError(f"pictures are ordered by time or name, not by {brief(by)}")
    if by == "name":
        return sorted(paths), None
    by_time = sorted((_picture_time(path), path) for path in paths)
    return [path for _, path in by_time], [seconds for seconds, _ in by_time]


def _picture_time(path: Path) -> float:
    """Seconds since 1970; 0 for a missing file, which is reported when it is read."""
    with suppress(Exception):  # PIL raises many types for damaged files, whose time is that of their last change
        if path.suffix.lower() in (".jpg", ".jpeg"):
            image, _ = open_image(image_bytes(path), path.name, get_max_pixels())
            text = str(image.getexif().get_ifd(EXIF_BLOCK_TAG).get(DATE_TIME_ORIGINAL_TAG, ""))
            # In this machine's time zone, since cameras store none.
            return time.mktime(time.strptime(text.strip("\0 "), "%Y:%m:%d %H:%M:%S"))
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
