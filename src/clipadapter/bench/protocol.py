"""The few-shot protocol: the same drawn shots for every head, and a test part that is opened after `fit` only.

Shots are drawn as in the papers (``data.draw_shots``); a head sees no other labelled picture.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from tqdm import tqdm

from clipadapter.bench.bundle import Bundle, TestPart, own_views, seen_by
from clipadapter.bench.run import Flags, Run, Seconds, append_runs, digest, library_versions, read_runs, this_machine
from clipadapter.bench.score import Score, score
from clipadapter.data import draw_shots
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, TextFeatures, create_head, head_info, list_heads

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
    text: TextFeatures,
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
    >>> text = TextFeatures(["cat", "dog"], [[1, 0], [0, 1]])
    >>> features = FeatureSet([[1, 0], [2, 1], [0, 1], [1, 2]], ("cat", "cat", "dog", "dog"), ("cat", "dog"))
    >>> run, = few_shot({"zero-shot": ZeroShot()}, features, None, text, shots=[1], seeds=[1])
    >>> run.n_test, run.metrics.accuracy
    (2, 1.0)
    """
    bundle = Bundle(support, text, {} if test is None else {"test": TestPart(test)})
    return run_all(bundle, heads, shots, seeds, perform, records=records, progress=progress)


def run_all(
    bundle: Bundle,
    heads: Mapping[str, Head],
    shots: Sequence[int],
    seeds: Sequence[int],
    make: Callable[[Bundle, Head, Sequence[Run]], list[Run]],
    *,
    records: str | Path | None = None,
    progress: bool = False,
) -> list[Run]:
    """`few_shot` of a bundle with one test part, each fit made by a function such as `perform`."""
    if not heads or not shots or not seeds:
        raise InputError("there is nothing to run: give at least one head, one number of shots and one seed")
    if min(shots) < 1:
        raise InputError(f"shots must be 1 or more, but are {', '.join(map(str, shots))}")
    known = {run.key: run for run in read_known(records) if run.error is None}
    runs = []
    total = len(heads) * len(shots) * len(seeds)
    with tqdm(total=total, desc="runs", unit="run", disable=not progress) as bar:
        for name, head, n, seed, rows in _draws(heads, bundle.support, shots, seeds):
            bar.set_postfix_str(f"{name}, {n} shots")
            (run,) = planned(bundle, name, head, n, seed, rows)
            done = known.get(run.key)
            if done is None:
                (done,) = make(bundle, head, [run])
                if records is not None:
                    append_runs(records, [done])
            runs.append(done.model_copy(update={"head": name}))
            bar.update()
    return runs


def read_known(records: str | Path | None) -> list[Run]:
    """The runs of a JSONL file; none if there is no such file yet."""
    return read_runs(records) if records is not None and Path(records).is_file() else []


def _draws(
    heads: Mapping[str, Head], support: FeatureSet, shots: Sequence[int], seeds: Sequence[int]
) -> Iterator[tuple[str, Head, int, int, list[int]]]:
    """(name, unfitted clone, shots, seed, rows) of each fit; the rows are drawn once for all heads."""
    for n in shots:
        for seed in seeds:
            rows = draw_shots(support.y, n, seed)
            for name, head in heads.items():
                yield name, seeded(head, seed), n, seed, rows


def seeded(head: Head, seed: int) -> Head:
    """An unfitted clone; it takes the seed of the draw if it has a parameter for one."""
    own = clone(head)
    if "seed" in own.get_params(deep=False):
        own.set_params(seed=seed)
    return own


def planned(bundle: Bundle, label: str, head: Head, shots: int, seed: int, rows: Sequence[int]) -> list[Run]:
    """The records of one fit before it is made, one for each test part.

    Args:
        bundle: features and class text.
        label: what tables call the head.
        head: unfitted.
        shots: shots a class.
        seed: of the draw.
        rows: the drawn rows of the support.
    """
    shared = shared_facts(bundle, label, head, shots, seed, rows)
    return [
        Run(
            **shared,
            data=bundle.data(name, rows),
            text=bundle.text_digest(name),
            n_classes=bundle.n_classes(name),
            n_test=bundle.n_test(name, len(rows)),
        )
        for name in bundle.names
    ]


