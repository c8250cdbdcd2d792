"""The plot of an explanation, for any head, encoder and name."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipadapter.explain import Explanation, Neighbour
from clipadapter.explain.explanation import MarginPart, read_shot
from clipadapter.utils.prediction import Prediction

SQUARE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def parts(text, shots):
    return (MarginPart("class text", text, "dog"), MarginPart("shots", shots, "cat"))


@pytest.fixture(autouse=True)
def coarse_pixels(monkeypatch):
    monkeypatch.setattr("clipadapter.rendering.plots.DPI", 30)


@pytest.fixture
def explanation():
    return Explanation(
        prediction=Prediction("photo.jpg", "cat", 0.9, (("cat", 0.9), ("dog", 0.1))),
        label="cat",
        against="dog",
        margin=2.0,
        parts=parts(-1.0, 3.0),
        nearest=(Neighbour(0.9, "cat", "shot 1 of cat"),),
        picture=SQUARE,
        square=SQUARE,
        heat_map=np.array([[-1.0, 3.0], [0.0, 1.0]]),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"heat_map": None, "square": None, "notes": ("no heat map",), "nearest": ()},
        {
            "parts": (),
            "notes": ("no parts of text and shots",),
            "nearest": tuple(Neighbour(0.5, "cat", f"shot {i} of cat") for i in range(9)),
        },
        {
            "parts": (),
            "against": None,
            "prediction": Prediction("photo.jpg", None, 0.6, (("cat", 0.6),), nearest="cat", reason="like no shot"),
        },
        {
            "label": "a $cost_{x}$ of 喵 " * 5,
            **{"parts": parts(0.0, 0.0), "margin": 0.0},
            "heat_map": np.ones((7, 7)),
        },
    ],
    ids=["all", "no map, no shots", "no parts, many shots", "several labels, none of these", "odd name, flat map"],
)
def test_any_explanation_can_be_plotted_as_the_only_file_of_a_new_folder(changes, explanation, tmp_path):
    path = replace(explanation, **changes).plot(tmp_path / "new" / "why.png")
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
    assert [file.name for file in path.parent.iterdir()] == ["why.png"]


def test_a_shot_without_a_file_is_grey(tmp_path):
    path = tmp_path / "shot.png"
    Image.new("RGB", (8, 8), "red").save(path)
    assert read_shot(Neighbour(0.9, "red", str(path), is_path=True))[0, 0].tolist() == [255, 0, 0]
    path.unlink()
    missing = read_shot(Neighbour(0.9, "red", str(path), is_path=True))
    assert np.unique(missing).tolist() == [225]
