"""Explanations of predictions: every value is computed again by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.errors import ImageError, InputError, UnknownNameError
from clipadapter.explain import explain
from clipadapter.heads import create_head

NAMES = ("blue", "green", "red")


def square(colour, seed=0):
    noise = np.random.default_rng(seed).integers(-30, 31, (40, 48, 3))
    pixels = np.array(Image.new("RGB", (48, 40), colour)).astype(int) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def fitted(head="tip-adapter", encoder="toy", **params):
    images = [square(name, seed) for name in NAMES for seed in range(3)]
    labels = [name for name in NAMES for _ in range(3)]
    return FewShotClassifier(encoder, head, cache=None, **params).fit(images, labels)


@pytest.fixture(scope="module")
def model():
    return fitted()


def cosine(a, b):
    return float(a @ b) / (math.sqrt(float(a @ a)) * math.sqrt(float(b @ b)))


def test_the_margin_is_between_the_best_two_classes_of_what_classify_predicts(model):
    image = square("red", 9)
    explanation, logits = explain(model, image, top=2), model.logits([image])[0]
    (expected,) = model.classify([image], 2)
    assert explanation.prediction == expected
    assert explanation.label == expected.label == "red"
    best, second = np.sort(logits)[::-1][:2]
    assert explanation.margin == pytest.approx(best - second, rel=1e-4)
    assert explanation.against == NAMES[int(np.argsort(logits)[-2])]
    assert explanation.heat_map is None and explanation.to_dict()["heat_range"] is None
    assert any("toy has no features of parts" in note for note in explanation.notes)


def test_the_parts_add_up_and_that_of_text_is_zero_shot(model):
    image = square("green", 9)
    explanation = explain(model, image)
    assert [part.name for part in explanation.parts] == ["class text", "shots"]
    assert sum(part.margin for part in explanation.parts) == pytest.approx(explanation.margin, abs=1e-9)
    x = model.encoder_.encode_images([image])[0].numpy()
    rows = dict(zip(model.text_.labels, model.text_.embeddings, strict=True))
    text_logits = [model.text_.logit_scale * cosine(x, rows[name]) for name in (explanation.label, explanation.against)]
    assert explanation.parts[0].margin == pytest.approx(text_logits[0] - text_logits[1], rel=1e-3)


def test_a_head_whose_logits_are_not_a_sum_has_no_parts():
    explanation = explain(fitted("cross-modal"), square("red", 9))
    record = explanation.to_dict()
    assert explanation.parts == ()
    assert [record[key] for key in ("text", "shots", "text_says", "shots_say")] == [None] * 4
    assert any("are not the sum of both" in note for note in explanation.notes)


def test_text_and_shots_may_disagree():
    """The pictures of each class have the colour of the next one, so that shots and text predict different classes."""
    images = [square(name, seed) for name in NAMES for seed in range(3)]
    labels = [name for name in ("green", "red", "blue") for _ in range(3)]
    model = FewShotClassifier("toy", "tip-adapter", head_params={"alpha": 200.0}, cache=None).fit(images, labels)
    explanation = explain(model, square("red", 9))
    text, shots = explanation.parts
    assert (explanation.label, text.label, shots.label) == ("blue", "red", "blue")
    assert text.margin < 0 < explanation.margin < shots.margin
    record = explanation.to_dict()
    assert (record["text"], record["shots"]) == (text.margin, shots.margin)
    assert (record["text_says"], record["shots_say"]) == ("red", "blue")
    assert "Class text alone would predict 'red', the shots alone 'blue'." in explanation.sentences()


def test_nearest_shots_are_those_of_a_plain_loop(model):
    image = square("blue", 9)
    x = model.encoder_.encode_images([image])[0].numpy()
    nearest = explain(model, image, neighbours=4).nearest
    shots = zip(model.support_.plain, model.support_.y, strict=True)
    expected = sorted((cosine(x, row), label) for row, label in shots)[::-1][:4]
    assert [shot.label for shot in nearest] == [label for _, label in expected]
    np.testing.assert_allclose([shot.similarity for shot in nearest], [value for value, _ in expected], rtol=1e-5)


def test_a_shot_is_named_by_its_path_or_its_number(model):
    shot = square("green", 1)  # the second green one
    other = fitted()
    provenance = other.support_.provenance
    (unnamed,) = explain(other, shot, neighbours=1).nearest
    assert (unnamed.source, unnamed.is_path) == ("shot 2 of green", False)
    sources = [f"shots/{i}.png" for i in range(9)]
    other.support_ = replace(other.support_, provenance={**provenance, "sources": sources})
    (named,) = explain(other, shot, neighbours=1).nearest
    assert (named.source, named.is_path) == ("shots/4.png", True)
    assert named.similarity == pytest.approx(1)


def test_the_margin_of_another_class_is_negative(model):
    explanation = explain(model, square("red", 9), class_name="blue")
    assert (explanation.label, explanation.against, explanation.prediction.label) == ("blue", "red", "red")
    assert explanation.margin < 0
    assert f"'blue' is behind 'red' by {-explanation.margin:.2f} logits." in explanation.sentences()


@pytest.mark.filterwarnings("ignore:the shots are left out")
def test_a_model_without_its_shots_has_no_nearest_shots(tmp_path, model):
    model.save(tmp_path / "model", support=False)
    explanation = explain(FewShotClassifier.load(tmp_path / "model", cache=None), square("red", 9))
    assert explanation.nearest == ()
    assert any("--no-support" in note for note in explanation.notes)


def test_wrong_arguments_are_errors(tmp_path, model):
    with pytest.raises(UnknownNameError, match="Did you mean 'green'"):
        explain(model, square("red"), class_name="gren")
    with pytest.raises(InputError, match="neighbours"):
        explain(model, square("red"), neighbours=-1)
    with pytest.raises(ImageError, match="no such file"):
        explain(model, tmp_path / "gone.png")
    with pytest.raises(InputError, match="not fitted"):
        explain(FewShotClassifier("toy", cache=None), square("red"))


def test_the_heat_map_has_the_heads_contrast_for_each_patch(opened):
    """Every value in a plain loop: logit of the class less the mean of the others; of four patches."""
    encoder, image = opened("tiny"), square("red", 9)
    model = fitted(encoder=encoder, head="prototype")
    explanation = explain(model, image, class_name="green")
    patches = encoder.patch_features(image)
    logits = np.array([[model.head_.logits(part.numpy()[None])[0].tolist() for part in row] for row in patches])
    values = logits[..., 1] - (logits[..., 0] + logits[..., 2]) / 2
    np.testing.assert_allclose(explanation.heat_map, values, rtol=1e-4)
    record = explanation.to_dict()  # scaled to 0..1
    np.testing.assert_allclose(record["heat_range"], (values.min(), values.max()), rtol=1e-4)
    np.testing.assert_allclose(record["heat"], (values - values.min()) / np.ptp(values), atol=2e-4)
    assert (np.min(record["heat"]), np.max(record["heat"])) == (0.0, 1.0)
    model.head_.needs_tower_to_predict = True  # it would run the text tower once for each part
    explanation = explain(model, image)
    assert explanation.heat_map is None
    assert any("once for each part" in note for note in explanation.notes)


def test_the_margin_of_a_multilabel_model_is_the_logit_of_the_class(model):
    multilabel = fitted()
    targets = np.eye(3, dtype=int)[[NAMES.index(label) for label in multilabel.support_.y]]
    multilabel.head_ = create_head("tip-adapter").fit(multilabel.support_.plain, targets, text=multilabel.text_)
    explanation = explain(multilabel, square("red", 9), class_name="blue")
    assert (explanation.label, explanation.against, explanation.parts) == ("blue", None, ())
    assert explanation.margin == pytest.approx(float(multilabel.logits([square("red", 9)])[0, 0]), rel=1e-4)
    assert explanation.sentences()[1].startswith("The logit of 'blue' is -")


def test_the_predicted_class_is_explained(monkeypatch, model):
    """With unequal costs the predicted class may not have the largest logit."""
    image = square("red", 9)
    (prediction,) = model.classify([image], 3)
    cheapest = replace(prediction, label="blue", nearest="blue")
    monkeypatch.setattr(model, "classify", lambda images, top: [cheapest], raising=False)
    explanation = explain(model, image)
    assert (explanation.label, explanation.against) == ("blue", "red")
