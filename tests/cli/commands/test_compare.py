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


def test_the_head_need_not_be_named_if_there_is_one(noisy_squares, compare):
    result = compare(noisy_squares, *HEADS, "--shots", 1, "--seeds", 1, "--set", "C=10")
    assert result.exit_code == 0 and "linear-probe (C=10)" in result.stdout


@pytest.mark.parametrize(
    ("heads", "settings", "message"),
    [
        ("knn,gda", ["k=2"], "--set takes HEAD.KEY=VALUE, such as clip-adapter.alpha=0.2, but got 'k=2'"),
        ("knn", ["k"], "--set takes HEAD.KEY=VALUE"),
        ("knn,gda", ["kn.k=2"], "no head of this comparison is called 'kn'. Did you mean 'knn'?"),
        ("knn", ["n=2"], "no parameter of knn is called 'n'. Known: k, "),
        ("knn", ["k=2", "knn.k=3"], "knn.k is set twice: several values are compared by a suite with 'vary'"),
    ],
)
def test_wrong_settings_are_errors(noisy_squares, compare, heads, settings, message):
    options = [part for setting in settings for part in ("--set", setting)]
    result = compare(noisy_squares, "--heads", heads, "--encoder", "toy", *options)
    assert result.exit_code == 1 and message in result.stderr, result.stderr


def test_small_classes_and_test_pictures_among_the_shots_are_warnings(noisy_squares, compare):
    train = noisy_squares / "train"
    result = compare(train, train, *HEADS, "--shots", 8, "--seeds", 1)
    assert "warning: 3 of 3 classes have fewer than 8 pictures" in result.stderr
    assert "warning: 12 of 12 test pictures are also among the shots" in result.stderr


def test_an_undivided_folder_alone_is_cross_validated(noisy_squares, tmp_path, compare):
    result = compare(noisy_squares / "train", *HEADS, "--shots", 1, "--seeds", 2, "--folds", 3)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("Cross-validation over 3 folds: there is no test part")
    assert "12 test pictures of 3 classes" in result.stdout
    assert "Cross-validation over 3 folds" in (tmp_path / "out" / "table.md").read_text()
    assert {run.data.test for run in read_runs(tmp_path / "out" / "runs.jsonl")} == {"3 folds"}


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


def test_a_head_that_tunes_the_encoder_is_not_cross_validated(noisy_squares, compare):
    result = compare(noisy_squares / "train", "--heads", "clip-lora", "--encoder", "toy", "--shots", 1)
    assert result.exit_code == 1 and "clip-lora tunes the encoder" in result.stderr


@pytest.mark.parametrize("shots", ["0", "1,x", ""])
def test_shots_that_are_no_numbers_are_a_wrong_command_line(noisy_squares, compare, shots):
    result = compare(noisy_squares, *HEADS, "--shots", shots)
    assert result.exit_code == 2 and "expected numbers of 1 or more" in result.stderr


def test_plots_are_written_in_the_formats_that_are_asked_for(noisy_squares, compare, tmp_path):
    result = compare(
        noisy_squares, *HEADS, "--shots", 1, "--seeds", 1, "--plot-format", "PDF,svg", "--title", "Squares & co"
    )
    assert result.exit_code == 0, result.stderr
    written = {path.name for path in (tmp_path / "out").glob("[!.]*")}
    assert written == {"runs.jsonl", "table.md", "accuracy.pdf", "accuracy.svg"}
    assert ">Squares &amp; co</text>" in (tmp_path / "out" / "accuracy.svg").read_text(encoding="utf-8")


def test_an_unknown_format_of_plots_is_a_wrong_command_line(noisy_squares, compare):
    result = compare(noisy_squares, *HEADS, "--plot-format", "png,jpg")
    assert result.exit_code == 2 and "plots are written as png, pdf, svg, but 'png,jpg' was given" in result.stderr
