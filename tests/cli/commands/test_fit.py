import json
import os
import re
import shlex
import shutil
from types import SimpleNamespace

import click
import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from clipadapter import FewShotClassifier, draw_shots
from clipadapter.cli.commands.fit import _report_estimate
from clipadapter.features import extraction
from clipadapter.heads.clip_adapter import ClipAdapter
from clipadapter.utils.formatting import format_seconds

FEW_STEPS = ("--set", "steps=20")


@pytest.fixture
def fit(tmp_path, run):
    """A function that fits with the toy encoder into tmp_path/model."""

    def call(data, *args, head="zero-shot"):
        return run("fit", data, "--out", tmp_path / "model", "--encoder", "toy", "--head", head, *args)

    return call


@pytest.mark.parametrize(("steps_before", "begun"), [(0, ""), (1200, " continues after step 1,200")])
def test_a_long_training_is_announced_with_the_steps_that_an_earlier_process_made(steps_before, begun):
    notes = []
    _report_estimate(SimpleNamespace(progress=False, note=notes.append), 120.0, 1680, steps_before)
    assert notes == [f"training{begun}: about {format_seconds(120.0)} for the 1,680 steps that are left"]


def test_fit_says_how_good_the_model_is_and_what_comes_next(noisy_squares, tmp_path, run):
    command = ("fit", noisy_squares, "--out", tmp_path / "m", "--encoder", "toy", "--head", "nearest-mean")
    result = run(*command)
    assert "accuracy     about 100 % of 12 held-out pictures right (76 to 100 %); class names alone" in result.stdout
    assert result.stdout.splitlines()[-1] == f"next         clipadapter eval {tmp_path / 'm'} {noisy_squares}"
    accuracy = json.loads(run(*command, "--json").stdout)["accuracy"]
    assert (accuracy["accuracy"], accuracy["shots"]) == (1.0, 12)
    assert accuracy["interval"] == pytest.approx(binomtest(12, 12).proportion_ci(method="wilson"))
    assert "About 100 % of 12 held-out pictures right" in (tmp_path / "m" / "README.md").read_text()


@pytest.mark.parametrize(
    ("head", "shots", "why"),
    [
        ("auto", 1, "with one picture per class none can be held out"),
        ("coop", 2, "coop is not fitted again without some of the shots"),
    ],
)
def test_fit_says_why_it_does_not_know_how_good_the_model_is(head, shots, why, squares, fit):
    result = fit(squares, "--shots", shots, *(("--set", "epochs=1") if head == "coop" else ()), head=head)
    assert f"accuracy     not known: {why}" in result.stdout, result.stderr


