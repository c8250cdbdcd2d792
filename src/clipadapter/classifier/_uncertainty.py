"""A head fitted to shots, and what shots that were held out teach of how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier._multilabel import learn_rule
from clipadapter.errors import InputError, TooFewShotsError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures, Unseen, held_out_shots, mean_shots
from clipadapter.uncertainty import (
    Calibrator,
    Conformal,
    DecisionOptions,
    Rejector,
    Uncertainty,
    learn_calibrator,
    learn_conformal,
)
from clipadapter.uncertainty import learn_rejector as learn
from clipadapter.uncertainty.calibration import Method
from clipadapter.uncertainty.costs import checked_costs
from clipadapter.uncertainty.decisions import NO_HELD_OUT_SHOTS, UncertaintyOptions

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Others:
    """Pictures and names of what is none of the classes.

    Args:
        background: (b, d) features of such pictures, or None.
        names: of distractors.
        distractors: (k, d) their text, or None.
    """

    background: Array | None = None
    names: tuple[str, ...] = ()
    distractors: Array | None = None


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted head and what goes with it.

    Args:
        head: fitted.
        uncertainty: learned from held-out shots.
        folds: heads that were fitted without one fold each, if sets are made by CV+.
    """

    head: Head
    uncertainty: Uncertainty
    folds: tuple[Head, ...] = ()


def checked_options(uncertainty: UncertaintyOptions | None) -> UncertaintyOptions:
    """What a classifier was given as ``uncertainty``.

    Raises:
        InputError: if it is something else.
    """
    if uncertainty is not None and not isinstance(uncertainty, UncertaintyOptions):
        raise InputError(
            "uncertainty must be UncertaintyOptions(reject=0.05, ...) of clipadapter.uncertainty, but is "
            f"{type(uncertainty).__name__}"
        )
    return uncertainty or UncertaintyOptions()


def fit_trusted(
    head: Head,
    support: FeatureSet,
    text: TextFeatures,
    unlabelled: Array | None,
    options: UncertaintyOptions,
    others: Others,
    seed: int = 0,
) -> Fitted:
    """Fit a head, and learn from held-out shots how far to trust it.

    Args:
        head: what to fit.
        support: the shots.
        text: class text.
        unlabelled: for transductive heads.
        options: what to learn.
        others: what is none of the classes, to tell such pictures.
        seed: of what is held out.

    Raises:
        InputError: if sets are asked for by a way that needs more shots, or the head can't be fitted twice.
    """
    if options.costs is not None:
        checked_costs(options.costs, text.labels)  # before the work
    if support.targets is None and options.sets == "split":
        head, unseen = _split(head, support, text, seed)
        return _trusted(head, unseen, support, text, options, others)
    _check_several(support, options, others)
    head = head.fit(support.X, support.labels, text=text, unlabelled=unlabelled)
    return trusted(head, support, text, options, others, seed)


def trusted(
    head: Head, support: FeatureSet, text: TextFeatures, options: UncertaintyOptions, others: Others, seed: int = 0
) -> Fitted:
    """A head that is fitted to all shots already, and what held-out shots teach of it; arguments as `fit_trusted`."""
    if support.targets is not None:
        _check_several(support, options, others)
        rule = learn_rule(head, support.X, support.labels, text)
        return Fitted(head, Uncertainty(multilabel=rule, held_out_by="folds" if rule.n else ""))
    return _trusted(head, _unseen(head, support, text, options, seed), support, text, options, others)


def _trusted(
    head: Head,
    unseen: Unseen | None,
    support: FeatureSet,
    text: TextFeatures,
    options: UncertaintyOptions,
    others: Others,
) -> Fitted:
    costs = None if options.costs is None else checked_costs(options.costs, text.labels)
    asked = DecisionOptions(options.reject, options.coverage, costs)
    calibrator = _calibrator(head, support, unseen, options)
    rejector = _rejector(head, support, text, unseen, calibrator, others)
    for name, part in (("reject", rejector), ("coverage", unseen)):
        if getattr(options, name) is not None and part is None:
            raise InputError(f"{name} can't be asked for here: {NO_HELD_OUT_SHOTS}")
    if unseen is None:
        return Fitted(head, Uncertainty(calibrator, rejector, None, asked))
    conformal = _conformal(unseen, calibrator, options)
    return Fitted(head, Uncertainty(calibrator, rejector, conformal, asked, unseen.how, unseen.louder), unseen.heads)


