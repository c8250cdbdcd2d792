"""Published results beside measured ones, in a section or table that says so: measured tables have no others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from clipadapter.bench.continual.summary import HeadRuns, metric_columns
from clipadapter.bench.grids import format_cell, format_head, format_points
from clipadapter.bench.methods import HEAD_WITHOUT_SHOTS
from clipadapter.bench.notes import device_notes
from clipadapter.bench.pivot import HARMONIC, Pivot, Row, format_shots, make_mean_tables, make_tables
from clipadapter.bench.published import (
    ELEVEN_DATA_SETS,
    PublishedAccuracy,
    PublishedStream,
    find_published,
    find_published_streams,
    published_sources,
)
from clipadapter.bench.report.document import Section
from clipadapter.bench.run import Run, TaskStream
from clipadapter.bench.study import Cell, Study
from clipadapter.data.sets import get_set, list_sets
from clipadapter.encoders.catalogue import QUICK_GELU
from clipadapter.metrics import METRICS
from clipadapter.rendering.tables import Grid
from clipadapter.utils.formatting import shorten_name

TITLE = "Measured and published"
TEXT_COLUMNS = frozenset({0, 1, 2, 3, 7, 8, 9, 10})
SOURCE_COLUMN = 7
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
TAKES_NO_SHOTS = "takes none"
NOT_MEASURED = "not measured"


class Measured(NamedTuple):
    """A measured accuracy that may have a published counterpart."""

    dataset: str
    head: Row
    shots: int
    cell: Cell
    runs: Sequence[Run]


def make_published_section(study: Study) -> Section:
    """The section on the published results of what a study has measured."""
    measured = list(_measured(study))
    order = list(dict.fromkeys(ours.dataset for ours in measured))
    heads = list(dict.fromkeys(ours.head for ours in measured))
    measured.sort(key=lambda ours: (order.index(ours.dataset), heads.index(ours.head), ours.shots))
    pairs = [(ours, theirs) for ours in measured for theirs in _matches(ours)]
    rows = [_row(ours, theirs) for ours, theirs in pairs] + list(_zero_shot_not_measured(measured))
    if not rows:
        return Section(TITLE, (), (NO_PUBLISHED_FIGURE,))
    header = (
        *("head", "data set", "backbone", "shots", "measured", "published", "measured - published", "source"),
        *("published variant", "protocol of the source", "checked"),
    )
    notes = (
        "Accuracy in %. Published results are from other draws of shots, and mostly from other protocols: many were "
        "tuned with labels beyond the shots. So the difference is in points, without an interval, and no target.",
        "Unverified: backbone, shots or source are inferred, or sources contradict each other.",
        *_measured_device_notes(run for ours, _ in pairs for run in ours.runs),
        *_source_notes(row[SOURCE_COLUMN] for row in rows),
    )
    title, rows = "Accuracy beside published results", list(dict.fromkeys(rows))
    return Section(TITLE, (Grid(title, header, tuple(rows), notes=notes, text_columns=TEXT_COLUMNS),))


def _source_notes(tags: Iterable[str]) -> list[str]:
    sources = published_sources()
    return [
        f"{tag}: {sources[tag].title}, {sources[tag].where}." for tag in sorted(set(tags), key=lambda t: (len(t), t))
    ]


def _measured_device_notes(runs: Iterable[Run]) -> list[str]:
    """Where the measured heads computed, if not all on the CPU. A run of several rows counts once."""
    notes = device_notes({run.key: run for run in runs}.values())
    return [f"Of the measured results: {note[0].lower()}{note[1:]}" for note in notes]


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


def _matches(ours: Measured) -> list[PublishedAccuracy]:
    if not ours.cell.values:
        return []
    method = ours.runs[0].method
    shots = {0, ours.shots} if method == HEAD_WITHOUT_SHOTS else {ours.shots}
    return _published(method, ours.dataset, ours.runs[0].encoder.name, shots)


def _published(method: str, dataset: str, encoder: str, shots: set[int]) -> list[PublishedAccuracy]:
    backbones = {backbone_of(encoder), encoder.replace(f"{QUICK_GELU}/", "/")}
    return [
        one
        for one in find_published()
        if (one.method, one.dataset) == (method, dataset) and one.backbone in backbones and one.shots in shots
    ]


def _zero_shot_not_measured(measured: Sequence[Measured]) -> Iterator[tuple[str, ...]]:
    """Rows of published zero-shot accuracies of the data sets and encoders on which zero-shot was not measured."""
    methods: dict[tuple[str, str], set[str]] = {}
    for ours in measured:
        methods.setdefault((ours.dataset, ours.runs[0].encoder.name), set()).add(ours.runs[0].method)
    for (dataset, encoder), own in methods.items():
        if HEAD_WITHOUT_SHOTS not in own:
            for theirs in _published(HEAD_WITHOUT_SHOTS, dataset, encoder, {0}):
                yield _cells(HEAD_WITHOUT_SHOTS, TAKES_NO_SHOTS, NOT_MEASURED, "-", theirs)


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
    if re.fullmatch(r"open_clip:ViT-B-16-SigLIP2/webli", encoder):
        return "SigLIP2 ViT-B/16"
    return None


def _row(ours: Measured, theirs: PublishedAccuracy) -> tuple[str, ...]:
    return _cells(
        format_head(ours.head, ours.runs),
        format_shots(ours.shots) if theirs.shots else TAKES_NO_SHOTS,
        format_cell(ours.cell, METRICS["accuracy"].format),
        format_points(ours.cell.mean - theirs.accuracy / 100),
        theirs,
    )


def _cells(head: str, shots: str, measured: str, difference: str, theirs: PublishedAccuracy) -> tuple[str, ...]:
    margin = f" ± {theirs.margin:.2f}" if theirs.margin else ""
    return (
        head,
        MEAN_TITLES.get(theirs.dataset, shorten_name(theirs.dataset)),
        theirs.backbone,
        shots,
        measured,
        f"{theirs.accuracy:.2f}{margin}",
        difference,
        theirs.source,
        theirs.variant or "-",
        theirs.protocol or "not stated",
        "verified" if theirs.verified else "unverified",
    )


NO_PUBLISHED_STREAM = (
    "No published result that comes with the package is of this stream: the same data sets with all of their classes, "
    "in the same order, with the same weights, and the task of a picture known or unknown as here."
)
STREAM_METRICS = ("transfer", "average", "last")


def make_published_grid(title: str, shots: int, heads: Sequence[HeadRuns]) -> Grid | None:
    """A table of measured metrics of a stream, and published ones below them; None if there are no published ones."""
    runs = [run for head in heads for run in head.runs]
    streams = [
        head for head in find_published_streams() if all(_is_same(run.stream, run.encoder.name, head) for run in runs)
    ]
    if not streams:
        return None
    columns = metric_columns(heads, STREAM_METRICS)
    measured = zip(*(column.texts() for column in columns), strict=True)
    rows = [(head.label, format_shots(shots), *texts, "measured") for head, texts in zip(heads, measured, strict=True)]
    rows += [
        (
            head.method,
            TAKES_NO_SHOTS if head.method == HEAD_WITHOUT_SHOTS else head.protocol,
            *(f"{getattr(head, metric):.1f}" for metric in STREAM_METRICS),
            head.source,
        )
        for head in streams
    ]
    return Grid(
        f"Beside published results: {title}",
        ("method", "learned from", "Transfer", "Average", "Last", "source"),
        tuple(rows),
        notes=(
            "In %. Published methods learned from other pictures, and train more than a head: no target.",
            *_measured_device_notes(runs),
            *_source_notes(head.source for head in streams),
        ),
        text_columns=frozenset({0, 1, 5}),
    )


def _is_same(stream: TaskStream | None, encoder: str, theirs: PublishedStream) -> bool:
    """Whether a measured stream is the published one: a user's folder may have the same name."""
    if stream is None or stream.task_known != theirs.task_known or backbone_of(encoder) != theirs.backbone:
        return False
    if tuple(task.name for task in stream.tasks) != theirs.data:
        return False
    named = [task for task in stream.tasks if task.name in list_sets()]
    return all(len(task.classes) == get_set(task.name).n_classes for task in named)
