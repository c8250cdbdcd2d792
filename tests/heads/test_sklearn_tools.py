"""Heads inside scikit-learn's tools; what these give is put together by hand from single fits."""

import numpy as np
import pytest
from sklearn import config_context
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clipadapter.errors import InputError
from clipadapter.heads import TextFeatures, create_head
from clipadapter.testing import toy_features

FOLDS = StratifiedKFold(3, shuffle=True, random_state=0)


@pytest.fixture
def toy():
    """Features of length one, their labels, and class text whose order is not sorted."""
    X, y, text = toy_features((9, 9, 9), noise=1.5)
    turned = TextFeatures(text.labels[::-1], text.embeddings[::-1], 10.0)
    return X / np.linalg.norm(X, axis=1, keepdims=True), y, turned


@config_context(enable_metadata_routing=True)
def test_a_vote_is_the_mean_of_the_probabilities_and_text_goes_where_it_was_asked_for(toy):
    X, names, text = toy
    classes, y = np.unique(names, return_inverse=True)
    members = {
        "text": create_head("tip-adapter").set_fit_request(text=True),
        "none": create_head("prototype").set_fit_request(text=False),
        "other": LogisticRegression(),
    }
    vote = VotingClassifier(list(members.items()), voting="soft").fit(X, y, text=text.numbered())
    alone = [
        create_head("tip-adapter").fit(X, names, text=text),
        create_head("prototype").fit(X, names),
        LogisticRegression().fit(X, names),
    ]
    expected = np.mean([head.predict_proba(X) for head in alone], axis=0)
    np.testing.assert_allclose(vote.predict_proba(X), expected, rtol=1e-6)
    np.testing.assert_array_equal(classes[vote.predict(X)], classes[expected.argmax(axis=1)])


def test_numbers_that_are_no_class_names_and_the_tower_of_numbered_text_are_refused(toy):
    X, names, text = toy
    y = np.unique(names, return_inverse=True)[1]
    with pytest.raises(InputError, match="these labels have no class text: 0, 1, 2; known: cat, dog, owl"):
        create_head("tip-adapter").fit(X, y, text=text)
    with pytest.raises(InputError, match="trains through the text tower"):
        create_head("coop").fit([[1.0] * 16], [0], text=toy_features()[2].numbered())


@config_context(enable_metadata_routing=True)
def test_a_pipeline_hands_text_to_the_head_and_a_search_finds_its_parameters(toy):
    X, y, text = toy
    pipe = make_pipeline(StandardScaler(with_std=False), create_head("tip-adapter").set_fit_request(text=True))
    centred = X - X.mean(axis=0)
    alone = create_head("tip-adapter").fit(centred, y, text=text)
    np.testing.assert_allclose(pipe.fit(X, y, text=text).predict_proba(X), alone.predict_proba(centred), rtol=1e-4)
    grid = {"tipadapter__alpha": [0.0, 3.0]}
    search = GridSearchCV(pipe, grid, cv=FOLDS, scoring="neg_log_loss").fit(X, y, text=text)
    losses = []
    for alpha in grid["tipadapter__alpha"]:
        folds = []
        for train, test in FOLDS.split(X, y):
            mean = X[train].mean(axis=0)
            head = create_head("tip-adapter", alpha=alpha).fit(X[train] - mean, y[train], text=text)
            p = head.predict_proba(X[test] - mean)
            folds.append(np.mean([np.log(p[i, list(head.classes_).index(k)]) for i, k in enumerate(y[test])]))
        losses.append(np.mean(folds))
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], losses, rtol=1e-4)
    assert search.best_params_["tipadapter__alpha"] == grid["tipadapter__alpha"][int(np.argmax(losses))]


def test_names_of_columns_are_compared_by_logits_too_and_forgotten(toy):
    """What scikit-learn's own checks of `predict` and `partial_fit` leave open."""
    pandas = pytest.importorskip("pandas")
    X, y, text = toy
    table = pandas.DataFrame(X, columns=[f"feature {i}" for i in range(X.shape[1])])
    head = create_head("prototype").fit(table, pandas.Series(y), text=text)
    assert head.feature_names_in_.tolist() == list(table.columns)
    assert "feature_names_in_" not in head.state()
    with pytest.raises(ValueError, match="in the same order as they were in fit"):
        head.logits(table[table.columns[::-1]])
    assert not hasattr(head.fit(X, y, text=text), "feature_names_in_")


def test_the_logarithm_of_a_probability_that_rounds_to_zero_is_finite():
    text = TextFeatures(["a", "b"], np.eye(2), logit_scale=5000.0)
    head = create_head("zero-shot").fit([[1.0, 0.0]], ["a"], text=text)
    assert head.predict_proba([[1.0, 0.0]]).tolist() == [[1.0, 0.0]]
    np.testing.assert_allclose(head.predict_log_proba([[1.0, 0.0]]), [[0.0, -5000.0]])
    several = create_head("zero-shot").fit(np.eye(2), np.eye(2, dtype=int), text=text)
    z = several.logits([[1.0, 0.0]]).astype(np.float64)
    np.testing.assert_allclose(several.predict_log_proba([[1.0, 0.0]]), -np.logaddexp(0, -z))
