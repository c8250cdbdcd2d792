"""Measures a saved model on test pictures, beside zero-shot and a linear probe that are fitted to the same shots."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.fits import DEFAULT_FOLDS, Draw, draw_folds, fit_head, score_folds, score_part
from clipadapter.bench.methods import BASELINES
from clipadapter.bench.plots import draw_learning_curve
from clipadapter.bench.protocols.few_shot import FewShot
from clipadapter.bench.run import Metrics, Run, library_versions
from clipadapter.bench.schedule import run_fits
from clipadapter.bench.sources import extract_dataset
from clipadapter.bench.study import pivot_runs
from clipadapter.classifier import FewShotClassifier
from clipadapter.classifier.evaluation import Score, check_label_kind, check_labels
from clipadapter.data import Dataset
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures, create_head
from clipadapter.heads.estimator import clone
from clipadapter.heads.registry import registered_name
from clipadapter.metrics import wilson_interval
from clipadapter.rendering.plots import confusion_figure, save_plots
from clipadapter.utils.blocks import FINAL
from clipadapter.utils.files import mark, path_without_links, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelEvaluation:
    """What is measured of a model, or of its head by cross-validation, beside zero-shot and a linear probe."""

    head: str
    data: str = ""  # name of the test pictures; empty for a cross-validation
    n_test: int  # test pictures that could be read; for a cross-validation the shots of the model
    model: Any  # a `Score`, or a `MultiLabelEvaluation` if pictures may have several labels
    # Likewise. None of a head that tunes the encoder: the features of its shots are those of the tuned encoder.
    baselines: dict[str, Any]
    facts: dict[str, Any]  # other fields of ``metrics.json``
    skipped: Sequence[tuple[str, str]] = ()  # (name, reason) of test pictures that can't be read
    among_shots: int = 0  # how many test pictures are shots of the model
    curve: Sequence[Run] = ()  # records of fits on fewer of the model's shots
    test: FeatureSet  # of the test pictures, marked for evaluation; for a cross-validation of the shots
    folds: int = 0  # of a cross-validation

    @property
    def scores(self) -> dict[str, Any]:
        """The model first, then the baselines."""
        return {f"this {'head' if self.folds else 'model'} ({self.head})": self.model, **self.baselines}

    @property
    def is_multilabel(self) -> bool:
        """Whether pictures may have several labels."""
        return not isinstance(self.model, Score)

    @property
    def evaluations(self) -> list[Any]:
        """The `Evaluation` or `MultiLabelEvaluation` of each of the scores."""
        return [getattr(score, "evaluation", score) for score in self.scores.values()]

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy of the model."""
        return wilson_interval(self.model.evaluation.metrics["accuracy"], self.n_test)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures = {
            name: Metrics.of_score(own).model_dump() if isinstance(own, Score) else own.to_dict()
            for name, own in self.baselines.items()
        }
        common = {"model": self.evaluations[0].to_dict(), "baselines": figures, **self.facts}
        if self.folds:
            counts = {"protocol": "cross-validation", "folds": self.folds, "n_pictures": self.n_test}
            return {"head": self.head, **counts, "accuracy_interval": list(self.accuracy_interval), **common}
        skipped = [{"path": name, "reason": reason} for name, reason in self.skipped]
        record = {"head": self.head, "data": self.data, "n_test": self.n_test, "skipped": skipped, **common}
        if not self.is_multilabel:
            record |= {"among_shots": self.among_shots, "curve": [run.model_dump() for run in self.curve]}
        return record

    def figures(self, title: str) -> dict[str, Figure]:
        """``confusion``, and ``learning-curve`` where shots vary; by default their title is what they show."""
        if self.is_multilabel:
            return {}
        about = (
            f"{self.head}, cross-validation over {self.folds} folds" if self.folds else f"{self.head} on {self.data}"
        )
        right = f"{100 * self.model.evaluation.metrics['accuracy']:.1f} % of {self.n_test} pictures right"
        figures = {"confusion": confusion_figure(self.model.evaluation, title or f"{about}: {right}")}
        if self.curve:
            heading = title or f"{self.data}: draws from the model's own shots"
            figures["learning-curve"] = draw_learning_curve(pivot_runs(self.curve), heading)
        return figures

    def write(self, folder: Path, title: str = "", plot_formats: Sequence[str] = ("png",)) -> list[Path]:
        """Write ``metrics.json``, and the plots of single-label pictures; by default their title is what they show."""
        figures = self.figures(title)
        path = path_without_links(folder, "metrics.json")
        files = [write_atomically(path, json.dumps({"written_by": mark("eval"), **self.to_dict()}, indent=1) + "\n")]
        for name, figure in figures.items():
            files += save_plots(figure, folder / name, "eval", plot_formats)
        return files


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
        dataset: labelled test pictures, with all their labels if the model is multi-label; unreadable ones are left out
            and named.
        curve: fit on 1, 2, 4 ... of the model's shots per class too. With all shots the curve has the model and the
            baselines as they are measured here, and no further fits. A multi-label model has no curve.
        seeds: of these draws.
        progress: show bars on stderr.

    Raises:
        InputError: if a label is no class of the model, or pictures have several labels and the model gives one.
        DataError: if a picture has no label, or none can be read.
    """
    names, support = model.class_names_, model.support_
    check_label_kind(model.uncertainty_, dataset.multilabel)
    curve_runs: list[Run] = []
    if dataset.multilabel:
        check_labels([label for labels in dataset.label_sets for label in labels], names)
        test = model.extract_features(dataset.paths, dataset.label_sets, names, views=1).mark_for_evaluation()
        result = model.evaluate_features(test)
        own: Any = result.evaluation
        baselines: dict[str, Any] = {}
        for name, head in _create_baselines(model.text_).items() if len(support) else ():
            baseline = FewShotClassifier(model.encoder_, head, cache=None).fit_features(support, model.text_)
            baselines[name] = baseline.evaluate_features(test).evaluation
    else:
        check_labels(dataset.labels, names)
        test = extract_dataset(model, dataset, names).mark_for_evaluation()
        result = model.evaluate_features(test)
        own, baselines = result.score, _score_baselines(model, test)
        if curve and len(support):
            scores = {**baselines, registered_name(model.head_): own}
            curve_runs = _learning_curve(model, scores, test, seeds, progress)
    decisions = {} if dataset.multilabel else {"decisions": dict(result.decisions)}
    return ModelEvaluation(
        head=registered_name(model.head_),
        data=dataset.name,
        n_test=len(test),
        model=own,
        baselines=baselines,
        skipped=list(test.provenance["skipped"]),
        among_shots=result.among_shots,
        curve=curve_runs,
        facts={**decisions, **_model_facts(model), "shots": support.counts},
        test=test,
    )


def _score_baselines(model: FewShotClassifier, test: FeatureSet) -> dict[str, Score]:
    """The scores of the baselines, fitted to the model's shots; none for a head that tunes the encoder."""
    support, text = model.support_, model.text_
    names = () if model.head_.tunes_encoder else BASELINES if len(support) else BASELINES[:1]
    # Zero-shot does not look at the shots: if there are none, it is fitted to the class text instead.
    shots = support if len(support) else FeatureSet(text.embeddings, text.labels, text.labels)
    part = TestPart(test if len(support) else test.select_blocks([FINAL]))
    return {
        name: score_part(fit_head(head, shots, [part], Bundle(shots, text))[0], part)
        for name, head in _create_baselines(text).items()
        if name in names
    }


