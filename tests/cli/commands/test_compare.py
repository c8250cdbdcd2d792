import json

import pytest

from clipadapter.bench import default_heads, read_runs
from clipadapter.heads.linear_probe import LinearProbe

HEADS = ("--heads", "linear-probe", "--encoder", "toy")


@pytest.fixture
def compare(tmp_path, run):
    """A function that compares into tmp_path/out."""

    def call(*args):
        return run("compare", *args, "--out", tmp_path / "out")

    return call


def test_all_heads_without_heads_and_with_all(noisy_squares, tmp_path, compare):
    options = (noisy_squares / "train", noisy_squares / "test", "--encoder", "toy", "--shots", 1, "--seeds", 1)
    result = compare(*options)
    assert result.exit_code == 0, result.stderr
    assert sorted(run.head for run in read_runs(tmp_path / "out" / "runs.jsonl")) == sorted(default_heads())
    again, n = compare(*options, "--heads", "all"), len(default_heads())
    assert again.stderr.splitlines()[-1] == f"{n} of {n} runs were taken from the records"


def test_runs_in_the_records_are_not_repeated(noisy_squares, compare):
    first = compare(noisy_squares, *HEADS, "--shots", "2", "--seeds", 1, "--json")
    assert first.exit_code == 0, first.stderr
    found = json.loads(first.stdout)
    assert found["rows"][0] == {"head": "zero-shot", "shots": 2, "mean": 1.0, "sd": None, "seeds": 1, "failed": 0}
    assert (found["n_test"], found["classes"], found["encoder"]) == (6, ["blue", "green", "red"], "toy")
    second = compare(noisy_squares, *HEADS, "--shots", "2", "--seeds", 1, "--json")
    assert second.stderr.splitlines()[-1] == "2 of 2 runs were taken from the records"
    assert json.loads(second.stdout) == found


def test_parameters_of_heads_can_be_set(noisy_squares, tmp_path, compare):
    options = ("--heads", "knn,clip-adapter", "--encoder", "toy", "--shots", 1, "--seeds", 1)
    settings = ("--set", "knn.k=2", "--set", "clip-adapter.alpha=0.2", "--set", "clip-adapter.epochs=1")
    result = compare(noisy_squares, *options, *settings)
    assert result.exit_code == 0, result.stderr
    params = {run.head: run.params for run in read_runs(tmp_path / "out" / "runs.jsonl")}
    assert set(params) == {"zero-shot", "linear-probe", "knn (k=2)", "clip-adapter (alpha=0.2, epochs=1)"}
    assert params["knn (k=2)"]["k"] == 2


def test_cross_validation_makes_at_most_twice_the_fits_of_a_comparison_on_a_test_part(
    noisy_squares, tmp_path, compare, monkeypatch
):
    fits, fit = [], LinearProbe._fit
    monkeypatch.setattr(LinearProbe, "_fit", lambda self, shots: (fits.append(self), fit(self, shots)))
    assert compare(noisy_squares, *HEADS, "--shots", 1).exit_code == 0
    on_test_part = len(fits)
    result = compare(noisy_squares / "train", *HEADS, "--shots", 1)
    assert result.exit_code == 0, result.stderr
    assert len(fits) - on_test_part <= 2 * on_test_part
    # The seconds are those of one fit, as on a test part.
    runs = [run for run in read_runs(tmp_path / "out" / "runs.jsonl") if run.data.protocol == "folds"]
    assert {run.seed for run in runs} == {1}
