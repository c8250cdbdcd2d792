import importlib
import json
import shutil

import pytest

from clipadapter import FewShotClassifier
from clipadapter.bench import read_runs
from clipadapter.data import textiles
from clipadapter.installation import install_command


def test_demo_runs_on_any_folder(noisy_squares, tmp_path, run):
    args = ("demo", "--data", noisy_squares, "--encoder", "toy", "--shots", "1,2", "--seeds", 2)
    result = run(*args, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[-3:] == [
        "18 pictures of 3 classes: blue (6), green (6), red (6).",
        "The encoder computes the features of each picture once; then four heads are fitted to 1 to 2 pictures "
        "per class, drawn 2 times.",
        "The shots come from train, the test pictures from test, 6 in total.",
    ]
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["zero-shot", "linear-probe", "clip-adapter"]
    assert "0.png: 'blue' with probability" in result.stdout
    assert lines[-2:] == [
        "  clipadapter fit YOUR_FOLDER --encoder toy --out my-model",
        f"  clipadapter predict {tmp_path / 'out' / 'model'} SOME_PICTURE.jpg",
    ]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"runs.jsonl", "table.md", "accuracy.png", "model"}
    model = FewShotClassifier.load(tmp_path / "out" / "model")
    assert model.predict([noisy_squares / "test" / "red" / "0.png"]) == ["red"]


def test_a_folder_without_parts_is_split_in_halves(noisy_squares, tmp_path, run):
    args = ("demo", "--data", noisy_squares / "train", "--encoder", "toy", "--shots", 1, "--seeds", 1)
    result = run(*args, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["n_test"] == 6 and found["warnings"] == []
    assert "Every other picture of a class is a test picture" in result.stderr


def test_a_missing_extra_names_the_install_command(tmp_path, monkeypatch, run):
    def missing(name, real=importlib.import_module):
        if name == "conformal_clip_data":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    result = run("demo", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert install_command("demo") in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_some_textiles_with_the_real_encoder(tmp_path, run):
    """Sixteen pictures a class of the real data set; chance is a third."""
    for name in textiles().class_names:
        paths = [sample.path for sample in textiles().samples if sample.label == name][:16]
        (tmp_path / "data" / name).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, tmp_path / "data" / name)
    args = ("demo", "--data", tmp_path / "data", "--shots", "8", "--seeds", 1, "--out", tmp_path / "out")
    result = run(*args, "--cache", tmp_path / "features.sqlite")
    assert result.exit_code == 0, result.stderr
    found = {run.head: run for run in read_runs(tmp_path / "out" / "runs.jsonl")}
    assert found["linear-probe"].n_test == 24 and found["linear-probe"].encoder.name == "lite"
    assert found["linear-probe"].metrics.accuracy > 0.5
    assert found["clip-adapter"].metrics.accuracy > found["zero-shot"].metrics.accuracy
