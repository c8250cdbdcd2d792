import json
import shutil

import pytest
from PIL import Image

from clipadapter.cli.commands import predict
from clipadapter.cli.commands.predict import PictureSorter

from ...configs import array_path, flip_last_bit, rewrite_config


def records(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_picture_unlike_every_class_is_marked_beside_its_answer(probe, noisy_squares, tmp_path, run):
    like, unlike = noisy_squares / "test" / "red" / "0.png", tmp_path / "grey.png"
    Image.new("RGB", (12, 12), "grey").save(unlike)
    lines = run("predict", probe, like, unlike).stdout.splitlines()
    assert "unlike every class" not in lines[0]
    assert lines[1].split()[0] in ("red", "green", "blue") and "unlike every class (score " in lines[1]
    counts = run("predict", probe, like, unlike, "--sort-into", tmp_path / "sorted").stderr.splitlines()
    assert "unlike every class" in counts[1] and sorted(line.split()[-1] for line in counts[2:4]) == ["0", "1"]
    rejected = run("predict", probe, unlike, "--reject", 0.05).stdout
    assert rejected.split()[0] == "-" and "nearest" in rejected


def test_standard_input_gives_paths(squares, model, run):
    lines = f"{squares / 'red' / '0.png'}\r\n\n{squares / 'blue' / '0.png'}"
    found = records(run("predict", model, "-", "--json", input=lines))
    assert [one["label"] for one in found] == ["red", "blue"]


def test_a_folder_is_read_recursively_and_batches_give_the_same_predictions_in_order(squares, model, run):
    command = ("predict", model, squares, "--json", "--no-cache")
    whole, parts = records(run(*command)), records(run(*command, "--batch-size", 1))
    for found in (whole, parts):
        assert [one["source"] for one in found] == [str(path) for path in sorted(squares.glob("*/*.png"))]
        assert [one["label"] for one in found] == ["blue"] * 4 + ["green"] * 4 + ["red"] * 4
    # Products of matrices of other sizes may round differently.
    probabilities = [[one["probability"] for one in found] for found in (whole, parts)]
    assert probabilities[0] == pytest.approx(probabilities[1], rel=1e-6)


def test_what_cant_even_be_looked_at_costs_its_own_answer_only(squares, model, run):
    long = "x" * 300 + ".jpg"  # likewise a file in a folder that is another's
    result = run("predict", model, squares / "red" / "0.png", long, f"{long}.csv")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("red")
    assert "can't be opened: File name too long" in result.stderr


def test_an_exported_file_without_permission_is_refused(run):
    for name in ("x" * 300 + ".onnx", "x" * 300):  # a name too long, or a folder that is another's
        result = run("predict", name, "photo.jpg")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "File name too long" in result.stderr


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: array_path(folder, "head").unlink(), ".safetensors is missing"),
        (lambda folder: array_path(folder, "support").unlink(), ".safetensors is missing"),
        (lambda folder: (folder / "config.json").unlink(), "holds no model"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json can't be read"),
        (lambda folder: (folder / "config.json").write_text('{"format": 99}'), "update clipadapter"),
        (lambda folder: flip_last_bit(array_path(folder, "head")), "was altered"),
    ],
)
def test_a_damaged_model_is_refused(damage, words, squares, model, tmp_path, run):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    damage(folder)
    result = run("predict", folder, squares / "red" / "0.png")
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr and result.stderr.count("\n") == 1


def test_another_encoder_is_refused(squares, model, tmp_path, run):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    rewrite_config(folder / "config.json", lambda config: config["encoder"].update(fingerprint="0" * 32))
    result = run("predict", folder, squares / "red" / "0.png", "--encoder", "toy")
    assert result.exit_code == 1
    assert "Give the encoder it was fitted with" in result.stderr


def scores(result):
    assert result.exit_code == 0, result.stderr
    return [{one["label"]: one["score"] for one in record["top"]} for record in records(result)]


def test_adaptation_changes_answers_and_its_stream_goes_over_all_chunks(squares, model, run):
    plain = scores(run("predict", model, squares, "--json"))  # of all classes
    assert all(sum(row.values()) == pytest.approx(1) for row in plain)
    whole = scores(run("predict", model, squares, "--json", "--adapt", "tda"))
    parts = scores(run("predict", model, squares, "--json", "--adapt", "tda", "--batch-size", 1))
    assert whole[0] == pytest.approx(plain[0]) and whole[-1] != pytest.approx(plain[-1])
    for one, other in zip(whole, parts, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_views_vote(squares, model, tmp_path, run):
    path = tmp_path / "two.png"
    image = Image.new("RGB", (60, 60), "red")
    image.paste("blue", (0, 0, 60, 28))
    image.save(path)
    command = ["predict", model, path, "--json"]
    (plain,), (voted,) = scores(run(*command)), scores(run(*command, "--views", 4))
    assert voted != pytest.approx(plain) and sum(voted.values()) == pytest.approx(1)


def test_pictures_are_copied_into_the_folders_of_their_classes(squares, model, tmp_path, run):
    target, photos = tmp_path / "sorted", shutil.copytree(squares, tmp_path / "photos")
    (photos / "bad.png").touch()
    for _ in range(2):  # the second run finds the same bytes
        result = run("predict", model, photos, "--sort-into", target)
        assert result.exit_code == 0, result.stderr
    copies = {path.relative_to(target): path.read_bytes() for path in target.rglob("*.png")}
    assert copies == {path.relative_to(squares): path.read_bytes() for path in squares.rglob("*.png")}
    assert len(list(photos.rglob("*.png"))) == 13
    assert f"copied 0 pictures into {target}; 12 pictures were there already" in result.stderr


def test_a_copy_overwrites_nothing_and_follows_no_link(squares, model, tmp_path, run):
    red, elsewhere, target = squares / "red" / "0.png", tmp_path / "elsewhere", tmp_path / "sorted"
    (target / "red").mkdir(parents=True)
    (target / "red" / "0.png").write_bytes(b"mine")
    (target / "red" / "0-2.png").symlink_to(elsewhere)
    assert run("predict", model, red, "--sort-into", target).exit_code == 0
    assert (target / "red" / "0.png").read_bytes() == b"mine" and not elsewhere.exists()
    assert (target / "red" / "0-3.png").read_bytes() == red.read_bytes()
    (target / "blue").symlink_to(tmp_path)
    result = run("predict", model, squares / "blue" / "0.png", "--sort-into", target)
    assert result.exit_code == 1 and f"{target / 'blue'} is a link" in result.stderr
    assert not (tmp_path / "0.png").exists()


def test_a_rejected_picture_and_odd_names_have_folders_too(squares, tmp_path):
    sorter = PictureSorter(tmp_path / "sorted", [])
    for label in ("a/b", "a_b", "..", None):
        sorter.add(squares / "red" / "0.png", label, ["..", "a/b", "a_b"])
    copies = (tmp_path / "sorted").rglob("*.png")
    assert {path.parent.name for path in copies} == {"_", "a_b", "a_b-2", "none of these"}


@pytest.mark.parametrize(("is_terminal", "options"), [(True, ()), (True, ("--json",)), (False, ())])
def test_a_terminal_shows_how_many_pictures_of_a_folder_each_class_has(is_terminal, options, squares, model, run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "is_terminal", lambda: is_terminal)
        result = run("predict", model, squares, *options)
    assert ("class  pictures" in result.stderr) == (is_terminal and not options)
    assert result.stdout.count("\n") == 12
