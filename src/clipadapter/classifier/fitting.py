"""Fit a head, and learn its calibration, thresholds and prediction sets from held-out shots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from clipadapter.data import class_prompts, get_templates
from clipadapter.encoders import Encoder
from clipadapter.errors import InputError, TooFewShotsError
from clipadapter.features import FeatureSet, FeatureStore, ViewSpec, encode_classes
from clipadapter.heads import Head, OutOfFold, TextFeatures, create_head, mean_shots_per_class, out_of_fold
from clipadapter.heads.estimator import clone
from clipadapter.heads.out_of_fold import most_classes_repeat
from clipadapter.heads.support import as_matrix, rows_without_shots
from clipadapter.persistence import Model
from clipadapter.uncertainty import (
    Calibrator,
    Conformal,
    DecisionOptions,
    HeldOutAccuracy,
    MultiLabel,
    Rejector,
    Uncertainty,
    UncertaintyOptions,
    learn_calibrator,
    learn_conformal,
    learn_multilabel,
    learn_rejector,
    select_negative_labels,
)
from clipadapter.uncertainty.calibration import (
    LOG_TEMPERATURE_DEVIATION,
    LOG_TEMPERATURE_DEVIATION_OF_TEXT,
    Method,
    equal_share,
)
from clipadapter.uncertainty.costs import check_costs
from clipadapter.uncertainty.decisions import NO_HELD_OUT_SHOTS
from clipadapter.utils.imagenet import imagenet_names

FIT_KEY = "fit"
"""Key of the fit settings in the provenance of the support set."""
LEARNED_OPTIONS = ("calibration", "sets", "by_class", "negative_labels")
"""Options that decide what is learned. `Uncertainty` saves the others."""
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Negatives:
    """Features and names of what is none of the classes."""

    outliers: Array | None = None  # (b, d) features of pictures
    label_names: tuple[str, ...] = ()  # k class names of ImageNet that are no synonyms of the classes
    label_embeddings: Array | None = None  # (k, d) their text features


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fitted head with its uncertainty."""

    head: Head
    uncertainty: Uncertainty
    fold_heads: tuple[Head, ...] = ()  # heads that were each fitted without one fold, for CV+ prediction sets


def build_head(head: str | Head, params: Mapping[str, Any] | None, seed: int, progress: bool) -> Head:
    """The head itself, or one by name, whose seed and progress are these unless ``params`` sets them."""
    if isinstance(head, Head):
        if params:
            raise InputError(
                "head_params need the name of a head, but head is an object: set the parameters on it instead"
            )
        return head
    params = dict(params or {})
    created = create_head(head, **params)
    known = created.get_params(deep=False)
    for name, value in (("seed", seed), ("progress", progress)):
        if name in known and name not in params:
            created.set_params(**{name: value})
    return created


def check_options(uncertainty: UncertaintyOptions | None) -> UncertaintyOptions:
    """The options, or the default ones for None."""
    if uncertainty is not None and not isinstance(uncertainty, UncertaintyOptions):
        raise InputError(
            "uncertainty must be UncertaintyOptions(reject=0.05, ...) of clipadapter.uncertainty, but is "
            f"{type(uncertainty).__name__}"
        )
    return uncertainty or UncertaintyOptions()


def embed_negative_labels(
    encoder: Encoder,
    text: TextFeatures,
    templates: str | Sequence[str],
    store: FeatureStore | None,
    outliers: Array | None = None,
) -> Negatives:
    """Select the ImageNet class names that are no synonyms of the classes, as in NegLabel (Jiang et al. 2024)."""
    if not encoder.has_text:
        raise InputError(
            f"negative_labels compares pictures with class names, but {encoder.info.name} has no text tower: leave it "
            "out, or name an encoder that has one beside it"
        )
    names = tuple(dict.fromkeys(imagenet_names("torchvision")))  # some versions of torchvision repeat names
    encoded = encode_classes(encoder, class_prompts(names, templates, None), store)
    rows = select_negative_labels(text.labels, text.embeddings, names, encoded.embeddings)
    return Negatives(outliers, tuple(names[i] for i in rows), encoded.embeddings[rows])


