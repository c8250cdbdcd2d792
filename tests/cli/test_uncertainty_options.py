"""What can be asked for beside the best class, on the command line."""

import json
import shutil

import pytest


def colour(folder, name="0.png"):
    return folder / "test" / "red" / name


@pytest.fixture(scope="module")
def trusted(tmp_path_factory, noisy_squares, run):
    folder = tmp_path_factory.mktemp("trusted") / "model"
    decisions = ("--reject", 0.2, "--coverage", 0.8, "--minimise", "false red=50")
    result = run("fit", noisy_squares, "--out", folder, "--encoder", "toy", *decisions)
    assert result.exit_code == 0, result.stderr
    assert "calibration" in result.stdout
    assert "none of these  about 20 % of pictures of the classes" in result.stdout
    return folder


def test_default_decisions_of_the_model_are_measured(trusted, noisy_squares, tmp_path, run):
    result = run("eval", trusted, noisy_squares, "--out", tmp_path / "r", "--no-curve")
    assert "% are called none of these (requested: 20.0 %)" in result.stdout
    assert "% have their class in the set (requested: 80.0 %)" in result.stdout
    assert "mean cost " in result.stdout
    record = json.loads((tmp_path / "r" / "metrics.json").read_text())["decisions"]
    assert record["cost"] <= record["cost_of_likeliest"]


def test_predict_warns_of_rates_that_the_shots_cannot_guarantee(trusted, noisy_squares, run):
    result = run("predict", trusted, colour(noisy_squares), "--reject", 0.001, "--coverage", 0.99)
    assert "12 held-out shots can't set a rate of 0.1 %" in result.stderr
    assert "99 % coverage needs 99 held-out shots" in result.stderr


@pytest.mark.parametrize(
    ("text", "words"), [("5", "5 % is 0.05"), ("abc", "not a number"), ("1000", "not between 0 and 1")]
)
def test_a_percentage_is_refused_with_what_it_would_be(text, words, trusted, noisy_squares, run):
    result = run("predict", trusted, colour(noisy_squares), "--reject", text)
    assert result.exit_code == 2
    assert words in result.stderr


def test_coverage_that_cant_be_learned_ends_the_fit(noisy_squares, tmp_path, run):
    shots = ("--shots", 1, "--coverage", 0.9)
    result = run("fit", noisy_squares, "--out", tmp_path / "m", "--encoder", "toy", *shots)
    assert result.exit_code == 1
    assert "two shots of each class" in result.stderr
    assert not (tmp_path / "m").exists()


def test_both_ways_to_say_costs_are_one_too_many(trusted, noisy_squares, tmp_path, run):
    (tmp_path / "c.csv").write_text("")
    result = run("predict", trusted, colour(noisy_squares), "--cost", tmp_path / "c.csv", "--minimise", "false red")
    assert result.exit_code == 1
    assert "give one of them" in result.stderr


@pytest.mark.parametrize("calibration", ["none", "vector", "temperature"])
def test_fit_reports_the_calibration(calibration, noisy_squares, tmp_path, run):
    how = ("--calibration", calibration)
    result = run("fit", noisy_squares, "--out", tmp_path / "m", "--encoder", "toy", "--head", "zero-shot", *how)
    words = {"none": "none: the softmax", "vector": "vector scaling", "temperature": "temperature "}[calibration]
    assert f"calibration  {words}" in result.stdout


def test_fit_says_that_a_calibration_was_not_learned(noisy_squares, tmp_path, run):
    how = ("--shots", 1, "--head", "zero-shot", "--encoder", "toy")
    result = run("fit", noisy_squares, "--out", tmp_path / "m", *how)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("calibration")]
    assert "no shot could be held out, so it was not learned from your pictures" in line


def test_what_is_read_is_not_written_over(trusted, noisy_squares, tmp_path, run):
    photo = tmp_path / "photo.png"
    shutil.copy(colour(noisy_squares), photo)
    before = photo.read_bytes()
    result = run("explain", trusted, photo, "--out", photo)
    assert result.exit_code == 1
    assert "is an input" in result.stderr
    assert photo.read_bytes() == before
    result = run("explain", trusted, photo, "--out", tmp_path / "why.jpg")
    assert "ends with .png" in result.stderr


def test_a_link_is_followed_and_stays_a_link(trusted, noisy_squares, tmp_path, run):
    (tmp_path / "real.png").write_bytes(b"")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    assert run("explain", trusted, colour(noisy_squares), "--out", tmp_path / "link.png").exit_code == 0
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").stat().st_size > 1000
