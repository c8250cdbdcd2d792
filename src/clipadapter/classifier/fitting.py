"""A head fitted to shots, and what shots that were held out teach of how far it can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from clipadapter.data import class_prompts, get_templates
from clipadapter.data.prompts import clean_name
from clipadapter.encoders import Encoder
from clipadapter.errors import InputError, TooFewShotsError
from clipadapter.features import FeatureSet, FeatureStore, ViewSpec, encode_classes
from clipadapter.heads import Head, TextFeatures, Unseen, create_head, held_out, held_out_shots, mean_shots
from clipadapter.persistence import Model
from clipadapter.uncertainty import (
    Calibrator,
    Conformal,
    DecisionOptions,
    MultiLabel,
    Rejector,
    Uncertainty,
    UncertaintyOptions,
    kept_distractors,
    learn_calibrator,
    learn_conformal,
    learn_multilabel,
)
from clipadapter.uncertainty import learn_rejector as learn
from clipadapter.uncertainty.answers import UNLEARNED
from clipadapter.uncertainty.calibration import Method
from clipadapter.uncertainty.costs import checked_costs
from clipadapter.uncertainty.rejection import imagenet_names

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
        return Fitted(head, Uncertainty(several=rule, how="folds" if rule.n else ""))
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
            raise InputError(f"{name} can't be asked for here: {UNLEARNED}")
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
        how=how,
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
            distractors=others.distractors,
            names=others.names,
            background=others.background,
        )
    except TooFewShotsError:
        return None


def learn_rule(
    head: Head,
    X: ArrayLike,
    Y: ArrayLike,
    text: TextFeatures | None,
    *,
    folds: int = 4,
    seed: int = 0,
    precision: float | None = None,
) -> MultiLabel:
    """Probabilities and thresholds for a head, from shots that its clones did not see; the usual ones if none can be.

    Args:
        head: fitted or not; it is not changed.
        X: (n, d) or (n, v, d) raw features of the shots.
        Y: (n, c) zeros and ones; see `data.label_sets.label_matrix`.
        text: class text.
        folds: wished.
        seed: of the folds.
        precision: wished, or None for thresholds that make F1 largest.

    Raises:
        InputError: if the head takes no several labels, or shapes don't go together.
    """
    truth = np.asarray(Y)
    counts = truth.sum(axis=0)
    # A class with one shot keeps it in training: its held-out answers would all be of pictures without it.
    if not 2 * np.sum(counts > 1) >= np.sum(counts > 0) > 0:
        return MultiLabel.usual(truth.shape[1])
    found = held_out(clone(head), X, truth, text, folds=folds, seed=seed)
    return learn_multilabel(found.logits, found.labels, precision=precision)


def make_head(head: str | Head, params: Mapping[str, Any] | None, seed: int, progress: bool) -> Head:
    """The head itself, or a new one by name.

    Args:
        head: a head, or a registered name.
        params: of a head by name.
        seed: given to a head by name that takes one, if ``params`` has none.
        progress: likewise.

    Raises:
        InputError: if there are parameters beside a head that is made already, or the head has no such parameter.
        UnknownNameError: if no head has the name.
    """
    if isinstance(head, Head):
        if params:
            raise InputError("head_params go with a head's name; set them on the head that was given instead")
        return head
    given = dict(params or {})
    made = create_head(head, **given)
    known = made.get_params(deep=False)
    for name, value in (("seed", seed), ("progress", progress)):
        if name in known and name not in given:
            made.set_params(**{name: value})
    return made


def distractors(
    encoder: Encoder, text: TextFeatures, templates: str | Sequence[str], store: FeatureStore | None
) -> tuple[tuple[str, ...], NDArray[Any] | None]:
    """The class names of ImageNet that are no near synonyms of the classes.

    Args:
        encoder: of the class text.
        text: of the classes.
        templates: that the classes' prompts were made by.
        store: keeps the text of the names; None keeps nothing.

    Returns:
        The names, and their unit text (k, d).
    """
    names = tuple(dict.fromkeys(imagenet_names()))  # two names stand for two classes each
    found = encode_classes(encoder, class_prompts(names, templates, None), store)
    kept = kept_distractors(text.labels, text.embeddings, names, found.embeddings)
    return tuple(names[i] for i in kept), found.embeddings[kept]


KEY = "fit"
"""Where it lies in the provenance of the shots."""
LEARNED = ("calibration", "sets", "by_class", "score", "distractors")
"""Options of trust that say how it is learned; what is asked for is part of what was learned."""


@dataclass(frozen=True, eq=False)
class Settings:
    """What a fit hangs on beside the shots and the head.

    Args:
        templates: that class names are put into.
        views: of each shot.
        uncertainty: what is learned from held-out shots, and asked for by default.
        seed: of what is held out.
    """

    templates: tuple[str, ...] = ("a photo of a {}.",)
    views: ViewSpec = ViewSpec()
    uncertainty: UncertaintyOptions = UncertaintyOptions()
    seed: int = 0

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        uncertainty = {name: getattr(self.uncertainty, name) for name in LEARNED}
        return {"templates": list(self.templates), "views": asdict(self.views), "trust": uncertainty, "seed": self.seed}


def settings_of(model: Model) -> Settings:
    """How a model was fitted; where an older one does not say, what its other parts show, else the defaults.

    Raises:
        InputError: if what it says can't be.
    """
    raw, uncertainty = model.support.provenance.get(KEY), model.uncertainty
    asked: dict[str, Any] = {
        "reject": uncertainty.asked.reject,
        "coverage": uncertainty.asked.coverage,
        "costs": uncertainty.asked.costs,
    }
    if not isinstance(raw, Mapping):
        sets = "cross" if uncertainty.conformal is None else uncertainty.conformal.how
        return Settings(templates_in(model.prompts), uncertainty=UncertaintyOptions(**asked, sets=sets))
    try:
        views = dict(raw["views"])
        spec = ViewSpec(**{**views, "scale": tuple(views["scale"]), "ratio": tuple(views["ratio"])})
        learned = {name: raw["trust"][name] for name in LEARNED}
        return Settings(get_templates(raw["templates"]), spec, UncertaintyOptions(**asked, **learned), int(raw["seed"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"what the model says of its fit is damaged ({error!r}): fit it again") from error


def templates_in(prompts: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The templates that all prompts seem to be made of; the default if classes have sentences of their own.

    >>> templates_in({"cat": ["a photo of a cat."], "guinea_pig": ["a photo of a guinea pig."]})
    ('a photo of a {}.',)
    """
    found = {
        tuple(text.replace(clean_name(name), "{}") for text in texts)
        for name, texts in prompts.items()
        if all(text.count(clean_name(name)) == 1 for text in texts)
    }
    return next(iter(found)) if len(found) == 1 else Settings.templates


def others_of(model: Model, text: TextFeatures) -> Others:
    """Pictures and names of none of the classes that the model was given; names near a new class are left out.

    Args:
        model: as it was.
        text: of its classes from now on.
    """
    rejector = model.uncertainty.rejector
    if rejector is None:
        return Others()
    memory, names = rejector.memory, rejector.names
    if memory.distractors is None:
        return Others(memory.background)
    kept = kept_distractors(text.labels, text.embeddings, names, np.asarray(memory.distractors))
    return Others(memory.background, tuple(names[i] for i in kept), memory.distractors[kept])
