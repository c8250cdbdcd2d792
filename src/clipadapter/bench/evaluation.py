"""Measures a saved model on test pictures, beside zero-shot and a linear probe that are fitted to the same shots."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.fits import Draw, fit_and_score, run_fits
from clipadapter.bench.folds import DEFAULT_FOLDS, draw_folds, score_folds
from clipadapter.bench.methods import BASELINES, registered_name
from clipadapter.bench.plots import learning_curve_figure
from clipadapter.bench.protocols.few_shot import FewShot
from clipadapter.bench.run import Metrics, Run, library_versions
from clipadapter.bench.sources import extract_dataset
from clipadapter.classifier import FewShotClassifier
from clipadapter.classifier.evaluation import Score, check_labels
from clipadapter.data import Dataset
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures, create_head
from clipadapter.heads.estimator import clone
from clipadapter.metrics import MultiLabelEvaluation, wilson_interval
from clipadapter.rendering.heat_map import confusion_figure
from clipadapter.rendering.plots import save_plots
from clipadapter.utils.blocks import FINAL
from clipadapter.utils.files import path_without_links, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scored = TypeVar("Scored", Score, MultiLabelEvaluation)


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationWithBaselines(Generic[Scored]):
    """What is measured of a model, beside the baselines.

    Args:
        head: the model's head.
        model: metrics of the model.
        baselines: metrics of zero-shot if the classes have text, and of the linear probe if the model has its shots.
        facts: other fields of ``metrics.json``.
    """

    measured_as: ClassVar[str] = "this model"
    """What tables call the model."""

    head: str
    model: Scored
    baselines: dict[str, Scored]
    facts: dict[str, Any]

    @property
    def scores(self) -> dict[str, Scored]:
        """The model first, then the baselines."""
        return {f"{self.measured_as} ({self.head})": self.model, **self.baselines}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        model, baselines = self.model, self.baselines.items()
        figures = {
            name: Metrics.of_score(own).model_dump() if isinstance(own, Score) else own.to_dict()
            for name, own in baselines
        }
        whole = model.evaluation.to_dict() if isinstance(model, Score) else model.to_dict()
        return {"model": whole, "baselines": figures, **self.facts}

    def figures(self, title: str) -> dict[str, Figure]:
        """The plots by the names of their files; by default their title is what they show."""
        return {}

    def write(self, folder: Path, title: str = "", plot_formats: Sequence[str] = ("png",)) -> list[Path]:
        """Write ``metrics.json``, and the plots of an evaluation that has some.

        Args:
            folder: for the files.
            title: of the plots; by default what they show.
            plot_formats: of the plots: "png", "pdf", "svg".

        Raises:
            InputError: if the folder can't be written.
        """
        figures = self.figures(title)
        path = path_without_links(folder, "metrics.json")
        files = [write_atomically(path, json.dumps(self.to_dict(), indent=1) + "\n")]
        for name, figure in figures.items():
            files += save_plots(figure, folder / name, plot_formats)
        return files


@dataclass(frozen=True, eq=False, kw_only=True)
class TestPictureEvaluation(EvaluationWithBaselines[Scored]):
    """An evaluation on test pictures.

    Args:
        data: name of the data.
        n_test: test pictures that could be read.
        skipped: (name, reason) of test pictures that can't be read.
    """

    __test__ = False  # no test case of pytest

    data: str
    n_test: int
    skipped: list[tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        skipped = [{"path": name, "reason": reason} for name, reason in self.skipped]
        first = {"head": self.head, "data": self.data, "n_test": self.n_test, "skipped": skipped}
        return {**first, **super().to_dict()}


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelEvaluation(TestPictureEvaluation[Score]):
    """What `evaluate_model` gives; see also `TestPictureEvaluation`.

    A head that tunes the encoder has no baselines: the features of its shots are those of the tuned encoder.

    Args:
        among_shots: how many test pictures are shots of the model.
        curve: records of fits on fewer of the model's shots; empty if there is one shot per class, or the model was
            saved without its shots.
        test: features of the test pictures, marked for evaluation; their provenance says which pictures they are.
    """

    among_shots: int
    curve: list[Run]
    test: FeatureSet

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**super().to_dict(), "among_shots": self.among_shots, "curve": [run.model_dump() for run in self.curve]}

    def figures(self, title: str) -> dict[str, Figure]:
        """``confusion``, and ``learning-curve`` where shots vary."""
        heading = title or f"{self.head} on {self.data}: {_accuracy_text(self.model, self.n_test)}"
        figures = {"confusion": confusion_figure(self.model.evaluation, heading)}
        if self.curve:
            heading = title or f"{self.data}: draws from the model's own shots"
            figures["learning-curve"] = learning_curve_figure(self.curve, heading)
        return figures


def evaluate_model(
    model: FewShotClassifier,
    dataset: Dataset,
    *,
    curve: bool = True,
    seeds: Sequence[int] = (1, 2, 3),
    progress: bool = False,
) -> ModelEvaluation:
    """Measure a fitted model, and zero-shot and a linear probe beside it.

    Args:
        model: fitted.
        dataset: labelled test pictures; unreadable ones are left out and named.
        curve: fit on 1, 2, 4 ... of the model's shots per class too. With all shots the curve has the model and the
            baselines as they are measured here, and no further fits.
        seeds: of these draws.
        progress: show bars on stderr.

    Raises:
        InputError: if a label is no class of the model.
        DataError: if a picture has no label, or none can be read.
    """
    names = model.class_names_
    if model.uncertainty_.multilabel is not None:
        raise InputError("the model is multi-label: test it on a table with the column 'labels'")
    check_labels(dataset.labels, names)
    test = extract_dataset(model, dataset, names).mark_for_evaluation()
    support, text = model.support_, model.text_
    baseline_names = () if model.head_.tunes_encoder else BASELINES if len(support) else BASELINES[:1]
    # Zero-shot does not look at the shots: if there are none, it is fitted to the class text instead.
    shots = support if len(support) else FeatureSet(text.embeddings, text.labels, text.labels)
    part = TestPart(test if len(support) else test.select_blocks([FINAL]))
    result = model.evaluate_features(test)
    assert result.score is not None
    fitted_baselines = {
        name: (measured.head, measured.scores[0])
        for name, head in _create_baselines(text).items()
        if name in baseline_names
        for measured in [fit_and_score(head, shots, [part], text)]
    }
    return ModelEvaluation(
        head=registered_name(model.head_),
        data=dataset.name,
        n_test=len(test),
        model=result.score,
        baselines={name: baseline_score for name, (_, baseline_score) in fitted_baselines.items()},
        skipped=list(test.provenance["skipped"]),
        among_shots=result.among_shots,
        curve=_learning_curve(model, result.score, fitted_baselines, test, seeds, progress)
        if curve and len(support)
        else [],
        facts={
            "decisions": dict(result.decisions),
            **_model_facts(model),
            "shots": dict(Counter(support.y)),
        },
        test=test,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class CrossValidation(EvaluationWithBaselines[Score]):
    """What `cross_validate_model` gives; see also `EvaluationWithBaselines`. Metrics are over all folds.

    Args:
        n_pictures: pictures that the model was fitted to; each is predicted once.
        folds: number of folds.
    """

    measured_as: ClassVar[str] = "this head"

    n_pictures: int
    folds: int

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy of the model."""
        return wilson_interval(self.model.evaluation.metrics["accuracy"], self.n_pictures)

    @property
    def shots_per_class(self) -> float:
        """Mean over the classes that have a shot."""
        return self.n_pictures / len(self.facts["shots"])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        first = {"head": self.head, "protocol": "cross-validation", "folds": self.folds, "n_pictures": self.n_pictures}
        return {**first, "accuracy_interval": list(self.accuracy_interval), **super().to_dict()}

    def figures(self, title: str) -> dict[str, Figure]:
        """``confusion``."""
        text = _accuracy_text(self.model, self.n_pictures)
        heading = title or f"{self.head}, cross-validation over {self.folds} folds: {text}"
        return {"confusion": confusion_figure(self.model.evaluation, heading)}