def test_by_default_the_head_is_auto_and_the_model_goes_to_the_folder_model(squares, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    assert run("fit", squares, "--encoder", "toy").exit_code == 0
    model = FewShotClassifier.load(tmp_path / "model")
    assert model.class_names_ == ("blue", "green", "red") and type(model.head_).__name__ == "Auto"


def test_a_fraction_of_one_folder_is_held_back_measured_and_recorded(noisy_squares, tmp_path, run):
    options = ("--out", tmp_path / "m", "--encoder", "toy", "--head", "nearest-mean", "--test-fraction", "0.25")
    result = run("fit", noisy_squares / "train", *options)
    assert "3 per class" in result.stdout
    assert "3 pictures of train (--test-fraction 0.25 --seed 0)" in result.stdout
    assert re.search(r"this model \(nearest-mean\) +100\.0", result.stdout)
    assert f"clipadapter predict {tmp_path / 'm'} PICTURES" in result.stdout
    assert "3 pictures of train (--test-fraction 0.25 --seed 0)" in (tmp_path / "m" / "README.md").read_text()
    measured = json.loads(run("fit", noisy_squares / "train", *options, "--json").stdout)["evaluation"]
    assert (measured["n_test"], measured["among_shots"], measured["model"]["accuracy"]) == (3, 0, 1.0)
    result = run("fit", noisy_squares, *options)
    assert result.exit_code == 1 and "has test pictures: leave it out" in result.stderr
    rows = [f"{path},{path.parent.name},{path.parents[1].name}" for path in sorted(noisy_squares.rglob("*.png"))]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,split", *rows]))
    result = run("fit", tmp_path / "table.csv", *options)
    assert result.exit_code == 1 and "has test pictures: leave it out" in result.stderr


def test_a_class_with_one_picture_is_a_warning(squares, tmp_path, fit):
    data = shutil.copytree(squares, tmp_path / "data")
    for i in (1, 2, 3):
        (data / "red" / f"{i}.png").unlink()
    assert "warning: one picture only in red: give two or more of each class" in fit(data).stderr


def test_fit_says_how_often_the_model_looks_at_a_picture_and_why(squares, fit):
    why = "looks once: 100% of held-out shots are right, so there is little to gain (--quality best looks twice)"
    result = fit(squares, "--json", head="auto")
    assert json.loads(result.stdout)["quality"] == {"name": "standard", "why": why}
    assert f"the model {why}\n" in result.stderr
    assert json.loads(fit(squares, "--json", "--quality", "best", head="auto").stdout)["quality"]["name"] == "best"
    assert json.loads(fit(squares, "--json").stdout)["quality"] is None


def test_the_steps_of_a_tuner_are_noted_before_the_first(squares, fit):
    # 12 pictures are one batch, and so one step an epoch; a fit of two epochs makes two.
    result = fit(squares, "--set", "epochs=2", head="coop")
    assert "training coop: 2 steps of 12 pictures" in result.stderr, result.stderr


def test_shots_are_drawn_by_seed(squares, tmp_path, fit):
    assert json.loads(fit(squares, "--shots", 2, "--seed", 3, "--json").stdout)["shots"] == {
        "blue": 2,
        "green": 2,
        "red": 2,
    }
    support = FewShotClassifier.load(tmp_path / "model").support_
    labels = ["blue"] * 4 + ["green"] * 4 + ["red"] * 4
    paths = sorted(squares.glob("*/*.png"))
    drawn = [paths[i] for i in draw_shots(labels, 2, seed=3)]
    expected = FewShotClassifier("toy").extract_features(drawn, ["red"] * 6, ["red"])
    assert (support.X == expected.X).all()


def test_a_class_with_one_picture_at_sixteen_shots_gives_it(squares, tmp_path, fit):
    data = tmp_path / "data"
    shutil.copytree(squares, data)
    for i in (1, 2, 3):
        (data / "red" / f"{i}.png").unlink()
    result = fit(data, *FEW_STEPS, "--shots", 16, head="clip-adapter")
    assert result.exit_code == 0
    assert "warning: fewer than 16 pictures in blue (4), green (4), red (1)" in result.stderr
    assert "1 to 4 per class, 9 in total" in result.stdout


def test_a_class_without_readable_picture_stays(squares, tmp_path, fit, run):
    data = tmp_path / "data"
    shutil.copytree(squares, data)
    for path in (data / "red").iterdir():
        path.write_bytes(b"")
    result = fit(data)
    assert result.exit_code == 0
    assert "the class 'red' has no readable picture" in result.stderr
    assert result.stderr.count("file is empty") == 4
    named = run("predict", tmp_path / "model", squares / "red" / "0.png")
    assert named.stdout.split()[0] == "red"


def test_strict_fails_at_a_bad_picture(squares, tmp_path, fit):
    data = tmp_path / "data"
    shutil.copytree(squares, data)
    (data / "red" / "bad.jpg").write_bytes(b"")
    result = fit(data, "--strict")
    assert result.exit_code == 1
    assert "bad.jpg: file is empty" in result.stderr
    assert not (tmp_path / "model").exists()


def test_train_is_the_part_that_is_learned_from(tmp_path, write_squares, fit):
    write_squares(tmp_path / "data" / "train", count=3)
    write_squares(tmp_path / "data" / "test", count=1)
    assert json.loads(fit(tmp_path / "data", "--json").stdout)["shots"] == {"blue": 3, "green": 3, "red": 3}
    assert json.loads(fit(tmp_path / "data", "--split", "test", "--json").stdout)["shots"]["red"] == 1


def test_names_templates_and_descriptions_reach_the_model(squares, tmp_path, fit):
    names, sentences = tmp_path / "names.json", tmp_path / "sentences.json"
    names.write_text('{"red": "crimson red"}')
    sentences.write_text('{"blue": ["the blue sky"]}')
    result = fit(
        squares,
        *("--class-names", names, "--descriptions", sentences),
        *("--templates", "dtd", "--templates", "a {} square."),
    )
    assert result.exit_code == 0, result.stderr
    assert ["descriptions", "1", "sentence", "for", "1", "of", "3", "classes"] in map(
        str.split, result.stdout.splitlines()
    )
    assert FewShotClassifier.load(tmp_path / "model").prompts_ == {
        "blue": ["the blue sky"],
        "green": ["green texture.", "a green square."],
        "crimson red": ["crimson red texture.", "a crimson red square."],
    }


def test_a_description_of_no_class_is_refused_with_the_name_of_the_file(squares, tmp_path, fit):
    sentences = tmp_path / "sentences.json"
    sentences.write_text('{"bleu": ["the blue sky"]}')
    result = fit(squares, "--descriptions", sentences)
    assert f"error: {sentences}: no class is called 'bleu'. Did you mean 'blue'?" in result.stderr


def test_no_support_keeps_no_shots(squares, tmp_path, fit):
    fit(squares, "--no-support")
    assert not list((tmp_path / "model").glob("arrays/support-*"))


def test_the_crop_scale_of_views_is_saved_with_the_model(squares, tmp_path, fit):
    assert json.loads(fit(squares, "--views", 3, "--crop", "coop", "--json").stdout)["crop"] == "coop"
    provenance = json.loads((tmp_path / "model" / "config.json").read_text())["provenance"]
    assert (provenance["views"], provenance["crop"]) == (3, "coop")
    assert provenance["fit"]["views"]["scale"] == [0.08, 1.0]
    assert "3 views of each shot (crop scale: coop)" in (tmp_path / "model" / "README.md").read_text().replace("\\", "")


def test_views_for_each_epoch_are_counted_on_stderr_before_the_first_is_computed(squares, fit, monkeypatch):
    extract, notes = FewShotClassifier._extract, []
    echo = click.echo
    monkeypatch.setattr("click.echo", lambda text, **where: notes.append(text) or echo(text, **where))

    def extracted(self, images, spec, strict):
        count = "views: 132 images to encode (12 pictures x 11 views); their features take 0.0 MiB of memory"
        assert any(text.startswith(count) for text in notes)
        return extract(self, images, spec, strict)

    monkeypatch.setattr(FewShotClassifier, "_extract", extracted)
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
    ("head", "args", "words"),
    [
        ("zero-shot", ["per-epoch"], "ZeroShot has no epochs to make views for: give a number"),
        ("clip-adapter", ["per-epoch", "--set", "epochs=10000000"], "features of 10000001 views of 12 pictures take"),
    ],
)
def test_views_for_each_epoch_are_refused_with_what_to_do(squares, fit, head, args, words):
    result = fit(squares, "--views", *args, head=head)
    assert result.exit_code == 1
    assert words in result.stderr
    assert "--views 10" in result.stderr


