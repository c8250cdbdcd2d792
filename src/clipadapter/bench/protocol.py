"""The few-shot protocol: the same drawn shots for every head, and a test part that is opened after `fit` only.

Shots are drawn as in the papers (``data.draw_shots``); a head sees no other labelled picture.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from sklearn.base import clone
from tqdm import tqdm

from clipadapter.bench.run import (
    DataPart,
    EncoderPart,
    Flags,
    Run,
    Seconds,
    append_runs,
    digest,
    library_versions,
    read_runs,
    this_machine,
)
from clipadapter.bench.score import check_labels, score
from clipadapter.data import draw_shots
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import ClassText, Head, create_head, head_info, list_heads

BASELINES = ("zero-shot", "linear-probe")
"""What always stands beside a head."""


def default_heads() -> dict[str, Head]:
    """A new one of every registered head, the baselines first; ``@register_head(..., compare=False)`` keeps one out."""
    names = [name for name in list_heads() if head_info(name).facts.get("compare", True)]
    first = [name for name in BASELINES if name in names]
    return {name: create_head(name) for name in [*first, *(name for name in names if name not in first)]}


def few_shot(
    heads: Mapping[str, Head],
    support: FeatureSet,
    test: FeatureSet | None,
    text: ClassText,
    shots: Sequence[int],
    seeds: Sequence[int],
    *,
    records: str | Path | None = None,
    progress: bool = False,
) -> list[Run]:
    """Fit and measure every head on the same shots.

    For each number of shots and each seed, rows are drawn once; a clone of each head is fitted to them, and only
    then measured. A head that has a parameter ``seed`` gets the seed of the draw. A head that fails costs its own
    run only: the record says why.

    Args:
        heads: by the name that tables show; they stay unfitted.
        support: what the shots are drawn from.
        test: the test part; None makes it, for each draw, the rows that were not drawn.
        text: class text of all classes.
        shots: shots a class; a class with fewer rows gives all it has.
        seeds: of the draws.
        records: JSONL file; a run that stands in it is taken from there, a new one is appended as soon as it is done.
        progress: show a bar on stderr.

    Returns:
        A record for each number of shots, seed and head, in this order.

    Raises:
        InputError: if there is nothing to run, labels or widths do not go together, or no row is left to test on.
        DataError: if the file of records is damaged.

    >>> from clipadapter.heads.zero_shot import ZeroShot
    >>> text = ClassText(["cat", "dog"], [[1, 0], [0, 1]])
    >>> features = FeatureSet([[1, 0], [2, 1], [0, 1], [1, 2]], ("cat", "cat", "dog", "dog"), ("cat", "dog"))
    >>> run, = few_shot({"zero-shot": ZeroShot()}, features, None, text, shots=[1], seeds=[1])
    >>> run.n_test, run.metrics.accuracy
    (2, 1.0)
    """
    _check(heads, support, test, text, shots, seeds)
    known = {run.key: run for run in _known(records) if run.error is None}
    facts = _facts(support, test, text)
    runs = []
    total = len(heads) * len(shots) * len(seeds)
    with tqdm(total=total, desc="runs", unit="run", disable=not progress) as bar:
        for name, head, n, seed, rows in _plan(heads, support, shots, seeds):
            bar.set_postfix_str(f"{name}, {n} shots")
            run = _planned(name, head, facts, n, seed, rows)
            done = known.get(run.key)
            if done is None:
                done = _perform(run, head, support, test, text)
                if records is not None:
                    append_runs(records, [done])
            runs.append(done)
            bar.update()
    return runs


def _check(
    heads: Mapping[str, Head],
    support: FeatureSet,
    test: FeatureSet | None,
    text: ClassText,
    shots: Sequence[int],
    seeds: Sequence[int],
) -> None:
    if not heads or not shots or not seeds:
        raise InputError("there is nothing to run: give at least one head, one number of shots and one seed")
    if min(shots) < 1:
        raise InputError(f"shots must be 1 or more, but are {', '.join(map(str, shots))}")
    missing = sorted(set(support.y) - set(text.labels))
    if missing:
        raise InputError(f"these labels have no class text: {', '.join(missing[:5])}")
    if test is not None:
        check_labels(test.y, text.labels)
    widths = {"shots": support, "test pictures": test}
    expected = text.embeddings.shape[1]
    for name, features in widths.items():
        if features is None:
            continue
        wide = str(features.provenance.get("encoder")).startswith("pair:") and features.X.shape[-1] > expected
        if features.X.shape[-1] != expected and not wide:
            raise InputError(
                f"features of the {name} have width {features.X.shape[-1]} but class text has width "
                f"{expected}: were they made by the same encoder?"
            )


def seen_by(head: Head, features: FeatureSet, text: ClassText) -> FeatureSet:
    """What a head gets of the features: one for two encoders all columns, any other those that go with the text."""
    if head.two_encoders:
        return features
    return replace(features, X=features.X[..., : text.embeddings.shape[1]])


def _known(records: str | Path | None) -> list[Run]:
    return read_runs(records) if records is not None and Path(records).is_file() else []


def _plan(
    heads: Mapping[str, Head], support: FeatureSet, shots: Sequence[int], seeds: Sequence[int]
) -> Iterator[tuple[str, Head, int, int, list[int]]]:
    """(name, unfitted clone, shots, seed, rows) of each run; the rows are drawn once for all heads."""
    for n in shots:
        for seed in seeds:
            rows = draw_shots(support.y, n, seed)
            for name, head in heads.items():
                own = clone(head)
                if "seed" in own.get_params(deep=False):
                    own.set_params(seed=seed)
                yield name, own, n, seed, rows


@dataclass(frozen=True)
class _Facts:
    """What all runs of one call have in common."""

    encoder: EncoderPart
    data: DataPart
    templates: list[str]
    text: str
    n_classes: int
    n_support: int
    n_test: int | None


def _facts(support: FeatureSet, test: FeatureSet | None, text: ClassText) -> _Facts:
    given, came = support.provenance, (support if test is None else test).provenance
    parts: list[bytes | Sequence[str]] = []
    for features in (support, *([] if test is None else [test])):
        parts += [np.ascontiguousarray(features.X).tobytes(), features.y]
    return _Facts(
        EncoderPart(name=str(given.get("encoder", "unknown")), fingerprint=str(given.get("fingerprint", ""))),
        DataPart(
            support=str(given.get("data", "unnamed")),
            test=str(came.get("data", "unnamed")),
            protocol="rest" if test is None else "given",
            digest=digest(*parts),
        ),
        [str(template) for template in given.get("templates", ())],
        digest(text.labels, text.embeddings.tobytes(), [repr(text.logit_scale), repr(text.logit_bias)]),
        len(text.labels),
        len(support),
        None if test is None else len(test),
    )


def _planned(name: str, head: Head, facts: _Facts, shots: int, seed: int, rows: list[int]) -> Run:
    """The record of a run before it is made."""
    params = head.get_params(deep=False)
    plain = {key: v if v is None or isinstance(v, bool | int | float | str) else repr(v) for key, v in params.items()}
    return Run(
        head=name,
        params=plain,
        encoder=facts.encoder,
        data=facts.data,
        templates=facts.templates,
        text=facts.text,
        shots=shots,
        seed=seed,
        rows=rows,
        flags=Flags(transductive=head.transductive),
        code=_code(type(head)),
        versions=library_versions(),
        n_classes=facts.n_classes,
        n_test=facts.n_support - len(rows) if facts.n_test is None else facts.n_test,
        machine=this_machine(),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _perform(run: Run, head: Head, support: FeatureSet, test: FeatureSet | None, text: ClassText) -> Run:
    if test is None:
        drawn = set(run.rows)
        test = support.take([row for row in range(len(support)) if row not in drawn]).seal()
        check_labels(test.y, text.labels)
    own, test = (seen_by(head, features, text) for features in (support.take(run.rows), test))
    try:
        start = time.perf_counter()
        head.fit(own.X, own.y, text=text, unlabelled=test.plain if head.transductive else None)
        fitted = time.perf_counter() - start
        found = score(head, test)
    except Exception as error:  # any head, a plug-in's too: one that fails must not cost the others their run
        return run.model_copy(update={"error": f"{type(error).__name__}: {error}"})
    return run.model_copy(
        update={
            "seconds": Seconds(fit=fitted, predict=found.seconds),
            "metrics": found.metrics,
            "learned": _learned(head),
            "machine": this_machine(),
        }
    )


def _learned(head: Head) -> dict[str, float]:
    """Numbers among what was learned."""
    found = {key: value for key, value in vars(head).items() if key.endswith("_") and key != "n_features_in_"}
    return {key: float(v) for key, v in found.items() if isinstance(v, int | float) and np.isfinite(v)}


def registered_name(head: Head) -> str:
    """The name that the head is registered by; its class's name if it is not."""
    return next((name for name in list_heads() if head_info(name).cls is type(head)), type(head).__name__)


@cache
def _code(cls: type[Head]) -> str:
    """Hash of the source that a figure depends on: a changed head is another run."""
    here = Path(__file__).parent
    files = [here / "protocol.py", here / "score.py", here.parent / "functional.py", here.parent / "metrics.py"]
    own = getattr(sys.modules.get(cls.__module__), "__file__", None)
    files += sorted({*(here.parent / "heads").glob("*.py"), *([Path(own)] if own else [])})
    return digest(*(file.read_bytes() for file in files))
