"""Published accuracies of other authors, to compare with. They are in the CSV files here.

``accuracies.csv`` is laid out as the papers' tables: a column for each number of shots. ``open_clip.csv`` has zero-shot
accuracies of open_clip's models, ``streams.csv`` results on streams of tasks, and ``sources.csv`` where all come from.

A published accuracy is no target: most were tuned with labels beyond the shots, which ``protocol`` says, and from other
draws of shots.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import NamedTuple

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
OPEN_CLIP_SOURCE = "S19"
OPEN_CLIP_PROTOCOL = (
    "open_clip's own prompts and test parts; whether the mean is over classes or pictures is not stated"
)


class PublishedSource(NamedTuple):
    """The source of published results."""

    tag: str  # its short name in reports
    title: str
    where: str
    secondary: bool  # it copies the results of the original paper
    note: str  # how its numbers were read, for those who check them


class PublishedAccuracy(NamedTuple):
    """One published accuracy. If more than one source states the same, there is one for each."""

    method: str  # registered name of the head, or the method's own name in the same spelling
    variant: str  # the form of the method, if the source has more than one
    dataset: str  # a data set, or "mean11", "mean11_base", "mean11_new", "mean11_harmonic": means over the eleven
    backbone: str  # such as "RN50" or "ViT-B/16" for OpenAI's weights, else the URI of an encoder
    shots: int  # per class; 0 for a method without shots
    accuracy: float  # in %; the middle, if the source gives a range
    margin: float  # half the width of that range, else 0
    source: str
    protocol: str
    verified: bool  # not so if backbone, shots or source are inferred, or sources contradict each other


class PublishedStream(NamedTuple):
    """Published results, in %, of one method on a stream of tasks; see `bench.continual.metrics`."""

    method: str
    data: tuple[str, ...]  # the data sets, each a task, in the order in which they were learned
    task_known: bool
    backbone: str
    transfer: float
    average: float
    last: float
    source: str
    protocol: str


def _rows(name: str) -> Iterator[dict[str, str]]:
    yield from csv.DictReader((files(__name__) / name).read_text(encoding="utf-8").splitlines())


@cache
def find_published() -> tuple[PublishedAccuracy, ...]:
    """All published accuracies, source by source.

    >>> for result in find_published():
    ...     if (result.method, result.dataset, result.backbone) == ("clip-adapter", "imagenet", "ViT-B/16"):
    ...         print(result.shots, result.accuracy, result.source, result.protocol)
    16 71.13 S2 tuned on the test part where a method has parameters to search
    """
    results = []
    for row in _rows("accuracies.csv"):
        shared = {name: row[name] for name in ("method", "variant", "dataset", "backbone", "source", "protocol")}
        for shots in (name for name in row if name.isdecimal() and row[name]):
            accuracy, _, margin = row[shots].partition("±")
            result = PublishedAccuracy(
                shots=int(shots),
                accuracy=float(accuracy),
                margin=float(margin or 0),
                verified=row["verified"] == "yes",
                **shared,
            )
            results.append(result)
    for row in _rows("open_clip.csv"):
        backbone, facts = f"open_clip:{row.pop('model')}", (OPEN_CLIP_SOURCE, OPEN_CLIP_PROTOCOL, True)
        results += [
            PublishedAccuracy("zero-shot", "", data, backbone, 0, float(a), 0.0, *facts) for data, a in row.items()
        ]
    return tuple(results)


@cache
def find_published_streams() -> tuple[PublishedStream, ...]:
    """Published results of streams of tasks.

    >>> [result.last for result in find_published_streams() if result.method == "zscl"]
    [83.6, 83.4]
    """
    return tuple(
        PublishedStream(
            method=row["method"],
            data=tuple(row["data"].split()),
            task_known=row["task_known"] == "yes",
            backbone=row["backbone"],
            transfer=float(row["transfer"]),
            average=float(row["average"]),
            last=float(row["last"]),
            source=row["source"],
            protocol=row["protocol"],
        )
        for row in _rows("streams.csv")
    )


@cache
def published_sources() -> dict[str, PublishedSource]:
    """The sources by their tags.

    >>> published_sources()["S5"].title
    "GDA (ICLR 2024), the authors' released logs"
    """
    rows = _rows("sources.csv")
    return {
        row["tag"]: PublishedSource(row["tag"], row["title"], row["where"], row["secondary"] == "yes", row["note"])
        for row in rows
    }