def cross_validate_model(model: FewShotClassifier, folds: int = DEFAULT_FOLDS, seed: int = 1) -> ModelEvaluation:
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
    bundle = Bundle(support, model.refit_text(), unlabelled=head.kept_pictures_)
    splits, baselines = draw_folds(support.y, folds, seed), _create_baselines(bundle.text)
    return ModelEvaluation(
        head=registered_name(head),
        n_test=len(support),
        folds=len(splits),
        model=score_folds(head, bundle, splits)[0],
        baselines={name: score_folds(baseline, bundle, splits)[0] for name, baseline in baselines.items()},
        facts={**_model_facts(model), "shots": support.counts},
        test=support,
    )


def _create_baselines(text: TextFeatures) -> dict[str, Head]:
    """The baselines by name, without zero-shot if no class has text."""
    heads = {name: create_head(name) for name in BASELINES}
    return {name: head for name, head in heads.items() if text.has_text or not head.needs_text}


def _learning_curve(
    model: FewShotClassifier, scores: Mapping[str, Score], test: FeatureSet, seeds: Sequence[int], progress: bool
) -> list[Run]:
    """Records of the model's head and the baselines on 1, 2, 4 ... shots per class, and of those with these scores."""
    support, own_name = model.support_, registered_name(model.head_)
    max_shots = max(Counter(support.y).values())
    if max_shots == 1 or model.head_.tunes_encoder:
        return []
    heads = {name: clone(model.head_) if name == own_name else create_head(name) for name in scores}
    shots = [2**i for i in range(max_shots.bit_length()) if 2**i < max_shots]
    text = model.refit_text()
    bundle = Bundle(support, text, {"test": TestPart(test)}, unlabelled=model.head_.kept_pictures_)
    protocol = FewShot()
    fewer = run_fits(protocol, bundle, heads, protocol.draws(bundle, shots, seeds), progress=progress).runs
    whole = Draw(max_shots, seeds[0], range(len(support)))
    # With all shots a new fit would differ by its seed only, or because the model learned its shots one by one: the
    # last records are of heads that were measured before.
    complete = [
        run.model_copy(update={"metrics": Metrics.of_score(scores[name])})
        for name, head in heads.items()
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
