"""Why a suite can't run: found before any feature is computed, and reported by a dry run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipadapter.bench.protocols import create_protocol
from clipadapter.bench.sources import FEATURES, DataSetSize, open_source
from clipadapter.bench.suite import Suite, make_head
from clipadapter.data import get_templates
from clipadapter.encoders import check_encoder
from clipadapter.errors import ClipAdapterError


def find_problems(
    suite: Suite,
    sizes: Sequence[DataSetSize],
    encoders: Sequence[str],
    root: Path | None = None,
    has_descriptions: bool = False,
) -> list[str]:
    """Find why a suite can't run. Unknown heads and names of parameters are refused by `estimate` already.

    Args:
        suite: the suite.
        sizes: of the data sets.
        encoders: URIs. Their weights are neither loaded nor downloaded.
        root: folder of the named data sets.
        has_descriptions: whether sentences by class were given.

    Returns:
        A sentence for each problem, with what to do; empty if the suite can run.
    """
    problems = list(dict.fromkeys(size.missing for size in sizes if not size.ready))
    if not problems:
        sources = [size.spec if size.spec.startswith(FEATURES) else open_source(size.spec, root) for size in sizes]
        problems += _reasons(create_protocol(suite.protocol).check_sources, suite, sources)
    for variant in suite.all_variants():
        problems += [f"{variant.title}: {reason}" for reason in _reasons(make_head(variant).check_parameters)]
    if any(prompts.descriptions for prompts in suite.prompts) and not has_descriptions:
        problems.append("the suite compares descriptions: give them with --descriptions FILE")
    for templates in {str(prompts.templates): prompts.templates for prompts in suite.prompts}.values():
        problems += [] if templates == "own" else _reasons(get_templates, templates)
    if not all(size.spec.startswith(FEATURES) for size in sizes):
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