def test_another_text_is_no_number_of_views(squares, fit):
    for given in ("0", "epoch"):
        result = fit(squares, "--views", given)
        assert result.exit_code == 2
        assert f"'{given}' is neither a number of 1 or more nor per-epoch" in result.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--head", "clip-adaptor"], "Did you mean 'clip-adapter'?"),
        (["--encoder", "light"], "no encoder is called 'light'. Did you mean 'lite'?"),
        (["--templates", "imagnet7"], "Did you mean 'imagenet7'?"),
        (["--templates", "a photo"], "0 placeholders for the class name, not one: write {} once"),
        (["--set", "alhpa=1", "--head", "clip-adapter"], "Did you mean 'alpha'? Known: "),
        (["--set", "alpha"], "--set takes key=value"),
        (["--set", "k=many", "--head", "knn"], "k of knn must be a whole number, but is 'many'"),
        (["--grid", "alpha=1,x", "--head", "tip-adapter"], "alpha of tip-adapter must be a number, but is 'x'"),
        (["--grid", "alpha=1,-1", "--head", "tip-adapter"], "alpha must be 0 or more, but is -1"),
        (
            ["--set", "schedule=linear", "--head", "clip-adapter"],
            "schedule must be one of cosine, cosine-epoch, c",
        ),
        (["--set", "rank=0", "--head", "clip-lora", "--encoder", "lite"], "rank must be 1 or more, but is 0"),
        (["--head", "clip-lora"], "the weights of the encoder toy can't be tuned; those of efficientnet-lite1,"),
        (["--grid", "alpha"], "--grid takes key=value,value,..."),
        (["--grid", "alpa=1,2", "--head", "tip-adapter"], "Did you mean 'alpha'?"),
        (["--preset", "dtt", "--head", "tip-adapter"], "no preset of tip-adapter is called 'dtt'. Did you mean 'dtd'?"),
        (["--head", "zlap"], "give the pictures to classify with --unlabelled FOLDER"),
        (["--unlabelled", ".", "--head", "knn"], "leave --unlabelled out"),
        (
            ["--unlabelled", "file", "--head", "auto"],
            "--unlabelled: 'file' is neither a folder nor a table: give a folder",
        ),
        (["--unlabelled", "pool", "--head", "auto"], "--unlabelled: there is no folder or file 'pool'"),
        (
            ["--unlabelled", "empty", "--head", "auto"],
            "--unlabelled: there are no pictures in 'empty': give a folder with",
        ),
        (["--split", "dev"], "has no split 'dev'"),
        (["--device", "warp"], "no device is called 'warp': give cpu, cuda, mps, xpu or auto"),
        (["--class-names", "nothing.json"], "nothing.json can't be opened"),
        (["--out", "file/model"], "can't write file/model"),
        (["--out", "file"], "file is a file; give a folder"),
        (["--out", "."], "holds other files than a model"),
    ],
)
def test_wrong_input_is_refused_before_a_picture_is_read(args, words, squares, tmp_path, monkeypatch, fit):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clipadapter.features.extraction.read_image_shrunk", None)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    before = sorted(os.listdir(tmp_path))
    result = fit(squares, *args)
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr and result.stderr.count("\n") <= 2
    assert sorted(os.listdir(tmp_path)) == before