def cross_validate_model(model: FewShotClassifier, folds: int = DEFAULT_FOLDS, seed: int = 1) -> CrossValidation:
    """Estimate how good a model is without test pictures: by cross-validation of its head on the model's own shots.

    For each fold the head is fitted again, with the same parameters, to the shots of the other folds. So the metrics
    are of heads that saw fewer shots than the model did. They get the same pictures without labels. Logits become
    probabilities by their softmax: the model's calibration was fitted to all shots.

    Args:
        model: fitted; it is not changed.
        folds: number of folds; at most as many as the smallest class has shots.
        seed: of the folds.

    Raises:
        InputError: if the model is multi-label, tunes the encoder, or was saved without its shots; or
            if a class has a single shot.
    """
    support, head = model.support_, model.head_
    if model.uncertainty_.multilabel is not None or head.tunes_encoder:
        why = "tunes the encoder" if head.tunes_encoder else "is multi-label"
        raise InputError(f"a model that {why} can't be cross-validated on its shots: give test pictures")
    if not len(support):
        raise InputError("the model was saved without its shots (--no-support): give test pictures")
    bundle, splits = Bundle(support, model.refit_text()), draw_folds(support.y, folds, seed)
    return CrossValidation(
        head=registered_name(head),
        n_pictures=len(support),
        folds=len(splits),
        model=score_folds(head, bundle, splits, head.kept_pictures)[0],
        baselines={
            name: score_folds(baseline, bundle, splits)[0] for name, baseline in _create_baselines(bundle.text).items()
        },
        facts={**_model_facts(model), "shots": support.counts},
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class MultiLabelModelEvaluation(TestPictureEvaluation[MultiLabelEvaluation]):
    """What `evaluate_multilabel_model` gives; see also `TestPictureEvaluation`.

    A model that was saved without its shots has no baselines.
    """


def evaluate_multilabel_model(model: FewShotClassifier, dataset: Dataset) -> MultiLabelModelEvaluation:
    """Measure a multi-label model, and zero-shot and a linear probe beside it.

    Args:
        model: fitted to multi-label pictures.
        dataset: test pictures with all their labels; unreadable ones are left out and named.

    Raises:
        InputError: if the model gives one label per picture, or a label is no class of it.
        DataError: if labels are not known, or no picture can be read.
    """
    if model.uncertainty_.multilabel is None:
        raise InputError(
            f"the pictures of '{dataset.name}' are multi-label, but the model gives one label: fit it to a table "
            "with the column 'labels' too"
        )
    names = model.class_names_
    unknown = sorted({label for labels in dataset.label_sets for label in labels} - set(names))
    if unknown:
        raise InputError(f"the test pictures have labels that are no class of the model: {', '.join(unknown[:5])}")
    test = model.extract_features(dataset.paths, dataset.label_sets, names, views=1).mark_for_evaluation()
    return MultiLabelModelEvaluation(
        head=registered_name(model.head_),
        data=dataset.name,
        n_test=len(test),
        model=_evaluate_multilabel(model, test),
        baselines={name: _evaluate_multilabel(baseline, test) for name, baseline in _fit_multilabel_baselines(model)},
        skipped=list(test.provenance["skipped"]),
        facts={**_model_facts(model), "shots": model.support_.counts},
    )


def _evaluate_multilabel(model: FewShotClassifier, test: FeatureSet) -> MultiLabelEvaluation:
    evaluation = model.evaluate_features(test).evaluation
    assert isinstance(evaluation, MultiLabelEvaluation)
    return evaluation


def _fit_multilabel_baselines(model: FewShotClassifier) -> list[tuple[str, FewShotClassifier]]:
    """The baselines, fitted to the model's shots; none without shots."""
    if not len(model.support_):
        return []
    heads = _create_baselines(model.text_)
    baselines = [(name, FewShotClassifier(model.encoder_, head, cache=None)) for name, head in heads.items()]
    return [(name, baseline.fit_features(model.support_, model.text_)) for name, baseline in baselines]


def _create_baselines(text: TextFeatures) -> dict[str, Head]:
    """The baselines by name, without zero-shot if no class has text."""
    heads = {name: create_head(name) for name in BASELINES}
    return {name: head for name, head in heads.items() if text.has_text or not head.needs_text}


def _learning_curve(
    model: FewShotClassifier,
    model_score: Score,
    baselines: Mapping[str, tuple[Head, Score]],
    test: FeatureSet,
    seeds: Sequence[int],
    progress: bool,
) -> list[Run]:
    """Records of the model's head and the baselines on 1, 2, 4 ... shots per class, and of the model itself.

    All fits of the head get the pictures without labels that the model was fitted to. With all shots every draw is the
    same. A new fit would differ from the model only by its seed, or because the model learned its shots one after the
    other. So the last records are of the heads that were measured before.
    """
    support = model.support_
    max_shots = max(Counter(support.y).values())
    if max_shots == 1 or model.head_.tunes_encoder:
        return []
    measured = {**baselines, registered_name(model.head_): (model.head_, model_score)}
    heads = {name: clone(head) for name, (head, _) in measured.items()}
    shots = [2**i for i in range(max_shots.bit_length()) if 2**i < max_shots]
    text = model.refit_text()
    bundle = Bundle(support, text, {"test": TestPart(test)})
    protocol = FewShot()
    measure = partial(protocol.measure, bundle, unlabelled=model.head_.kept_pictures)
    draws = protocol.draws(bundle, shots, seeds)
    fewer = run_fits(protocol, bundle, heads, draws, measure=measure, progress=progress)[0]
    whole = Draw(max_shots, seeds[0], range(len(support)))
    complete = [
        run.model_copy(update={"metrics": Metrics.of_score(its_score)})
        for name, (head, its_score) in measured.items()
        for run in protocol.plan(bundle, name, head, whole)
    ]
    return [*fewer, *complete]


def _model_facts(model: FewShotClassifier) -> dict[str, Any]:
    info = model.encoder_.info
    return {
        "params": model.head_.get_params(deep=False),
        "encoder": {"name": info.name, "fingerprint": info.fingerprint},
        "versions": library_versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _accuracy_text(model_score: Score, n_pictures: int) -> str:
    return f"{100 * model_score.evaluation.metrics['accuracy']:.1f} % of {n_pictures} pictures right"
