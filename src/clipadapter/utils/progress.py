"""Progress bars: on stderr, or as widgets in a notebook."""

from __future__ import annotations

import importlib.util
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


class DurationEstimate:
    """Measures the first steps of a training, and reports how long the others will take.

    Without those that were made before the training was stopped and started again.
    """

    def __init__(self, steps: int, steps_before: int = 0) -> None:
        self._report, self._left, self._before = _report_estimate.get(), steps, steps_before
        self._n_measured, self._start = -1, 0.0

    def count_step(self) -> None:
        """Count a step that was made."""
        if self._report is None:
            return
        self._left -= 1
        self._n_measured += 1
        if self._n_measured == 0:
            self._start = time.monotonic()
            return
        elapsed = time.monotonic() - self._start
        if self._n_measured < MIN_STEPS_MEASURED or elapsed < MIN_SECONDS_MEASURED:
            return
        seconds = self._left * elapsed / self._n_measured
        if seconds > MIN_SECONDS_REPORTED:
            self._report(seconds, self._left, self._before)
        self._report = None


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
