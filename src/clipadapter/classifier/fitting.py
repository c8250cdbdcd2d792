"""Fit a head, and learn its calibration, thresholds and prediction sets from held-out shots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clipadapter.classifier.reader import Reader
from clipadapter.data import class_prompts, get_templates
from clipadapter.errors import InputError, TooFewShotsError
from clipadapter.features import FeatureSet, ViewSpec
from clipadapter.heads import Head, OutOfFold, TextFeatures, create_head, mean_shots_per_class, out_of_fold
from clipadapter.heads.estimator import clone
from clipadapter.heads.out_of_fold import most_classes_repeat
from clipadapter.heads.support import as_matrix, label_positions, rows_without_shots
from clipadapter.persistence import Model
from clipadapter.uncertainty import (
    Calibrator,
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
    equal_share,
)
from clipadapter.uncertainty.costs import check_costs
from clipadapter.uncertainty.decisions import NO_HELD_OUT_SHOTS

FIT_KEY = "fit"  # key of the fit settings in the provenance of the support set
LEARNED_OPTIONS = ("calibration", "sets", "by_class", "negative_labels")
"""Options that decide what is learned. `Uncertainty` saves the others."""
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Negatives:
    """Features and names of what is none of the classes."""

    outliers: Array | None = None  # (b, d) features of pictures
    names: tuple[str, ...] = ()  # k class names of ImageNet that are no synonyms of the classes
    negative_labels: Array | None = None  # (k, d) their text features


class FitResult(NamedTuple):
    """A fitted head with its uncertainty."""

    head: Head
    uncertainty: Uncertainty
    fold_heads: tuple[Head, ...] = ()  # heads that were each fitted without one fold, for CV+ prediction sets


def embed_negative_labels(
    reader: Reader, templates: str | Sequence[str], text: TextFeatures, outliers: Array | None
) -> Negatives:
    """Select the ImageNet class names that are no synonyms of the classes, as in NegLabel (Jiang et al. 2024)."""
    encoder = reader.active
    if not encoder.has_text:
        raise InputError(
            f"negative_labels compares pictures with class names, but {encoder.info.name} has no text tower: leave it "
            "out, or name an encoder that has one beside it"
        )
    from torchvision.models import ResNet50_Weights  # late: it takes a second

    # Some versions of torchvision repeat names.
    names = tuple(dict.fromkeys(ResNet50_Weights.DEFAULT.meta["categories"]))
    encoded = reader.encode(class_prompts(names, templates))
    rows = select_negative_labels(text.labels, text.embeddings, names, encoded.embeddings)
    return Negatives(outliers, tuple(names[i] for i in rows), encoded.embeddings[rows])


@dataclass(frozen=True, eq=False)
class ShotFit:
    """The shots and options of a fit: fits a head, and learns its uncertainty from held-out shots."""

    support: FeatureSet
    text: TextFeatures
    options: UncertaintyOptions
    negatives: Negatives = field(default_factory=Negatives)
    seed: int = 0  # decides which shots are held out

    def fit(self, head: Head, unlabelled: Array | None = None) -> FitResult:
        """Fit a head, and learn its uncertainty."""
        support, text = self.support, self.text
        if self.options.costs is not None:
            check_costs(self.options.costs, text.labels)  # before the long work
        if support.targets is not None:
            self._check_multilabel_options()
        elif self.options.sets == "split":
            return self._learn_single_label(*self._fit_on_half(head, unlabelled))
        return self.learn(head.fit(support.X, support.labels, text=text, unlabelled=unlabelled, blocks=support.blocks))

    def learn(self, head: Head) -> FitResult:
        """Learn the uncertainty of a head that is fitted to all shots."""
        support, is_cv = self.support, self.options.sets == "cv+"
        if support.targets is not None:
            multilabel = self._learn_multilabel(head, support.targets)
            return FitResult(head, Uncertainty(multilabel=multilabel, held_out_by="folds" if multilabel.n else ""))
        held_out = None
        # Where out-of-fold logits cost much, there are none unless an option needs them.
        is_required = is_cv or self.options.calibration in ("temperature", "vector")
        if not head.tunes_encoder and (is_required or _is_cheap_to_refit(head)):
            held_out = out_of_fold(
                head, support.X, support.y, self.text, strategies=("own", "folds"), keep_heads=is_cv, seed=self.seed
            )
        return self._learn_single_label(head, held_out)

    def _learn_multilabel(self, head: Head, targets: NDArray[np.int8]) -> MultiLabel:
        """Calibrated probabilities and the threshold per class with the highest F1, from out-of-fold logits."""
        # A class with one shot keeps it in training: all its held-out logits would be of pictures without the class.
        if not most_classes_repeat(torch.tensor(targets)):
            return MultiLabel.default(targets.shape[1])
        support = self.support
        held_out = out_of_fold(clone(head), support.X, targets, self.text, folds=4, blocks=support.blocks)
        if held_out is None:
            raise InputError(f"{type(head).__name__} can't be evaluated on held-out shots")
        return learn_multilabel(held_out.logits, held_out.labels)

    def _check_multilabel_options(self) -> None:
        """Refuse options of single-label classifiers for multi-label shots, whose classes are decided one by one."""
        refused = [] if self.negatives.outliers is None else ["outliers"]
        for name, default in vars(UncertaintyOptions()).items():
            value = getattr(self.options, name)
            if value is not None and (default is None or value != default):
                refused.append(name)
        if refused:
            raise InputError(
                f"multi-label pictures are decided class by class: leave {', '.join(refused)} out. A picture without "
                "any class has no label"
            )

    def _learn_single_label(self, head: Head, held_out: OutOfFold | None) -> FitResult:
        options = self.options
        calibrator, rejector = self._fit_calibrator(head, held_out), self._fit_rejector(head, held_out)
        for name, needed in (("reject", rejector), ("coverage", held_out)):
            if getattr(options, name) is not None and needed is None:
                raise InputError(f"{name} is not available: {NO_HELD_OUT_SHOTS}")
        if held_out is None:
            return FitResult(head, Uncertainty(calibrator, rejector).with_defaults(options))
        once = held_out.first_per_shot
        probabilities, folds = calibrator.probabilities(once.logits), once.folds if options.sets == "cv+" else None
        conformal = learn_conformal(
            probabilities, once.labels, by_class=options.by_class, method=options.sets, folds=folds
        )
        learned = Uncertainty(calibrator, rejector, conformal, accuracy=self._measure_accuracy(held_out))
        learned = replace(learned, held_out_by=held_out.strategy, logit_scale_ratio=held_out.logit_scale_ratio)
        return FitResult(head, learned.with_defaults(options), held_out.heads)

    def _fit_on_half(self, head: Head, unlabelled: Array | None) -> tuple[Head, OutOfFold]:
        """Fit the head to half of the shots of each class, and predict the other half (split conformal)."""
        support, text = self.support, self.text
        if not _is_cheap_to_refit(head):
            raise InputError(f"{type(head).__name__} learns from all shots at once: sets='cross' goes with it")
        labels, train, held = np.asarray(support.y), [], []
        for name in dict.fromkeys(support.y):
            rows = np.random.default_rng(self.seed).permutation(np.flatnonzero(labels == name))
            held += rows[: len(rows) // 2].tolist()
            train += rows[len(rows) // 2 :].tolist()
        if not held:
            raise InputError(
                "with one shot per class, none can be held out for the sets: give two or more of each class"
            )
        pictures = self._without_shots(head, unlabelled)
        fitted = head.fit(support.X[train], labels[train], text=text, unlabelled=pictures, blocks=support.blocks)
        y, shots = label_positions(labels[held], np.asarray(text.labels)), mean_shots_per_class(labels[train])
        return fitted, OutOfFold(fitted.logits(support.plain[held]), y, np.array(held), "split", shots)

    def _without_shots(self, head: Head, unlabelled: Array | None) -> Array | None:
        """The pictures without labels that are no shots, also none of the held-out half; None if there are none."""
        # The head leaves out the shots that it is fitted to. If it learned from those that the sets are calibrated on,
        # these would not be like new pictures.
        if unlabelled is None or not head.accepts_unlabelled:
            return unlabelled
        pictures = as_matrix(unlabelled)
        if pictures.shape[1] != self.support.X.shape[-1]:
            return unlabelled  # `Head.fit` refuses them
        final = torch.from_numpy(pictures[:, : self.support.blocks[0].width])
        rows = rows_without_shots(final, torch.from_numpy(self.support.final)).numpy()
        return pictures[rows] if len(rows) else None

    def _fit_calibrator(self, head: Head, held_out: OutOfFold | None) -> Calibrator:
        if self.options.calibration == "none":
            return Calibrator()
        y, is_split = self.support.y, held_out is not None and held_out.strategy == "split"
        shots = held_out.shots_per_class if held_out is not None and is_split else mean_shots_per_class(y)
        prior = head.prior_temperature(shots)
        if held_out is None:
            # As of two shots of each class at least: with one, none can be held out.
            return Calibrator(prior, equal_share=equal_share(max(len(y), 2 * len(self.text.labels))))
        return learn_calibrator(
            held_out.logits,
            held_out.labels,
            method="vector" if self.options.calibration == "vector" else "temperature",
            prior_temperature=prior,
            prior_deviation=LOG_TEMPERATURE_DEVIATION_OF_TEXT if head.needs_text else LOG_TEMPERATURE_DEVIATION,
            n=len(np.unique(held_out.rows)),  # a shot has one row of logits for each repetition of the folds
            # Heads without this parameter are judged by the mean over classes too.
            logit_adjustment=head.get_params(deep=False).get("logit_adjustment", 1.0),
        )

    def _measure_accuracy(self, held_out: OutOfFold) -> HeldOutAccuracy:
        """The accuracy on the held-out shots, beside that of zero-shot if all classes have text."""
        support, zero_shot = self.support, None
        if self.text.has_text and not self.text.absent:
            head = create_head("zero-shot").fit(support.final, support.y, text=self.text)
            zero_shot = head.logits(support.final[held_out.rows])
        seen = min(1.0, held_out.shots_per_class / mean_shots_per_class(support.y))
        return HeldOutAccuracy.measure(held_out.logits, held_out.labels, held_out.rows, zero_shot, seen)

    def _fit_rejector(self, head: Head, held_out: OutOfFold | None) -> Rejector | None:
        """The out-of-distribution detector of the final feature; None if there are too few shots."""
        if head.tunes_encoder:
            return None
        X, text = self.support.final, self.text
        y = label_positions(np.asarray(self.support.y), np.asarray(text.labels))
        class_text = text.embeddings if text.has_text else None
        once = None if held_out is None else held_out.first_per_shot
        shots: dict[str, Any] = {} if once is None else {"logits": once.logits, "rows": once.rows}
        own = vars(self.negatives)
        try:
            return learn_rejector(X, y, len(text.labels), text=class_text, scale=text.logit_scale, **shots, **own)
        except TooFewShotsError:
            return None


def _is_cheap_to_refit(head: Head) -> bool:
    """Whether the head can be fitted to part of the shots without training through a tower."""
    return not (head.needs_tower or head.tunes_encoder or head.transductive)


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
    try:
        raw = model.support.provenance[FIT_KEY]
        spec = ViewSpec(**{**raw["views"], "scale": tuple(raw["views"]["scale"])})
        learned = {name: raw["uncertainty"][name] for name in LEARNED_OPTIONS}
        options = UncertaintyOptions(**vars(model.uncertainty.decisions), **learned)
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
