"""`FewShotClassifier` from pictures to class names: fit, predict, save and load."""

import numpy as np
import pytest
from PIL import Image

from clipadapter import FewShotClassifier, list_heads
from clipadapter.errors import DataError, ImageError, InputError, UnknownNameError
from clipadapter.features import FeatureStore
from clipadapter.heads import create_head, head_info
from clipadapter.heads.clip_adapter import ClipAdapter
from clipadapter.uncertainty import UncertaintyOptions

from ..heads.estimators import short_training
from .squares import squares


def model(**params):
    return FewShotClassifier(**{"encoder": "toy", "cache": None, **params})


def heads_by_inputs():
    """The first head for each set of inputs that a classifier hands to heads.

    All heads learn in tests/heads/test_all_heads.py, and are saved in tests/persistence/test_save_and_load.py.
    """
    names = {}
    for name in list_heads():
        cls = head_info(name).cls
        towers = (cls.needs_tower, cls.needs_tower_to_predict)
        if not (cls.transductive or cls.tunes_encoder):
            names.setdefault((*towers, cls.needs_text, cls.reads_prompts, cls.reads, cls.accepts_unlabelled), name)
    return list(names.values())


@pytest.mark.parametrize("head", heads_by_inputs())
def test_every_kind_of_head_learns_colours_and_survives_saving(head, tmp_path):
    images, labels = squares()
    queries, truth = squares(seed=1)
    fitted = model(head=head, head_params=short_training(head)).fit(images, labels)
    assert fitted.predict(queries) == truth
    again = FewShotClassifier.load(fitted.save(tmp_path / "model"), cache=None)
    # the same sums in the same order
    np.testing.assert_array_equal(again.predict_proba(queries), fitted.predict_proba(queries))


@pytest.mark.parametrize("head", ["taskres", "zs-lp", "clap"])
def test_a_head_with_a_list_of_numbers_for_the_classes_is_saved(head, tmp_path):
    images, labels = squares()
    fitted = model(head=head, head_params={**short_training(head), "text_norm": [9.0, 8.0, 10.0]}).fit(images, labels)
    again = FewShotClassifier.load(fitted.save(tmp_path / "model"), cache=None)
    assert again.head_.get_params()["text_norm"] == [9.0, 8.0, 10.0]
    # the same sums in the same order
    np.testing.assert_array_equal(again.predict_proba(images), fitted.predict_proba(images))


def test_a_parameter_that_is_an_array_is_refused_before_the_fit():
    images, labels = squares()
    with pytest.raises(InputError, match=r"text_norm must be no array, .* give text_norm.tolist\(\)"):
        model(head=create_head("taskres", text_norm=np.ones(3))).fit(images, labels)


def test_probabilities_are_the_softmax_at_the_models_temperature_mixed_with_equal_ones():
    images, labels = squares()
    fitted = model().fit(images, labels)
    logits = fitted.logits(images).astype(float) / fitted.uncertainty_.calibrator.temperature
    softmax, share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), 1 / (1 + len(labels) ** 2)
    expected = (1 - share) * softmax + share / softmax.shape[1]
    np.testing.assert_allclose(fitted.predict_proba(images), expected, rtol=1e-6)


def test_an_unreadable_picture_fails_only_its_own_prediction(tmp_path):
    images, labels = squares()
    (tmp_path / "bad.jpg").write_bytes(b"")
    fitted = model().fit([*images, tmp_path / "bad.jpg"], [*labels, "red"])
    assert fitted.support_.provenance["skipped"] == [(str(tmp_path / "bad.jpg"), "file is empty")]
    answers = fitted.classify([images[0], tmp_path / "bad.jpg", images[-1]], top=2)
    assert [answer.label for answer in answers] == ["red", None, "blue"]
    assert answers[1].error == "file is empty"
    assert [len(answer.top) for answer in answers] == [2, 0, 2]
    with pytest.raises(ImageError, match="bad.jpg"):
        fitted.predict([tmp_path / "bad.jpg"])
    with pytest.raises(ImageError, match="bad.jpg"):
        model(strict=True).fit([*images, tmp_path / "bad.jpg"], [*labels, "red"])


def test_a_class_without_shots_is_predicted_by_its_text():
    images, labels = squares()
    rows = [i for i, label in enumerate(labels) if label != "green"]
    fitted = model(head="zero-shot").fit(
        [images[i] for i in rows], [labels[i] for i in rows], class_names=["blue", "green", "red"]
    )
    assert fitted.class_names_ == ("blue", "green", "red")
    green = labels.index("green")
    assert fitted.predict([images[green]]) == ["green"]


def test_the_second_fit_computes_no_feature_and_the_same_seed_gives_the_same_model(tmp_path):
    (images, labels), store = squares(), tmp_path / "features.sqlite"
    first, second = (model(cache=store, views=3, seed=4).fit(images, labels) for _ in range(2))
    assert first.support_.provenance["computed"] == 3 * len(images)
    assert second.support_.provenance["computed"] == 0
    np.testing.assert_array_equal(first.logits(images), second.logits(images))  # the same sums in the same order


