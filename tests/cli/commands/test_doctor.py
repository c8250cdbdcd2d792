import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageColor


@pytest.fixture
def leaky(tmp_path):
    """Four and two pictures of patches about each of two colours, and a test picture that is also in train."""
    root, rng = tmp_path / "leaky", np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in ("blue", "red"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                patches = 0.5 * rng.integers(0, 256, (5, 6, 3)) + 0.5 * np.array(ImageColor.getrgb(name))
                Image.fromarray(patches.astype(np.uint8)).resize((48, 40)).save(root / part / name / f"{i}.png")
    shutil.copy(root / "train" / "red" / "0.png", root / "test" / "red" / "same.png")
    return root


def test_the_encoder_can_be_that_of_a_model(leaky, tmp_path, run):
    model = tmp_path / "model"
    assert run("fit", leaky, "--out", model, "--encoder", "toy", "--head", "prototype").exit_code == 0
    result = run("doctor", leaky, "--model", model)
    assert result.stdout.splitlines()[0] == "13 pictures in 2 classes (train, test), encoder toy"
    assert f"encoder toy: that of {model}" in result.stderr
    both = run("doctor", leaky, "--model", model, "--encoder", "toy")
    assert both.exit_code == 1 and "--model and --encoder both say the encoder: give one of them" in both.stderr


def test_html_is_written_and_named(leaky, tmp_path, run):
    page = tmp_path / "out" / "doctor.html"
    result = run("doctor", leaky, "--encoder", "toy", "--html", page)
    assert result.stdout.splitlines()[-1] == f"wrote {page}"
    assert "One picture in two splits" in page.read_text(encoding="utf-8")


def test_strict_fails_on_severe_findings_only(leaky, run):
    result = run("doctor", leaky, "--encoder", "toy", "--strict")
    assert result.exit_code == 1
    assert "train/red/0.png = test/red/same.png" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("error: 1 of ")
    (leaky / "test" / "red" / "same.png").unlink()
    assert run("doctor", leaky, "--encoder", "toy", "--strict").exit_code == 0


def test_one_split_has_no_leaks(leaky, run):
    found = json.loads(run("doctor", leaky, "--encoder", "toy", "--split", "train", "--json").stdout)
    assert (found["pictures"], found["splits"]) == (8, ["train"])
    assert "leak" not in found["counts"]


def test_readable_names_are_used(leaky, tmp_path, run):
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"red": "cyan"}))
    found = json.loads(run("doctor", leaky, "--encoder", "toy", "--class-names", names, "--json").stdout)
    assert {"path": "test/red/same.png", "label": "cyan", "split": "test"} in found["findings"][0]["pictures"]
