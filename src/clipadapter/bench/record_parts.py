"""The parts of a record."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, RootModel, model_validator
from typing_extensions import Self

from clipadapter.metrics import check_metrics, metrics_shown


class Part(BaseModel):
    """Base: frozen, and no field that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderPart(Part):
    """The encoder that made the features."""

    name: str
    fingerprint: str


class DataPart(Part):
    """The data.

    Args:
        support: name of the data set that the shots were drawn from.
        test: name of the test part; the same if the rows that were not drawn are it.
        protocol: ``"given"`` if the test part stands apart, ``"rest"`` if it is the rows that were not drawn,
            ``"shift"`` if its pictures come from elsewhere but show classes of the support, ``"new"`` if it has other
            classes, which the head knows by their text alone, ``"stream"`` for the test parts of tasks that come one
            after the other, ``"folds"`` if it is all rows, each measured by a fit to other folds.
        digest: hash of features and labels of both.
    """

    support: str
    test: str
    protocol: str
    digest: str


class Flags(Part):
    """What must be told beside a figure.

    Args:
        validation: labelled pictures beyond the shots that the head was given: ``"none"``.
        transductive: whether the head looks at the test pictures as a whole.
        oracle: whether something was chosen on the test part.
    """

    validation: str = "none"
    transductive: bool = False
    oracle: bool = False


class Metrics(RootModel[dict[str, float]]):
    """Metrics on the test part by their name in `clipadapter.metrics.METRICS`.

    Records of earlier versions may lack metrics that are optional.

    >>> Metrics(accuracy=0.5, macro_f1=0.4, log_loss=0.7)["macro_f1"]
    0.4
    """

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_metrics(self.root, metrics_shown("record", "single-label"))
        return self

    @property
    def accuracy(self) -> float:
        """Share of pictures whose most probable class is the true one."""
        return self.root["accuracy"]

    def __getitem__(self, name: str) -> float:
        return self.root[name]

    def __contains__(self, name: str) -> bool:
        return name in self.root


class Seconds(Part):
    """How long it took."""

    fit: float
    predict: float


class Machine(Part):
    """Where it ran; peak memory is the process's up to then, None where the system doesn't tell."""

    cpus: int
    platform: str
    peak_memory_mb: int | None = None
