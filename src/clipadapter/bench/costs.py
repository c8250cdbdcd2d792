"""What a suite costs, and why it can't run: known before anything is computed, for a dry run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from clipadapter.bench.protocols.base import create_protocol
from clipadapter.bench.sources import FEATURES, AnySource, DataSetSize, open_source, plan_views, with_pictures
from clipadapter.bench.suite import Suite, make_head
from clipadapter.data import get_templates
from clipadapter.data.sets import data_root, get_set, list_sets
from clipadapter.encoders import check_encoder
from clipadapter.errors import ClipAdapterError
from clipadapter.heads import Head
from clipadapter.tuners.prompt_tuner import PromptTuner
from clipadapter.utils.parsing import parse_toml

SMALL_FIT_SIZE, LARGE_FIT_SIZE = 1600 * 100 * 512, 16_000 * 1000 * 1024
"""Shots x classes x width of the two sizes at which fits were timed."""
MEASURED_SECONDS = parse_toml((files("clipadapter.bench") / "costs.toml").read_text(encoding="utf-8"), "costs.toml")
UNTIMED_HEAD_SECONDS = (2.0, 60.0)  # seconds at the two sizes for a head that was not timed
ENCODED_IMAGES_PER_SECOND = 25.0
"""Pictures per second of a small encoder on two cores; a GPU encodes hundreds to thousands."""
TRAINED_TOKENS_PER_SECOND = {"lite": 1200.0}
"""Tokens per second through the text tower of an encoder and back, on two cores: fits of CoOp to 10 and 50 classes."""
TRAINED_TOKENS_PER_SECOND_OF_CLIP = 230.0  # the same for all other encoders: that of the text tower of CLIP ViT-B/32
FEATURE_WIDTH = 512  # numbers of a feature, as of CLIP ViT-B
OVERHEAD_SECONDS_PER_RUN = 0.1  # seconds of a run besides its fit: measuring and writing


def estimate_fit_seconds(head: str, shots: int, classes: int, width: int) -> float:
    """Seconds of one fit to all shots on two cores, by a power law through the two timed sizes."""
    small, large = MEASURED_SECONDS.get(head, UNTIMED_HEAD_SECONDS)
    power = math.log(large / small) / math.log(LARGE_FIT_SIZE / SMALL_FIT_SIZE)
    return float(small * (max(shots * classes * width, 1) / SMALL_FIT_SIZE) ** power)


def estimate_tower_seconds(head: Head, shots: int, classes: int, predictions: int, encoder: str) -> float:
    """Seconds that one fit to some shots per class and its predictions spend in the text tower; 0 for most heads.

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


# ---- The cost of a suite ----


@dataclass(frozen=True)
class Estimate:
    """The cost of a suite."""

    sizes: list[DataSetSize]
    sources: list[AnySource]  # the data sets; only those that are on disk
    fits: int  # of streams of tasks for a suite of streams; there are fewer if a class has fewer pictures than folds
    pictures: int  # to encode, views included, if none is in the feature store
    fit_seconds: float  # of all fits, one after the other on two cores

    @property
    def encode_seconds(self) -> float:
        """Seconds to encode the pictures at `ENCODED_IMAGES_PER_SECOND`."""
        return self.pictures / ENCODED_IMAGES_PER_SECOND


def _missing_size(suite: Suite, spec: str, root: Path | None, error: ClipAdapterError) -> DataSetSize:
    """The size that the papers state of a data set that is not on disk; 0 for one that only a stream names."""
    if spec in list_sets():
        known = get_set(spec)
        train, test = (known.counts.get(part, 0) for part in ("train", "test"))
        return DataSetSize(spec, known.n_classes, train, test, True, False, str(error))
    if not suite.is_stream or spec not in suite.data or spec.startswith(FEATURES):
        raise error
    folder = data_root(root) / spec
    hint = f"put its pictures into {folder / 'train' / 'CLASS'} and {folder / 'test' / 'CLASS'}"
    return DataSetSize(spec, 0, 0, 0, True, False, f"'{spec}' is not ready: there is no folder {folder}; {hint}")


