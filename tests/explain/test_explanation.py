"""Why a classifier said what it said: every figure again, by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.encoders import create_encoder
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


def test_the_prediction_is_that_of_classify(model):
    image = square("red", 9)
    found = explain(model, image, top=2)
    (wanted,) = model.classify([image], 2)
    assert found.prediction == wanted
    assert found.label == wanted.label == "red"


def test_margin_is_between_the_best_and_the_next(model):
    found, logits = explain(model, square("red", 9)), model.logits([square("red", 9)])[0]
    best, second = np.sort(logits)[::-1][:2]
    assert found.margin == pytest.approx(best - second, rel=1e-4)
    assert found.against == NAMES[int(np.argsort(logits)[-2])]


def test_parts_add_up_and_texts_is_zero_shots(model):
    image = square("green", 9)
    found = explain(model, image)
    assert found.text + found.shots == pytest.approx(found.margin, abs=1e-9)
    x = model.encoder_.encode_images([image])[0].numpy()
    rows = dict(zip(model.text_.labels, model.text_.embeddings, strict=True))
    of_text = [model.text_.logit_scale * cosine(x, rows[name]) for name in (found.label, found.against)]
    assert found.text == pytest.approx(of_text[0] - of_text[1], rel=1e-3)


def test_of_zero_shot_all_is_text():
    found = explain(fitted("zero-shot"), square("red", 9))
    assert found.shots == pytest.approx(0, abs=1e-4)
    assert (found.text_says, found.shots_say) == ("red", None)


def test_of_a_linear_probe_nothing_is_text():
    found = explain(fitted("linear-probe"), square("red", 9))
    assert (found.text, found.text_says, found.shots_say) == (0.0, None, "red")


def test_a_head_that_mixes_both_otherwise_gets_no_invented_share():
    found = explain(fitted("cross-modal"), square("red", 9))
    assert (found.text, found.shots, found.text_says, found.shots_say) == (None, None, None, None)
    assert any("does not add up" in note for note in found.notes)


def test_text_and_shots_may_disagree():
    """The pictures of each class have the colour of the next one: the shots say so, the text names the colour."""
    images = [square(name, seed) for name in NAMES for seed in range(3)]
    labels = [name for name in ("green", "red", "blue") for _ in range(3)]
    model = FewShotClassifier("toy", "tip-adapter", head_params={"alpha": 200.0}, cache=None).fit(images, labels)
    found = explain(model, square("red", 9))
    assert (found.label, found.text_says, found.shots_say) == ("blue", "red", "blue")
    assert found.text < 0 < found.margin < found.shots
    assert "Class text alone would say 'red', the shots alone 'blue'." in found.sentences()


def test_nearest_shots_by_cosine_in_a_plain_loop(model):
    image = square("blue", 9)
    x = model.encoder_.encode_images([image])[0].numpy()
    found = explain(model, image, neighbours=4).nearest
    every = sorted(((cosine(x, row), label) for row, label in zip(model.support_.plain, model.support_.y, strict=True)))
    assert [one.label for one in found] == [label for _, label in every[::-1][:4]]
    np.testing.assert_allclose([one.similarity for one in found], [value for value, _ in every[::-1][:4]], rtol=1e-5)


def test_a_shot_is_called_by_its_number_or_its_file(model):
    shot = square("green", 1)  # the second green one
    other = fitted()
    provenance = other.support_.provenance
    (unnamed,) = explain(other, shot, neighbours=1).nearest
    assert (unnamed.source, unnamed.known) == ("shot 2 of green", False)
    sources = [f"shots/{i}.png" for i in range(9)]
    other.support_ = replace(other.support_, provenance={**provenance, "sources": sources})
    (named,) = explain(other, shot, neighbours=1).nearest
    assert (named.source, named.known) == ("shots/4.png", True)
    assert named.similarity == pytest.approx(1)


def test_another_class_shows_what_it_lacks(model):
    found = explain(model, square("red", 9), class_name="blue")
    assert (found.label, found.against) == ("blue", "red")
    assert found.margin < 0
    assert found.prediction.label == "red"
    assert f"'blue' is behind 'red' by {-found.margin:.2f} logits." in found.sentences()


def test_a_model_without_its_shots_names_none(tmp_path, model):
    model.save(tmp_path / "model", support=False)
    found = explain(FewShotClassifier.load(tmp_path / "model", cache=None), square("red", 9))
    assert found.nearest == ()
    assert any("--no-support" in note for note in found.notes)


def test_a_saved_model_says_the_same(tmp_path, model):
    model.save(tmp_path / "model")
    first = explain(model, square("red", 9)).to_dict()
    second = explain(FewShotClassifier.load(tmp_path / "model", cache=None), square("red", 9)).to_dict()
    assert first.keys() == second.keys()
    for name in ("explained", "margin", "text", "shots", "text_says", "shots_say"):
        assert first[name] == second[name]


def test_wrong_questions_are_refused(tmp_path, model):
    with pytest.raises(UnknownNameError, match="Did you mean 'green'"):
        explain(model, square("red"), class_name="gren")
    with pytest.raises(InputError, match="neighbours"):
        explain(model, square("red"), neighbours=-1)
    with pytest.raises(ImageError, match="no such file"):
        explain(model, tmp_path / "gone.png")
    with pytest.raises(InputError, match="not fitted"):
        explain(FewShotClassifier("toy", cache=None), square("red"))


def test_it_is_json(model):
    found = json.loads(json.dumps(explain(model, square("red", 9)).to_dict()))
    assert found["prediction"]["label"] == found["explained"] == "red"
    assert [set(one) for one in found["nearest_shots"]] == [{"similarity", "label", "source"}] * 5


def test_an_encoder_without_patches_has_no_map_and_says_so(model):
    found = explain(model, square("red", 9))
    assert (found.heat, found.heat_range) == (None, None)
    assert any("toy has no features of parts" in note for note in found.notes)


def test_two_encoders_have_no_map_and_say_so():
    found = explain(fitted(encoder="pair:toy+toy", head="svl-adapter"), square("red", 9))
    assert found.heat is None
    assert any("side by side" in note for note in found.notes)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, write_model):
    """A transformer of random weights that sees four patches."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    facts = {"mean": [0.5] * 3, "std": [0.5] * 3}
    folder = write_model(tmp_path_factory.mktemp("tiny") / "model", config, facts)
    return create_encoder(f"open_clip:local-dir:{folder}")