def _check_several(support: FeatureSet, options: UncertaintyOptions, others: Others) -> None:
    """Pictures with several labels have a rule a class instead of one for the best class."""
    if support.targets is None:
        return
    meant = [] if others.background is None else ["background"]
    for name, usual in vars(UncertaintyOptions()).items():
        value = getattr(options, name)
        if value is not None and (usual is None or value != usual):
            meant.append(name)
    if meant:
        raise InputError(
            f"pictures with several labels are answered class by class: leave {', '.join(meant)} out. A picture "
            "without any class has no label"
        )


def _cheap(head: Head) -> bool:
    """Whether a head can be fitted again to a part of the shots, without training through a tower."""
    return not (head.needs_tower or head.tunes_encoder or head.transductive)


def _unseen(
    head: Head, support: FeatureSet, text: TextFeatures, options: UncertaintyOptions, seed: int
) -> Unseen | None:
    wanted = options.calibration in ("temperature", "vector") or options.sets == "cv+"
    if head.tunes_encoder or not (_cheap(head) or wanted):
        return None
    return held_out_shots(head, support.X, support.y, text, keep=options.sets == "cv+", seed=seed)


def _split(head: Head, support: FeatureSet, text: TextFeatures, seed: int) -> tuple[Head, Unseen]:
    """Every second shot of a class is held out, the others are fitted to."""
    if not _cheap(head):
        raise InputError(f"{type(head).__name__} learns from all shots at once: sets='cross' goes with it")
    labels, train, held = np.asarray(support.y), [], []
    for name in dict.fromkeys(support.y):
        rows = np.flatnonzero(labels == name)
        rows = np.random.default_rng(seed).permutation(rows)
        held += rows[: len(rows) // 2].tolist()
        train += rows[len(rows) // 2 :].tolist()
    if not held:
        raise InputError("with one shot a class none can be held out for the sets: give two or more of each class")
    fitted = head.fit(support.X[train], labels[train], text=text)
    position = {name: i for i, name in enumerate(text.labels)}
    rows, y = np.array(held), np.array([position[support.y[i]] for i in held])
    return fitted, Unseen(fitted.logits(support.plain[held]), y, rows, mean_shots(labels[train]), "split")


def _calibrator(head: Head, support: FeatureSet, unseen: Unseen | None, options: UncertaintyOptions) -> Calibrator:
    usual = head.usual_temperature(mean_shots(support.y) if unseen is None or unseen.how != "split" else unseen.shots)
    if options.calibration == "none":
        return Calibrator()
    if unseen is None:
        return Calibrator(usual)
    method: Method = "vector" if options.calibration == "vector" else "temperature"
    count = len(np.unique(unseen.rows))
    return learn_calibrator(unseen.logits, unseen.labels, method=method, usual=usual, n=count)


def _conformal(unseen: Unseen, calibrator: Calibrator, options: UncertaintyOptions) -> Conformal:
    once = unseen.once
    how = "split" if unseen.how == "split" else options.sets
    return learn_conformal(
        calibrator.probabilities(once.logits),
        once.labels,
        score=options.score,
        by_class=options.by_class,
        method=how,
        folds=once.folds if how == "cv+" else None,
    )


def _rejector(
    head: Head, support: FeatureSet, text: TextFeatures, unseen: Unseen | None, calibrator: Calibrator, others: Others
) -> Rejector | None:
    width = text.embeddings.shape[1]
    if support.X.shape[-1] != width or head.tunes_encoder:
        return None
    position = {name: i for i, name in enumerate(text.labels)}
    once = None if unseen is None else unseen.once
    try:
        return learn(
            support.plain,
            np.array([position[name] for name in support.y]),
            len(text.labels),
            logits=None if once is None else once.logits,
            rows=None if once is None else once.rows,
            probabilities=None if once is None else calibrator.probabilities(once.logits),
            text=None if len(text.absent) == len(text.labels) else text.embeddings,
            scale=text.logit_scale,
            negative_labels=others.distractors,
            names=others.names,
            outliers=others.background,
        )
    except TooFewShotsError:
        return None
