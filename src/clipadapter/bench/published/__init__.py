"""Published accuracies of other authors, to compare with. The numbers are in the TOML files here, one file per source.

A table of a file first states what all its numbers share: either the method, and then its rows are data sets, or the
data set, and then its rows are methods. The columns are numbers of shots. A published accuracy is no target: most were
tuned with labels beyond the shots, which `PublishedAccuracy.protocol` says, and from other draws of shots.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.resources import files
from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from clipadapter.bench.run import FrozenModel
from clipadapter.utils.registry import unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ELEVEN_DATA_SETS = (
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
)
"""The eleven data sets of the papers' tables."""
SHIFTED_DATA_SETS = ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")
MEAN_NAMES = ("mean11", "mean11_base", "mean11_new", "mean11_harmonic")
"""Means over the eleven: of all classes; of the half with shots; of the other half; and the two's harmonic mean."""
Percent = Annotated[float, Field(gt=0, lt=100)]


class PublishedSource(FrozenModel):
    """The source of published results.

    Args:
        tag: its short name in reports.
        title: its title.
        where: address.
        secondary: whether it copies the results of the original paper.
    """

    tag: str
    title: str
    where: str
    secondary: bool = False


class PublishedAccuracy(FrozenModel):
    """One published accuracy.

    Args:
        method: registered name of the head, or the method's own name in the same spelling.
        variant: the form of the method, if the source has more than one.
        dataset: one of `ELEVEN_DATA_SETS`, `SHIFTED_DATA_SETS` or `MEAN_NAMES`.
        backbone: the encoder, such as "RN50" or "ViT-B/16" for OpenAI's weights; or its URI, such as
            "open_clip:ViT-B-16/datacomp_xl_s13b_b90k".
        shots: shots per class; 0 for a method without shots.
        accuracy: in %; the middle, if the source gives a range.
        margin: half the width of that range, else 0.
        source: tag of the source; see `published_sources`.
        protocol: how it was measured, as far as that is known.
        verified: False if the backbone, the shots or the source is inferred, or sources contradict each other.
    """

    method: str
    variant: str = ""
    dataset: str
    backbone: str
    shots: int
    accuracy: float
    margin: float = 0.0
    source: str
    protocol: str
    verified: bool


class PublishedStream(FrozenModel):
    """Published results of one method on a stream of tasks.

    Args:
        method: as in `PublishedAccuracy`.
        data: the data sets, each a task, in the order in which they were learned.
        task_known: whether predictions were among the classes of the picture's task.
        backbone: the encoder.
        transfer: in %; see `bench.continual.metrics`.
        average: likewise.
        last: likewise.
        source: tag of the source.
        protocol: how they were measured.
    """

    method: str
    data: tuple[str, ...]
    task_known: bool
    backbone: str
    transfer: float
    average: float
    last: float
    source: str
    protocol: str


class _StreamTable(FrozenModel):
    backbone: str
    task_known: bool
    data: tuple[str, ...]
    protocol: str
    figures: dict[str, tuple[Percent, Percent, Percent]]

    def streams(self, source: str) -> list[PublishedStream]:
        shared = self.model_dump(exclude={"figures"})
        return [
            PublishedStream(method=name, transfer=transfer, average=average, last=last, source=source, **shared)
            for name, (transfer, average, last) in self.figures.items()
        ]


class _Table(FrozenModel):
    method: str | None = None
    variant: str = ""
    dataset: str | None = None
    backbone: str
    shots: list[Annotated[int, Field(ge=0)]]
    protocol: str = ""
    verified: bool = True
    accuracy: dict[str, list[Percent]]
    margin: list[Percent] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.method is None) == (self.dataset is None):
            raise ValueError("a table is of one method or of one data set")
        known = {*ELEVEN_DATA_SETS, *SHIFTED_DATA_SETS, *MEAN_NAMES}
        unknown_data_sets = {self.dataset} - known if self.dataset else self.accuracy.keys() - known
        if unknown_data_sets:
            raise ValueError(f"no such data set: {unknown_data_sets}")
        rows = {**self.accuracy, **({} if self.margin is None else {"margin": self.margin})}
        wrong = [row for row, values in rows.items() if len(values) != len(self.shots)]
        if wrong:
            raise ValueError(f"rows of another length than shots: {wrong}")
        return self

    def results(self, source: str) -> list[PublishedAccuracy]:
        return [
            PublishedAccuracy(
                method=self.method or row,
                variant=self.variant,
                dataset=self.dataset or row,
                backbone=self.backbone,
                shots=n,
                accuracy=value,
                margin=margin,
                source=source,
                protocol=self.protocol,
                verified=self.verified,
            )
            for row, values in self.accuracy.items()
            for n, value, margin in zip(self.shots, values, self.margin or [0.0] * len(values), strict=True)
        ]


