"""An edited classifier predicts like one that is fitted from scratch."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file

from clipadapter import FewShotClassifier
from clipadapter.errors import ArtifactError, DataError, InputError, UnknownNameError
from clipadapter.features import ViewSpec
from clipadapter.persistence import read_config
from clipadapter.uncertainty import UncertaintyOptions

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "yellow": (230, 230, 20)}
CLOSED = ["zero-shot", "gda", "knn", "proker", "timo"]
TRAINED = {
    "auto": {},
    "linear-probe": {"C": 10.0},
    "clip-adapter": {"alpha": 0.4, "steps": 20},
    "taskres": {"steps": 20},
    "tip-adapter-f": {},
}
ORDER = ("blue", "green", "red")


def squares(name, count, seed):
    """Noisy squares of one colour."""
    noise = np.random.default_rng(seed).integers(-25, 26, (count, 16, 16, 3))
    return list(np.clip(noise + COLOURS[name], 0, 255).astype(np.uint8))


def shots(*names, each=4, seed=0):
    pictures = [(picture, name) for name in names for picture in squares(name, each, seed + len(name))]
    return [picture for picture, _ in pictures], [name for _, name in pictures]


QUERIES = [picture for name in COLOURS for picture in squares(name, 3, 99)]


def model(head="gda", **params):
    return FewShotClassifier(encoder="toy", head=head, cache=None, **params)


def fitted(head="gda", **params):
    return model(head, **params).fit(*shots(*ORDER))


def assert_same(found, expected, atol=1e-5):
    assert found.class_names_ == expected.class_names_
    np.testing.assert_allclose(found.logits(QUERIES), expected.logits(QUERIES), atol=atol, rtol=1e-5)
    np.testing.assert_allclose(found.predict_proba(QUERIES), expected.predict_proba(QUERIES), atol=max(atol, 1e-4))


@pytest.mark.parametrize("head", CLOSED)
def test_a_closed_form_head_after_many_edits_equals_a_fit_from_scratch(head):
    images, labels = shots(*ORDER)
    yellow, green = squares("yellow", 3, 5), squares("green", 2, 6)
    found = (
        fitted(head)
        .add_class("yellow", yellow)
        .add_examples(green, ["green", "green"])
        .correct([images[0]], ["yellow"])
        .rename_class("yellow", "white")
        .remove_class("red")
    )
    rows = [(p, "white" if i == 0 else n) for i, (p, n) in enumerate(zip(images, labels, strict=True)) if n != "red"]
    rows += [(p, "white") for p in yellow] + [(p, "green") for p in green]
    expected = model(head).fit([p for p, _ in rows], [n for _, n in rows], ["blue", "green", "white"])
    assert_same(found, expected)


@pytest.mark.parametrize("head", TRAINED)
def test_a_trained_head_after_edits_predicts_like_a_full_fit(head):
    yellow = squares("yellow", 4, 5)
    images, labels = shots(*ORDER)
    params = {"head_params": TRAINED[head], "uncertainty": UncertaintyOptions(calibration="none")}
    found = fitted(head, **params).add_class("yellow", yellow)
    expected = model(head, **params).fit(images + yellow, labels + ["yellow"] * 4, [*ORDER, "yellow"])
    assert found.class_names_ == expected.class_names_
    assert found.predict(QUERIES) == expected.predict(QUERIES)


def test_a_loaded_model_encodes_its_prompts_again_for_a_head_that_reads_single_prompts(tmp_path):
    sentences = {name: [f"a {name} square.", f"something {name} with noise."] for name in (*ORDER, "yellow")}
    described = {"templates": "imagenet7", "descriptions": {name: sentences[name] for name in ("red", "green")}}
    fitted("timo", **described).save(tmp_path / "model")
    found = FewShotClassifier.load(tmp_path / "model", cache=None)
    assert found.text_.prompts is None
    # the same sums in the same order
    np.testing.assert_array_equal(found.logits(QUERIES), fitted("timo", **described).logits(QUERIES))
    assert [len(rows) for rows in found.refit_text().prompts] == [7, 2, 2]
    yellow, green = squares("yellow", 3, 5), squares("green", 2, 6)
    found.add_class("yellow", yellow, descriptions=sentences["yellow"]).add_examples(green, ["green"] * 2)
    found.save(tmp_path / "model")
    found = FewShotClassifier.load(tmp_path / "model", cache=None).remove_class("red")
    images, labels = shots("blue", "green")
    described["descriptions"] = {name: sentences[name] for name in ("green", "yellow")}
    pictures, names = images + yellow + green, [*labels, *["yellow"] * 3, "green", "green"]
    assert_same(found, model("timo", **described).fit(pictures, names, ["blue", "green", "yellow"]))


def test_each_edit_is_a_version_and_can_be_undone():
    found = fitted()
    before = found.logits(QUERIES)
    found.add_class("yellow", squares("yellow", 3, 5), by="ada").remove_class("red").rename_class("blue", "navy")
    actions = [change.action for change in found.history_.changes]
    assert actions == ["fit", "add-class", "remove-class", "rename-class"]
    assert found.history_.changes[1].by == "ada"
    assert found.history_.changes[1].facts["pictures"] == 3
    found.undo().undo().undo()
    assert found.history_.version == 7
    np.testing.assert_array_equal(found.logits(QUERIES), before)  # the same sums in the same order
    assert found.undo(to=2).class_names_ == (*ORDER, "yellow")
    with pytest.raises(InputError, match="nothing"):
        fitted().undo()


def test_saving_twice_or_to_another_folder_adds_no_version(tmp_path):
    found = fitted()
    for name in ("model", "model", "other"):
        found.save(tmp_path / name)
        assert FewShotClassifier.load(tmp_path / name, cache=None).history_.version == 1
    found.rename_class("red", "crimson").save(tmp_path / "other")
    again = FewShotClassifier.load(tmp_path / "other", cache=None)
    again.save(tmp_path / "third")
    for name in ("other", "third"):
        history = FewShotClassifier.load(tmp_path / name, cache=None).history_
        assert [change.action for change in history.changes] == ["fit", "rename-class"]
    again.correct([shots(*ORDER)[0][0]], ["green"]).save(tmp_path / "third")
    last = FewShotClassifier.load(tmp_path / "third", cache=None).undo(to=1)
    np.testing.assert_array_equal(last.logits(QUERIES), fitted().logits(QUERIES))  # the same sums in the same order


def test_a_shot_is_recognised_by_its_feature_and_left_out_or_relabelled():
    images, labels = shots(*ORDER)
    found = fitted().add_examples(images + squares("red", 1, 7), [*labels, "red"])
    assert found.support_.counts == {"blue": 4, "green": 4, "red": 5}
    assert found.history_.changes[-1].facts["known"] == 12
    version = found.history_.version
    assert found.add_examples(images, labels).history_.version == version
    found.correct([images[0].copy(), *squares("red", 1, 8)], ["red", "red"])
    assert found.support_.counts == {"blue": 3, "green": 4, "red": 7}
    assert found.history_.changes[-1].facts["relabelled"] == 1
    assert found.support_.y[0] == "red"
    assert found.add_class("navy", images[1:3]).support_.counts == {"blue": 1, "green": 4, "red": 7, "navy": 2}


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (lambda m: m.add_class("red", squares("red", 1, 7)), InputError, "there is a class 'red' already"),
        (lambda m: m.add_class(" ", squares("red", 1, 7)), InputError, "not blank"),
        (lambda m: m.rename_class("red", 5), InputError, "a name that is a text"),
        (lambda m: m.add_class("pink", [], descriptions="rosy"), InputError, "at least one sentence"),
        (lambda m: m.correct(squares("red", 1, 7) * 2, ["red", "blue"]), InputError, "have two labels"),
        (lambda m: m.add_class("pink", []), DataError, "none of the 0 pictures"),
        (lambda m: m.add_examples(squares("red", 1, 7), ["rad"]), UnknownNameError, "Did you mean 'red'"),
        (lambda m: m.add_examples(shots("red")[0], ["blue"] * 4), InputError, "is a shot of 'red' already"),
        (lambda m: m.add_examples(squares("red", 2, 7), ["red"]), InputError, "2 pictures but 1 label"),
        (lambda m: m.correct(squares("red", 1, 7), [("red", "blue")]), InputError, "the model gives one"),
        (lambda m: m.remove_class("pink"), UnknownNameError, "no class is called 'pink'"),
        (lambda m: m.remove_class("red").remove_class("blue"), InputError, "two classes or more"),
        (lambda m: m.rename_class("red", "blue"), InputError, "there is a class 'blue' already"),
        (lambda m: m.undo(to=9), InputError, "9"),
    ],
)
def test_an_invalid_edit_raises_an_error_and_changes_nothing(act, error, words):
    found = fitted()
    before = found.logits(QUERIES)
    with pytest.raises(error, match=words):
        act(found)
    if found.history_.version == 1:
        np.testing.assert_array_equal(found.logits(QUERIES), before)  # the same sums in the same order


def test_a_duplicate_shot_is_relabelled_twice_and_a_duplicate_example_is_added_once():
    images, labels = shots(*ORDER)
    found = model("prototype").fit([*images, images[0]], [*labels, labels[0]]).correct([images[0]], ["red"])
    assert found.support_.counts == {"blue": 3, "green": 4, "red": 6}
    assert found.add_examples(squares("red", 1, 7) * 2, ["red", "red"]).support_.counts["red"] == 7


def test_new_shots_have_as_many_views_as_the_old_ones():
    images, labels = shots(*ORDER)
    found = model("prototype")
    support = found.extract_features(images, labels, ORDER, views=3)
    found.fit_features(support, found.encode_classes(ORDER)).add_class("yellow", squares("yellow", 2, 5))
    assert found.support_.X.shape == (14, 3, 32)


def test_shots_whose_classes_stand_in_another_order_than_those_of_the_text_keep_their_labels():
    images, labels = shots(*ORDER)
    found = model("prototype")
    found.fit_features(found.extract_features(images, labels, ORDER[::-1]), found.encode_classes(ORDER))
    assert found.add_examples(squares("red", 1, 7), ["red"]).support_.y == (*labels, "red")
    assert found.remove_class("blue").support_.counts == {"green": 4, "red": 5}


def test_unreadable_pictures_are_listed_in_skipped(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    found = fitted().add_examples([tmp_path / "bad.png", *shots("red")[0]], ["red"] * 5)
    assert [name for name, _ in found.skipped_] == [str(tmp_path / "bad.png")]


def test_an_unfitted_classifier_and_a_transductive_head_can_not_be_edited():
    with pytest.raises(InputError, match="not fitted"):
        model().add_class("red", squares("red", 1, 7))
    found = model("transclip").fit(*shots(*ORDER), unlabelled=QUERIES)
    with pytest.raises(InputError, match="without labels"):
        found.remove_class("red")


@pytest.mark.filterwarnings("ignore:the shots are left out")
def test_without_saved_shots_only_a_streaming_head_can_be_edited(tmp_path):
    yellow = squares("yellow", 3, 5)
    for head in ("nearest-mean", "rail"):
        fitted(head).save(tmp_path / head, support=False)
        found = FewShotClassifier.load(tmp_path / head, cache=None).add_class("yellow", yellow)
        images, labels = shots(*ORDER)
        expected = model(head).fit(images + yellow, labels + ["yellow"] * 3, [*ORDER, "yellow"])
        np.testing.assert_allclose(found.logits(QUERIES), expected.logits(QUERIES), atol=1e-5)
        assert sum(found.support_.provenance["shots"].values()) == 15
        with pytest.raises(InputError, match="without its shots"):
            found.remove_class("red")
    fitted("afa").save(tmp_path / "afa", support=False)
    with pytest.raises(InputError, match="without its shots"):
        FewShotClassifier.load(tmp_path / "afa", cache=None).rename_class("red", "crimson")
    fitted("knn").save(tmp_path / "other", support=False)
    with pytest.raises(InputError, match="without its shots"):
        FewShotClassifier.load(tmp_path / "other", cache=None).add_class("yellow", yellow)


def test_an_edit_uses_the_templates_views_and_uncertainty_options_of_the_fit(tmp_path):
    options = UncertaintyOptions(reject=0.1, coverage=0.8, sets="cv+", costs=[[0, 1, 5], [1, 0, 1], [1, 1, 0]])
    params = {"templates": "dtd", "views": ViewSpec(3, scale=(0.6, 0.9), seed=4), "seed": 3, "uncertainty": options}
    yellow = squares("yellow", 4, 5)
    fitted("prototype", **params).save(tmp_path / "model")
    found = FewShotClassifier.load(tmp_path / "model", cache=None).add_class("yellow", yellow)
    images, labels = shots(*ORDER)
    costs = np.array([[0, 1, 5, 5], [1, 0, 1, 5], [1, 1, 0, 5], [5, 5, 5, 0]])
    every = {**params, "uncertainty": dataclasses.replace(options, costs=costs)}
    expected = model("prototype", **every).fit(images + yellow, labels + ["yellow"] * 4, [*ORDER, "yellow"])
    assert found.prompts_["yellow"] == ["yellow texture."]
    assert found.support_.X.shape == (16, 3, 32)
    assert_same(found, expected)
    assert found.uncertainty_.conformal.method == "cv+"
    assert len(found.fold_heads_) == len(expected.fold_heads_)
    np.testing.assert_array_equal(found.uncertainty_.decisions.costs, costs)
    assert [p.labels for p in found.classify(QUERIES)] == [p.labels for p in expected.classify(QUERIES)]


def test_descriptions_stay_with_a_renamed_class():
    found = model(descriptions={"red": ["the colour of blood"]}).fit(*shots(*ORDER))
    found.rename_class("red", "crimson").rename_class("blue", "navy")
    found.add_class("yellow", squares("yellow", 2, 5), descriptions=["like the sun"])
    texts = {"crimson": ["the colour of blood"], "navy": ["a photo of a navy."], "yellow": ["like the sun"]}
    assert {name: found.prompts_[name] for name in texts} == texts


def test_a_multilabel_model_can_be_edited():
    images, labels = shots(*ORDER)
    several = [(name,) for name in labels]
    yellow = squares("yellow", 3, 5)
    found = model("tip-adapter").fit(images, several)
    found.add_class("yellow", [*yellow, images[0]]).correct([images[1]], [("blue", "red")]).remove_class("green")
    assert found.add_examples(squares("red", 1, 7), ["red"]).undo().support_.counts["red"] == 5
    rows = [set(one) for one in several] + [{"yellow"}] * 3
    rows[0] |= {"yellow"}
    rows[1] |= {"red"}
    expected = model("tip-adapter").fit(
        images + yellow, [tuple(sorted(row - {"green"})) for row in rows], ["blue", "red", "yellow"]
    )
    np.testing.assert_array_equal(found.support_.targets, expected.support_.targets)
    np.testing.assert_allclose(found.predict_proba(QUERIES), expected.predict_proba(QUERIES), atol=1e-5)


@pytest.mark.filterwarnings("ignore:the shots are left out:clipadapter.errors.MethodWarning")  # auto may keep shots
def test_pictures_without_labels_are_used_by_edits_and_after_loading(tmp_path):
    unlabelled = [picture for name in ORDER for picture in squares(name, 12, 40)]
    images, labels = shots(*ORDER)
    first = model("auto").fit(images, labels, unlabelled=[*unlabelled, images[0]])
    assert len(first.head_.kept_pictures_) == 36  # the picture that is a shot is left out
    first.save(tmp_path / "model")
    loaded = FewShotClassifier.load(tmp_path / "model", cache=None)
    np.testing.assert_array_equal(loaded.head_.kept_pictures_, first.head_.kept_pictures_)
    assert loaded.head_.describe_unlabelled() == first.head_.describe_unlabelled()
    added = squares("red", 2, 77)
    kept = loaded.head_.kept_pictures_
    edited = loaded.add_examples(added, ["red", "red"])
    assert edited.head_.kept_pictures_ is kept  # one array in memory for all versions
    expected = model("auto").fit([*images, *added], [*labels, "red", "red"], unlabelled=unlabelled)
    np.testing.assert_allclose(edited.logits(QUERIES), expected.logits(QUERIES), rtol=1e-4, atol=1e-4)
    edited.save(tmp_path / "model")
    # Versions with the same pictures share their file, though they have other shots.
    files = [path.name.split("-")[0] for path in (tmp_path / "model" / "arrays").glob("*.safetensors")]
    assert (files.count("unlabelled"), files.count("support")) == (1, 2)
    undone = FewShotClassifier.load(tmp_path / "model", cache=None).undo()
    np.testing.assert_array_equal(undone.logits(QUERIES), first.logits(QUERIES))  # the same sums in the same order
    np.testing.assert_array_equal(undone.head_.kept_pictures_, first.head_.kept_pictures_)
    first.save(tmp_path / "bare", support=False)
    bare = FewShotClassifier.load(tmp_path / "bare", cache=None)
    assert "unlabelled" not in read_config(tmp_path / "bare").files
    undone.save(tmp_path / "model", support=False)
    left = {key for path in (tmp_path / "model").rglob("*.safetensors") for key in load_file(path)}
    assert not left & {"X", "unlabelled"}
    assert bare.head_.kept_pictures_ is None
    np.testing.assert_array_equal(bare.logits(QUERIES), first.logits(QUERIES))  # the same sums in the same order


@pytest.mark.parametrize("damage", [lambda rows: rows[:, 1:], lambda rows: rows[:0], lambda rows: 0 * rows])
def test_damaged_pictures_without_labels_in_a_saved_model_are_refused(tmp_path, damage):
    first = model("auto").fit(*shots(*ORDER), unlabelled=squares("red", 6, 3))
    first.head_.kept_pictures_ = damage(first.head_.kept_pictures_)
    first.save(tmp_path / "model")
    with pytest.raises(ArtifactError, match="is damaged"):
        FewShotClassifier.load(tmp_path / "model")


def test_unreadable_pictures_without_labels_are_left_out_and_listed(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    pool = [*squares("red", 6, 40), *squares("yellow", 6, 40), tmp_path / "broken.jpg"]
    first = model("auto").fit(*shots(*ORDER), unlabelled=pool)
    assert len(first.head_.kept_pictures_) == 12
    assert [name for name, _ in first.support_.provenance["skipped"]] == [str(tmp_path / "broken.jpg")]
    with pytest.raises(DataError):
        model("auto").fit(*shots(*ORDER), unlabelled=[tmp_path / "broken.jpg"])


def test_a_change_of_an_altered_model_is_an_error_of_the_library(tmp_path):
    """As a person can alter the files, who makes the checksums again."""
    folders = [fitted("prototype").save(tmp_path / str(i), support=i > 0) for i in range(3)]
    bare, with_one_scale, without_prompts = (FewShotClassifier.load(folder, cache=None) for folder in folders)
    bare.head_.counts_ = bare.head_.counts_[:0]
    with_one_scale.support_.provenance["fit"]["views"]["scale"] = [0.5]
    without_prompts.prompts_ = {}
    for change in (
        lambda: bare.add_class("yellow", squares("yellow", 2, 5)),
        lambda: with_one_scale.correct(squares("red", 1, 7), ["blue"]),
        lambda: without_prompts.rename_class("red", "crimson"),
    ):
        with pytest.raises((ArtifactError, InputError), match="fit .*again"):
            change()
