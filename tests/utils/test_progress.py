"""Progress bars: in notebooks by default, elsewhere on request."""

import sys
from types import ModuleType

import numpy as np
import pytest

from clipadapter import FewShotClassifier
from clipadapter.utils.progress import (
    estimates_reported_to,
    in_notebook,
    measure_steps,
    progress_bar,
    shows_progress,
)


def fit(head="linear-probe", **params):
    pictures = [np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255])]
    return FewShotClassifier("toy", head, cache=None, **params).fit(pictures, ["red", "blue"])


@pytest.mark.parametrize(
    ("is_notebook", "progress", "shown"),
    [(False, None, False), (True, None, True), (True, True, True), (True, False, False), (False, True, True)],
)
def test_bars_are_off_in_a_script_and_on_in_a_notebook_unless_the_parameter_decides(
    is_notebook, progress, shown, monkeypatch, capfd
):
    if is_notebook:  # without ipywidgets
        monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", ModuleType("ipykernel.zmqshell"))
    assert in_notebook() == shows_progress(None) == is_notebook
    fit(progress=progress)
    printed = capfd.readouterr().err
    assert "features: 100%" in printed if shown else printed == ""


def test_a_bar_counts_its_iterable(capfd):
    assert list(progress_bar([1, 2, 3], shown=True, desc="numbers", unit="n")) == [1, 2, 3]
    assert "numbers: 100%" in capfd.readouterr().err
    assert list(progress_bar([1, 2, 3], shown=False)) == [1, 2, 3]
    assert capfd.readouterr() == ("", "")


def test_a_loaded_model_has_the_bars_of_where_it_is_used(tmp_path):
    fitted = fit("clip-adapter", head_params={"steps": 2}, progress=True)
    assert fitted.head_.progress
    folder = fitted.save(tmp_path / "model")
    assert not FewShotClassifier.load(folder, cache=None).head_.progress


@pytest.mark.parametrize(
    ("seconds_per_step", "steps", "reported"),
    [
        (0.5, 1005, [(500.0, 1000, 7)]),  # after the first step, four more are measured, which are two seconds
        (10.0, 104, [(1000.0, 100, 7)]),  # three steps at least
        (0.5, 50, []),  # less than half a minute
        (10.0, 2, []),  # over before it can be measured
    ],
)
def test_the_duration_of_a_long_training_is_reported_once(seconds_per_step, steps, reported, monkeypatch):
    clock, reports = [0.0], []
    monkeypatch.setattr("clipadapter.utils.progress.time.monotonic", lambda: clock[0])
    with estimates_reported_to(lambda *values: reports.append(values)):
        estimate = measure_steps(steps, steps_before=7)
        for step in range(steps):
            clock[0] += 60.0 if step == 0 else seconds_per_step  # the first step is slower
            next(estimate, None)
    assert reports == reported