def fit_with_uncertainty(
    head: Head,
    support: FeatureSet,
    text: TextFeatures,
    unlabelled: Array | None,
    options: UncertaintyOptions,
    negatives: Negatives,
    seed: int = 0,
) -> FitResult:
    """Fit a head, and learn its uncertainty from held-out shots."""
    if options.costs is not None:
        check_costs(options.costs, text.labels)  # before the long work
    if support.targets is None and options.sets == "split":
        head, held_out = _fit_on_half(head, support, text, unlabelled, seed)
        return _learn_single_label(head, held_out, support, text, options, negatives)
    _check_multilabel_options(support, options, negatives)
    head = head.fit(support.X, support.labels, text=text, unlabelled=unlabelled, blocks=support.blocks)
    return learn_uncertainty(head, support, text, options, negatives, seed)


def learn_uncertainty(
    head: Head,
    support: FeatureSet,
    text: TextFeatures,
    options: UncertaintyOptions,
    negatives: Negatives,
    seed: int = 0,
) -> FitResult:
    """Learn the uncertainty of a head that is fitted to all shots; arguments as of `fit_with_uncertainty`."""
    if support.targets is not None:
        _check_multilabel_options(support, options, negatives)
        multilabel = learn_multilabel_thresholds(head, support.X, support.labels, text, support.blocks)
        return FitResult(head, Uncertainty(multilabel=multilabel, held_out_by="folds" if multilabel.n else ""))
    held_out = _predict_out_of_fold(head, support, text, options, seed)
    return _learn_single_label(head, held_out, support, text, options, negatives)


def learn_multilabel_thresholds(
    head: Head,
    X: ArrayLike,
    Y: ArrayLike,
    text: TextFeatures | None,
    blocks: Sequence[tuple[str, int]] | None = None,
) -> MultiLabel:
    """Calibrated probabilities and the threshold per class with the highest F1, learned from out-of-fold logits.

    The default ones if most classes have one shot only.
    """
    targets = np.asarray(Y)
    # A class with one shot keeps it in training: all its held-out logits would be of pictures without the class.
    if not most_classes_repeat(torch.tensor(targets)):
        return MultiLabel.default(targets.shape[1])
    held_out = out_of_fold(clone(head), X, targets, text, folds=4, blocks=blocks)
    if held_out is None:
        raise InputError(f"{type(head).__name__} can't be evaluated on held-out shots")
    return learn_multilabel(held_out.logits, held_out.labels)


def _check_multilabel_options(support: FeatureSet, options: UncertaintyOptions, negatives: Negatives) -> None:
    """Refuse options of single-label classifiers for multi-label shots, whose classes are decided one by one."""
    if support.targets is None:
        return
    refused = [] if negatives.outliers is None else ["outliers"]
    for name, default in vars(UncertaintyOptions()).items():
        value = getattr(options, name)
        if value is not None and (default is None or value != default):
            refused.append(name)
    if refused:
        raise InputError(
            f"multi-label pictures are decided class by class: leave {', '.join(refused)} out. A picture without "
            "any class has no label"
        )


def _learn_single_label(
    head: Head,
    held_out: OutOfFold | None,
    support: FeatureSet,
    text: TextFeatures,
    options: UncertaintyOptions,
    negatives: Negatives,
) -> FitResult:
    costs = None if options.costs is None else check_costs(options.costs, text.labels)
    decision = DecisionOptions(options.reject, options.coverage, costs)
    calibrator = _fit_calibrator(head, support, text, held_out, options)
    rejector = _fit_rejector(head, support, text, held_out, negatives)
    for name, needed in (("reject", rejector), ("coverage", held_out)):
        if getattr(options, name) is not None and needed is None:
            raise InputError(f"{name} is not available: {NO_HELD_OUT_SHOTS}")
    if held_out is None:
        return FitResult(head, Uncertainty(calibrator, rejector, None, decision))
    conformal = _fit_conformal(held_out, calibrator, options)
    uncertainty = Uncertainty(
        calibrator,
        rejector,
        conformal,
        decision,
        held_out.strategy,
        held_out.logit_scale_ratio,
        accuracy=_measure_accuracy(held_out, support, text),
    )
    return FitResult(head, uncertainty, held_out.heads)