def test_data_that_can_teach_nothing(tmp_path, write_squares, fit):
    (tmp_path / "empty").mkdir()
    assert "there are no pictures in" in fit(tmp_path / "empty").stderr
    one = write_squares(tmp_path / "one", classes=("red",))
    assert "has only one class, 'red'" in fit(one).stderr
    assert "have no label" in fit(one / "red").stderr
    damaged = write_squares(tmp_path / "damaged", count=1)
    for path in damaged.glob("*/*.png"):
        path.write_bytes(b"")
    result = fit(damaged)
    assert result.exit_code == 1
    assert "none of the 3 pictures can be read" in result.stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "where", ["clipadapter.features.extraction.read_image_shrunk", "clipadapter.persistence.save.os.fsync"]
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
    assert os.listdir(tmp_path) == []


def test_a_failed_save_leaves_the_old_model(squares, tmp_path, monkeypatch, fit):
    fit(squares)
    before = (tmp_path / "model" / "config.json").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipadapter.persistence.save.os.fsync", full)
    result = fit(squares, head="linear-probe")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert (tmp_path / "model" / "config.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["model"]


def test_an_encoder_that_prompts_cannot_be_learned_with_is_refused_before_it_is_opened(squares, tmp_path, run):
    encoder = f"simclr:{tmp_path}"  # a folder without weights, which can't be opened
    result = run("fit", squares, "--out", tmp_path / "model", "--encoder", encoder, "--head", "coop")
    assert result.exit_code == 1
    assert "prompts can't be learned with the encoder simclr:" in result.stderr


def test_the_device_that_auto_takes_is_noted(squares, fit, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device: cpu (no GPU that PyTorch can use)\n" in fit(squares, "--device", "auto").stderr
    assert "device:" not in fit(squares).stderr + fit(squares, "--device", "auto", "--quiet").stderr


def test_a_grid_is_searched_on_held_out_shots(squares, tmp_path, fit):
    args = ["--grid", "alpha=0,1,2", "--grid", "beta=1,5.5"]
    found = json.loads(fit(squares, *args, "--json", head="tip-adapter").stdout)
    assert found["selection"]["strategy"] == "folds"
    assert found["selection"]["held_out"] == 12
    assert len(found["selection"]["candidates"]) == 6
    best = found["selection"]["candidates"][0]
    assert best["excess_loss"] == best["standard_error"] == 0
    chosen = {key: found["head"]["params"][key] for key in ("alpha", "beta")}
    assert best["name"] == ", ".join(f"{key}={value}" for key, value in chosen.items())
    assert "best of 6 on 12 held-out shots by folds" in fit(squares, *args, head="tip-adapter").stdout


@pytest.mark.parametrize("recipe", ["official", "paper"])
def test_settings_override_a_recipe(squares, fit, recipe):
    found = json.loads(
        fit(squares, "--recipe", recipe, "--set", "epochs=3", "--seed", 5, "--json", head="clip-adapter").stdout
    )
    expected = getattr(ClipAdapter, recipe)(epochs=3, seed=5).get_params()
    assert found["head"]["params"] == expected


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--recipe", "paper", "--head", "taskres"], "no recipe of taskres is called 'paper'. Known: official"),
        (["--recipe", "paper", "--head", "clip-adapter", "--preset", "dtd"], "give --preset or --recipe, not both."),
    ],
)
def test_a_recipe_that_is_not_there_is_refused(squares, fit, args, words):
    result = fit(squares, *args)
    assert result.exit_code == 1
    assert words in result.stderr


