"""The decisions that a fit is asked for are those that `eval` measures; the numbers in the golden files are masked."""

import json


def test_the_decisions_of_a_fit_are_measured(noisy_squares, tmp_path, run):
    model = tmp_path / "model"
    decisions = ("--reject", 0.2, "--coverage", 0.8, "--minimise", "false red=50")
    result = run("fit", noisy_squares, "--out", model, "--encoder", "toy", *decisions)
    assert result.exit_code == 0, result.stderr
    assert "none of these  about 20 % of pictures of the classes" in result.stdout
    result = run("eval", model, noisy_squares, "--out", tmp_path / "r", "--no-curve")
    assert "% are called none of these (requested: 20.0 %)" in result.stdout
    assert "% have their class in the set (requested: 80.0 %)" in result.stdout
    record = json.loads((tmp_path / "r" / "metrics.json").read_text())["decisions"]
    assert record["cost"] <= record["cost_of_likeliest"]
