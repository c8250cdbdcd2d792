"""What a fitted model makes of logits: probabilities, a decision, "none of these", and sets of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import ArtifactError, InputError
from clipadapter.prediction import Prediction
from clipadapter.registry import unknown
from clipadapter.uncertainty.calibration import METHODS, Calibrator
from clipadapter.uncertainty.conformal import HOW, SCORES, Conformal
from clipadapter.uncertainty.costs import checked_costs, decide
from clipadapter.uncertainty.multilabel import MultiLabel
from clipadapter.uncertainty.ood import Rejector

Array = NDArray[Any]
CALIBRATION = ("auto", *METHODS, "none")
PARTS = ("calibrator", "rejector", "conformal", "several")
UNLEARNED = (
    "no shot can be held out. Give two shots of each class or more, and a head that can be fitted to a part of them "
    "(not a transductive one, nor one that tunes the encoder), on features of one encoder"
)
NOTHING = "no class reaches its threshold"


@dataclass(frozen=True, eq=False)
class UncertaintyOptions:
    """How far a classifier may be trusted, and what it may say.

    Args:
        calibration: "temperature"; "vector", a factor and a bias a class besides; "none"; or "auto", a temperature
            unless shots can only be held out by training through a tower.
        reject: share of pictures of the classes that may be called "none of these", such as 0.05; None never says so.
        coverage: share of pictures whose class is to be in the set of classes that is named, such as 0.9.
        costs: (c, c), row the true class, column the answer; the least expected cost decides.
        sets: how shots are held out for the sets: "cross", "cv+" which keeps the folds' heads, or "split" which fits
            on half of the shots only; see `Conformal.words` for what each promises.
        by_class: promise the coverage for each class by itself.
        score: of the sets: "lac", "aps" or "raps".
        distractors: compare pictures with the 1,000 class names of ImageNet too, to tell "none of these".

    Raises:
        InputError: if a value is none of these, or a rate is no share.

    >>> UncertaintyOptions(reject=0.05).reject
    0.05
    """

    calibration: str = "auto"
    reject: float | None = None
    coverage: float | None = None
    costs: ArrayLike | None = None
    sets: str = "cross"
    by_class: bool = False
    score: str = "lac"
    distractors: bool = False

    def __post_init__(self) -> None:
        for name, known in (("calibration", CALIBRATION), ("sets", HOW), ("score", SCORES)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        for name in ("reject", "coverage"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < 1):
                raise InputError(f"{name} is a share between 0 and 1, such as 0.05 or 0.9, but is {value!r}")


@dataclass(frozen=True, eq=False)
class DecisionOptions:
    """What is asked for beside the best class.

    Args:
        reject: share of pictures of the classes that may be called "none of these"; None never says so.
        coverage: share of pictures whose class must be in the set; None gives no sets.
        costs: (c, c) cost of answering the column's class for a picture of the row's; None counts every mistake alike.
    """

    reject: float | None = None
    coverage: float | None = None
    costs: Array | None = None

    def changed(self, changes: Mapping[str, Any]) -> DecisionOptions:
        """The same but for what is given.

        Raises:
            InputError: if something else is asked for.
        """
        for name in changes:
            if name not in ("reject", "coverage", "costs"):
                raise unknown("thing to ask for", name, ["reject", "coverage", "costs"])
        if changes.get("costs") is not None:
            changes = {**changes, "costs": checked_costs(changes["costs"])}
        return replace(self, **changes)


@dataclass(frozen=True, eq=False)
class Answers:
    """What is said of m pictures.

    Args:
        probabilities: (m, c), calibrated.
        best: (m,) position of the class that each would be called.
        strangeness: (m,) score of "none of these", higher is stranger; None if it was not asked for.
        rejected: (m,) whether a picture is none of the classes.
        reasons: (m,) why it is; None where it is not.
        sets: (m, c) the classes that each may be, or has if it may have several; None if no coverage was asked for.
        several: whether pictures may have several labels.
    """

    probabilities: Array
    best: Array
    strangeness: Array | None
    rejected: Array
    reasons: tuple[str | None, ...]
    sets: Array | None
    several: bool = False

    def prediction(self, i: int, source: str, class_names: Sequence[str], top: int = 5) -> Prediction:
        """What is said of picture i, in names."""
        p, best = self.probabilities[i], int(self.best[i])
        order = [best, *(int(k) for k in np.argsort(-p, kind="stable") if k != best)]
        said = int(self.sets[i].sum()) if self.several and self.sets is not None else 0
        named = tuple((class_names[k], float(p[k])) for k in order[: max(1, top, said)])
        labels = None if self.sets is None else tuple(class_names[k] for k in order if self.sets[i, k])
        label = None if self.rejected[i] else class_names[best]
        labels = () if labels and label is None else labels
        return Prediction(source, label, float(p[best]), named, None, class_names[best], self.reasons[i], labels)


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What was learned from held-out shots, and is asked for if nothing else is said.

    Args:
        calibrator: logits to probabilities.
        rejector: tells pictures of none of the classes; None if nothing could be learned.
        conformal: makes sets of classes; None if nothing could be learned.
        asked: what is asked for by default.
        how: how the shots were held out: "own" for the head's own folds, "folds" or "split"; "" if
            they could not be.
        louder: factor that makes logits of single folds' heads as large as those of the full fit.
        several: probabilities and thresholds where a picture may have several labels; else None.
    """

    calibrator: Calibrator = field(default_factory=Calibrator)
    rejector: Rejector | None = None
    conformal: Conformal | None = None
    asked: DecisionOptions = field(default_factory=DecisionOptions)
    how: str = ""
    louder: float = 1.0
    several: MultiLabel | None = None

    def answer(
        self,
        logits: ArrayLike,
        features: ArrayLike,
        asked: DecisionOptions | None = None,
        folds: Sequence[ArrayLike] | None = None,
        columns: ArrayLike | None = None,
    ) -> Answers:
        """What to say of pictures.

        Args:
            logits: (m, c) of the head.
            features: (m, d) as from the encoder; looked at only for "none of these".
            asked: instead of the default.
            folds: logits (m, c) of each fold's head, if sets are made by CV+.
            columns: (m, p) scores of the rejector's parts, where something else computes them.

        Raises:
            InputError: if what is asked for could not be learned, or a rate is out of range.
        """
        wanted = self.asked if asked is None else asked
        z = np.asarray(logits)
        if self.several is not None:
            return _several(self.several, z, wanted)
        p = self.calibrator.probabilities(z)
        if wanted.costs is not None and len(wanted.costs) != p.shape[1]:
            raise InputError(f"costs are of {len(wanted.costs)} classes, but the model has {p.shape[1]}")
        best = p.argmax(axis=1) if wanted.costs is None else decide(p, wanted.costs)
        strangeness, rejected, reasons = self._strange(features, z, p, wanted.reject, columns)
        return Answers(p, best, strangeness, rejected, reasons, self._sets(p, best, wanted.coverage, folds))

    def asking(self, options: UncertaintyOptions) -> Uncertainty:
        """The same, with what is asked for by default taken from options; how it was learned stays."""
        costs = None if options.costs is None else checked_costs(options.costs)
        return replace(self, asked=DecisionOptions(options.reject, options.coverage, costs))

    def light(self) -> Uncertainty:
        """What is left for where a graph gives logits and the rejector's scores: small arrays.

        Sets by CV+ need the heads of single folds, and are left out.
        """
        rejector = None if self.rejector is None else self.rejector.light()
        folds = self.conformal is not None and self.conformal.how == "cv+"
        asked = replace(self.asked, coverage=None) if folds else self.asked
        return replace(self, rejector=rejector, conformal=None if folds else self.conformal, asked=asked)

    def probabilities(self, logits: ArrayLike) -> Array:
        """Calibrated probabilities (m, c); those of several labels need not sum to one."""
        z = np.asarray(logits)
        return self.calibrator.probabilities(z) if self.several is None else self.several.probabilities(z)

    def _strange(
        self, features: ArrayLike, z: Array, p: Array, rate: float | None, columns: ArrayLike | None
    ) -> tuple[Array | None, Array, tuple[str | None, ...]]:
        if rate is None:
            return None, np.zeros(len(p), bool), (None,) * len(p)
        if self.rejector is None:
            raise InputError(f"this model can't tell pictures of none of its classes: {UNLEARNED}")
        rows = np.asarray(features)
        parts = self.rejector.columns(rows, z, p) if columns is None else np.asarray(columns)
        scores = self.rejector.total(parts)
        rejected = scores > self.rejector.threshold(rate).value
        told = iter(self.rejector.reasons_by(parts[rejected], rows[rejected]))
        return scores, rejected, tuple(next(told) if no else None for no in rejected)

    def _sets(self, p: Array, best: Array, coverage: float | None, folds: Sequence[ArrayLike] | None) -> Array | None:
        if coverage is None:
            return None
        if self.conformal is None:
            raise InputError(f"this model can't say which classes a picture may be: {UNLEARNED}")
        if self.conformal.how != "cv+":
            return self.conformal.sets(p, coverage, best=best)
        if folds is None:
            raise InputError("sets by CV+ need the answers of all folds: ask the classifier, not its head")
        every = np.stack([self.calibrator.probabilities(np.asarray(z) * self.louder) for z in folds])
        return self.conformal.sets(every, coverage, best=best)

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Facts for JSON, and arrays by name."""
        asked = {"reject": self.asked.reject, "coverage": self.asked.coverage}
        facts: dict[str, Any] = {**asked, "how": self.how, "louder": self.louder}
        arrays: dict[str, Array] = {} if self.asked.costs is None else {"costs": self.asked.costs}
        for name in PARTS:
            part = getattr(self, name)
            facts[name], own = (None, {}) if part is None else part.state()
            arrays.update({f"{name}.{key}": value for key, value in own.items()})
        return facts, arrays

    @classmethod
    def from_state(
        cls, facts: Mapping[str, Any], arrays: Mapping[str, Array], classes: int, light: bool = False
    ) -> Uncertainty:
        """What `state` gave, checked.

        Args:
            facts: as from `state`.
            arrays: likewise.
            classes: c.
            light: it was `light`.

        Raises:
            ArtifactError: if a part is damaged, or is not of so many classes.
        """
        parts: dict[str, Any] = {}
        for name in PARTS:
            own = {key.split(".", 1)[1]: value for key, value in arrays.items() if key.startswith(f"{name}.")}
            parts[name] = facts.get(name), own
        try:
            costs = None if "costs" not in arrays else checked_costs(arrays["costs"])
            asked = DecisionOptions(_rate(facts, "reject"), _rate(facts, "coverage"), costs)
        except InputError as error:
            raise ArtifactError(f"what the model is asked for by default is damaged: {error}") from error
        if costs is not None and len(costs) != classes:
            raise ArtifactError(f"the model has costs of {len(costs)} classes, but it has {classes}")
        calibrator = Calibrator.from_state(parts["calibrator"][0] or {}, parts["calibrator"][1], classes)
        known, own = parts["rejector"]
        rejector = None if known is None else Rejector.from_state(known, own, light)
        if rejector is not None and rejector.memory.classes not in (None, classes):
            raise ArtifactError(f"the model's rejector is of {rejector.memory.classes} classes, but it has {classes}")
        conformal = None if parts["conformal"][0] is None else Conformal.from_state(*parts["conformal"])
        if conformal is not None and conformal.n_classes != classes:
            raise ArtifactError(f"the model's sets are of {conformal.n_classes} classes, but it has {classes}")
        rule, own = parts["several"]
        several = None if rule is None else MultiLabel.from_state(rule, own, classes)
        louder = facts.get("louder", 1.0)
        if not isinstance(louder, int | float) or not 0 < louder < np.inf:
            raise ArtifactError(f"the model's factor for folds is {louder!r}: fit it again")
        return cls(calibrator, rejector, conformal, asked, str(facts.get("how", "")), float(louder), several)


def _several(rule: MultiLabel, z: Array, wanted: DecisionOptions) -> Answers:
    """All classes that reach their thresholds."""
    if any(value is not None for value in (wanted.reject, wanted.coverage, wanted.costs)):
        raise InputError(
            "pictures with several labels are answered class by class: a rate of rejection, a coverage or costs can't "
            "be asked for. A picture without any class has no label"
        )
    p, said = rule.probabilities(z), rule.decide(z)
    best = np.where(said, p, p - 1).argmax(axis=1)  # what is said goes before what is not
    none = np.asarray(~said.any(axis=1))
    return Answers(p, best, None, none, tuple(NOTHING if no else None for no in none), said, several=True)


def _rate(facts: Mapping[str, Any], name: str) -> float | None:
    value = facts.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise ArtifactError(f"the model's {name} is {value!r}, which is no share")
    return float(value)