def test_settings_override_a_preset(squares, fit):
    args = ["--preset", "dtd", "--set", "beta=9"]
    params = json.loads(fit(squares, *args, "--json", head="tip-adapter").stdout)["head"]["params"]
    assert params["alpha"] == 2
    assert params["beta"] == 9


def test_a_transductive_head_sees_the_unlabelled_pictures(squares, tmp_path, fit):
    assert fit(squares, "--unlabelled", squares, head="zlap").exit_code == 0
    head = FewShotClassifier.load(tmp_path / "model").head_
    assert head.state()["n_unlabelled_"] == 12


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


@pytest.mark.parametrize("head", ["auto", "ss-text-u"])
def test_a_picture_without_a_label_that_is_unreadable_is_skipped_with_a_warning(head, squares, tmp_path, fit):
    pool = tmp_path / "pool"
    shutil.copytree(squares, pool)
    (pool / "broken.jpg").write_bytes(b"no picture")
    result = fit(squares, "--unlabelled", pool, "--json", head=head)
    assert json.loads(result.stdout)["unlabelled"]["pictures"] == 12
    assert "broken.jpg" in result.stderr
    strict = fit(squares, "--unlabelled", pool, "--strict", head=head)
    assert strict.exit_code != 0 and "broken.jpg" in strict.stderr


def test_pictures_without_labels_that_are_all_shots_are_a_warning(squares, tmp_path, fit):
    warning = "warning: --unlabelled: all 12 pictures are shots"
    assert warning in fit(squares, "--unlabelled", squares, head="stata").stderr
    shutil.copytree(squares / "red", tmp_path / "pool")
    assert "are shots" not in fit(squares, "--unlabelled", tmp_path / "pool", head="stata").stderr


def test_auto_says_what_pictures_without_labels_contributed(squares, tmp_path, fit):
    pool = tmp_path / "pool"
    pool.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)):
        Image.fromarray(pixels).save(pool / f"{i}.png")
    lines = dict(line.split(maxsplit=1) for line in fit(squares, "--unlabelled", pool, head="auto").stdout.splitlines())
    model = FewShotClassifier.load(tmp_path / "model").head_
    assert lines["unlabelled"] == f"12 pictures, {model.describe_unlabelled()}"
    record = json.loads(fit(squares, "--unlabelled", pool, "--json", head="auto").stdout)["unlabelled"]
    assert record["pictures"] == 12 and record["summary"] == model.describe_unlabelled()
    assert record["share"] == model.unlabelled_share_
    assert json.loads(fit(squares, "--json", head="auto").stdout)["unlabelled"] is None


def test_a_fit_over_a_model_names_both_versions(squares, tmp_path, fit, run):
    assert f"model        {tmp_path / 'model'}\n" in fit(squares).stdout
    assert f"model        {tmp_path / 'model'}, version 2 (was 1)\n" in fit(squares).stdout
    again = json.loads(fit(squares, "--json").stdout)
    assert (again["previous_version"], again["version"]) == (2, 3)
    run("undo", tmp_path / "model")
    assert "version 5 (was 4)" in fit(squares).stdout


def test_commands_in_messages_quote_paths(squares, tmp_path, run):
    folder = tmp_path / "my model"
    for _ in range(2):
        assert run("fit", squares, "--out", folder, "--encoder", "toy", "--head", "zero-shot").exit_code == 0
    line = run("history", folder).stdout.splitlines()[-1]
    command = line.split("to go back to 1: ")[1].removesuffix(" [--to VERSION]")
    assert shlex.split(command) == ["clipadapter", "undo", str(folder)]
    assert f"clipadapter undo '{folder}' --to 2" in run("undo", folder).stdout
