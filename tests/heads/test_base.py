"""What all heads do with features and text: blocks of rows, the part of text, single prompts."""

import pickle

import numpy as np
import pytest
import torch

from clipadapter.errors import ArtifactError, InputError, UnknownNameError
from clipadapter.heads import TextFeatures, base, create_head, head_info, list_heads
from clipadapter.heads.base import Head
from clipadapter.heads.registry import HEADS
from clipadapter.heads.support import SupportSet
from clipadapter.testing import toy_features
from clipadapter.testing.heads import check_unlabelled_pictures

from .estimators import create_short


def test_class_text_rows_have_length_one_and_are_frozen_and_a_row_of_nan_is_a_class_without_text():
    rows = [[3.0, 4.0], [0.0, 2.0], [np.nan, np.nan]]
    text = pickle.loads(pickle.dumps(TextFeatures(["a", "b", "c"], rows)))
    np.testing.assert_allclose(text.embeddings, [[0.6, 0.8], [0.0, 1.0], [0.0, 0.0]], rtol=1e-6)
    assert text.absent == ("c",)
    with pytest.raises(AttributeError, match="frozen"):
        text.labels = ("x",)
    with pytest.raises(ValueError, match="read-only"):
        text.embeddings[0, 0] = 1


@pytest.mark.parametrize(
    ("labels", "rows", "prompts", "words"),
    [
        ("a", [[1.0], [2.0]], None, "one row for each of 1 names"),
        ("aa", [[1.0], [2.0]], None, "more than once: a"),
        ("ab", [[1.0], [0.0]], None, "class text of b is zero"),
        ("ab", [[np.nan, 1.0], [1.0, 1.0]], None, "class text of a"),
        ("ab", [[np.inf], [1.0]], None, "class text of a"),
        ("ab", np.eye(2), [[[1.0, 2.0]]], "one array for each of 2 classes, but are 1"),
        ("ab", np.eye(2), [[[1.0, 2.0]], []], "of 'b' need one row or more of width 2, but have shape \\(0,\\)"),
        ("ab", np.eye(2), [[[1.0, 2.0]], [[1.0, 2.0, 3.0]]], "of width 2, but have shape \\(1, 3\\)"),
        ("ab", np.eye(2), [[[1.0, 2.0]], [[0.0, 0.0]]], "a prompt of 'b' is zero"),
        ("ab", np.eye(2), [[[1.0, 2.0]], [[np.nan, 0.0]]], "a prompt of 'b' is zero or not finite"),
        ("ab", [[3.0, 4.0], [np.nan] * 2], [[[1.0, 2.0]]] * 2, "prompts of 'b' need no row, as the class has no text"),
    ],
)
def test_bad_class_text_and_wrong_prompts_are_named(labels, rows, prompts, words):
    with pytest.raises(InputError, match=words):
        TextFeatures(list(labels), rows, prompts=prompts)


@pytest.mark.parametrize("text", [np.eye(2), ["cat", "dog"]])
@pytest.mark.parametrize("name", ["zero-shot", "linear-probe", "auto"])
def test_an_array_in_place_of_class_text_is_refused_with_what_to_give(name, text):
    with pytest.raises(InputError, match="text is .*: give TextFeatures"):
        create_head(name).fit(np.eye(2), ["cat", "dog"], text=text)


def test_zero_shot_is_the_scaled_cosine_by_hand():
    text = TextFeatures(["a", "b"], [[1.0, 0.0], [0.6, 0.8]], logit_scale=10.0)
    head = create_head("zero-shot").fit([[5.0, 0.0]], ["a"], text=text)
    np.testing.assert_allclose(head.logits([[0.0, 3.0]]), [[0.0, 8.0]], atol=1e-6)


def test_state_with_foreign_names_or_of_another_shape_is_refused():
    X, y, text = toy_features()
    state = create_head("zero-shot").fit(X, y, text=text).state()
    for name in ("intruder", "logits", "__class__", "kept_pictures_", "weight_"):
        message = "don't fit" if name == "weight_" else "no head learns"
        with pytest.raises(ArtifactError, match=message):
            create_head("zero-shot").load_state({**state, name: np.zeros((3, 2))}, text.labels, X.shape[1])
    create_head("zero-shot").load_state({**state, "predict_": np.zeros(2)}, text.labels, X.shape[1])  # harmless