def test_an_unreadable_picture_leaves_no_store_open(tmp_path, monkeypatch):
    opened, closed, enter, close = [], [], FeatureStore.__enter__, FeatureStore.close
    monkeypatch.setattr(FeatureStore, "__enter__", lambda store: opened.append(store) or enter(store))
    monkeypatch.setattr(FeatureStore, "close", lambda store: closed.append(store) or close(store))
    fitted = model(cache=tmp_path / "features.sqlite").fit(*squares())
    opened.clear(), closed.clear()
    (tmp_path / "bad.jpg").touch()
    with pytest.raises(ImageError) as caught:
        fitted.predict([tmp_path / "bad.jpg"])
    assert caught.tb and opened and opened == closed


def test_parameters_reach_the_head_and_descriptions_replace_templates():
    params = {"alpha": 0.3, "steps": 2}
    texts = {"templates": "a {}.", "descriptions": {"red": ["the colour of blood"]}}
    fitted = model(head="clip-adapter", head_params=params, seed=7, **texts).fit(*squares())
    assert (fitted.head_.alpha_, fitted.head_.steps, fitted.head_.seed) == (0.3, 2, 7)
    assert fitted.prompts_ == {"blue": ["a blue."], "green": ["a green."], "red": ["the colour of blood"]}
    own = ClipAdapter(alpha=0.1, steps=2)
    assert model(head=own).fit(*squares()).head_ is own


@pytest.mark.parametrize(
    ("action", "error", "words"),
    [
        (lambda: model().predict([]), InputError, "not fitted"),
        (lambda: model().fit(squares()[0], ["red"]), InputError, "12 pictures but 1 label"),
        (lambda: model().fit(squares()[0][:4], ["red"] * 4), InputError, "two classes or more, but got red"),
        (lambda: model().fit([], []), InputError, "two classes or more, but got none"),
        (lambda: model().fit(["no.jpg", "file.jpg"], ["a", "b"]), DataError, "none of the 2 pictures can be read"),
        (lambda: model(head="tip-adaptr").fit(*squares()), UnknownNameError, "no head is called"),
        (lambda: model(head="clip-adaptr").fit(*squares()), UnknownNameError, "Did you mean 'clip-adapter'"),
        (lambda: model(encoder="open-clip:x").fit(*squares()), UnknownNameError, "Did you mean 'open_clip'"),
        (lambda: model(templates="imagenett").fit(*squares()), UnknownNameError, "imagenet"),
        (lambda: model(head_params={"alhpa": 1}).fit(*squares()), InputError, "alhpa"),
        (lambda: model(head=ClipAdapter(), head_params={"alpha": 1}).fit(*squares()), InputError, "head_params"),
        (lambda: model(descriptions={"rad": ["x"]}).fit(*squares()), InputError, "rad"),
        (lambda: model().fit(*squares(), class_names=["red", "blue"]), InputError, "green"),
    ],
)
def test_invalid_input_raises_an_error_that_names_it(action, error, words):
    with pytest.raises(error, match=words):
        action()


@pytest.mark.parametrize("head", ["tip-adapter", "nearest-mean", "gda"])
def test_class_names_keep_their_order_after_saving_and_edits(head, tmp_path):
    images, labels = squares()
    queries, truth = squares(seed=1)
    names = ["red", "blue", "green"]
    by_name, fitted = model(head=head).fit(images, labels), model(head=head)
    assert list(by_name.class_names_) == sorted(names)
    if head == "gda":
        fitted.fit_features(fitted.extract_features(images, labels, names), fitted.encode_classes(names))
    else:
        fitted.fit(images, labels, class_names=names)
    fitted = FewShotClassifier.load(fitted.save(tmp_path / "model"), cache=None)
    for _ in range(2):
        assert list(fitted.class_names_) == fitted.head_.classes_.tolist() == names
        columns = [by_name.class_names_.index(name) for name in names]
        np.testing.assert_allclose(fitted.logits(queries), by_name.logits(queries)[:, columns], rtol=1e-4, atol=1e-4)
        assert fitted.predict(queries) == truth
        for one in (fitted, by_name):
            one.add_examples(queries[:2], truth[:2])
    fitted.add_class("amber", [np.full((16, 16, 3), (220, 220, 30 + i), np.uint8) for i in range(3)])
    assert list(fitted.class_names_) == fitted.head_.classes_.tolist() == [*names, "amber"]
    assert fitted.predict(queries) == truth


def test_a_search_of_scikit_learn_takes_files(tmp_path):
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV

    images, names = squares()
    labels = [{"red": "green", "green": "blue", "blue": "red"}[name] for name in names]  # class text is wrong
    files = [tmp_path / f"{i}.png" for i in range(len(images))]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    classifier = model(progress=False, uncertainty=UncertaintyOptions(calibration="none"))
    search = GridSearchCV(classifier, {"head": ["zero-shot", "linear-probe"]}, cv=2).fit(files, labels)
    assert search.best_params_ == {"head": "linear-probe"} and search.score(files, labels) == 1
    assert search.predict(files[:1]) == labels[:1]
    assert clone(classifier.set_params(seed=3)).get_params()["seed"] == 3
    with pytest.raises(ValueError, match="Invalid parameter 'sed'"):
        classifier.set_params(sed=3)
