"""Progress bars: on stderr, or as widgets in a notebook."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

KERNEL_MODULES = ("ipykernel.zmqshell", "IPython.utils._process_emscripten")
"""Modules that a running kernel of a notebook has imported: Jupyter, Colab and VS Code; JupyterLite."""
BRIEF_SECONDS = 0.5  # a fit that takes less shows no bar: the fits of folds would show one after the other
MIN_STEPS_MEASURED, MIN_SECONDS_MEASURED = 3, 2.0
"""Steps and seconds of a training from which its duration is estimated, without the first step, which is slower."""
MIN_SECONDS_REPORTED = 30.0  # an estimate of less is not reported
_report_estimate: ContextVar[Callable[[float, int, int], None] | None] = ContextVar("report_estimate", default=None)


@contextmanager
def estimates_reported_to(report: Callable[[float, int, int], None]) -> Iterator[None]:
    """Have the durations of long trainings reported after their first steps: seconds left, steps left, steps before."""
    token = _report_estimate.set(report)
    try:
        yield
    finally:
        _report_estimate.reset(token)


def measure_steps(steps: int, steps_before: int = 0) -> Iterator[None]:
    """Measure the first steps of a training, and report how long the others will take; call ``next`` after each step.

    Without those that were made before the training was stopped and started again.
    """
    report = _report_estimate.get()
    if report is None:
        return
    start = time.monotonic()  # after the first step, which is slower
    yield
    for n_measured in itertools.count(1):
        elapsed = time.monotonic() - start
        if n_measured >= MIN_STEPS_MEASURED and elapsed >= MIN_SECONDS_MEASURED:
            left = steps - 1 - n_measured
            seconds = left * elapsed / n_measured
            if seconds > MIN_SECONDS_REPORTED:
                report(seconds, left, steps_before)
            return
        yield


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook. Nothing is imported."""
    return any(module in sys.modules for module in KERNEL_MODULES)


def shows_progress(progress: bool | None) -> bool:
    """Whether progress bars are shown; None shows them in notebooks only."""
    return in_notebook() if progress is None else progress


def progress_bar(iterable: Iterable[Any] | None = None, *, shown: bool, **options: Any) -> tqdm[Any]:
    """A bar of tqdm: a widget in a notebook that has ipywidgets, else text on stderr."""
    if shown and in_notebook() and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as notebook_tqdm

        widget: tqdm[Any] = notebook_tqdm(iterable, **options)
        return widget
    from tqdm import tqdm

    return tqdm(iterable, file=sys.stderr, disable=not shown, **options)
