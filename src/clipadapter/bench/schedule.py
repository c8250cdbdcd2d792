"""The fits of a protocol, and the loop over those that have no record yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from tqdm import tqdm

from clipadapter.bench.bundle import Bundle
from clipadapter.bench.fits import Draw, Fit, record_failure
from clipadapter.bench.launcher import Launcher, WorkerDiedError
from clipadapter.bench.protocols.base import Protocol
from clipadapter.bench.run import Run, append_runs, read_existing_runs
from clipadapter.errors import InputError
from clipadapter.heads import Head
from clipadapter.heads.estimator import clone
from clipadapter.utils.formatting import format_count


@dataclass
class Outcome:
    """What `make_missing` or `run_suite` did."""

    runs: list[Run] = field(default_factory=list)  # of all fits, in their order and with the labels of this call
    n_made: int = 0  # those of failed fits were made again
    n_existing: int = 0  # not made, because all records of their fit are successful
    n_failed: int = 0  # of those made
    seconds: float = 0.0  # from the first fit to the last
    figures: list[Path] = field(default_factory=list)  # plots of features, if a suite has any


def plan_fits(protocol: Protocol, bundle: Bundle, heads: Mapping[str, Head], draws: Sequence[Draw]) -> list[Fit]:
    """A fit of every head to every draw. The parameter ``seed`` of a head, if it has one, is the seed of the draw."""
    fits = []
    for draw, (label, head) in product(draws, heads.items()):
        own = clone(head)
        if "seed" in own.get_params(deep=False):
            own.set_params(seed=draw.seed)
        fits.append(Fit(own, protocol.plan(bundle, label, own, draw), draw.tests))
    return fits


def make_missing(
    fits: Sequence[Fit],
    make: Callable[[Fit], list[Run]],
    records: str | Path | None,
    launcher: Launcher | None = None,
    progress: bool = False,
) -> Outcome:
    """Make every fit that has a missing or failed record in a JSONL file; None to keep no records."""
    known = {key: run for key, run in read_existing_runs(records).items() if run.error is None}
    missing = [fit for fit in fits if not set(fit.keys) <= known.keys()]
    outcome = Outcome(n_existing=sum(len(fit.runs) for fit in fits) - sum(len(fit.runs) for fit in missing))
    made: dict[int, list[Run]] = {}
    start = time.perf_counter()
    with (
        tqdm(total=len(missing), desc="fits", unit="fit", disable=not progress) as bar,
        closing((launcher or Launcher(workers=1)).run(make, missing)) as results,
    ):
        for i, result in results:
            fit = missing[i]
            runs = [record_failure(run, result) for run in fit.runs] if isinstance(result, WorkerDiedError) else result
            try:
                if records is not None:
                    append_runs(records, runs)
            except InputError as error:
                hint = f"{outcome.n_made} runs were made and are stored"
                raise InputError(f"{error}. {hint}: free some space and repeat the call") from error
            made[id(fit)] = runs
            outcome.n_made += len(runs)
            outcome.n_failed += sum(run.error is not None for run in runs)
            bar.set_postfix_str(f"{runs[0].head}, {format_count(runs[0].shots, 'shot')}", refresh=False)
            bar.update()
    outcome.seconds = time.perf_counter() - start
    for fit in fits:
        for planned, run in zip(fit.runs, made.get(id(fit)) or [known[key] for key in fit.keys], strict=True):
            # Another call may have named the heads otherwise.
            outcome.runs.append(run.model_copy(update={"head": planned.head}))
    return outcome


def run_fits(
    protocol: Protocol,
    bundle: Bundle,
    heads: Mapping[str, Head],
    draws: Sequence[Draw],
    *,
    records: str | Path | None = None,
    progress: bool = False,
) -> Outcome:
    """Fit and measure every head on the same draws, in this process."""
    if not heads or not draws:
        raise InputError("there is nothing to run: give at least one head, one number of shots and one seed")
    fits = plan_fits(protocol, bundle, heads, draws)
    return make_missing(fits, lambda fit: protocol.measure(bundle, fit.head, fit.runs), records, progress=progress)
