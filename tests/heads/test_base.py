import pickle

import numpy as np
import pytest
import torch

from clipadapter.errors import ArtifactError, InputError, UnknownNameError
from clipadapter.heads import TextFeatures, base, create_head, head_info, list_heads
from clipadapter.heads.base import Head
from clipadapter.heads.registry import HEADS
from clipadapter.testing import toy_features
from clipadapter.testing.heads import check_unlabelled_pictures

from .estimators import create_short


def test_class_text_rows_have_length_one_and_are_frozen():
    text = TextFeatures(["a", "b"], [[3.0, 4.0], [0.0, 2.0]])
    np.testing.assert_allclose(text.embeddings, [[0.6, 0.8], [0.0, 1.0]], rtol=1e-6)
    with pytest.raises(AttributeError, match="frozen"):
        text.labels = ("x",)
    with pytest.raises(ValueError, match="read-only"):
        text.embeddings[0, 0] = 1


@pytest.mark.parametrize(
    ("labels", "rows", "words"),
    [
        (["a"], [[1.0], [2.0]], "one row for each of 1 names"),
        (["a", "a"], [[1.0], [2.0]], "more than once: a"),
        (["a", "b"], [[1.0], [0.0]], "class text of b is zero"),
        (["a", "b"], [[np.nan, 1.0], [1.0, 1.0]], "class text of a"),
        (["a", "b"], [[np.inf], [1.0]], "class text of a"),
    ],
)
def test_bad_class_text_is_named(labels, rows, words):
    with pytest.raises(InputError, match=words):
        TextFeatures(labels, rows)


@pytest.mark.parametrize("text", [np.eye(2), ["cat", "dog"]])
@pytest.mark.parametrize("name", ["zero-shot", "linear-probe", "auto"])
def test_an_array_in_place_of_class_text_is_refused_with_what_to_give(name, text):
    with pytest.raises(InputError, match="text is .*: give TextFeatures"):
        create_head(name).fit(np.eye(2), ["cat", "dog"], text=text)


def test_zero_shot_is_the_scaled_cosine_by_hand():
    text = TextFeatures(["a", "b"], [[1.0, 0.0], [0.6, 0.8]], logit_scale=10.0)
    head = create_head("zero-shot").fit([[5.0, 0.0]], ["a"], text=text)
    np.testing.assert_allclose(head.logits([[0.0, 3.0]]), [[0.0, 8.0]], atol=1e-6)


@pytest.mark.parametrize("name", ["intruder", "logits", "__class__", "predict_"])
def test_state_with_foreign_names_is_refused_or_harmless(name):
    X, y, text = toy_features()
    fitted = create_head("zero-shot").fit(X, y, text=text)
    state = {**fitted.state(), name: np.zeros(2)}
    if name == "predict_":
        create_head("zero-shot").load_state(state, text.labels, X.shape[1])
        return
    with pytest.raises(ArtifactError, match="no head learns"):
        create_head("zero-shot").load_state(state, text.labels, X.shape[1])


def test_state_of_another_shape_is_refused():
    X, y, text = toy_features()
    state = create_head("zero-shot").fit(X, y, text=text).state()
    state["weight_"] = state["weight_"][:, :-1]
    with pytest.raises(ArtifactError, match="don't fit"):
        create_head("zero-shot").load_state(state, text.labels, X.shape[1])


def test_a_parameter_that_the_head_lacks_is_named_with_the_one_that_comes_close():
    with pytest.raises(UnknownNameError, match="no parameter of tip-adapter is called 'alfa'. Did you mean 'alpha'?"):
        create_head("tip-adapter", alfa=3)
    with pytest.raises(UnknownNameError, match="It is a parameter of the heads .*, clip-adapter, .* more"):
        HEADS.check_parameter("auto", "logit_adjustment")
    with pytest.raises(UnknownNameError, match="no parameter of zero-shot is called 'alpha'. Known: none"):
        create_head("zero-shot", alpha=3)


def test_a_row_of_nan_is_a_class_without_text():
    text = pickle.loads(pickle.dumps(TextFeatures(["a", "b"], [[np.nan, np.nan], [3.0, 4.0]])))
    assert text.absent == ("a",)
    np.testing.assert_array_equal(text.embeddings, np.float32([[0, 0], [0.6, 0.8]]))


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


def test_pictures_without_labels_are_optional_for_a_head_that_accepts_them():
    X, y, _ = toy_features()
    assert (_PoolMean().fit(X, y).state()["centre_"] == 0).all()
    np.testing.assert_allclose(
        _PoolMean().fit(X, y, unlabelled=X + 1).state()["centre_"], (X + 1).mean(axis=0), rtol=1e-5
    )
    check_unlabelled_pictures(_PoolMean())


def test_a_head_that_keeps_what_it_learned_without_labels_after_the_next_fit_is_found():
    class Forgetful(_PoolMean):
        def _fit(self, shots):
            super()._fit(shots)
            if shots.unlabelled is not None:
                self.pool_ = shots.unlabelled

    with pytest.raises(AssertionError):
        check_unlabelled_pictures(Forgetful())
