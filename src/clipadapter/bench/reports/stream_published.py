"""Published figures of the same stream below the measured ones."""

from __future__ import annotations

from collections.abc import Sequence

from clipadapter.bench.continual.records import Stream
from clipadapter.bench.continual.summary import HeadRuns, figure_text
from clipadapter.bench.published import PublishedStream, published_streams, sources
from clipadapter.bench.reports.document import Grid
from clipadapter.bench.reports.side_by_side import backbone_of
from clipadapter.bench.reports.tables import shots_text
from clipadapter.data.sets import list_sets, set_info

NONE = (
    "No published figure that comes with the package is of this stream: the same data sets with all of their classes, "
    "in the same order, with the same weights, and the task told or not told as here."
)
SHOWN = ("transfer", "average", "last")


def beside(title: str, shots: int, heads: Sequence[HeadRuns]) -> Grid | None:
    """Measured figures of a stream, and published ones of the same below them; None if there are none.

    Args:
        title: of the stream.
        shots: shots a class that were measured.
        heads: heads with figures.
    """
    runs = [run for one in heads for run in one.runs]
    found = [one for one in published_streams() if all(_is_same(run.stream, run.encoder.name, one) for run in runs)]
    if not found:
        return None
    known = sources()
    rows = [
        (one.label, shots_text(shots), *(figure_text(one.cell(figure), figure) for figure in SHOWN), "measured")
        for one in heads
    ]
    rows += [
        (one.method, "takes none" if one.method == "zero-shot" else one.protocol, *_figures(one), one.source)
        for one in found
    ]
    told = [f"{tag}: {known[tag].title}, {known[tag].where}." for tag in sorted({one.source for one in found})]
    return Grid(
        f"Beside published figures: {title}",
        ("method", "learned from", "Transfer", "Average", "Last", "source"),
        tuple(rows),
        notes=("In %. Published methods learned from other pictures, and train more than a head: no target.", *told),
        words=frozenset({0, 1, 5}),
    )


def _figures(one: PublishedStream) -> tuple[str, ...]:
    return tuple(f"{getattr(one, figure):.1f}" for figure in SHOWN)


def _is_same(stream: Stream | None, encoder: str, theirs: PublishedStream) -> bool:
    """Whether a measured stream is the published one: a folder of one's own may have the same name."""
    if stream is None or stream.task_known != theirs.task_known or backbone_of(encoder) != theirs.backbone:
        return False
    if tuple(task.name for task in stream.tasks) != theirs.data:
        return False
    named = [task for task in stream.tasks if task.name in list_sets()]
    return all(len(task.classes) == set_info(task.name).cls.n_classes for task in named)
