"""Published accuracies of other authors, and tables of them beside measured ones; no other table has them.

They are in the CSV files here. ``accuracies.csv`` is laid out as the papers' tables: a column for each number of shots.
``open_clip.csv`` has zero-shot accuracies of open_clip's models, ``streams.csv`` results on streams of tasks, and
``sources.csv`` where all come from; a secondary source copies the results of the original paper.

A published accuracy is no target: most were tuned with labels beyond the shots, which ``protocol`` says, and from other
draws of shots.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from clipadapter.bench.methods import HEAD_WITHOUT_SHOTS
from clipadapter.bench.run import Run, TaskStream
from clipadapter.bench.study import HARMONIC, Cell, Pivot, Row, Spot, Study, format_shots, make_mean_tables, make_tables
from clipadapter.bench.tables import format_cell, format_head, format_percent, format_points, stream_columns
from clipadapter.data.sets import get_set, list_sets
from clipadapter.encoders.catalogue import QUICK_GELU
from clipadapter.rendering.tables import Grid
from clipadapter.utils.formatting import shorten_name

ELEVEN_DATA_SETS = (
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft"),
    *("sun397", "dtd", "eurosat", "ucf101"),
)
"""The eleven data sets of the papers' tables."""
OPEN_CLIP_SOURCE = "S19"
OPEN_CLIP_PROTOCOL = (
    "open_clip's own prompts and test parts; whether the mean is over classes or pictures is not stated"
)
HEADER = (
    *("head", "data set", "backbone", "shots", "measured", "published", "measured - published", "source"),
    *("published variant", "protocol of the source", "checked"),
)
TEXT_COLUMNS = frozenset({0, 1, 2, 3, 7, 8, 9, 10})
MEAN_TITLES = {
    "mean11": "mean of eleven sets",
    "mean11_base": "mean of eleven sets, base",
    "mean11_new": "mean of eleven sets, new",
    "mean11_harmonic": "mean of eleven sets, harmonic",
}
NO_PUBLISHED_FIGURE = (
    "No published result that comes with the package is of the same method, data set, backbone and shots as a measured "
    "one. Only the papers' data sets with all of their classes, and weights of which a paper or open_clip published "
    "results, are compared."
)
NO_PUBLISHED_STREAM = (
    "No published result that comes with the package is of this stream: the same data sets with all of their classes, "
    "in the same order, with the same weights, and the task of a picture known or unknown as here."
)
STREAM_METRICS = ("transfer", "average", "last")
TAKES_NO_SHOTS = "takes none"


# ---- What the files have ----


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


@cache
def read_rows(name: str) -> tuple[Mapping[str, str], ...]:
    """The rows of a file. Results in ``streams.csv`` are in %, see `metrics.continual`; ``data`` is in their order."""
    return tuple(csv.DictReader((files(__name__) / name).read_text(encoding="utf-8").splitlines()))


@cache
def find_published() -> tuple[PublishedAccuracy, ...]:
    """All published accuracies, source by source."""
    results = []
    for row in read_rows("accuracies.csv"):
        facts = {name: row[name] for name in ("method", "variant", "dataset", "backbone", "source", "protocol")}
        verified = row["verified"] == "yes"
        for shots in (name for name in row if name.isdecimal() and row[name]):
            accuracy, _, margin = row[shots].partition("±")
            value, half = float(accuracy), float(margin or 0)
            one = PublishedAccuracy(shots=int(shots), accuracy=value, margin=half, verified=verified, **facts)
            results.append(one)
    for row in read_rows("open_clip.csv"):
        backbone, source = f"open_clip:{row['model']}", (OPEN_CLIP_SOURCE, OPEN_CLIP_PROTOCOL, True)
        accuracies = {data: float(accuracy) for data, accuracy in row.items() if data != "model"}
        results += [PublishedAccuracy("zero-shot", "", d, backbone, 0, a, 0.0, *source) for d, a in accuracies.items()]
    return tuple(results)


# ---- Beside measured accuracies ----


class Measured(NamedTuple):
    """A measured accuracy that may have a published counterpart."""

    dataset: str
    head: Row
    shots: int
    cell: Cell
    runs: Sequence[Run]


