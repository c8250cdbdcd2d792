"""Estimates of the cost of a suite, before anything is computed."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from clipadapter.bench.continual.learning import choose_mode
from clipadapter.bench.continual.orders import count_tasks
from clipadapter.bench.plan import plan_views
from clipadapter.bench.protocols import create_protocol
from clipadapter.bench.sources import FEATURES, DataSetSize, find_size
from clipadapter.bench.suite import Suite, make_head
from clipadapter.data.sets import data_root
from clipadapter.errors import ClipAdapterError
from clipadapter.heads import Head
from clipadapter.tuners.prompt_tuner import PromptTuner

if TYPE_CHECKING:
    from clipadapter.bench.protocols.base import Protocol

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SMALL_FIT_SIZE, LARGE_FIT_SIZE = 1600 * 100 * 512, 16_000 * 1000 * 1024
"""Shots x classes x width of the two sizes at which fits were timed."""
UNTIMED_HEAD_SECONDS = (2.0, 60.0)
"""Seconds at the two sizes for a head that was not timed."""
ENCODED_IMAGES_PER_SECOND = 25.0
"""Pictures per second of a small encoder on two cores; a GPU encodes hundreds to thousands."""
TRAINED_TOKENS_PER_SECOND = {"lite": 1200.0}
"""Tokens per second through the text tower of an encoder and back, on two cores: fits of CoOp to 10 and 50 classes."""
TRAINED_TOKENS_PER_SECOND_OF_CLIP = 230.0
"""The same for all other encoders: that of the text tower of CLIP ViT-B/32."""
OVERHEAD_SECONDS_PER_RUN = 0.1
"""Seconds of a run besides its fit: measuring and writing."""


@cache
def _measured() -> dict[str, list[float]]:
    return tomllib.loads((files("clipadapter.bench") / "costs.toml").read_text(encoding="utf-8"))


def estimate_fit_seconds(head: str, shots: int, classes: int, width: int) -> float:
    """Seconds of one fit on two cores, by a power law through the two timed sizes.

    Args:
        head: registered name.
        shots: of all classes together.
        classes: number of classes.
        width: of the features.

    >>> 30 < estimate_fit_seconds("auto", 16_000, 1000, 1024) < 90
    True
    """
    small, large = _measured().get(head, UNTIMED_HEAD_SECONDS)
    power = math.log(large / small) / math.log(LARGE_FIT_SIZE / SMALL_FIT_SIZE)
    return float(small * (max(shots * classes * width, 1) / SMALL_FIT_SIZE) ** power)


def estimate_tower_seconds(head: Head, shots: int, classes: int, predictions: int, encoder: str) -> float:
    """Seconds that one fit and its predictions spend in the text tower, on two cores; 0 for most heads.

    Args:
        head: unfitted.
        shots: per class.
        classes: number of classes.
        predictions: number of test pictures.
        encoder: as the user named it.

    >>> from clipadapter.heads import create_head
    >>> estimate_tower_seconds(create_head("knn"), 16, 100, 1000, "lite")
    0.0
    >>> 20 < estimate_tower_seconds(create_head("coop"), 4, 10, 100, "lite") < 60  # 100 epochs of 2 steps of 10 prompts
    True
    """
    if not isinstance(head, PromptTuner):
        return 0.0
    rate = TRAINED_TOKENS_PER_SECOND.get(encoder, TRAINED_TOKENS_PER_SECOND_OF_CLIP)
    return head.planned_tower_tokens(shots, classes, predictions) / rate


@dataclass(frozen=True)
class Estimate:
    """The cost of a suite.

    Args:
        sizes: of the data sets.
        fits: number of fits; of streams of tasks for a suite of streams.
        fits_are_upper_bound: whether there may be fewer fits, since they depend on a data set that is not on disk.
        pictures: number of pictures to encode, views included, if none is in the feature store.
        fit_seconds: of all fits, one after the other on two cores.
        encode_seconds: of the pictures, at `ENCODED_IMAGES_PER_SECOND`.
    """

    sizes: list[DataSetSize]
    fits: int
    fits_are_upper_bound: bool
    pictures: int
    fit_seconds: float
    encode_seconds: float


def estimate(
    suite: Suite, data: Sequence[str], encoders: Sequence[str], width: int = 512, root: Path | None = None
) -> Estimate:
    """Estimate the cost of a suite on some data sets.

    Args:
        suite: the suite.
        data: data sets as the user named them.
        encoders: as the user named them.
        width: of their features.
        root: folder of the named data sets.

    Raises:
        DataError: if a data set is unknown.
    """
    sizes = [_size(suite, spec, root) for spec in data]
    protocol = create_protocol(suite.protocol, suite.options)
    used = [protocol.used_size(size) for size in sizes]
    groups = [used] if protocol.combines_data_sets else [[size] for size in used]
    if suite.is_stream:
        fits, seconds = _streams(suite, used, encoders, width)
    else:
        fits, seconds = _fits(suite, protocol, groups, encoders, width)
    shots_per_class = len(suite.seeds) * sum(suite.shots)
    pictured = [size for size in used if not size.spec.startswith(FEATURES)]
    shots = 0
    for size in (first for first, *_ in groups if first in pictured):
        # All pictures of an undivided set were counted once as test pictures, and all have views.
        views = _views(suite, size)
        shots += min(size.train, shots_per_class * size.classes) * views if size.divided else size.train * (views - 1)
    pictures = len(encoders) * (sum(size.test for size in pictured) + shots)
    return Estimate(
        sizes=sizes,
        fits=fits,
        fits_are_upper_bound=protocol.fits_depend_on_class_sizes and any(size.smallest_class is None for size in used),
        pictures=pictures,
        fit_seconds=seconds,
        encode_seconds=pictures / ENCODED_IMAGES_PER_SECOND,
    )


def _views(suite: Suite, size: DataSetSize) -> int:
    """Views of each picture that shots are drawn from."""
    names = [str(i) for i in range(size.classes)]
    return plan_views(suite, (shots * names for shots in suite.shots)).count


def _size(suite: Suite, spec: str, root: Path | None) -> DataSetSize:
    """Size of a data set; 0 for one that a stream names, that is not on disk, and that has no description."""
    try:
        return find_size(spec, root)
    except ClipAdapterError:
        if not suite.is_stream or spec not in suite.data:
            raise
        folder = data_root(root) / spec
        hint = f"put its pictures into {folder / 'train' / 'CLASS'} and {folder / 'test' / 'CLASS'}"
        return DataSetSize(spec, 0, 0, 0, True, False, f"'{spec}' is not ready: there is no folder {folder}; {hint}")


def _fits(
    suite: Suite, protocol: Protocol, groups: Sequence[Sequence[DataSetSize]], encoders: Sequence[str], width: int
) -> tuple[int, float]:
    """The number of fits, and their seconds; each group of data sets is fitted together."""
    heads = [(variant, make_head(variant)) for variant in suite.all_variants()]
    draws = len(suite.seeds) * len(suite.prompts)
    fits, seconds = 0, 0.0
    for group in groups:
        size = group[0]
        for variant, head in heads:
            n = draws * protocol.fits_per_draw(group, head.transductive)
            for shots in suite.shots:
                # An epoch takes one view, however many there are.
                rows = min(shots * size.classes, size.train) * (suite.views if isinstance(suite.views, int) else 1)
                fits += n * len(encoders)
                tests = sum(one.test for one in group)
                for encoder in encoders:
                    own_shots = min(shots, size.train // max(size.classes, 1))
                    tower_seconds = estimate_tower_seconds(head, own_shots, size.classes, tests, encoder)
                    seconds += n * (
                        (tower_seconds or estimate_fit_seconds(variant.head, rows, size.classes, width))
                        + OVERHEAD_SECONDS_PER_RUN
                    )
    return fits, seconds


def _streams(suite: Suite, sizes: Sequence[DataSetSize], encoders: Sequence[str], width: int) -> tuple[int, float]:
    """The number of streams, and seconds of all their fits; joint fits grow with the number of tasks."""
    tasks = sum(count_tasks(size.classes, suite.stream.classes_per_task) for size in sizes)
    classes = sum(size.classes for size in sizes)
    repeats = len(suite.seeds) * len(suite.stream.orders) * len(suite.prompts)
    streams, seconds = 0, 0.0
    for shots in suite.shots:
        views = suite.views if isinstance(suite.views, int) else 1
        rows = sum(min(shots * size.classes, size.train) for size in sizes) * views
        for variant in suite.all_variants():
            head = make_head(variant)
            joint = choose_mode(variant.title, head, variant.mode) == "joint"
            fractions = [(t + 1) / tasks if joint else 1 / tasks for t in range(tasks)]
            tests = sum(size.test for size in sizes)
            for encoder in encoders:
                stream_seconds = sum(
                    estimate_tower_seconds(head, rows // max(classes, 1), round(classes * fraction), tests, encoder)
                    or estimate_fit_seconds(variant.head, round(rows * fraction), classes, width)
                    for fraction in fractions
                )
                seconds += repeats * (stream_seconds + OVERHEAD_SECONDS_PER_RUN * tasks)
            streams += repeats * len(encoders)
    return streams, seconds
