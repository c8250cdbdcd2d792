"""scikit-learn's scorers read the columns of a head as sorted classes: figures by hand, with columns found by name."""

import re
import warnings

import numpy as np
import pytest
from sklearn.metrics import get_scorer, get_scorer_names
from sklearn.model_selection import GridSearchCV

from clipadapter.heads import TextFeatures, create_head

TWO, THREE, NUMBERS = ("zebra", "ant"), ("dog", "zebra", "ant"), ("1", "0")
"""Class text in an order that is not sorted; some scorers of two classes take numbers only."""


def overlapping(names, n=40, seed=0, scale=4.0):
    """Features of classes that overlap, classes of unequal size, and their text."""
    rng = np.random.default_rng(seed)
    places = rng.choice(len(names), n, p=np.arange(1, len(names) + 1) / sum(range(1, len(names) + 1)))
    X = np.eye(len(names), 6)[places] + 0.7 * rng.standard_normal((n, 6))
    text = TextFeatures(names, np.eye(len(names), 6), logit_scale=scale)
    return X, np.array([int(name) if name.isdecimal() else name for name in names])[places], text


def fitted(names):
    X, y, text = overlapping(names)
    return create_head("tip-adapter", alpha=2.0).fit(X, y, text=text), *overlapping(names, seed=1)[:2]


def by_name(head, X):
    """Probabilities of each class, its column found by its name."""
    p = head.predict_proba(X)
    return {name: p[:, i] for i, name in enumerate(head.classes_)}


def auc(positive, negative):
    """Share of pairs in the right order, ties counted half."""
    pairs = positive[:, None] - negative[None]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def mean_by(weighted, values, y, names):
    shares = [np.mean(y == name) for name in names] if weighted else np.ones(len(names))
    return float(np.average(values, weights=shares))


def roc_auc(p, y, weighted=False):
    names = sorted(p)
    if len(names) == 2:
        return auc(p[names[1]][y == names[1]], p[names[1]][y == names[0]])
    return mean_by(weighted, [auc(p[k][y == k], p[k][y != k]) for k in names], y, names)


def one_against_one(p, y, weighted=False):
    values, shares = [], []
    for a in p:
        for b in (name for name in p if name > a):
            values.append((auc(p[a][y == a], p[a][y == b]) + auc(p[b][y == b], p[b][y == a])) / 2)
            shares.append(np.mean((y == a) | (y == b)) if weighted else 1.0)
    return float(np.average(values, weights=shares))


def average_precision(p, y):
    names = sorted(p)[1:] if len(p) == 2 else sorted(p)
    values = []
    for name in names:
        hits = (y == name)[np.argsort(-p[name], kind="stable")]
        values.append((np.cumsum(hits) / np.arange(1, len(y) + 1))[hits].mean())
    return float(np.mean(values))


def log_loss(p, y):
    return -float(np.mean([np.log(p[label][i]) for i, label in enumerate(y)]))


def brier(p, y):
    squares = np.mean([sum((p[k][i] - (k == label)) ** 2 for k in p) for i, label in enumerate(y)])
    return float(squares) / (2 if len(p) == 2 else 1)  # of two classes scikit-learn counts one


def shares_of(p, y):
    return {name: np.full(len(y), np.mean(y == name)) for name in p}


def top_two(p, y):
    return float(np.mean([sum(p[k][i] > p[label][i] for k in p) < 2 for i, label in enumerate(y)]))


BY_HAND = {
    "roc_auc": roc_auc,
    "roc_auc_ovr": roc_auc,
    "roc_auc_ovr_weighted": lambda p, y: roc_auc(p, y, weighted=True),
    "roc_auc_ovo": lambda p, y: roc_auc(p, y) if len(p) == 2 else one_against_one(p, y),
    "roc_auc_ovo_weighted": lambda p, y: roc_auc(p, y) if len(p) == 2 else one_against_one(p, y, weighted=True),
    "average_precision": average_precision,
    "neg_log_loss": lambda p, y: -log_loss(p, y),
    "neg_brier_score": lambda p, y: -brier(p, y),
    "d2_log_loss_score": lambda p, y: 1 - log_loss(p, y) / log_loss(shares_of(p, y), y),
    "d2_brier_score": lambda p, y: 1 - brier(p, y) / brier(shares_of(p, y), y),
    "top_k_accuracy": top_two,
}
SCORERS = [name for name in get_scorer_names() if re.search("predict_proba|decision", repr(get_scorer(name)))]
"""Those that take probabilities or decision scores."""


@pytest.mark.parametrize("names", [TWO, THREE, NUMBERS], ids=["two", "three", "numbers"])
@pytest.mark.parametrize("scorer", SCORERS)
def test_a_scorer_gives_the_figure_of_columns_found_by_name(scorer, names):
    head, X, y = fitted(names)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'k' \\(2\\) greater than or equal to 'n_classes' \\(2\\)")
        try:
            found = get_scorer(scorer)(head, X, y)
        except ValueError as error:
            pytest.skip(f"not for these classes in this scikit-learn: {error}")
    assert found == pytest.approx(BY_HAND[scorer](by_name(head, X), y), abs=1e-7)


def test_every_scorer_that_takes_probabilities_is_among_those_by_hand():
    assert set(SCORERS) <= set(BY_HAND)


@pytest.mark.parametrize("names", [TWO, THREE], ids=["two", "three"])
def test_a_search_by_log_loss_takes_the_candidate_that_is_best_by_hand(names):
    X, y, text = overlapping(names, scale=1.0)
    rows = np.arange(len(X))
    grid = [0.0, 1.0, 5.0, 15.0]
    folds = [(rows[rows % 4 != i], rows[rows % 4 == i]) for i in range(4)]
    search = GridSearchCV(create_head("tip-adapter"), {"alpha": grid}, scoring="neg_log_loss", cv=folds)
    search.fit(X, y, text=text)
    losses = []
    for alpha in grid:
        heads = [(create_head("tip-adapter", alpha=alpha).fit(X[a], y[a], text=text), b) for a, b in folds]
        losses.append(np.mean([log_loss(by_name(head, X[b]), y[b]) for head, b in heads]))
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], np.negative(losses), rtol=1e-6)
    assert search.best_params_ == {"alpha": grid[int(np.argmin(losses))]}
    assert search.best_params_["alpha"] > 0
