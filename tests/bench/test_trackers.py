import re
import sys

import pytest

from clipadapter.bench.trackers import create_tracker, get_metrics, get_settings
from clipadapter.errors import MissingExtraError, UnknownNameError
from clipadapter.installation import install_command


def test_the_figures_of_a_run_are_its_metrics_and_times(make_run):
    assert get_metrics(make_run(accuracy=0.5)) == {
        "accuracy": 0.5,
        "macro_f1": 0.25,
        "log_loss": 0.5,
        "fit_seconds": 0.25,
        "predict_seconds": 0.01,
    }
    assert get_metrics(make_run(error="no memory")) == {}


def test_the_settings_of_a_run_are_what_it_is_known_by(make_run):
    run = make_run(head="knn", shots=4, seed=2)
    expected = {"head": "knn", "data": "pets", "test": "pets", "encoder": "toy", "shots": 4, "seed": 2, "error": ""}
    assert get_settings(run) == {**expected, "device": "cpu", "key": run.key}
    assert get_settings(make_run(error="no memory"))["error"] == "no memory"


def test_an_unknown_tracker_gets_a_hint(tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'tensorboard'"):
        create_tracker("tensorbord", tmp_path)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_names_its_extra(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command(name))):
        create_tracker(name, tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_the_figures_over_the_shots(make_run, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track = create_tracker("tensorboard", tmp_path)
    for shots in (1, 4):
        track(make_run(head="knn", shots=shots, accuracy=shots / 8))
    (folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert [(point.step, point.value) for point in events.Scalars("accuracy")] == [(1, 0.125), (4, 0.5)]
