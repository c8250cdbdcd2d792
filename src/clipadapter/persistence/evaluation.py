"""The evaluation that the folder of a model records: its scores beside those of baselines, on a named test set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from clipadapter.errors import InputError
from clipadapter.metrics import check_metrics, metrics_shown
from clipadapter.persistence.format import ModelConfig
from clipadapter.runtime.model_folder import HEAD, UNCERTAINTY
from clipadapter.utils.files import printable

EVALUATION_KEY = "evaluation"
"""Key in the provenance of the model."""
MAX_WORST_CLASSES = 5
"""Classes that are recorded by name, those with the lowest F1 first."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


def _select_card_metrics(values: Any) -> Any:
    """The metrics that a card shows; None is a metric that is not defined."""
    if not isinstance(values, Mapping):
        return values
    return {name: values[name] for name in metrics_shown("card") if values.get(name) is not None}


def _check_scores(values: dict[str, float]) -> dict[str, float]:
    check_metrics(values)
    return values


Scores = Annotated[dict[str, float], BeforeValidator(_select_card_metrics), AfterValidator(_check_scores)]
"""Metrics of one method by their name in `clipadapter.metrics.METRICS`."""


class ClassScores(_Record):
    """Scores of a model on one class."""

    name: str
    count: int
    precision: float
    recall: float
    f1: float


class Evaluation(_Record):
    """Scores of a model on a test set."""

    data: str
    n: int = Field(gt=0, lt=1 << 53)  # number of test pictures that could be read
    skipped: int = 0
    among_shots: int = 0  # number of test pictures that are shots of the model
    created: str = ""  # UTC time
    model: Scores
    baselines: dict[str, Scores] = Field(default_factory=dict)  # scores by baseline, on the same pictures
    worst: list[ClassScores] = Field(default_factory=list)  # classes with mistakes, the lowest F1 first
    files: dict[str, str] = Field(default_factory=dict)  # SHA-256 of the files of arrays that the scores belong to


def make_evaluation(metrics: Mapping[str, Any], config: ModelConfig) -> Evaluation:
    """Select what is recorded of the metrics of an evaluation."""
    try:
        classes = [ClassScores.model_validate(one) for one in metrics["model"]["classes"]]
        with_mistakes = sorted((one for one in classes if one.count and one.f1 < 1), key=lambda one: one.f1)
        evaluation = Evaluation(
            data=printable(metrics["data"]),
            n=metrics["n_test"],
            skipped=len(metrics["skipped"]),
            among_shots=metrics.get("among_shots", 0),
            created=metrics["created"],
            model=metrics["model"],
            baselines=metrics["baselines"],
            worst=with_mistakes[:MAX_WORST_CLASSES],
            files=_evaluated_files(config.files),
        )
        head = metrics["head"]
    except (AttributeError, KeyError, TypeError, ValidationError) as error:
        raise InputError(f"this is no metrics.json of 'clipadapter eval' ({error!r})") from error
    if head != config.head.name or [one.name for one in classes] != config.class_names:
        raise InputError(f"the figures are of another model, with the head '{head}': evaluate this one")
    if evaluation.created < str(config.provenance.get("created", "")):
        raise InputError(f"the figures are of {evaluation.created}, before this model was made: evaluate it again")
    return evaluation


def validate_evaluation(raw: object, files: Mapping[str, str]) -> dict[str, Any] | None:
    """Return an evaluation from a provenance as a JSON object; None if it is invalid or belongs to other files."""
    try:
        evaluation = Evaluation.model_validate(raw)
    except ValidationError:
        return None
    return evaluation.model_dump(exclude_none=True) if evaluation.files == _evaluated_files(files) else None


def read_evaluation(config: ModelConfig) -> Evaluation | None:
    """Return the recorded evaluation of a model; None if there is none, or it belongs to other files."""
    raw = validate_evaluation(config.provenance.get(EVALUATION_KEY), config.files)
    return None if raw is None else Evaluation.model_validate(raw)


def _evaluated_files(files: Mapping[str, str]) -> dict[str, str]:
    """Hashes of the files that decide the scores: the head, and what makes probabilities of its logits."""
    return {name: files[name] for name in (HEAD, UNCERTAINTY) if name in files}