def test_a_parameter_that_the_head_lacks_is_named_with_the_one_that_comes_close():
    with pytest.raises(UnknownNameError, match="no parameter of tip-adapter is called 'alfa'. Did you mean 'alpha'?"):
        create_head("tip-adapter", alfa=3)
    with pytest.raises(UnknownNameError, match="It is a parameter of the heads .*, clip-adapter, .* more"):
        HEADS.check_parameter("auto", "logit_adjustment")
    with pytest.raises(UnknownNameError, match="no parameter of zero-shot is called 'alpha'. Known: none"):
        create_head("zero-shot", alpha=3)


@pytest.mark.parametrize("name", [name for name in list_heads() if not head_info(name).cls.tunes_encoder])
def test_logits_of_blocks_equal_those_of_all_rows(name, monkeypatch):
    X, y, text = toy_features()
    queries = toy_features((10, 10, 10), seed=1)[0]
    head = create_short(name)
    head.fit(X, y, text=text, unlabelled=queries[:5] if head.transductive else None)
    whole = head.logits(queries)
    sizes, answer = [], head._logits
    monkeypatch.setattr(head, "_logits", lambda rows: (sizes.append(len(rows)), answer(rows))[1])
    monkeypatch.setattr(base, "MAX_FLOATS_PER_BLOCK", 4 * head._numbers_per_row())
    np.testing.assert_allclose(head.logits(queries), whole, rtol=1e-5, atol=1e-5)
    assert sizes == [4] * 7 + [2]
    np.testing.assert_array_equal(head.predict(queries), head.classes_[whole.argmax(axis=1)])
    np.testing.assert_allclose(head.predict_proba(queries).sum(axis=1), 1)


def test_a_head_that_stores_its_shots_predicts_fewer_rows_at_a_time_the_more_there_are():
    X, y, text = toy_features((40, 40, 40))
    assert create_head("tip-adapter").fit(X, y, text=text)._numbers_per_row() == 16 + 3 + 120
    assert create_head("zero-shot").fit(X, y, text=text)._numbers_per_row() == 16 + 3 + 3


class _PoolMean(Head):
    """Nearest class mean of features that are centred by the pictures without labels, if there are any."""

    accepts_unlabelled = True

    def _fit(self, shots):
        self.centre_ = torch.zeros(shots.X.shape[1]) if shots.unlabelled is None else shots.unlabelled.mean(dim=0)
        self.means_ = torch.stack([shots.X[shots.labels == k].mean(dim=0) for k in range(shots.n_classes)])

    def _logits(self, X):
        return -torch.cdist((X - self.centre_).double(), (self.means_ - self.centre_).double())


def test_pictures_without_labels_are_optional_for_a_head_that_accepts_them_and_the_next_fit_forgets_them():
    class Forgetful(_PoolMean):
        def _fit(self, shots):
            super()._fit(shots)
            if shots.unlabelled is not None:
                self.pool_ = shots.unlabelled

    X, y, _ = toy_features()
    assert (_PoolMean().fit(X, y).state()["centre_"] == 0).all()
    found = _PoolMean().fit(X, y, unlabelled=X + 1).state()["centre_"]
    np.testing.assert_allclose(found, (X + 1).mean(axis=0), rtol=1e-5)
    check_unlabelled_pictures(_PoolMean())
    with pytest.raises(AssertionError):
        check_unlabelled_pictures(Forgetful())


SAME_FOR_OTHER_SHOTS = ["zero-shot", "tip-adapter", "tip-adapter-f", "ape", "ape-t", "prototype", "gda"]


def test_a_head_that_reads_no_text_has_a_part_of_zeros_and_one_whose_logits_are_no_sum_has_none():
    X, y, text = toy_features()

    def part(name, given=text, **params):
        return create_head(name, **params).fit(X, y, text=given).text_logits(X)

    for zeros in (part("linear-probe"), part("knn", mix=0.0), part("prototype", mix=0.0), part("auto", None)):
        np.testing.assert_array_equal(zeros, np.zeros((12, 3)))
    no_sums = part("cross-modal"), part("knn", mix=0.5), part("clip-adapter", branch="both", steps=2), part("gda", None)
    assert no_sums == (None,) * 4


@pytest.mark.parametrize("name", SAME_FOR_OTHER_SHOTS)
def test_text_logits_do_not_depend_on_the_shots(name):
    X, y, text = toy_features(noise=3.0)
    Z = toy_features(seed=5, noise=1.0)[0]
    params = {"lr": 0.1, "alpha": 0.1} if name == "ape-t" else {}
    first, second = (create_head(name, **params).fit(shots, y, text=text) for shots in (X, Z))
    assert name == "zero-shot" or np.abs(first.logits(X) - second.logits(X)).max() > 1e-3
    np.testing.assert_allclose(first.text_logits(X), second.text_logits(X), atol=1e-4)
    if name == "ape-t":  # its shots bend the class text: that part is theirs
        assert float(np.abs(first.weight_.numpy() - text.embeddings).max()) > 0.01
        zero_shot = create_head("zero-shot").fit(X, y, text=text).logits(X)
        np.testing.assert_allclose(first.text_logits(X), zero_shot, atol=1e-3)