class _EncoderTable(FrozenModel):
    """A method without shots: a row for each model of open_clip, a column for each data set."""

    method: str
    protocol: str
    data: tuple[str, ...]
    accuracy: dict[str, list[Percent]]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if unknown_data_sets := set(self.data) - {*ELEVEN_DATA_SETS, *SHIFTED_DATA_SETS}:
            raise ValueError(f"no such data set: {unknown_data_sets}")
        if wrong := [model for model, values in self.accuracy.items() if len(values) != len(self.data)]:
            raise ValueError(f"rows of another length than data: {wrong}")
        return self

    def results(self, source: str) -> list[PublishedAccuracy]:
        return [
            PublishedAccuracy(
                method=self.method,
                dataset=dataset,
                backbone=f"open_clip:{model}",
                shots=0,
                accuracy=value,
                source=source,
                protocol=self.protocol,
                verified=True,
            )
            for model, values in self.accuracy.items()
            for dataset, value in zip(self.data, values, strict=True)
        ]


class _File(FrozenModel):
    source: PublishedSource
    table: list[_Table] = Field(default_factory=list)
    encoders: _EncoderTable | None = None
    stream: list[_StreamTable] = Field(default_factory=list)

    def results(self) -> list[PublishedAccuracy]:
        results = [result for table in self.table for result in table.results(self.source.tag)]
        return results if self.encoders is None else [*results, *self.encoders.results(self.source.tag)]


@cache
def _files() -> tuple[_File, ...]:
    items = sorted((item for item in files(__name__).iterdir() if item.name.endswith(".toml")), key=lambda i: i.name)
    return tuple(_File.model_validate(tomllib.loads(item.read_text(encoding="utf-8"))) for item in items)


@cache
def _all_results() -> tuple[PublishedAccuracy, ...]:
    return tuple(result for file in _files() for result in file.results())


def find_published(
    method: str | None = None, dataset: str | None = None, backbone: str | None = None, shots: int | None = None
) -> list[PublishedAccuracy]:
    """Published accuracies, all or those of one method, data set, backbone or number of shots.

    If more than one source states the same accuracy, there is one entry for each.

    Args:
        method: such as "clip-adapter".
        dataset: such as "eurosat"; "mean11" is the mean over the eleven sets.
        backbone: such as "RN50", or the URI of an encoder of open_clip.
        shots: shots per class; 0 for methods without shots.

    Raises:
        UnknownNameError: if no published accuracy has this method, data set or backbone.

    >>> for result in find_published("clip-adapter", "imagenet", "ViT-B/16"):
    ...     print(result.shots, result.accuracy, result.source, result.protocol)
    16 71.13 S2 tuned on the test part where a method has parameters to search
    """
    results = _all_results()
    for kind, name in (("method", method), ("dataset", dataset), ("backbone", backbone)):
        known = sorted({getattr(result, kind) for result in results})
        if name is not None and name not in known:
            raise unknown(f"{'data set' if kind == 'dataset' else kind} with published results", name, known)
    filters = {"method": method, "dataset": dataset, "backbone": backbone, "shots": shots}
    set_filters = {field: value for field, value in filters.items() if value is not None}
    return [
        result for result in results if all(getattr(result, field) == value for field, value in set_filters.items())
    ]


def find_published_streams() -> list[PublishedStream]:
    """Published results of streams of tasks.

    >>> [result.last for result in find_published_streams() if result.method == "zscl"]
    [83.6, 83.4]
    """
    return [result for file in _files() for table in file.stream for result in table.streams(file.source.tag)]


def published_sources() -> dict[str, PublishedSource]:
    """The sources by their tags.

    >>> published_sources()["S5"].title
    "GDA (ICLR 2024), the authors' released logs"
    """
    return {file.source.tag: file.source for file in _files()}
