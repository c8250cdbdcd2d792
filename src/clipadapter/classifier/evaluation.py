"""Scores of fitted heads and classifiers on test pictures; those of exported files: `runtime/export/evaluation.py`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.classifier.edit import find_duplicates
from clipadapter.classifier.encoder_choice import NamedEncoders, as_encoder_list
from clipadapter.data.thumbnails import encode_thumbnails
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head
from clipadapter.heads.registry import registered_name
from clipadapter.metrics import Evaluation, MultiLabelEvaluation, evaluate, evaluate_multilabel, metrics_shown
from clipadapter.metrics.table import Task
from clipadapter.persistence.format import read_evaluation
from clipadapter.persistence.versions import count_shots
from clipadapter.uncertainty import Answers, Calibrator, DecisionOptions, Uncertainty
from clipadapter.utils.files import without_paths
from clipadapter.utils.formatting import (
    describe_classes,
    describe_shots,
    format_count,
    format_list,
    html_block,
    html_table,
    table,
)

MAX_LISTED_CLASSES = 20
"""How many classes are listed for a person, the worst first; `EvaluationResult.to_dict` has all of them."""
MAX_SHOWN_ERRORS = 6  # wrong predictions that a notebook shows with thumbnails
THUMBNAIL_SIDE = 72
THUMBNAIL_QUALITY = 80
Table = tuple[Sequence[str], Sequence[Sequence[object]], str]  # header, rows, and a sentence below


@dataclass(frozen=True, eq=False)
class Score:
    """The score of a fitted head on a test part."""

    evaluation: Evaluation
    logits: NDArray[np.float64] = field(repr=False)  # (m, c), columns in the order of the evaluation's classes
    seconds: float  # of the prediction

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(m, c), columns in the order of the evaluation's classes."""
        return self.evaluation.predictions.probabilities

    @property
    def labels(self) -> NDArray[np.int64]:
        """(m,) positions of the true classes."""
        return self.evaluation.predictions.labels

    @property
    def mistakes(self) -> list[int]:
        """Rows of the wrong predictions, the most confident first."""
        wrong = np.flatnonzero(~self.evaluation.predictions.correct)
        return wrong[np.argsort(-self.probabilities[wrong].max(axis=1), kind="stable")].tolist()


def score(
    head: Head, test: FeatureSet, calibrator: Calibrator | None = None, among: Sequence[str] | None = None
) -> Score:
    """Measure a fitted head on plain features of test pictures; ``among`` are the classes that it predicts among."""
    classes = [str(name) for name in head.classes_]
    check_labels(test.y, classes)
    start = time.perf_counter()
    logits = np.asarray(head.logits(test.plain), np.float64)  # (m, c)
    seconds = time.perf_counter() - start
    if not np.isfinite(logits).all():
        raise InputError(f"{type(head).__name__} gives logits that are not finite")
    if among is not None:
        columns = [i for i, name in enumerate(classes) if name in set(among)]
        classes, logits = [classes[i] for i in columns], logits[:, columns]
        check_labels(test.y, classes)
    logs = (calibrator or Calibrator()).log_probabilities(logits)
    return Score(evaluate(test.y, logs, classes), logits, seconds)


def measure_answers(options: DecisionOptions, answers: Answers, result: Score) -> dict[str, float]:
    """Rates and means of decisions: rejection as "none of these", sets of classes, unequal costs; none by default."""
    rows = np.arange(len(result.labels))
    shares: dict[str, float] = {}
    if options.reject is not None:
        shares |= {"reject": options.reject, "rejected": float(answers.rejected.mean())}
    if options.coverage is not None and answers.sets is not None:
        shares |= {"coverage": options.coverage, "covered": float(answers.sets[rows, result.labels].mean())}
        shares |= {"set_size": float(answers.sets.sum(axis=1).mean())}
    if options.costs is not None:
        likeliest = result.probabilities.argmax(axis=1)
        shares |= {"cost": float(options.costs[result.labels, answers.best].mean())}
        shares |= {"cost_of_likeliest": float(options.costs[result.labels, likeliest].mean())}
        shares |= {"accuracy_by_cost": float((answers.best == result.labels).mean())}
    return shares


