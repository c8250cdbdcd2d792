"""What a suite will cost, before anything is computed."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from clipadapter.bench.continual.learning import choose_mode
from clipadapter.bench.continual.orders import count_tasks
from clipadapter.bench.plan import plan_views
from clipadapter.bench.protocols import create_protocol
from clipadapter.bench.sources import FEATURES, load_feature_bundle, open_source
from clipadapter.bench.suite import Suite, make_head
from clipadapter.data.sets import create_set, data_root, list_sets
from clipadapter.errors import ClipAdapterError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SMALL_FIT_SIZE, LARGE_FIT_SIZE = 1600 * 100 * 512, 16_000 * 1000 * 1024
"""Shots x classes x width of the two sizes that fits were timed at."""
UNTIMED_HEAD_SECONDS = (2.0, 60.0)
"""For a head that was never timed."""
ENCODED_IMAGES_PER_SECOND = 25.0
"""Pictures a second that a small encoder sees on two cores; a GPU sees hundreds to thousands."""
OVERHEAD_SECONDS_PER_RUN = 0.1
"""Seconds of a run beside its fit: measuring, writing."""


@cache
def _measured() -> dict[str, list[float]]:
    return tomllib.loads((files("clipadapter.bench") / "costs.toml").read_text(encoding="utf-8"))


def estimate_fit_seconds(head: str, shots: int, classes: int, width: int) -> float:
    """Seconds that one fit takes on two cores, on the line between the two sizes that were timed.

    Args:
        head: registered name.
        shots: in all, not a class.
        classes: c.
        width: d.

    >>> 30 < estimate_fit_seconds("auto", 16_000, 1000, 1024) < 90
    True
    """
    small, large = _measured().get(head, UNTIMED_HEAD_SECONDS)
    power = math.log(large / small) / math.log(LARGE_FIT_SIZE / SMALL_FIT_SIZE)
    return float(small * (max(shots * classes * width, 1) / SMALL_FIT_SIZE) ** power)


@dataclass(frozen=True)
class DataSetSize:
    """How large a data set is.

    Args:
        spec: as the person named it.
        classes: number of classes.
        train: pictures to draw shots from.
        test: test pictures; if the set is not divided, as many as there are.
        divided: whether they stand apart: then only the training pictures that are drawn are encoded.
        ready: whether it is on disk.
        missing: what is missing, else empty.
    """

    spec: str
    classes: int
    train: int
    test: int
    divided: bool
    ready: bool
    missing: str = ""


def find_size(spec: str, root: Path | None = None) -> DataSetSize:
    """Size of a data set; of a named one that is not on disk what its papers say.

    Raises:
        DataError: if there is no such data set.
    """
    if spec.startswith(FEATURES):
        bundle = load_feature_bundle(spec)
        assert bundle is not None
        tests = sum(len(part.features) for part in bundle.tests.values())
        divided = bool(bundle.tests)
        return DataSetSize(
            spec, len(bundle.text.labels), len(bundle.support), tests or len(bundle.support), divided, True
        )
    try:
        source = open_source(spec, root)
    except ClipAdapterError as error:
        if spec not in list_sets():
            raise
        known = create_set(spec)
        counts = known.counts
        return DataSetSize(
            spec, known.n_classes, counts.get("train", 0), counts.get("test", 0), True, False, str(error)
        )
    tests = len(source.train.samples) if source.test is None else len(source.test.samples)
    train, divided = len(source.train.samples), source.test is not None
    return DataSetSize(spec, len(source.train.class_names), train, tests, divided, True)


@dataclass(frozen=True)
class Estimate:
    """What a suite will cost.

    Args:
        sizes: of the data sets.
        fits: how many; streams of tasks, if they are what is fitted.
        pictures: how many pictures the encoders are shown, views included, if none is in the store.
        fit_seconds: of all fits, one after the other on two cores.
        encode_seconds: of the pictures, at `ENCODED_IMAGES_PER_SECOND`.
    """

    sizes: list[DataSetSize]
    fits: int
    pictures: int
    fit_seconds: float
    encode_seconds: float


def estimate(suite: Suite, data: Sequence[str], encoders: int, width: int = 512, root: Path | None = None) -> Estimate:
    """What a suite will cost on some data sets.

    Args:
        suite: the study.
        data: data sets as the person named them.
        encoders: how many.
        width: of their features.
        root: folder of the named data sets.

    Raises:
        DataError: if a data set is not known.
    """
    sizes = [_size(suite, spec, root) for spec in data]
    protocol = create_protocol(suite.protocol)
    fitted = sizes[:1] if protocol.combines_data_sets else sizes
    variants, fits, seconds = suite.all_variants(), 0, 0.0
    if suite.is_stream:
        fits, seconds = _streams(suite, sizes, encoders, width)
    for size in fitted if not suite.is_stream else ():
        for shots in suite.shots:
            repeats = len(suite.seeds) * encoders * len(suite.prompts) * protocol.fits_per_draw(suite)
            for variant in variants:
                # An epoch takes one view, however many there are.
                rows = min(shots * size.classes, size.train) * (suite.views if isinstance(suite.views, int) else 1)
                fits += repeats
                seconds += repeats * (
                    estimate_fit_seconds(variant.head, rows, size.classes, width) + OVERHEAD_SECONDS_PER_RUN
                )
    shots_per_class = len(suite.seeds) * sum(suite.shots)
    pictured = [size for size in sizes if not size.spec.startswith(FEATURES)]
    shots = 0
    for size in (size for size in fitted if size in pictured):
        # Of a set that is not divided all pictures are counted once as test pictures, and have all views.
        views = _views(suite, size)
        shots += min(size.train, shots_per_class * size.classes) * views if size.divided else size.train * (views - 1)
    pictures = encoders * (sum(size.test for size in pictured) + shots)
    return Estimate(sizes, fits, pictures, seconds, pictures / ENCODED_IMAGES_PER_SECOND)


def _views(suite: Suite, size: DataSetSize) -> int:
    """Views of each picture that shots are drawn from."""
    names = [str(i) for i in range(size.classes)]
    return plan_views(suite, (shots * names for shots in suite.shots)).count


def _size(suite: Suite, spec: str, root: Path | None) -> DataSetSize:
    """Size of a data set; of one that a stream names, but nobody has described, nothing is known before it is there."""
    try:
        return find_size(spec, root)
    except ClipAdapterError:
        if not suite.is_stream or spec not in suite.data:
            raise
        folder = data_root(root) / spec
        hint = f"put its pictures into {folder / 'train' / 'CLASS'} and {folder / 'test' / 'CLASS'}"
        return DataSetSize(spec, 0, 0, 0, True, False, f"'{spec}' is not ready: there is no folder {folder}; {hint}")


def _streams(suite: Suite, sizes: Sequence[DataSetSize], encoders: int, width: int) -> tuple[int, float]:
    """How many streams, and seconds of all their fits: joint ones grow with the tasks before."""
    tasks = sum(count_tasks(size.classes, suite.stream.classes_per_task) for size in sizes)
    classes = sum(size.classes for size in sizes)
    repeats = len(suite.seeds) * len(suite.stream.orders) * encoders * len(suite.prompts)
    streams, seconds = 0, 0.0
    for shots in suite.shots:
        views = suite.views if isinstance(suite.views, int) else 1
        rows = sum(min(shots * size.classes, size.train) for size in sizes) * views
        for variant in suite.all_variants():
            joint = choose_mode(variant.title, make_head(variant), variant.mode) == "joint"
            fractions = [(t + 1) / tasks if joint else 1 / tasks for t in range(tasks)]
            stream_seconds = sum(
                estimate_fit_seconds(variant.head, round(rows * fraction), classes, width) for fraction in fractions
            )
            streams += repeats
            seconds += repeats * (stream_seconds + OVERHEAD_SECONDS_PER_RUN * tasks)
    return streams, seconds
