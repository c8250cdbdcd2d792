"""Encoders without a text tower: alone heads learn from shots only, beside another one its texts are used."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load, save

from clipadapter import FewShotClassifier
from clipadapter.bench import compare, cross_validate_model, evaluate_model
from clipadapter.data import load_dataset
from clipadapter.encoders import create_encoder
from clipadapter.encoders.base import Encoder, EncoderInfo
from clipadapter.encoders.toy import ToyEncoder
from clipadapter.errors import ArtifactError, InputError
from clipadapter.heads import TextFeatures, create_head
from clipadapter.persistence.model import from_snapshot, to_snapshot
from clipadapter.uncertainty import UncertaintyOptions

from .squares import squares

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Pictures(Encoder):
    """The toy encoder without its texts."""

    has_text = False

    def __init__(self, uri="pictures"):
        self.toy, self.device = ToyEncoder(), "cpu"
        self.info = EncoderInfo(uri, 32, 32, 100.0, None, "MIT", uri.encode().hex().ljust(32, "0"))

    def preprocess(self, image):
        return self.toy.preprocess(image)

    def encode_pixels(self, pixels):
        return self.toy.encode_pixels(pixels)

    @classmethod
    def open(cls, variant, device="cpu"):
        return cls()

    @classmethod
    def listing(cls):
        return []


def draw(n, seed=0):
    return squares(n, seed, COLOURS, noise=60)


@pytest.fixture(scope="module")
def fitted():
    return FewShotClassifier(Pictures(), cache=None).fit(*draw(4))


def test_auto_learns_from_shots_alone(fitted):
    assert fitted.text_.absent == fitted.class_names_ == ("blue", "green", "red")
    assert fitted.text_.tower is None
    assert fitted.score(*draw(5, seed=1)) == 1
    support = fitted.support_
    expected = create_head("auto").fit(support.X, support.y).logits(support.X)
    np.testing.assert_allclose(fitted.head_.logits(support.X), expected, atol=1e-4)


def test_a_head_that_needs_text_is_refused_before_pictures_are_read():
    with pytest.raises(InputError, match="TipAdapter needs class text, but pictures has no text tower.*--encoder lite"):
        FewShotClassifier(Pictures(), "tip-adapter", cache=None).fit(["no-file.png"] * 2, ["a", "b"])


def test_heads_take_names_without_text_and_keep_their_order():
    X, y = np.eye(3, dtype=np.float32), ["c", "a", "b"]
    names = TextFeatures.of_names(["c", "b", "a"], 3, order="given")
    for name in ("linear-probe", "knn", "nearest-mean", "gda"):
        head = create_head(name).fit(X, y, text=names)
        assert list(head.classes_) == ["c", "b", "a"]
        np.testing.assert_allclose(head.logits(X)[:, [2, 1, 0]], create_head(name).fit(X, y).logits(X), atol=1e-4)
    with pytest.raises(InputError, match="TipAdapter needs class text.*such as lite, beside this one"):
        create_head("tip-adapter").fit(X, y, text=names)


def test_a_saved_model_has_no_text_either(fitted, tmp_path):
    loaded = FewShotClassifier.load(fitted.save(tmp_path / "model"), encoder=Pictures(), cache=None)
    assert loaded.text_.absent == loaded.class_names_
    images = draw(2, seed=2)[0]
    np.testing.assert_array_equal(loaded.logits(images), fitted.logits(images))  # the same sums in the same order


def test_a_saved_class_without_text_stays_without_text():
    toy = FewShotClassifier("toy", cache=None).fit(*draw(2))
    rows = np.where(np.arange(3)[:, None] == 1, np.nan, toy.text_.embeddings)
    toy.fit_features(toy.support_, TextFeatures(toy.class_names_, rows, 20.0, order="given"))
    assert from_snapshot(to_snapshot(toy._to_model())).text.absent == ("green",)


def test_class_text_that_is_lost_is_noticed():
    saved = to_snapshot(FewShotClassifier("toy", "tip-adapter", cache=None).fit(*draw(2))._to_model())
    arrays = load(saved.read("head"))
    zeros = save({**arrays, "class_text": 0 * arrays["class_text"]})
    with pytest.raises(ArtifactError, match="there is no class text of blue"):
        from_snapshot(replace(saved, blobs={"head": zeros}))


@pytest.mark.parametrize("head", ["auto", "gda", "linear-probe"])
def test_a_model_without_text_is_edited(head):
    images, labels = draw(3)
    model = FewShotClassifier(Pictures(), head, cache=None).fit(images[:6], labels[:6], ["red", "green"])
    model.add_class("blue", images[6:])
    assert model.text_.absent == model.class_names_ == ("red", "green", "blue")
    assert model.score(*draw(4, seed=3)) == 1
    model.rename_class("blue", "navy").remove_class("red")
    assert model.predict(images[6:]) == ["navy"] * 3
    model.undo()
    assert model.class_names_ == ("red", "green", "navy")


def test_class_text_comes_from_the_first_encoder_that_has_some():
    first, second = Pictures("first"), Pictures("second")
    model = FewShotClassifier([first, "toy", second], "zero-shot", cache=None)
    assert model.encoder_.info.name == "toy"
    assert [other.info.name for other in model._reader.others] == ["first", "second"]
    model.fit(*draw(2))
    assert model.text_.absent == ()
    together = FewShotClassifier([first, create_encoder("toy")], quality="fast", cache=None)
    together.prepare_encoder(create_head("svl-adapter"))
    assert [block.name for block in together.encoder_.info.blocks] == ["final", "first/final"]
    assert together.encoder_.has_text
    silent = FewShotClassifier([first, second], cache=None)  # without any text the first encoder stays first
    assert silent.encoder_.info.name == "first" and not silent.encoder_.has_text


def test_negative_labels_need_text():
    options = UncertaintyOptions(negative_labels=True)
    with pytest.raises(InputError, match="negative_labels compares pictures with class names, but pictures"):
        FewShotClassifier(Pictures(), uncertainty=options, cache=None).fit(*draw(3))
    model = FewShotClassifier(Pictures(), uncertainty=UncertaintyOptions(reject=0.1), cache=None).fit(*draw(6))
    assert len(model.predict(draw(2, seed=5)[0])) == 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for split, n in (("train", 4), ("test", 2)):
        images, labels = draw(n, seed=n)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            (root / split / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / split / label / f"{i}.png")
    return load_dataset(root)


def test_evaluation_leaves_zero_shot_out(fitted, data):
    result = evaluate_model(fitted, data.split("test"), curve=False)
    assert list(result.baselines) == ["linear-probe"]
    assert list(cross_validate_model(fitted, 2).baselines) == ["linear-probe"]


def test_a_comparison_leaves_heads_out_that_need_text(data):
    model = FewShotClassifier(Pictures(), cache=None)
    heads = {name: create_head(name) for name in ("zero-shot", "linear-probe", "tip-adapter")}
    result = compare(model, data.split("train"), data.split("test"), heads, [2], [1])
    assert {run.head for run in result.runs} == {"linear-probe"}
    assert "no encoder has a text tower: zero-shot, tip-adapter" in result.warnings[0]
    with pytest.raises(InputError, match="all of these heads need class text"):
        compare(model, data.split("train"), None, {"zero-shot": create_head("zero-shot")}, [1], [1])