def check_label_kind(uncertainty: Uncertainty, are_multilabel: bool) -> None:
    """Refuse test pictures with several labels for a model that gives one, and the other way around."""
    if uncertainty.multilabel is not None and not are_multilabel:
        raise InputError(
            "the model gives several labels per picture: give a list of labels for each, or a table with the column "
            "'labels'"
        )
    if uncertainty.multilabel is None and are_multilabel:
        raise InputError(
            "the pictures have several labels each, but the model gives one: fit a model to several labels too, such "
            "as to a table with the column 'labels'"
        )


def check_labels(labels: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse a test part that is empty, or has a label that is no class of the model."""
    if not len(labels):
        raise InputError("there are no test pictures")
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        what = "a label that is no class" if len(unknown) == 1 else f"{len(unknown)} labels that are no classes"
        raise InputError(
            f"the test pictures have {what} of the model: {format_list(unknown)}; known: {format_list(classes)}. "
            "Leave these pictures out, or rename them, or fit with shots of them"
        )


# ---- The evaluation of a classifier ----


@dataclass(frozen=True, eq=False, repr=False)
class EvaluationResult:
    """What `FewShotClassifier.evaluate` returns. It prints as tables, and notebooks show it with the worst errors.

    >>> import numpy as np
    >>> from clipadapter import FewShotClassifier
    >>> red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    >>> model = FewShotClassifier(encoder="toy", cache=None).fit([red, blue], ["red", "blue"])
    >>> result = model.evaluate([red, red // 2, blue // 2], ["red", "red", "blue"])
    >>> result.metrics["accuracy"], result.confusion.tolist(), result.among_shots
    (1.0, [[1, 0], [0, 2]], 1)

    Args:
        data: name of the data; empty for a list of pictures.
        class_names: classes of the model, in the order of the confusion matrix.
        evaluation: metrics, metrics by class (``classes``: name, count, precision, recall, f1; with several labels
            average_precision too), and the predictions that they are computed from.
        n_test: pictures that were evaluated.
        skipped: (name, reason) of pictures that can't be read.
        among_shots: evaluated pictures that are shots of the model. They make the metrics better than they would be on
            new pictures.
        decisions: metrics of rejection, prediction sets and costs, if the model decides so by default.
        sources: names of the evaluated pictures.
        score: score of a model with one label per picture, with its logits; else None.
    """

    data: str
    class_names: tuple[str, ...]
    evaluation: Evaluation | MultiLabelEvaluation
    n_test: int
    skipped: tuple[tuple[str, str], ...]
    among_shots: int
    decisions: Mapping[str, float]
    sources: tuple[str, ...]
    score: Score | None

    @property
    def metrics(self) -> Mapping[str, float | None]:
        """Values by the name of the metric in `clipadapter.metrics.METRICS`; None for a metric that is not defined."""
        return dict(self.evaluation.metrics)

    @property
    def accuracy(self) -> float:
        """Share of pictures whose most probable class is right; with several labels, whose labels are all right."""
        return float(self.evaluation.metrics["exact" if self.task == "multilabel" else "accuracy"] or 0.0)

    @property
    def task(self) -> Task:
        """Whether pictures have one label or several."""
        return "single-label" if isinstance(self.evaluation, Evaluation) else "multilabel"

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        """(c, c) counts; rows are true classes, columns predicted ones. None with several labels."""
        return self.evaluation.confusion if isinstance(self.evaluation, Evaluation) else None

    @cached_property
    def errors(self) -> tuple[tuple[str, str, str, float], ...]:
        """Wrong predictions as (picture, true class, predicted class, its probability), the most confident first.

        Empty with several labels per picture.
        """
        if self.score is None:
            return ()
        sources, names = self.sources or [""] * self.n_test, self.class_names
        labels, predicted = self.score.labels, self.score.evaluation.predictions.predicted
        return tuple(
            (sources[row], names[labels[row]], names[predicted[row]], float(self.score.probabilities[row].max()))
            for row in self.score.mistakes
        )

    def to_dict(self) -> dict[str, Any]:
        """All but the predictions, for JSON."""
        return {
            "data": self.data,
            "n_test": self.n_test,
            "skipped": [{"path": name, "reason": reason} for name, reason in self.skipped],
            "among_shots": self.among_shots,
            **self.evaluation.to_dict(),
            **({} if self.confusion is None else {"confusion": self.confusion.tolist()}),
            "decisions": dict(self.decisions),
        }

    def __str__(self) -> str:
        """The tables that ``clipadapter eval`` prints, without baselines."""
        heading = "\n".join([self.headline, *self._warnings()])
        metrics, *others = map(_format_table, self._tables())
        return "\n\n".join([heading, metrics, *describe_decisions(self.decisions), *others])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """For notebooks: the tables and the most confident errors. No other file is loaded."""
        return html_block(
            self.headline,
            *(f"<br>{escape(text)}" for text in (*self._warnings(), *describe_decisions(self.decisions))),
            *(html_table(header, rows) + escape(sentence) for header, rows, sentence in self._tables()),
            self._errors_html(),
        )

    def _tables(self) -> list[Table]:
        shown = metrics_shown("terminal", self.task)
        values = [metric.format(self.evaluation.metrics[key]) for key, metric in shown.items()]
        return [([metric.heading for metric in shown.values()], [values], ""), *_list_tables(self.evaluation)]

    @property
    def headline(self) -> str:
        """What was evaluated, such as "60 pictures of test"."""
        pictures = format_count(self.n_test, "picture")
        several = ", several labels each" if self.task == "multilabel" else ""
        return f"{pictures}{f' of {self.data}' if self.data else ''}{several}"

    def _warnings(self) -> list[str]:
        warnings = []
        if self.skipped:
            name, reason = self.skipped[0]
            more = f" and {len(self.skipped) - 1} more" if len(self.skipped) > 1 else ""
            warnings.append(f"not counted, since it can't be read: {name} ({reason}){more}")
        if self.among_shots:
            warnings.append(
                f"{self.among_shots} of them are among the shots that the model was fitted to: the metrics are better "
                "than they would be on new pictures"
            )
        return warnings

    def _errors_html(self) -> str:
        """The most confident errors, with thumbnails of those that are files."""
        shown = self.errors[:MAX_SHOWN_ERRORS]
        if not shown:
            return ""
        thumbnails = encode_thumbnails([Path(name) for name, *_ in shown], THUMBNAIL_SIDE, THUMBNAIL_QUALITY)
        rows = [
            [[thumbnail], true, predicted, f"{probability:.2f}", source]
            for thumbnail, (source, true, predicted, probability) in zip(thumbnails, shown, strict=True)
        ]
        header = ["", "true class", "predicted as", "probability", "picture"]
        return html_block("most confident errors", html_table(header, rows))


def evaluate_features(
    head: Head, uncertainty: Uncertainty, fold_heads: Sequence[Head], shots: FeatureSet, test: FeatureSet
) -> EvaluationResult:
    """Measure a fitted head with its uncertainty on features of labelled pictures; ``shots`` are those of the fit."""
    check_label_kind(uncertainty, test.targets is not None)
    skipped = test.provenance.get("skipped", ())  # of the shots of a loaded model it is their number
    result, decisions, options = None, dict[str, float](), uncertainty.decisions
    if test.targets is not None:
        answers = uncertainty.answer(head.logits(test.plain), test.final)
        assert answers.sets is not None
        evaluation: Any = evaluate_multilabel(test.targets, answers.probabilities, answers.sets, test.class_names)
    else:
        result = score(head, test, uncertainty.calibrator)
        evaluation = result.evaluation
        if any(each is not None for each in (options.reject, options.coverage, options.costs)):
            folds = [each.logits(test.plain) for each in fold_heads]
            decisions = measure_answers(options, uncertainty.answer(result.logits, test.final, None, folds), result)
    return EvaluationResult(
        data=str(test.provenance.get("data", "")),
        class_names=test.class_names,
        evaluation=evaluation,
        n_test=len(test),
        skipped=() if isinstance(skipped, int) else tuple(skipped),
        among_shots=sum(bool(rows) for rows in find_duplicates(shots.final, test.final)),
        decisions=decisions,
        sources=tuple(test.provenance.get("sources", ())),
        score=result,
    )


def describe_classifier(
    encoder: NamedEncoders, head: str | Head, support: FeatureSet | None, result: EvaluationResult | None
) -> dict[str, str]:
    """What the ``repr`` of a classifier says, by name; empty where nothing is known. Nothing is opened or computed."""
    name = ", ".join(each if isinstance(each, str) else each.info.name for each in as_encoder_list(encoder))
    called = head if isinstance(head, str) else registered_name(head)
    facts = {"encoder": without_paths(name), "head": called, "fitted to": ""}
    if support is None:
        return facts
    n_shots = len(support) or count_shots(support.provenance)
    shots = f"{format_count(n_shots, 'shot')} ({describe_shots(support.shot_counts, n_shots)})"
    facts["fitted to"] = f"{describe_classes(support.class_names)}, {shots}"
    recorded = read_evaluation(support.provenance)  # from the folder of the model
    if result is not None:
        facts["accuracy"] = f"{100 * result.accuracy:.1f} % on {result.headline}"
    elif recorded is not None and "accuracy" in recorded.model:
        pictures = f"{format_count(recorded.n, 'picture')} of {recorded.data}"
        facts["accuracy"] = f"{100 * recorded.model['accuracy']:.1f} % on {pictures}"
    return facts


# ---- Text that `clipadapter eval` prints too ----


def format_tables(evaluation: Evaluation | MultiLabelEvaluation) -> list[str]:
    """The table of the classes, of many those with the lowest F1; and that of the most frequent errors, if any."""
    return list(map(_format_table, _list_tables(evaluation)))


def describe_decisions(measured: Mapping[str, float]) -> list[str]:
    """Describe what `measure_answers` measured."""
    lines = []
    if "rejected" in measured:
        share, rate = _percent(measured["rejected"]), _percent(measured["reject"])
        lines.append(
            f"{share} % are called none of these (requested: {rate} %); the figures above give each picture a class"
        )
    if "covered" in measured:
        share, rate = _percent(measured["covered"]), _percent(measured["coverage"])
        size = f"{measured['set_size']:.2f} classes on average"
        lines.append(f"{share} % have their class in the set (requested: {rate} %), of {size}")
    if "cost" in measured:
        lines.append(
            f"mean cost {measured['cost']:.3g}, accuracy {_percent(measured['accuracy_by_cost'])} %, decided by costs; "
            f"mean cost {measured['cost_of_likeliest']:.3g} decided by the most probable class, as in the figures above"
        )
    return ["\n".join(lines)] if lines else []


def _format_table(one: Table) -> str:
    header, rows, sentence = one
    return table(header, rows) + (f"\n{sentence}" if sentence else "")


def _list_tables(evaluation: Evaluation | MultiLabelEvaluation) -> list[Table]:
    classes: Sequence[Any] = evaluation.classes
    if isinstance(evaluation, Evaluation):
        columns = {"precision %": "precision", "recall %": "recall", "F1 %": "f1"}
        confusions = evaluation.confusions()
    else:
        columns = {"average precision %": "average_precision", "precision %": "precision", "recall %": "recall"}
        classes, confusions = sorted(classes, key=lambda scores: scores.f1), []
    if len(classes) > MAX_LISTED_CLASSES:
        classes = sorted(classes, key=lambda scores: scores.f1)[:MAX_LISTED_CLASSES]
    rows = [
        [scores.name, scores.count, *(_percent(getattr(scores, name) or 0.0) for name in columns.values())]
        for scores in classes
    ]
    omitted = len(evaluation.classes) - len(rows)
    sentence = f"and {omitted} classes with a better F1; to_dict() and metrics.json have all" if omitted else ""
    of_classes: Table = (["class", "pictures", *columns], rows, sentence)
    return [of_classes, *([(["class", "predicted as", "times"], confusions, "")] if confusions else [])]


def _percent(fraction: float) -> float:
    return round(100 * fraction, 1)