def estimate(suite: Suite, data: Sequence[str], encoders: Sequence[str], root: Path | None = None) -> Estimate:
    """Open data sets, and estimate the cost of a suite on them and encoders."""
    sizes, sources = list[DataSetSize](), list[AnySource]()
    for spec in data:
        try:
            sources.append(open_source(spec, root))
            sizes.append(sources[-1].size)
        except ClipAdapterError as error:
            sizes.append(_missing_size(suite, spec, root, error))
    protocol = create_protocol(suite.protocol, suite.options)
    used = [replace(one, test=one.train, divided=False) for one in sizes] if protocol.tests_all_pictures else sizes
    draws = len(suite.seeds) * len(suite.prompts) * (len(suite.stream.orders) if suite.is_stream else 1)
    # An epoch takes one view, however many there are.
    views = suite.views if isinstance(suite.views, int) else 1
    heads = [(variant, make_head(variant)) for variant in suite.all_variants()]
    fits, seconds = 0, 0.0
    for group in [used] if protocol.combines_data_sets or suite.is_stream else [[size] for size in used]:
        givers = group if suite.is_stream else group[:1]
        classes, tests = sum(size.classes for size in givers), sum(size.test for size in group)
        for variant, head in heads:
            fractions = protocol.fits_of_draw(suite, group, variant, head)
            fits += draws * len(suite.shots) * len(encoders) * (1 if suite.is_stream else len(fractions))
            for shots, encoder, fraction in product(suite.shots, encoders, fractions):
                rows = sum(min(shots * size.classes, size.train) for size in givers)
                own_classes = round(classes * fraction)
                tower_seconds = estimate_tower_seconds(head, rows // max(classes, 1), own_classes, tests, encoder)
                own_rows = round(rows * views * fraction)
                fit_seconds = tower_seconds or estimate_fit_seconds(variant.head, own_rows, classes, FEATURE_WIDTH)
                seconds += draws * (fit_seconds + OVERHEAD_SECONDS_PER_RUN)
    return Estimate(
        sizes=sizes,
        sources=sources,
        fits=fits,
        pictures=len(encoders) * _count_pictures(suite, used, used[:1] if protocol.combines_data_sets else used),
        fit_seconds=seconds,
    )


def _count_pictures(suite: Suite, sizes: Sequence[DataSetSize], givers: Sequence[DataSetSize]) -> int:
    """Test pictures of all data sets, and those that shots are drawn from in all their views."""
    count = sum(size.test for size in sizes if not size.spec.startswith(FEATURES))
    for size in (size for size in givers if not size.spec.startswith(FEATURES)):
        names = [str(i) for i in range(size.classes)]
        views = plan_views(suite, (shots * names for shots in suite.shots)).count
        shots = len(suite.seeds) * sum(suite.shots) * size.classes
        # All pictures of an undivided set were counted once as test pictures, and all have views.
        count += min(size.train, shots) * views if size.divided else size.train * (views - 1)
    return count


def find_problems(suite: Suite, cost: Estimate, encoders: Sequence[str], has_descriptions: bool = False) -> list[str]:
    """A sentence for each reason why a suite can't run, with what to do. No weights are loaded or downloaded."""
    problems = list(dict.fromkeys(size.missing for size in cost.sizes if not size.ready))
    if not problems:
        problems += _reasons(create_protocol(suite.protocol, suite.options).check_sources, suite, cost.sources)
    for variant in suite.all_variants():
        problems += [f"{variant.title}: {reason}" for reason in _reasons(make_head(variant).check_parameters)]
    if any(prompts.descriptions for prompts in suite.prompts) and not has_descriptions:
        problems.append("the suite compares descriptions: give them with --descriptions FILE")
    for templates in {str(prompts.templates): prompts.templates for prompts in suite.prompts}.values():
        problems += [] if templates == "own" else _reasons(get_templates, templates)
    if with_pictures(cost.sources):
        for uri in encoders:
            problems += _reasons(check_encoder, uri)
    return problems


def _reasons(check: Callable[..., object], *arguments: Any) -> list[str]:
    """The error of a check, if it raises one."""
    try:
        check(*arguments)
    except ClipAdapterError as error:
        return [str(error)]
    return []
