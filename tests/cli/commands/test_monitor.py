import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image, ImageColor

COLOURS = ("blue", "green", "red")


def write(folder, names, rng, shade=0.8, nested=False):
    """Noisy squares, no two alike, one a minute."""
    for i, name in enumerate(names):
        path = folder / (f"{name}/{i}.png" if nested else f"{i:03d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.array(ImageColor.getrgb(name)) * shade + rng.integers(0, 50, (12, 12, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        os.utime(path, (1.7e9 + 60 * i,) * 2)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, run):
    """A model of eight squares of each colour beside streams; not to be changed."""
    root, rng = tmp_path_factory.mktemp("monitor"), np.random.default_rng(0)
    write(root / "shots", COLOURS * 8, rng, nested=True)
    for name in ("same", "usual"):
        write(root / name, rng.permutation(COLOURS * 10), rng)
    write(root / "reds", rng.permutation([*("blue", "green") * 3, *["red"] * 24]), rng)
    write(root / "dull", rng.permutation(COLOURS * 10), rng, shade=0.5)
    result = run("fit", root / "shots", "--out", root / "model", "--encoder", "toy", "--head", "prototype")
    assert result.exit_code == 0, result.stderr
    return root


@pytest.mark.parametrize("reference", [None, "usual"])
def test_no_drift_is_exit_code_0_and_false_alarms_are_more_frequent_than_alpha_beside_shots(place, run, reference):
    given = [] if reference is None else ["--reference", place / "usual"]
    command = ["monitor", place / "model", place / "same", *given]
    result = run(*command)
    assert (result.exit_code, result.stderr) == (0, ""), result.stdout
    lines, kind = result.stdout.splitlines(), "24 shots of the model" if reference is None else "30 usual pictures"
    assert lines[0] == f"30 pictures of {place / 'same'}, compared with {kind}"
    assert lines[2].startswith("no drift was found (p = ")
    is_exact = reference is not None
    assert ("false alarms may be several times as frequent as --alpha says" in result.stdout) is not is_exact
    assert json.loads(run(*command, "--json").stdout)["alpha_is_exact"] is is_exact


def test_drift_is_exit_code_3_and_a_sentence(place, run):
    result = run("monitor", place / "model", place / "reds", "-q")
    assert (result.exit_code, result.stderr) == (3, "")
    assert re.search(r"drift: 'red' is 2.4 times as frequent as usual \((79|80|81) %, usually 33 %\)", result.stdout)
    result = run("monitor", place / "model", place / "dull", "--reference", place / "usual")
    assert result.exit_code == 3 and "drift: the pictures look different (p = " in result.stdout


def test_a_model_that_reads_several_blocks_is_monitored(place, run, tmp_path):
    fit = ("fit", place / "shots", "--shots", 7, "--out", tmp_path / "m", "--encoder", "toy[final,inner]")
    assert run(*fit).exit_code == 0
    for reference in ((), ("--reference", place / "usual")):
        result = run("monitor", tmp_path / "m", place / "same", *reference, "--skip", "label-shift")
        assert result.exit_code == 0, result.stderr
        assert "no drift was found" in result.stdout


def test_usual_class_frequencies_can_be_given(place, run):
    shares = ("--usual", "red=0.8", "--usual", "blue=0.1")
    assert run("monitor", place / "model", place / "reds", *shares).exit_code == 0
    assert run("monitor", place / "model", place / "reds", "--skip", "label-shift").exit_code == 0


def test_json_plot_and_history(place, tmp_path, run):
    history, plot = tmp_path / "log" / "history.jsonl", tmp_path / "drift.png"
    for name, options in (("same", ()), ("reds", ("--plot", plot))):
        command = ("monitor", place / "model", place / name, "--json", "--history", history, *options)
        result = run(*command, "--window", 20)
    found = json.loads(result.stdout)
    assert (found["has_drift"], found["files"], found["windows"][0]["start_time"]) == (True, [str(plot)], 1.7e9)
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [line["has_drift"] for line in lines] == [False, True]
    assert lines[1]["summary"] == found["summary"] and lines[0]["stream"] == str(place / "same")
    assert plot.read_bytes().startswith(b"\x89PNG")
    link = tmp_path / "link.jsonl"
    link.symlink_to(history)
    result = run("monitor", place / "model", place / "same", "--history", link)
    assert result.exit_code == 1 and "is a link" in result.stderr and len(history.read_text().splitlines()) == 2


def test_the_last_pictures_alone(place, run):
    found = json.loads(run("monitor", place / "model", place / "same", "--last", 25, "--json").stdout)
    assert (found["n_pictures"], found["windows"][0]["start_time"]) == (25, 1.7e9 + 5 * 60)
    found = json.loads(run("monitor", place / "model", place / "same", "--by", "name", "--json").stdout)
    assert found["windows"][0]["start_time"] is None


def test_unreadable_pictures_are_reported(place, tmp_path, run):
    stream = write(tmp_path / "stream", COLOURS * 8, np.random.default_rng(3))
    (stream / "bad.png").write_bytes(b"")
    result = run("monitor", place / "model", stream)
    assert result.exit_code in (0, 3) and "bad.png: file is empty" in result.stderr


def test_an_exported_file_is_compared_with_usual_pictures(place, tmp_path, run):
    path = tmp_path / "model.onnx"
    assert run("export", place / "model", "--out", path).exit_code == 0
    result = run("monitor", path, place / "same")
    assert result.exit_code == 1 and "an exported file has no shots to compare with: give pictures" in result.stderr
    assert run("monitor", path, place / "same", "--reference", place / "usual").exit_code == 0
    dull = shutil.copytree(place / "dull", tmp_path / "dull")
    (dull / "bad.png").write_bytes(b"")
    result = run("monitor", path, dull, "--reference", place / "usual", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["reference"], found["n_pictures"]) == (3, "pictures", 30)
    assert len(found["skipped"]) == 1
    result = run("monitor", path, place / "same", "--reference", place / "usual", "--device", "cuda")
    assert result.exit_code == 1 and "leave out --encoder, --device and --precision" in result.stderr
