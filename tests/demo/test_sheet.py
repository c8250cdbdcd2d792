"""The sheet of answers."""

import numpy as np
import pytest
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.data import load_dataset
from clipadapter.demo import draw_sheet, explain_some


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of noisy squares of three colours, four each."""
    root, rng = tmp_path_factory.mktemp("data") / "colours", np.random.default_rng(0)
    for name, colour in {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}.items():
        (root / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.array(colour) + rng.integers(0, 50, (12, 20, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return load_dataset(root)


@pytest.fixture(scope="module")
def model(pictures):
    return FewShotClassifier("toy", "linear-probe", cache=None).fit(pictures.paths, pictures.labels)


def test_classes_take_turns_and_a_damaged_picture_is_passed_over(pictures, model):
    answers = explain_some(model, pictures, 5)
    counts = [[answer.truth for answer in answers].count(name) for name in pictures.class_names]
    assert sorted(counts) == [1, 2, 2]
    assert [answer.truth for answer in answers] == sorted(answer.truth for answer in answers)
    assert explain_some(model, pictures, 5)[0].path == answers[0].path
    damaged = answers[0].path
    whole = damaged.read_bytes()
    damaged.write_bytes(b"no picture")
    try:
        assert damaged not in [answer.path for answer in explain_some(model, pictures, 12)]
    finally:
        damaged.write_bytes(whole)


def test_an_answer_is_right_if_it_is_the_true_class(pictures, model):
    (answer,) = explain_some(model, pictures, 1)
    assert answer.is_right
    assert answer.to_dict() == {
        "path": str(answer.path),
        "class": answer.truth,
        "answer": answer.truth,
        "probability": answer.explanation.prediction.probability,
        "right": True,
    }


@pytest.mark.parametrize("count", [1, 4])
def test_the_sheet_is_a_picture_whatever_the_number_of_answers(count, pictures, model, tmp_path):
    path = draw_sheet(explain_some(model, pictures, count), tmp_path / "sheet.png", "A title\nof two lines")
    with Image.open(path) as image:
        assert image.format == "PNG" and min(image.size) > 300
