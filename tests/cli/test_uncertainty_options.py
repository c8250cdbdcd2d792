"""What can be asked for beside the best class, on the command line."""

import json

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


@pytest.mark.parametrize("calibration", ["none", "vector", "temperature"])
def test_fit_reports_the_calibration(calibration, noisy_squares, tmp_path, run):
    how = ("--calibration", calibration)
    result = run("fit", noisy_squares, "--out", tmp_path / "m", "--encoder", "toy", "--head", "zero-shot", *how)
    words = {"none": "none: the softmax", "vector": "vector scaling", "temperature": "temperature "}[calibration]
    assert f"calibration  {words}" in result.stdout


def test_a_link_is_followed_and_stays_a_link(trusted, noisy_squares, tmp_path, run):
    (tmp_path / "real.png").write_bytes(b"")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    assert run("explain", trusted, colour(noisy_squares), "--out", tmp_path / "link.png").exit_code == 0
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").stat().st_size > 1000
