from pathlib import Path

import pytest
from PIL import Image

from clipadapter.bench import compare
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import load_dataset
from clipadapter.errors import InputError
from clipadapter.heads.linear_probe import LinearProbe
from clipadapter.heads.zero_shot import ZeroShot

HEADS = {"zero-shot": ZeroShot(), "linear-probe": LinearProbe()}


@pytest.fixture
def model():
    return FewShotClassifier("toy", cache=None, templates=["a {} square.", "default"])


def test_folders_of_colours_are_distinguished_and_files_made_from_the_records(colour_folder, model, tmp_path):
    train, test = load_dataset(colour_folder("train", 9)), load_dataset(colour_folder("test", 2, seed=1))
    comparison = compare(model, train, test, HEADS, [1, 2], [1, 2], records=tmp_path / "out" / "runs.jsonl")
    assert [run.metrics.accuracy for run in comparison.runs] == [1.0] * 8
    assert (comparison.n_new, comparison.warnings, comparison.skipped) == (8, [], [])
    assert comparison.runs[0].encoder.name == "toy" and comparison.runs[0].data.support == "train"
    assert comparison.runs[0].templates == ["a {} square.", "a photo of a {}."]
    page, plot = comparison.write(tmp_path / "out", "Colours")
    assert "-->\n\n# Colours\n\n| head | 1 shot | 2 shots |" in page.read_text()
    assert "| zero-shot | **100.0 ± 0.0** | **100.0 ± 0.0** |" in page.read_text()
    with Image.open(plot) as image:
        assert image.format == "PNG"
    again = compare(model, train, test, HEADS, [1, 2], [1, 2], records=tmp_path / "out" / "runs.jsonl")
    assert again.n_new == 0 and again.runs == comparison.runs
    # Only drawn pictures are encoded.
    assert 6 <= len(comparison.support) < 26


def test_warnings_name_small_classes_and_shared_pictures(colour_folder, model):
    train = load_dataset(colour_folder("train", 3))
    (train.root / "red" / "02.png").write_bytes(b"no picture")
    comparison = compare(model, train, train, HEADS, [1, 3], [1])
    assert comparison.warnings == [
        "1 of 3 classes have fewer than 3 pictures to draw from and give all they have, such as red (2)",
        "8 of 8 test pictures are also among the shots",
    ]
    assert [Path(name).name for name, _ in comparison.skipped] == ["02.png", "02.png"]


def test_a_test_class_without_shots_is_refused_before_any_fit(colour_folder, model):
    train, test = load_dataset(colour_folder("train", 2)), load_dataset(colour_folder("test", 1))
    with pytest.raises(InputError, match="no class of the model: mauve; known: blue, green, red"):
        compare(model, train, test.rename({"red": "mauve"}), HEADS, [1], [1])
