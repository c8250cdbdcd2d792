import importlib
import shlex
import shutil

import pytest

from clipadapter import FewShotClassifier
from clipadapter.bench import read_runs
from clipadapter.data import textiles
from clipadapter.demo import explain_some
from clipadapter.errors import install_command

from ...conftest import save_work
from ...pages import shorten_training


def test_the_demo_writes_a_table_pictures_and_a_model_and_its_last_command_works(
    noisy_squares, tmp_path, run, monkeypatch
):
    shorten_training(monkeypatch)
    folder = tmp_path / "my demo"
    args = ("demo", "--data", noisy_squares, "--encoder", "toy", "--shots", "1,2", "--seeds", 2)
    result = run(*args, "--out", folder)
    assert result.exit_code == 0, result.stderr
    written = {path.name for path in folder.glob("[!.]*")}
    assert written == {"runs.jsonl", "table.md", "accuracy.png", "answers.png", "model"}
    assert all(f"{folder / name}: " in result.stdout for name in written)
    model = FewShotClassifier.load(folder / "model")
    assert model.predict([noisy_squares / "test" / "red" / "0.png"]) == ["red"]
    _, *words, _ = shlex.split(result.stdout.splitlines()[-2])
    explained = run(*words, tmp_path / "why.png")
    assert explained.exit_code == 0, explained.stderr
    assert (tmp_path / "why.png").is_file()


def test_a_link_in_place_of_the_model_is_not_followed(noisy_squares, tmp_path, run):
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
    result = run("demo", "--data", noisy_squares, "--encoder", "toy", "--shots", 1, "--seeds", 1, "--out", tmp_path)
    assert result.exit_code == 1 and "model is a link" in result.stderr and not (tmp_path / "elsewhere").exists()


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
def test_some_textiles_with_the_real_encoder_are_looked_at_twice(tmp_path, run, monkeypatch):
    """Twelve pictures a class of the real data set; chance is a third."""
    save_work(monkeypatch)
    monkeypatch.setattr(explain_some, "__defaults__", (2,))  # to explain nine takes half of the time
    for name in textiles().class_names:
        paths = [sample.path for sample in textiles().samples if sample.label == name][:12]
        (tmp_path / "data" / name).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, tmp_path / "data" / name)
    args = ("demo", "--data", tmp_path / "data", "--shots", "6", "--seeds", 1, "--out", tmp_path / "out")
    result = run(*args, "--cache", tmp_path / "features.sqlite")
    assert result.exit_code == 0, result.stderr
    assert "with 6 of each class, the model looks twice: " in result.stderr
    runs = {run.head: run for run in read_runs(tmp_path / "out" / "runs.jsonl")}
    assert runs["auto"].n_test == 18 and runs["auto"].encoder.name.startswith("lite[final,")
    assert runs["zero-shot"].metrics.accuracy < 0.5 and runs["auto"].metrics.accuracy > 0.8