def test_logits_of_clip_adapter_less_text_logits_are_the_adapters():
    X, y, text = toy_features()
    head = create_head("clip-adapter", alpha=0.3, steps=20, centre=False).fit(X, y, text=text)
    x = X / np.linalg.norm(X, axis=1, keepdims=True)
    adapted = 0.3 * np.maximum(x @ head.down_.numpy().T, 0) @ head.up_.numpy().T
    rest = text.logit_scale * adapted / np.linalg.norm(adapted + 0.7 * x, axis=1, keepdims=True) @ text.embeddings.T
    np.testing.assert_allclose(head.logits(X) - head.text_logits(X), rest, atol=1e-3)


def test_autos_part_is_zero_shot_times_one_factor():
    X, y, text = toy_features(noise=3.0)
    head, plain = (create_head(name).fit(X, y, text=text) for name in ("auto", "zero-shot"))
    part, zero_shot = head.text_logits(X), plain.logits(X)
    centred = zero_shot - zero_shot.mean(axis=1, keepdims=True)
    factor = float((part * centred).sum() / (centred**2).sum())
    assert factor > 0
    np.testing.assert_allclose(part, factor * centred, atol=1e-3)


PROMPTS = [[[3.0, 4.0]], [[0.0, 2.0], [5.0, 0.0]]]
UNIT = {"dog": [[0.6, 0.8]], "cat": [[0.0, 1.0], [1.0, 0.0]]}


def text(**options):
    return TextFeatures(["dog", "cat"], [[3.0, 4.0], [1.0, 1.0]], prompts=PROMPTS, **options)


def assert_rows(found, expected):
    for rows, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(rows, np.reshape(wanted, (-1, 2)), atol=1e-6)


def test_prompts_are_unit_rows_in_the_dtype_of_the_embeddings_and_cannot_be_changed_through_the_given_array():
    assert_rows(text().prompts, UNIT.values())
    assert {rows.dtype for rows in text().prompts} == {np.dtype(np.float32)}
    for dtype in (np.float32, np.float64):
        rows = np.eye(2, dtype=dtype)
        one = TextFeatures(["a", "b"], rows.copy(), prompts=[rows, [[1.0, 0.0]]])
        rows[:] = 7.0
        np.testing.assert_array_equal(one.prompts[0], np.eye(2))
        assert {rows.dtype for rows in one.prompts} == {np.dtype(dtype)}
        assert not one.prompts[0].flags.writeable


@pytest.mark.parametrize(
    "copied",
    [
        lambda one: one.with_tower(lambda: None),
        lambda one: one.with_order("given"),
        lambda one: one.with_order("sorted"),
        lambda one: pickle.loads(pickle.dumps(one)),
        lambda one: one.with_prompts(one.prompts),
        lambda one: one.arranged(["cat", "dog"]),
        lambda one: one.numbered(),  # in the order of their sorted names
    ],
)
def test_copies_keep_them_with_their_classes(copied):
    names = {"0": "cat", "1": "dog"}
    one = copied(text())
    assert_rows(one.prompts, [UNIT[names.get(label, label)] for label in one.labels])


def test_a_class_without_text_has_no_prompt_and_without_prompts_the_embedding_is_the_only_one():
    rows = [[3.0, 4.0], [np.nan, np.nan]]
    plain, given = (TextFeatures(["a", "b"], rows, prompts=of) for of in (None, [[[3.0, 4.0]], np.empty((0, 2))]))
    assert plain.prompts is None
    for found in (plain.prompt_rows, pickle.loads(pickle.dumps(given)).prompts):
        assert_rows(found, [[[0.6, 0.8]], []])


class Reader(type(create_head("zero-shot"))):
    """Keeps the prompts of the checked shots."""

    def _fit(self, shots: SupportSet) -> None:
        super()._fit(shots)
        self.prompts = shots.prompts


def test_a_head_that_reads_them_gets_them_in_the_order_of_its_classes(monkeypatch):
    assert Reader().fit(np.eye(2), ["dog", "cat"], text=text()).prompts == ()
    monkeypatch.setattr(Reader, "reads_prompts", True)
    assert_rows(Reader().fit(np.eye(2), ["dog", "cat"], text=text()).prompts, [UNIT["cat"], UNIT["dog"]])
