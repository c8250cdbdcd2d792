"""From logits to decisions: calibrated probabilities, a class, rejection ("none of these"), prediction sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.adaptation import METHODS as ADAPTATION_METHODS
from clipadapter.adaptation import Adapt, TdaCache, vote
from clipadapter.errors import ArtifactError, InputError, brief
from clipadapter.uncertainty.calibration import METHODS, Calibrator
from clipadapter.uncertainty.conformal import CONFORMAL_METHODS, Conformal
from clipadapter.uncertainty.costs import check_costs, decide
from clipadapter.uncertainty.held_out_accuracy import HeldOutAccuracy
from clipadapter.uncertainty.multilabel import MultiLabel
from clipadapter.uncertainty.ood import Rejector
from clipadapter.uncertainty.saved_state import SavedState
from clipadapter.utils.prediction import Prediction, PredictionColumns, softmax
from clipadapter.utils.registry import unknown

Array = NDArray[Any]
CALIBRATION = ("auto", *METHODS, "none")
PARTS = ("calibrator", "rejector", "conformal", "multilabel")
"""Attributes of `Uncertainty` that have a state of their own."""
MAX_SEARCHED_CLASSES = 8  # up to so many best classes, a search for each takes less time than sorting all classes
NO_HELD_OUT_SHOTS = (
    "no shot can be held out. Give two shots of each class or more, and a head that can be fitted to a part of them "
    "(not a transductive one, nor one that tunes the encoder), on features of one encoder"
)
BELOW_THRESHOLDS = "no class reaches its threshold"
NO_ADAPTATION = (
    "test-time adaptation and views need one class per picture, but this model is multi-label: predict without them"
)


@dataclass(frozen=True, eq=False)
class UncertaintyOptions:
    """What a classifier learns about its uncertainty from held-out shots, and its default decisions.

    Args:
        calibration: "temperature"; "vector", a factor and a bias per class besides; "none"; or "auto": a temperature,
            unless shots can only be held out by training through an encoder.
        reject: share of pictures of the classes that may be rejected as "none of these", such as 0.05; None: pictures
            unlike every class are marked and keep their answer.
        coverage: share of pictures whose true class must be in the prediction set, such as 0.9; None: no sets.
        costs: (c, c), rows are true classes, columns are predicted classes; the class with the least expected cost is
            predicted.
        sets: how shots are held out for the sets: "cross", "cv+" which keeps the folds' heads, or "split" which fits
            on half of the shots only; see `Conformal.describe_guarantee`.
        by_class: guarantee the coverage for each class separately.
        negative_labels: compare pictures with the 1,000 class names of ImageNet too, to detect "none of these".

    Raises:
        InputError: if an option is unknown, or a rate is not between 0 and 1.

    >>> UncertaintyOptions(reject=0.05).reject
    0.05
    """

    calibration: str = "auto"
    reject: float | None = None
    coverage: float | None = None
    costs: ArrayLike | None = None
    sets: str = "cross"
    by_class: bool = False
    negative_labels: bool = False

    def __post_init__(self) -> None:
        for name, known in (("calibration", CALIBRATION), ("sets", CONFORMAL_METHODS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, not {brief(getattr(self, name))}")
        for name in ("reject", "coverage"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < 1):
                raise InputError(f"{name} must be between 0 and 1, such as 0.05 or 0.9, but is {brief(value)}")


@dataclass(frozen=True, eq=False)
class DecisionOptions:
    """The decisions that are made in addition to the best class.

    Args:
        reject: share of pictures of the classes that may be rejected as "none of these"; None: they are only marked.
        coverage: share of pictures whose class must be in the prediction set; None: no sets.
        costs: (c, c) cost of predicting the column's class for a picture of the row's; None: all errors cost the same.
    """

    reject: float | None = None
    coverage: float | None = None
    costs: Array | None = None

    def with_changes(self, changes: Mapping[str, Any]) -> DecisionOptions:
        """The same options with some of them replaced, by name.

        Raises:
            UnknownNameError: if there is no such option.
        """
        for name in changes:
            if name not in ("reject", "coverage", "costs"):
                raise unknown("option of decisions", name, ["reject", "coverage", "costs"])
        if changes.get("costs") is not None:
            changes = {**changes, "costs": check_costs(changes["costs"])}
        return replace(self, **changes)


@dataclass(frozen=True, eq=False)
class Answers:
    """Probabilities and decisions for m pictures.

    Args:
        probabilities: (m, c), calibrated.
        best: (m,) positions of the predicted classes.
        ood_scores: (m,) out-of-distribution scores, higher is farther from the classes; None if they were not learned.
        rejected: (m,) whether a picture is none of the classes.
        reasons: (m,) why a picture is unlike every class; None if it is not. Without `reject` such a picture keeps its
            answer.
        sets: (m, c) prediction sets, or the predicted labels of a multi-label model; None without `coverage`.
        multilabel: whether the model is multi-label.
    """

    probabilities: Array
    best: Array
    ood_scores: Array | None
    rejected: Array
    reasons: tuple[str | None, ...]
    sets: Array | None
    multilabel: bool = False

    def prediction(self, i: int, source: str, class_names: Sequence[str], top: int = 5) -> Prediction:
        """The prediction for picture i, with class names."""
        rows = slice(i, i + 1)
        own: dict[str, Any] = {
            name: None if part is None else part[rows] for name, part in vars(self).items() if name != "multilabel"
        }
        return next(iter(replace(self, **own).columns(class_names, top).predictions([source])))

    def columns(self, class_names: Sequence[str], top: int = 5) -> PredictionColumns:
        """The predictions for all pictures."""
        p, best, (m, c) = self.probabilities, np.asarray(self.best, np.int64), self.probabilities.shape
        counts = np.full(m, min(max(1, top), c))
        if self.multilabel and self.sets is not None:
            counts = np.maximum(counts, self.sets.sum(axis=1))
        order = _best_first(p, best, int(counts.max(initial=1)))
        is_named = np.arange(order.shape[1]) < counts[:, None]
        members = member_offsets = None
        if self.sets is not None:
            sets = self.sets & ~self.rejected[:, None]
            rows, columns = np.nonzero(sets)
            members = columns[np.lexsort((columns, -p[rows, columns], columns != best[rows], rows))]
            member_offsets = np.concatenate([[0], np.cumsum(sets.sum(axis=1))])
        return PredictionColumns(
            tuple(class_names),
            best,
            np.asarray(self.rejected),
            p[np.arange(m), best],
            order[is_named],
            np.take_along_axis(p, order, axis=1)[is_named],
            np.concatenate([[0], np.cumsum(counts)]),
            self.reasons,
            members,
            member_offsets,
            self.ood_scores,
        )


def _best_first(p: Array, best: Array, k: int) -> Array:
    """(m, k) the predicted class of each row, then the most probable others; of equal ones the first in the model."""
    if k > MAX_SEARCHED_CLASSES:
        order = np.argsort(-p, axis=1, kind="stable")
        others = order[order != best[:, None]].reshape(len(p), -1)
        return np.concatenate([best[:, None], others[:, : k - 1]], axis=1)
    chosen, rows = [best], np.arange(len(p))
    remaining = p.copy() if k > 1 else p
    for _ in range(k - 1):
        remaining[rows, chosen[-1]] = -np.inf
        chosen.append(remaining.argmax(axis=1))
    return np.stack(chosen, axis=1)


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What was learned from held-out shots, and the default decisions.

    Args:
        calibrator: logits to probabilities.
        rejector: detects pictures of none of the classes; None if it could not be learned.
        conformal: makes prediction sets; None if it could not be learned.
        decisions: made by default.
        held_out_by: how shots were held out: "own" for the head's own folds, "folds", "split", or "" for not at all.
        logit_scale_ratio: scale of the full fit's logits divided by the scale of the folds' logits.
        multilabel: sigmoid calibration and thresholds of a multi-label model; else None.
        accuracy: on the held-out shots; None if no shot was held out, or the model is multi-label.
    """

    calibrator: Calibrator = field(default_factory=Calibrator)
    rejector: Rejector | None = None
    conformal: Conformal | None = None
    decisions: DecisionOptions = field(default_factory=DecisionOptions)
    held_out_by: str = ""
    logit_scale_ratio: float = 1.0
    multilabel: MultiLabel | None = None
    accuracy: HeldOutAccuracy | None = None

    def answer(
        self,
        logits: ArrayLike,
        features: ArrayLike,
        decisions: DecisionOptions | None = None,
        folds: Sequence[ArrayLike] | None = None,
        columns: ArrayLike | None = None,
        cache: TdaCache | None = None,
        view_logits: ArrayLike | None = None,
    ) -> Answers:
        """Turn logits into probabilities and decisions.

        Earlier pictures and views decide the class. Rejection and sets, whose thresholds were learned without them, go
        by the calibrated probabilities of the plain pictures. A set has the decided class in addition.

        Args:
            logits: (m, c) of the head for the plain pictures.
            features: (m, d) of the encoder; or (m, v, d) of v views of each picture, the plain one first.
            decisions: instead of the default ones.
            folds: logits (m, c) of each fold's head, if prediction sets are made by CV+.
            columns: (m, p) scores of the rejector's parts, if an exported graph computed them.
            cache: of `open_cache`: earlier pictures change the probabilities, and these pictures are remembered.
            view_logits: (m, v, c) of the head for the views. Without a cache the views vote for a class, unless costs
                decide.

        Raises:
            InputError: if a decision needs a part that could not be learned, or a rate is out of range.
        """
        options = self.decisions if decisions is None else decisions
        logit_rows, rows = np.asarray(logits), np.asarray(features)
        if self.multilabel is not None:
            if cache is not None or view_logits is not None:
                raise InputError(NO_ADAPTATION)
            return _answer_multilabel(self.multilabel, logit_rows, options)
        calibrated = probabilities = self.calibrator.probabilities(logit_rows)
        voted, plain_rows = None, rows
        if view_logits is not None:
            views, plain_rows = np.asarray(view_logits), rows[:, 0]
            of_views = self.calibrator.log_probabilities(views.reshape(-1, views.shape[-1])).reshape(views.shape)
            if cache is None:
                voted, probabilities = vote(of_views)
            else:
                probabilities = softmax(cache.adapt(rows, of_views))
        elif cache is not None:
            probabilities = softmax(cache.adapt(rows, self.calibrator.log_probabilities(logit_rows)))
        if options.costs is not None and len(options.costs) != probabilities.shape[1]:
            raise InputError(f"costs have {len(options.costs)} classes, but the model has {probabilities.shape[1]}")
        if options.costs is not None:
            best = decide(probabilities, options.costs)
        else:
            best = probabilities.argmax(axis=1) if voted is None else voted
        ood_scores, rejected, reasons = self._reject(plain_rows, logit_rows, calibrated, options.reject, columns)
        sets = self._sets(calibrated, best, options.coverage, folds)
        return Answers(probabilities, best, ood_scores, rejected, reasons, sets)

    def open_cache(self, adapt: Adapt, n_classes: int) -> TdaCache | None:
        """A new cache for a stream of pictures, or the given one; None for no adaptation.

        Raises:
            InputError: if the model is multi-label.
            UnknownNameError: if there is no such method.
        """
        if adapt is not None and self.multilabel is not None:
            raise InputError(NO_ADAPTATION)
        if adapt is None or isinstance(adapt, TdaCache):
            return adapt
        if adapt not in ADAPTATION_METHODS:
            raise unknown("method of test-time adaptation", adapt, list(ADAPTATION_METHODS))
        return TdaCache(n_classes)

    def with_defaults(self, options: UncertaintyOptions) -> Uncertainty:
        """A copy with the default decisions of other options."""
        costs = None if options.costs is None else check_costs(options.costs)
        return replace(self, decisions=DecisionOptions(options.reject, options.coverage, costs))

    def without_arrays(self) -> Uncertainty:
        """A copy for an exported graph, which computes logits and the rejector's scores itself, without their arrays.

        CV+ prediction sets need the heads of the folds, and are left out.
        """
        rejector = None if self.rejector is None else self.rejector.without_arrays()
        is_cv_plus = self.conformal is not None and self.conformal.method == "cv+"
        decisions = replace(self.decisions, coverage=None) if is_cv_plus else self.decisions
        return replace(self, rejector=rejector, conformal=None if is_cv_plus else self.conformal, decisions=decisions)

    def probabilities(self, logits: ArrayLike) -> Array:
        """Calibrated probabilities (m, c); rows of a multi-label model need not sum to one."""
        z = np.asarray(logits)
        return self.calibrator.probabilities(z) if self.multilabel is None else self.multilabel.probabilities(z)

    def _reject(
        self, features: ArrayLike, z: Array, p: Array, rate: float | None, columns: ArrayLike | None
    ) -> tuple[Array | None, Array, tuple[str | None, ...]]:
        """Scores (m,), which pictures (m,) are rejected, and why a picture is unlike every class."""
        if self.rejector is None:
            if rate is not None:
                raise InputError(f"this model can't reject pictures of none of its classes: {NO_HELD_OUT_SHOTS}")
            return None, np.zeros(len(p), bool), (None,) * len(p)
        rows = np.asarray(features)
        parts = self.rejector.part_scores(rows, z) if columns is None else np.asarray(columns)
        scores = self.rejector.weighted_sum(parts)
        unlike = scores > (self.rejector.mark_threshold if rate is None else self.rejector.threshold(rate).value)
        reasons = iter(self.rejector.reasons_from_scores(parts[unlike], rows[unlike]))
        rejected = np.zeros(len(p), bool) if rate is None else unlike
        return scores, rejected, tuple(next(reasons) if is_unlike else None for is_unlike in unlike)

    def _sets(self, p: Array, best: Array, coverage: float | None, folds: Sequence[ArrayLike] | None) -> Array | None:
        if coverage is None:
            return None
        if self.conformal is None:
            raise InputError(f"this model can't make prediction sets: {NO_HELD_OUT_SHOTS}")
        if self.conformal.method != "cv+":
            return self.conformal.sets(p, coverage, best=best)
        if folds is None:
            raise InputError("CV+ prediction sets need the logits of all folds: use the classifier, not its head")
        of_folds = [self.calibrator.probabilities(np.asarray(z) * self.logit_scale_ratio) for z in folds]
        return self.conformal.sets(np.stack(of_folds), coverage, best=best)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Facts for JSON, and arrays by name."""
        facts: dict[str, Any] = {"reject": self.decisions.reject, "coverage": self.decisions.coverage}
        facts |= {"held_out_by": self.held_out_by, "logit_scale_ratio": self.logit_scale_ratio}
        facts["accuracy"] = None if self.accuracy is None else self.accuracy.to_dict()
        arrays: dict[str, Array] = {} if self.decisions.costs is None else {"costs": self.decisions.costs}
        for name in PARTS:
            part = getattr(self, name)
            facts[name], own_arrays = (None, {}) if part is None else part.state()
            arrays.update({f"{name}.{key}": value for key, value in own_arrays.items()})
        return facts, arrays

    @classmethod
    def from_state(
        cls, facts: Mapping[str, Any], arrays: Mapping[str, Array], classes: int, arrays_removed: bool = False
    ) -> Uncertainty:
        """Restore what `state` returned, of c classes, and check it; with ``arrays_removed`` after `without_arrays`.

        Raises:
            ArtifactError: if a part is damaged, or has another number of classes.
        """
        saved = SavedState("uncertainty", facts, arrays)
        saved.require(facts.get("calibrator") is not None, "it has no calibration")

        def read_part(name: str, read: Callable[..., Any], **options: Any) -> Any:
            own_arrays = {key.split(".", 1)[1]: value for key, value in arrays.items() if key.startswith(f"{name}.")}
            return None if facts.get(name) is None else read(facts[name], own_arrays, **options)

        calibrator = read_part("calibrator", Calibrator.from_state, classes=classes)
        rejector = read_part("rejector", Rejector.from_state, arrays_removed=arrays_removed)
        conformal = read_part("conformal", Conformal.from_state)
        multilabel = read_part("multilabel", MultiLabel.from_state, classes=classes)
        reject, coverage = (
            None if facts.get(name) is None else saved.fact(name, float, lambda x: 0 < x < 1)
            for name in ("reject", "coverage")
        )
        try:
            costs = None if "costs" not in arrays else check_costs(arrays["costs"])
        except InputError as error:
            raise ArtifactError(f"the model's costs are damaged: {error}") from error
        of_classes = None if rejector is None else rejector.memory.of_classes
        for what, count in (
            ("costs", None if costs is None else len(costs)),
            ("rejector", None if of_classes is None else len(of_classes)),
            ("prediction sets", None if conformal is None else conformal.n_classes),
        ):
            if count not in (None, classes):
                raise ArtifactError(f"the model's {what} have {count} classes, but the model has {classes}")
        decisions, held_out_by = DecisionOptions(reject, coverage, costs), saved.fact("held_out_by", str)
        ratio = saved.fact("logit_scale_ratio", float, lambda x: x > 0)
        accuracy = HeldOutAccuracy.from_dict(facts.get("accuracy"))
        return cls(calibrator, rejector, conformal, decisions, held_out_by, ratio, multilabel, accuracy)


def _answer_multilabel(multilabel: MultiLabel, z: Array, options: DecisionOptions) -> Answers:
    """All classes that reach their thresholds."""
    if any(value is not None for value in (options.reject, options.coverage, options.costs)):
        raise InputError(
            "multi-label models decide about each class separately: rejection, coverage and costs are not available. A "
            "picture of none of the classes has no label"
        )
    p, predicted = multilabel.probabilities(z), multilabel.decide(z)
    best = np.where(predicted, p, p - 1).argmax(axis=1)  # predicted labels come before all others
    rejected = np.asarray(~predicted.any(axis=1))
    reasons = tuple(BELOW_THRESHOLDS if is_rejected else None for is_rejected in rejected)
    return Answers(p, best, None, rejected, reasons, predicted, multilabel=True)
