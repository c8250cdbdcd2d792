import importlib
import json
import shlex
import shutil

import pytest

from clipadapter import FewShotClassifier
from clipadapter.bench import read_runs
from clipadapter.data import textiles
from clipadapter.heads.clip_adapter import ClipAdapter
from clipadapter.installation import install_command

from ...pages import shorten_training


@pytest.fixture(scope="module")
def demo(noisy_squares, tmp_path_factory, run):
    """A finished demo on the noisy squares: its output, and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "my demo"
    args = ("demo", "--data", noisy_squares, "--encoder", "toy", "--shots", "1,2", "--seeds", 2)
    with pytest.MonkeyPatch.context() as patch:
        shorten_training(patch)
        result = run(*args, "--out", folder)
        assert result.exit_code == 0, result.stderr
        yield result, folder


def test_the_demo_says_first_what_the_task_is(demo):
    assert demo[0].stderr.splitlines() == [
        "18 pictures of 3 classes: blue (6), green (6), red (6).",
        "Examples come from its training pictures. Heads learn from 1 to 2 of each class, drawn 2 times, and are "
        "measured on 6 test pictures.",
        "Chance is 33.3 %: all classes have the same number of test pictures.",
        "",
    ]


def test_the_demo_writes_a_table_pictures_and_a_model(demo, noisy_squares):
    result, folder = demo
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == [
        "always",
        "zero-shot",
        "linear-probe",
        "clip-adapter",
        "auto",
    ]
    assert lines[1].split()[-3:] == ["33.3", "33.3", "-"]
    written = {path.name for path in folder.iterdir()}
    assert written == {"runs.jsonl", "table.md", "accuracy.png", "answers.png", "model"}
    assert all(f"{folder / name}: " in result.stdout for name in written)
    model = FewShotClassifier.load(folder / "model")
    assert model.predict([noisy_squares / "test" / "red" / "0.png"]) == ["red"]


def test_the_demo_ends_with_what_was_learned_and_the_next_commands(demo, noisy_squares):
    result, folder = demo
    lines = result.stdout.splitlines()
    assert any(line.startswith("With 2 pictures of each class, auto is right on ") for line in lines)
    assert lines[-4].startswith(f"  clipadapter explain '{folder / 'model'}' /")
    assert lines[-3] == "  clipadapter demo --data YOUR_FOLDER"
    assert lines[-1] == f"  clipadapter demo --data {noisy_squares} --encoder toy --quality best --out '{folder}-best'"
    assert "lite" not in result.stdout


def test_the_command_that_the_demo_ends_with_works(demo, tmp_path, run):
    result, _ = demo
    args = shlex.split(result.stdout.splitlines()[-4])[1:]
    explained = run(*args[:-1], tmp_path / "why.png")
    assert explained.exit_code == 0, explained.stderr
    assert (tmp_path / "why.png").is_file()


def test_a_second_run_takes_the_runs_of_the_first(demo, noisy_squares, run):
    args = ("demo", "--data", noisy_squares, "--encoder", "toy", "--shots", "1,2", "--seeds", 2)
    again = run(*args, "--out", demo[1], "--json")
    assert again.exit_code == 0, again.stderr
    assert "16 of 16 runs were taken from the records" in again.stderr
    facts = json.loads(again.stdout)
    assert (facts["metric"], facts["n_test"], facts["chance"]) == ("accuracy", 6, pytest.approx(1 / 3))
    assert facts["constant_answer"]["accuracy"] == pytest.approx(1 / 3)
    assert [answer["class"] for answer in facts["answers"]] == ["blue", "blue", "green", "green", "red", "red"]
    assert "\n".join(facts["findings"]) in demo[0].stdout


def test_unequal_classes_are_measured_by_balanced_accuracy(noisy_squares, tmp_path, run):
    data = tmp_path / "data"
    shutil.copytree(noisy_squares / "train", data)
    for name in ("0.png", "1.png"):
        (data / "red" / name).unlink()
    args = ("demo", "--data", data, "--encoder", "toy", "--shots", 1, "--seeds", 1)
    result = run(*args, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "One of the largest classes, 'blue', has 40.0 % of the test pictures" in result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].endswith("1 shot  accuracy at 1")
    assert lines[1].split() == ["always", "the", "largest", "class", "33.3", "40.0"]
    assert "balanced accuracy in %, one seed, 5 test pictures" in result.stdout
    assert "±" not in result.stdout
    assert "Always answering 'blue' is right on 40.0 % of the test pictures" in result.stdout
    assert (tmp_path / "out" / "balanced-accuracy.png").is_file()


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
def test_some_textiles_with_the_real_encoder(tmp_path, run, monkeypatch):
    """Ten pictures a class of the real data set; chance is a third."""
    monkeypatch.setitem(ClipAdapter.__init__.__kwdefaults__, "steps", 40)  # enough to be better than zero-shot
    for name in textiles().class_names:
        paths = [sample.path for sample in textiles().samples if sample.label == name][:10]
        (tmp_path / "data" / name).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, tmp_path / "data" / name)
    args = ("demo", "--data", tmp_path / "data", "--shots", "5", "--seeds", 1, "--out", tmp_path / "out")
    result = run(*args, "--cache", tmp_path / "features.sqlite")
    assert result.exit_code == 0, result.stderr
    found = {run.head: run for run in read_runs(tmp_path / "out" / "runs.jsonl")}
    assert found["linear-probe"].n_test == 15 and found["linear-probe"].encoder.name.startswith("lite[final,")
    assert found["linear-probe"].metrics.accuracy > 0.5
    assert found["clip-adapter"].metrics.accuracy > found["zero-shot"].metrics.accuracy