def shared_facts(
    bundle: Bundle, label: str, head: Head, shots: int, seed: int, rows: Sequence[int], code: Sequence[str] = ()
) -> dict[str, Any]:
    """What the records of one fit have in common, whatever it is measured on.

    Args:
        bundle: as for `planned`.
        label: as for `planned`.
        head: as for `planned`.
        shots: as for `planned`.
        seed: as for `planned`.
        rows: as for `planned`.
        code: files of this folder that shape the figures, beside those that always do.
    """
    params = head.get_params(deep=False)
    plain = {key: v if v is None or isinstance(v, bool | int | float | str) else repr(v) for key, v in params.items()}
    return {
        "head": label,
        "method": registered_name(head),
        "params": plain,
        "encoder": bundle.encoder,
        "templates": bundle.templates,
        "shots": shots,
        "seed": seed,
        "rows": list(rows),
        "flags": Flags(transductive=head.transductive),
        "code": _code(type(head), *code),
        "versions": library_versions(),
        "machine": this_machine(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def perform(bundle: Bundle, head: Head, runs: Sequence[Run]) -> list[Run]:
    """Fit a head once and measure it on the test parts of the planned runs, in the order of the bundle's parts.

    A head that fails gives records that say why. A transductive head is fitted anew for each test part.

    Args:
        bundle: features and class text.
        head: unfitted.
        runs: planned runs of one fit; see `planned`.

    Raises:
        InputError: if no row is left to test on.
    """
    names = {bundle.data(name, runs[0].rows): name for name in bundle.names}
    own = own_views(head, seen_by(head, bundle.shots(runs[0].rows), bundle.text))
    fitted: tuple[Head, float] | None = None
    done = []
    for run in runs:
        part = bundle.test(names[run.data], run.rows)
        try:
            seen = seen_by(head, part.features, part.text or bundle.text)
            if fitted is None or head.transductive:
                start = time.perf_counter()
                made = clone(head).fit(
                    own.X, own.y, text=bundle.text, unlabelled=seen.plain if head.transductive else None
                )
                fitted = made, time.perf_counter() - start
            done.append(measured(run, fitted, part, seen))
        except Exception as error:  # any head, a plug-in's too: one that fails must not cost the others their run
            done.append(failed(run, error))
    return done


def measured(run: Run, fitted: tuple[Head, float], part: TestPart, seen: FeatureSet) -> Run:
    """The record of a planned run whose head was fitted.

    Args:
        run: planned.
        fitted: the head, and how many seconds its fit took.
        part: the test part.
        seen: what the head gets of its features.
    """
    head, seconds = fitted
    found: Score = score(head if part.text is None else head.for_classes(part.text), seen, among=_among(part))
    return run.model_copy(
        update={
            "seconds": Seconds(fit=seconds, predict=found.seconds),
            "metrics": found.metrics,
            "learned": _learned(head),
            "size": numbers_kept(head),
            "machine": this_machine(),
        }
    )


def numbers_kept(head: Head) -> int:
    """How many numbers a fitted head keeps."""
    return sum(int(value.size) for value in head.state().values())


def failed(run: Run, error: BaseException) -> Run:
    """The record of a planned run that gave no figure, with the reason."""
    return run.model_copy(update={"error": f"{type(error).__name__}: {error}"})


def _among(part: TestPart) -> Sequence[str] | None:
    """The classes that a shifted test part has: a head chooses among these alone."""
    return part.features.class_names if part.kind == "shift" else None


def _learned(head: Head) -> dict[str, float]:
    """Numbers among what was learned."""
    found = {key: value for key, value in vars(head).items() if key.endswith("_") and key != "n_features_in_"}
    return {key: float(v) for key, v in found.items() if isinstance(v, int | float) and np.isfinite(v)}


def registered_name(head: Head) -> str:
    """The name that the head is registered by; its class's name if it is not."""
    return next((name for name in list_heads() if head_info(name).cls is type(head)), type(head).__name__)


@cache
def _code(cls: type[Head], *more: str) -> str:
    """Hash of the source that a figure depends on: a changed head is another run."""
    here = Path(__file__).parent
    files = [
        here / "bundle.py",
        here / "protocol.py",
        here / "score.py",
        here.parent / "functional.py",
        here.parent / "metrics" / "evaluation.py",
        *(here / name for name in more),
    ]
    own = getattr(sys.modules.get(cls.__module__), "__file__", None)
    tuners = [*(here.parent / "tuners").glob("*.py"), here / "tuned.py"] if ".tuners." in cls.__module__ else ()
    files += sorted({*(here.parent / "heads").rglob("*.py"), *tuners, *([Path(own)] if own else [])})
    return digest(*(file.read_bytes() for file in files))
