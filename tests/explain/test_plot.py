"""The picture of an explanation: written whole, of any head and encoder, with any name."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.errors import InputError
from clipadapter.explain import Explanation, Neighbour
from clipadapter.explain.plot import _picture_of
from clipadapter.prediction import Prediction

SQUARE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def found():
    return Explanation(
        source="photo.jpg",
        prediction=Prediction("photo.jpg", "cat", 0.9, (("cat", 0.9), ("dog", 0.1))),
        label="cat",
        against="dog",
        margin=2.0,
        text=-1.0,
        shots=3.0,
        text_says="dog",
        shots_say="cat",
        nearest=(Neighbour(0.9, "cat", "shot 1 of cat"),),
        picture=SQUARE,
        square=SQUARE,
        heat=np.array([[0.0, 1.0], [0.25, 0.5]]),
        heat_range=(-1.0, 3.0),
    )


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


def test_it_is_a_png_and_its_folder_is_made(found, tmp_path):
    path = found.to_png(tmp_path / "new" / "why.png")
    assert opened(path).format == "PNG"
    assert [each.name for each in path.parent.iterdir()] == ["why.png"]


@pytest.mark.parametrize(
    "changes",
    [
        {"heat": None, "heat_range": None, "square": None, "notes": ("no heat map: toy has none",)},
        {"text": None, "shots": None, "text_says": None, "shots_say": None, "notes": ("this head does not add up",)},
        {"against": None, "text": None, "shots": None, "text_says": None, "shots_say": None},
        {"nearest": ()},
        {"nearest": tuple(Neighbour(0.5, "cat", f"shot {i} of cat") for i in range(9))},
        {"label": "a $cost_{x}$ of 喵 " * 5, "text": 0.0, "shots": 0.0, "margin": 0.0},
        {"prediction": Prediction("photo.jpg", None, 0.6, (("cat", 0.6),), nearest="cat", reason="like no shot")},
        {"heat": np.zeros((7, 7)), "heat_range": (1.0, 1.0)},
    ],
    ids=["no map", "no shares", "several labels", "no shots", "many shots", "odd name", "none of these", "flat map"],
)
def test_whatever_is_missing_there_is_a_picture(changes, found, tmp_path):
    assert opened(replace(found, **changes).to_png(tmp_path / "why.png")).format == "PNG"


def test_a_place_that_cant_be_written_is_told(found, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't write"):
        found.to_png(tmp_path / "file" / "why.png")
    (tmp_path / "why.png").mkdir()
    with pytest.raises(InputError, match="can't write"):
        found.to_png(tmp_path / "why.png")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "why.png"]


def test_matplotlib_is_left_as_it_was(found, tmp_path):
    before = dict(matplotlib.rcParams)
    found.to_png(tmp_path / "why.png")
    assert dict(matplotlib.rcParams) == before


def test_a_shot_that_is_gone_is_grey(tmp_path):
    path = tmp_path / "shot.png"
    Image.new("RGB", (8, 8), "red").save(path)
    assert _picture_of(Neighbour(0.9, "red", str(path), known=True))[0, 0].tolist() == [255, 0, 0]
    path.unlink()
    gone = _picture_of(Neighbour(0.9, "red", str(path), known=True))
    assert np.unique(gone).tolist() == [225]


def test_a_fitted_model_is_drawn(tmp_path):
    images = [Image.new("RGB", (40, 40), name) for name in ("red", "blue")]
    model = FewShotClassifier("toy", "auto", cache=None).fit(images, ["red", "blue"])
    from clipadapter.explain import explain

    assert explain(model, images[0]).to_png(tmp_path / "why.png").is_file()
