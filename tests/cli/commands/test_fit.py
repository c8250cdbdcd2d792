import json
import re
import shlex
import shutil
from types import SimpleNamespace

import click
import pytest

from clipadapter import FewShotClassifier, draw_shots
from clipadapter.classifier.reader import Reader
from clipadapter.cli.commands.fit import _note_estimate
from clipadapter.features import extraction
from clipadapter.runtime.model_folder import LOCK_FILE
from clipadapter.utils.formatting import format_seconds


@pytest.fixture
def fit(tmp_path, run):
    """A function that fits with the toy encoder into tmp_path/model."""

    def call(data, *args, head="zero-shot"):
        return run("fit", data, "--out", tmp_path / "model", "--encoder", "toy", "--head", head, *args)

    return call


@pytest.mark.parametrize(("steps_before", "begun"), [(0, ""), (1200, " continues after step 1,200")])
def test_a_long_training_is_announced_with_the_steps_that_an_earlier_process_made(steps_before, begun):
    notes = []
    _note_estimate(SimpleNamespace(progress=False, note=notes.append), 120.0, 1680, steps_before)
    assert notes == [f"training{begun}: about {format_seconds(120.0)} for the 1,680 steps that are left"]


def test_by_default_the_head_is_auto_and_the_model_goes_to_the_folder_model(squares, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    assert run("fit", squares, "--encoder", "toy").exit_code == 0
    model = FewShotClassifier.load(tmp_path / "model")
    assert model.class_names_ == ("blue", "green", "red") and type(model.head_).__name__ == "Auto"


def test_shots_are_drawn_by_seed(squares, tmp_path, fit):
    shots = json.loads(fit(squares, "--shots", 2, "--seed", 3, "--json").stdout)["shots"]
    assert shots == {"blue": 2, "green": 2, "red": 2}
    support = FewShotClassifier.load(tmp_path / "model").support_
    labels = ["blue"] * 4 + ["green"] * 4 + ["red"] * 4
    paths = sorted(squares.glob("*/*.png"))
    drawn = [paths[i] for i in draw_shots(labels, 2, seed=3)]
    expected = FewShotClassifier("toy").extract_features(drawn, ["red"] * 6, ["red"])
    assert (support.X == expected.X).all()


def test_names_templates_and_descriptions_reach_the_model(squares, tmp_path, fit):
    names, sentences = tmp_path / "names.json", tmp_path / "sentences.json"
    names.write_text('{"red": "crimson red"}')
    sentences.write_text('{"blue": ["the blue sky"]}')
    texts = ("--class-names", names, "--descriptions", sentences, "--templates", "dtd", "--templates", "a {} square.")
    result = fit(squares, *texts)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"^descriptions +1 sentence for 1 of 3 classes$", result.stdout, re.MULTILINE)
    assert FewShotClassifier.load(tmp_path / "model").prompts_ == {
        "blue": ["the blue sky"],
        "green": ["green texture.", "a green square."],
        "crimson red": ["crimson red texture.", "a crimson red square."],
    }


def test_the_crop_scale_of_views_is_saved_with_the_model(squares, tmp_path, fit):
    assert json.loads(fit(squares, "--views", 3, "--crop", "coop", "--json").stdout)["crop"] == "coop"
    provenance = json.loads((tmp_path / "model" / "config.json").read_text())["provenance"]
    assert (provenance["views"], provenance["crop"]) == (3, "coop")
    assert provenance["fit"]["views"]["scale"] == [0.08, 1.0]
    assert "3 views of each shot (crop scale: coop)" in (tmp_path / "model" / "README.md").read_text().replace("\\", "")


def test_views_for_each_epoch_are_counted_on_stderr_before_the_first_is_computed(squares, fit, monkeypatch):
    extract, notes = Reader.extract, []
    echo = click.echo
    monkeypatch.setattr("click.echo", lambda text, **where: notes.append(text) or echo(text, **where))

    def extracted(self, images, spec, **options):
        count = "views: 132 images to encode (12 pictures x 11 views); their features take 0.0 MiB of memory"
        assert any(text.startswith(count) for text in notes)
        return extract(self, images, spec, **options)

    monkeypatch.setattr(Reader, "extract", extracted)
    args = ("--views", "per-epoch", "--set", "epochs=10", "--no-cache")
    result = fit(squares, *args, "--json", head="clip-adapter")
    assert (json.loads(result.stdout)["views"], json.loads(result.stdout)["computed"]) == (11, 132)
    assert re.search(r"views: about \d+ s at \S+ images per second", result.stderr)
    assert "They are not cached." in result.stderr


def test_views_for_each_epoch_of_an_interrupted_fit_are_not_computed_again(squares, fit, monkeypatch):
    args = ("--views", "per-epoch", "--crop", "coop", "--set", "epochs=40", "--json", "--quiet")
    encode, calls = extraction.encode_batch, []

    def interrupted(job, batch):
        calls.append(len(batch))
        if len(calls) > 3:
            raise KeyboardInterrupt
        return encode(job, batch)

    with monkeypatch.context() as patched:
        patched.setattr(extraction, "encode_batch", interrupted)
        stopped = fit(squares, *args, head="clip-adapter")
    kept = "features that were computed are in the feature store, and the same command continues from there"
    assert stopped.exit_code == 130
    assert stopped.stderr == f"\ninterrupted: no model was saved; {kept}\n"
    result = fit(squares, *args, head="clip-adapter")
    assert result.stderr == ""
    found = json.loads(result.stdout)
    # Of the pictures that were done all 41 views are there; of the two that time was measured on, 17.
    assert (found["views"], found["crop"]) == (41, "coop")
    assert 0 < found["computed"] < 12 * 41 - 34


@pytest.mark.parametrize(
    "where", ["clipadapter.features.extraction.read_image_shrunk", "clipadapter.persistence.versions.os.fsync"]
)
def test_ctrl_c_leaves_nothing_half_written(where, squares, tmp_path, monkeypatch, fit):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    result = fit(squares, "--no-cache")
    assert result.exit_code == 130
    kept = "no model was saved; the same command starts from the beginning"
    assert result.stderr.splitlines()[-1] == f"interrupted: {kept}"
    assert "Traceback" not in result.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != LOCK_FILE]


def test_the_device_that_auto_takes_is_noted(squares, fit, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device: cpu (no GPU that PyTorch can use)\n" in fit(squares, "--device", "auto").stderr
    assert "device:" not in fit(squares).stderr + fit(squares, "--device", "auto", "--quiet").stderr


@pytest.mark.parametrize("head", ["zlap", "transclip"])
def test_a_pool_of_one_class_is_one_line_of_warning(head, squares, tmp_path, fit):
    pool = tmp_path / "pool"
    for i in range(8):
        shutil.copytree(squares / "red", pool / str(i))
    result = fit(squares, "--unlabelled", pool, head=head)
    assert result.exit_code == 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith(f"warning: {head}")]
    assert "of 3 classes (effective number): prefer ss-text-u, stata or auto" in line
    assert f"warning: {head}" not in fit(squares, "--unlabelled", squares, head=head).stderr


def test_commands_in_messages_quote_paths(squares, tmp_path, run):
    folder = tmp_path / "my model"
    for _ in range(2):
        assert run("fit", squares, "--out", folder, "--encoder", "toy", "--head", "zero-shot").exit_code == 0
    line = run("history", folder).stdout.splitlines()[-1]
    command = line.split("to go back to 1: ")[1].removesuffix(" [--to VERSION]")
    assert shlex.split(command) == ["clipadapter", "undo", str(folder)]
    assert f"clipadapter undo '{folder}' --to 2" in run("undo", folder).stdout