def compare_with_published(study: Study) -> Grid | str:
    """A table of the published results of what a study has measured; a sentence if there are none."""
    measured = list(_measured(study))
    order = list(dict.fromkeys(ours.dataset for ours in measured))
    heads = list(dict.fromkeys(ours.head for ours in measured))
    measured.sort(key=lambda ours: (order.index(ours.dataset), heads.index(ours.head), ours.shots))
    pairs = [
        (ours, theirs)
        for ours in measured
        if ours.cell.values
        for theirs in _published(ours.runs[0].method, ours.dataset, ours.runs[0].encoder.name, ours.shots)
    ]
    pairs += _zero_shot_not_measured(measured)
    rows = list(dict.fromkeys(_cells(ours, theirs) for ours, theirs in pairs))
    if not rows:
        return NO_PUBLISHED_FIGURE
    notes = (
        "Accuracy in %. Published results are from other draws of shots, and mostly from other protocols: many were "
        "tuned with labels beyond the shots. So the difference is in points, without an interval, and no target.",
        "Unverified: backbone, shots or source are inferred, or sources contradict each other.",
        *_source_notes(theirs.source for _, theirs in pairs),
    )
    return Grid("Accuracy beside published results", HEADER, tuple(rows), notes=notes, text_columns=TEXT_COLUMNS)


def _source_notes(tags: Iterable[str]) -> list[str]:
    sources = {row["tag"]: row for row in read_rows("sources.csv")}
    ordered = sorted(set(tags), key=lambda tag: (len(tag), tag))
    return [f"{tag}: {sources[tag]['title']}, {sources[tag]['where']}." for tag in ordered]


def _measured(study: Study) -> Iterator[Measured]:
    for setting, spot in study.spots.items():
        if not (runs := spot.runs):
            continue
        protocol = runs[0].data.protocol
        dataset = setting.test if protocol == "shift" else setting.data
        if protocol in ("given", "shift") and _is_complete_set(dataset, runs[0], shifted=protocol == "shift"):
            yield Measured(dataset, Row(setting.label, setting.prompts), setting.shots, spot.cell(), runs)
    for table in make_mean_tables(make_tables(study)):
        yield from _means(table)


def _is_complete_set(dataset: str, run: Run, shifted: bool = False) -> bool:
    """Whether a data set is that of the papers: a user's folder may have the same name."""
    if dataset not in list_sets():
        return False
    known = get_set(dataset)
    pictures = known.counts.get("test", 0) if known.counts_verified and not shifted else 0
    return run.n_classes == known.n_classes and pictures in (0, run.n_test)


def _means(table: Pivot) -> Iterator[Measured]:
    """Means over the papers' eleven sets."""
    if {run.data.support for run in table.runs()} != set(ELEVEN_DATA_SETS):
        return
    for row in table.rows:
        runs = table.runs(row)
        for column in table.columns():
            cell = table.cell(row, column)
            if not cell.values:
                continue
            if isinstance(column, int):
                if all(_is_complete_set(run.data.support, run) for run in runs):
                    yield Measured("mean11", row, column, cell, runs)
            elif HARMONIC in table.derived:
                is_new = {run.data.protocol for run in table.runs(part=column)} == {"new"}
                name = "harmonic" if column == HARMONIC else "new" if is_new else "base"
                yield Measured(f"mean11_{name}", row, int(table.fixed["shots"]), cell, runs)


def _published(method: str, dataset: str, encoder: str, shots: int) -> list[PublishedAccuracy]:
    backbones = {backbone_of(encoder), encoder.replace(f"{QUICK_GELU}/", "/")}
    counts = {0, shots} if method == HEAD_WITHOUT_SHOTS else {shots}
    return [
        one
        for one in find_published()
        if (one.method, one.dataset) == (method, dataset) and one.backbone in backbones and one.shots in counts
    ]


