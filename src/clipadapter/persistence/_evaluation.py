"""What a saved model was measured to be, as its folder keeps it: figures beside baselines, and of which files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from clipadapter.errors import InputError
from clipadapter.metrics import check_metrics, metrics_shown
from clipadapter.persistence._files import TENSORS, TRUST, ArtifactConfig, FilePart

KEY = "evaluation"
"""Where it lies in the provenance."""
WORST = 5
"""How many classes are kept, the worst first."""


class _Facts(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


def _card_metrics(values: Any) -> Any:
    """The metrics that a card shows, of what an evaluation gives; None is a metric that is not defined."""
    if not isinstance(values, Mapping):
        return values
    return {name: values[name] for name in metrics_shown("card") if values.get(name) is not None}


def _checked(values: dict[str, float]) -> dict[str, float]:
    check_metrics(values)
    return values


MetricValues = Annotated[dict[str, float], BeforeValidator(_card_metrics), AfterValidator(_checked)]
"""Metrics by their name in `clipadapter.metrics.METRICS`."""


class ClassFigures(_Facts):
    """What a model reaches on one class."""

    name: str
    count: int
    precision: float
    recall: float
    f1: float


class Evaluated(_Facts):
    """Figures of a model on a test part.

    Args:
        data: name of the test part.
        n: test pictures that could be read.
        skipped: those that could not.
        among_shots: those that are shots of the model.
        created: when it was measured, UTC.
        model: figures of the model.
        baselines: by name, on the same pictures.
        worst: classes with mistakes, the least F1 first.
        files: SHA-256 of the files of arrays that the figures are of.
    """

    data: str
    n: int = Field(gt=0, lt=1 << 53)
    skipped: int = 0
    among_shots: int = 0
    created: str = ""
    model: MetricValues
    baselines: dict[str, MetricValues] = Field(default_factory=dict)
    worst: list[ClassFigures] = Field(default_factory=list)
    files: dict[str, str] = Field(default_factory=dict)


def evaluated(metrics: Mapping[str, Any], config: ArtifactConfig) -> Evaluated:
    """What is kept of the figures that an evaluation gives.

    Args:
        metrics: as from ``to_dict()`` of `clipadapter.bench.evaluate_model` or ``evaluate_several``, or in the
            ``metrics.json`` that `clipadapter eval` writes.
        config: of the model that was measured.

    Raises:
        InputError: if it is no such thing, or of another model.
    """
    try:
        classes = [ClassFigures.model_validate(one) for one in metrics["model"]["classes"]]
        faulty = sorted((one for one in classes if one.count and one.f1 < 1), key=lambda one: one.f1)
        found = Evaluated(
            data=_plain(metrics["data"]),
            n=metrics["n_test"],
            skipped=len(metrics["skipped"]),
            among_shots=metrics.get("among_shots", 0),
            created=metrics["created"],
            model=metrics["model"],
            baselines=metrics["baselines"],
            worst=faulty[:WORST],
            files=_measured_files(config.files),
        )
        head = metrics["head"]
    except (AttributeError, KeyError, TypeError, ValidationError) as error:
        raise InputError(f"these are no figures as 'clipadapter eval' writes them ({error!r})") from error
    if head != config.head.name or [one.name for one in classes] != config.class_names:
        raise InputError(f"the figures are of another model, with the head '{head}': evaluate this one")
    if found.created < str(config.provenance.get("created", "")):
        raise InputError(f"the figures are of {found.created}, before this model was made: evaluate it again")
    return found


def still_of(raw: object, files: Mapping[str, FilePart]) -> dict[str, Any] | None:
    """An evaluation as it lies in the provenance, if it is one and of these files; else None."""
    try:
        found = Evaluated.model_validate(raw)
    except ValidationError:
        return None
    return found.model_dump(exclude_none=True) if found.files == _measured_files(files) else None


def evaluation_of(config: ArtifactConfig) -> Evaluated | None:
    """What is recorded of a model; None if nothing is, or it is of other files."""
    raw = still_of(config.provenance.get(KEY), config.files)
    return None if raw is None else Evaluated.model_validate(raw)


def _measured_files(files: Mapping[str, FilePart]) -> dict[str, str]:
    """Those that shape the figures: the head, and what makes probabilities of its logits."""
    return {name: files[name].sha256 for name in (TENSORS, TRUST) if name in files}


def _plain(text: str) -> str:
    """A text that can be written: file names need not be UTF-8, and may hold what is no character."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(c if c.isprintable() else " " for c in whole).split())