def test_the_map_is_the_heads_answer_for_each_patch(tiny):
    """Every value in a plain loop: logit of the class less the mean of the others', stretched to 0..1."""
    encoder, image = tiny, square("red", 9)
    model = fitted(encoder=encoder, head="prototype")
    found = explain(model, image, class_name="green")
    patches = encoder.patch_features(image)
    values = np.empty((2, 2))
    for r in range(2):
        for c in range(2):
            logits = model.head_.logits(patches[r, c].numpy()[None])[0].tolist()
            values[r, c] = logits[1] - (logits[0] + logits[2]) / 2
    np.testing.assert_allclose(found.heat_range, (values.min(), values.max()), rtol=1e-4)
    wanted = (values - values.min()) / (values.max() - values.min())
    np.testing.assert_allclose(found.heat, wanted, atol=1e-4)
    assert (found.heat.min(), found.heat.max()) == (0.0, pytest.approx(1.0))


def test_the_square_is_what_the_encoder_sees(tiny):
    image = square("red", 9)
    found = explain(fitted(encoder=tiny, head="prototype"), image)
    width, height = image.size
    assert found.picture.shape == (height, width, 3)
    np.testing.assert_array_equal(found.square, tiny.tower().pixels.to_square(image))


def test_with_several_labels_the_margin_is_the_classs_own_logit(model):
    several = fitted()
    targets = np.eye(3, dtype=int)[[NAMES.index(label) for label in several.support_.y]]
    several.head_ = create_head("tip-adapter").fit(several.support_.plain, targets, text=several.text_)
    found = explain(several, square("red", 9), class_name="blue")
    assert (found.label, found.against, found.text) == ("blue", None, None)
    assert found.margin == pytest.approx(float(several.logits([square("red", 9)])[0, 0]), rel=1e-4)
    assert found.sentences()[1].startswith("The logit of 'blue' is -")


def test_a_head_that_asks_the_text_tower_each_time_has_no_map(tiny):
    slow = fitted(encoder=tiny, head="prototype")
    slow.head_.needs_tower_to_predict = True
    found = explain(slow, square("red", 9))
    assert found.heat is None
    assert any("once for each part" in note for note in found.notes)


def test_a_picture_that_is_none_of_the_classes_is_told_with_the_nearest(model):
    image = square("red", 9)
    (said,) = model.classify([image])
    rejected = replace(said, label=None, reason="like no shot")
    found = replace(explain(model, image), prediction=rejected)
    assert found.sentences()[0].startswith("It is called none of the classes: like no shot. Nearest: 'red' (")
    assert found.to_dict()["prediction"]["reason"] == "like no shot"


def test_what_is_explained_is_what_the_picture_is_called(monkeypatch, model):
    """With unequal costs that need not be the class of the highest logit."""
    image = square("red", 9)
    (said,) = model.classify([image], 3)
    cheapest = replace(said, label="blue", nearest="blue")
    monkeypatch.setattr(model, "classify", lambda images, top: [cheapest], raising=False)
    found = explain(model, image)
    assert (found.label, found.against) == ("blue", "red")