def _zero_shot_not_measured(measured: Sequence[Measured]) -> list[tuple[Measured, PublishedAccuracy]]:
    """Published zero-shot accuracies of the data sets and encoders on which zero-shot was not measured."""
    methods: dict[tuple[str, str], set[str]] = {}
    for ours in measured:
        methods.setdefault((ours.dataset, ours.runs[0].encoder.name), set()).add(ours.runs[0].method)
    return [
        (Measured(dataset, Row(HEAD_WITHOUT_SHOTS), 0, Cell(remark="not measured"), ()), theirs)
        for (dataset, encoder), own in methods.items()
        if HEAD_WITHOUT_SHOTS not in own
        for theirs in _published(HEAD_WITHOUT_SHOTS, dataset, encoder, 0)
    ]


def backbone_of(encoder: str) -> str | None:
    """The papers' name of an encoder; None for weights that the papers do not use.

    >>> backbone_of("open_clip:ViT-B-16/openai"), backbone_of("open_clip:RN50-quickgelu/openai")
    ('ViT-B/16', 'RN50')
    >>> backbone_of("hf:openai/clip-vit-base-patch32"), backbone_of("open_clip:RN50/yfcc15m")
    ('ViT-B/32', None)
    """
    if match := re.fullmatch(r"open_clip:(RN\d+|ViT-[BL]-\d\d)(?:-quickgelu)?/openai", encoder):
        return re.sub(r"^(ViT-[BL])-", r"\1/", match[1])
    if match := re.fullmatch(r"hf:openai/clip-vit-(base|large)-patch(\d\d)", encoder):
        return f"ViT-{'B' if match[1] == 'base' else 'L'}/{match[2]}"
    return "SigLIP2 ViT-B/16" if encoder == "open_clip:ViT-B-16-SigLIP2/webli" else None


def _cells(ours: Measured, theirs: PublishedAccuracy) -> tuple[str, ...]:
    """The row of two results, as `HEADER` says."""
    return (
        format_head(ours.head, ours.runs),
        MEAN_TITLES.get(theirs.dataset, shorten_name(theirs.dataset)),
        theirs.backbone,
        format_shots(ours.shots) if theirs.shots else TAKES_NO_SHOTS,
        format_cell(ours.cell, format_percent),
        f"{theirs.accuracy:.2f}" + (f" ± {theirs.margin:.2f}" if theirs.margin else ""),
        format_points(ours.cell.mean - theirs.accuracy / 100) if ours.cell.values else "-",
        theirs.source,
        theirs.variant or "-",
        theirs.protocol or "not stated",
        "verified" if theirs.verified else "unverified",
    )


# ---- Beside measured streams ----


def find_published_grid(title: str, shots: int, heads: Sequence[Spot]) -> Grid | str:
    """A table of measured metrics of a stream, and published ones below them; a sentence if there are no such ones."""
    runs = [run for head in heads for run in head.runs]
    published = read_rows("streams.csv")
    streams = [row for row in published if all(_is_same(run.stream, run.encoder.name, row) for run in runs)]
    if not streams:
        return NO_PUBLISHED_STREAM
    measured = zip(*(column.texts() for column in stream_columns(heads, STREAM_METRICS)), strict=True)
    rows = [(head.label, format_shots(shots), *texts, "measured") for head, texts in zip(heads, measured, strict=True)]
    for row in streams:
        learned_from = TAKES_NO_SHOTS if row["method"] == HEAD_WITHOUT_SHOTS else row["protocol"]
        rows.append((row["method"], learned_from, *(f"{float(row[k]):.1f}" for k in STREAM_METRICS), row["source"]))
    return Grid(
        f"Beside published results: {title}",
        ("method", "learned from", "Transfer", "Average", "Last", "source"),
        tuple(rows),
        notes=(
            "In %. Published methods learned from other pictures, and train more than a head: no target.",
            *_source_notes(row["source"] for row in streams),
        ),
        text_columns=frozenset({0, 1, 5}),
    )


def _is_same(stream: TaskStream | None, encoder: str, theirs: Mapping[str, str]) -> bool:
    """Whether a measured stream is the published one: a user's folder may have the same name."""
    task_known = theirs["task_known"] == "yes"
    if stream is None or stream.task_known != task_known or backbone_of(encoder) != theirs["backbone"]:
        return False
    if [task.name for task in stream.tasks] != theirs["data"].split():
        return False
    named = [task for task in stream.tasks if task.name in list_sets()]
    return all(len(task.classes) == get_set(task.name).n_classes for task in named)