def _is_cheap_to_refit(head: Head) -> bool:
    """Whether the head can be fitted to part of the shots without training through a tower."""
    return not (head.needs_tower or head.tunes_encoder or head.transductive)


def _predict_out_of_fold(
    head: Head, support: FeatureSet, text: TextFeatures, options: UncertaintyOptions, seed: int
) -> OutOfFold | None:
    """Out-of-fold logits of the shots; None if they cost much and no option needs them."""
    is_required = options.calibration in ("temperature", "vector") or options.sets == "cv+"
    if head.tunes_encoder or not (_is_cheap_to_refit(head) or is_required):
        return None
    return out_of_fold(
        head,
        support.X,
        support.y,
        text,
        strategies=("own", "folds"),
        keep_heads=options.sets == "cv+",
        seed=seed,
    )


def _fit_on_half(
    head: Head, support: FeatureSet, text: TextFeatures, unlabelled: Array | None, seed: int
) -> tuple[Head, OutOfFold]:
    """Fit the head to half of the shots of each class, and predict the other half (split conformal)."""
    if not _is_cheap_to_refit(head):
        raise InputError(f"{type(head).__name__} learns from all shots at once: sets='cross' goes with it")
    labels, train, held = np.asarray(support.y), [], []
    for name in dict.fromkeys(support.y):
        rows = np.flatnonzero(labels == name)
        rows = np.random.default_rng(seed).permutation(rows)
        held += rows[: len(rows) // 2].tolist()
        train += rows[len(rows) // 2 :].tolist()
    if not held:
        raise InputError("with one shot per class, none can be held out for the sets: give two or more of each class")
    pictures = _without_shots(head, support, unlabelled)
    fitted = head.fit(support.X[train], labels[train], text=text, unlabelled=pictures, blocks=support.blocks)
    position = {name: i for i, name in enumerate(text.labels)}
    rows, y = np.array(held), np.array([position[support.y[i]] for i in held])
    return fitted, OutOfFold(fitted.logits(support.plain[held]), y, rows, "split", mean_shots_per_class(labels[train]))


def _without_shots(head: Head, support: FeatureSet, unlabelled: Array | None) -> Array | None:
    """The pictures without labels that are no shots, also none of the held-out half; None if there are none.

    The head leaves out the shots that it is fitted to. If it learned from those that the sets are calibrated on, these
    would not be like new pictures. Features that `Head.fit` refuses are returned as they are.
    """
    if unlabelled is None or not head.accepts_unlabelled:
        return unlabelled
    pictures = as_matrix(unlabelled)
    if pictures.shape[1] != support.X.shape[-1]:
        return unlabelled
    final = torch.from_numpy(pictures[:, : support.blocks[0].width])
    rows = rows_without_shots(final, torch.from_numpy(support.final)).numpy()
    return pictures[rows] if len(rows) else None


def _fit_calibrator(
    head: Head, support: FeatureSet, text: TextFeatures, held_out: OutOfFold | None, options: UncertaintyOptions
) -> Calibrator:
    if options.calibration == "none":
        return Calibrator()
    is_split = held_out is not None and held_out.strategy == "split"
    shots = held_out.shots_per_class if held_out is not None and is_split else mean_shots_per_class(support.y)
    prior = head.prior_temperature(shots)
    if held_out is None:
        # As of two shots of each class at least: with one, none can be held out.
        return Calibrator(prior, equal_share=equal_share(max(len(support.y), 2 * len(text.labels))))
    method: Method = "vector" if options.calibration == "vector" else "temperature"
    n_shots = len(np.unique(held_out.rows))  # a shot has one row of logits for each repetition of the folds
    # Heads without this parameter are judged by the mean over classes too.
    tau = head.get_params(deep=False).get("logit_adjustment", 1.0)
    return learn_calibrator(
        held_out.logits,
        held_out.labels,
        method=method,
        prior_temperature=prior,
        prior_deviation=LOG_TEMPERATURE_DEVIATION_OF_TEXT if head.needs_text else LOG_TEMPERATURE_DEVIATION,
        n=n_shots,
        logit_adjustment=tau,
    )


def _measure_accuracy(held_out: OutOfFold, support: FeatureSet, text: TextFeatures) -> HeldOutAccuracy:
    """The accuracy on the held-out shots, beside that of zero-shot if all classes have text."""
    zero_shot = None
    if text.has_text and not text.absent:
        head = create_head("zero-shot").fit(support.final, support.y, text=text)
        zero_shot = head.logits(support.final[held_out.rows])
    seen = min(1.0, held_out.shots_per_class / mean_shots_per_class(support.y))
    return HeldOutAccuracy.measure(held_out.logits, held_out.labels, held_out.rows, zero_shot, seen)


def _fit_conformal(held_out: OutOfFold, calibrator: Calibrator, options: UncertaintyOptions) -> Conformal:
    once = held_out.first_per_shot
    how = "split" if held_out.strategy == "split" else options.sets
    return learn_conformal(
        calibrator.probabilities(once.logits),
        once.labels,
        by_class=options.by_class,
        method=how,
        folds=once.folds if how == "cv+" else None,
    )


def _fit_rejector(
    head: Head,
    support: FeatureSet,
    text: TextFeatures,
    held_out: OutOfFold | None,
    negatives: Negatives,
) -> Rejector | None:
    """The out-of-distribution detector of the final feature; None if there are too few shots."""
    if head.tunes_encoder:
        return None
    position = {name: i for i, name in enumerate(text.labels)}
    once = None if held_out is None else held_out.first_per_shot
    try:
        return learn_rejector(
            support.final,
            np.array([position[name] for name in support.y]),
            len(text.labels),
            logits=None if once is None else once.logits,
            rows=None if once is None else once.rows,
            text=text.embeddings if text.has_text else None,
            scale=text.logit_scale,
            negative_labels=negatives.label_embeddings,
            names=negatives.label_names,
            outliers=negatives.outliers,
        )
    except TooFewShotsError:
        return None


@dataclass(frozen=True, eq=False)
class FitSettings:
    """What a fit depends on beside the shots and the head, saved so that an edited model is fitted the same way."""

    templates: tuple[str, ...] = ("a photo of a {}.",)
    views: ViewSpec = ViewSpec()
    uncertainty: UncertaintyOptions = UncertaintyOptions()
    seed: int = 0  # decides which shots are held out

    def to_json(self) -> dict[str, Any]:
        """The settings as a JSON object."""
        learned = {name: getattr(self.uncertainty, name) for name in LEARNED_OPTIONS}
        return {**asdict(self), "templates": list(self.templates), "uncertainty": learned}


def fit_settings(model: Model) -> FitSettings:
    """Read how a model was fitted."""
    decisions = model.uncertainty.decisions
    decision: dict[str, Any] = {"reject": decisions.reject, "coverage": decisions.coverage, "costs": decisions.costs}
    try:
        raw = model.support.provenance[FIT_KEY]
        spec = ViewSpec(**{**raw["views"], "scale": tuple(raw["views"]["scale"])})
        learned = {name: raw["uncertainty"][name] for name in LEARNED_OPTIONS}
        options = UncertaintyOptions(**decision, **learned)
        return FitSettings(get_templates(raw["templates"]), spec, options, int(raw["seed"]))
    except Exception as error:  # values of an altered model can be anything
        raise InputError(f"the fit settings of the model are damaged ({error!r}): fit it again") from error


def negatives_of(model: Model, text: TextFeatures) -> Negatives:
    """The negatives that a model was fitted with, without labels that are synonyms of a class after an edit."""
    rejector = model.uncertainty.rejector
    if rejector is None:
        return Negatives()
    memory, names = rejector.memory, rejector.negative_label_names
    if memory.negative_labels is None:
        return Negatives(memory.outliers)
    rows = select_negative_labels(text.labels, text.embeddings, names, np.asarray(memory.negative_labels))
    return Negatives(memory.outliers, tuple(names[i] for i in rows), memory.negative_labels[rows])
