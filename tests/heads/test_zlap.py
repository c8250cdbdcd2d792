"""ZLaP against its formula with plain loops and a matrix inverse."""

import numpy as np
import pytest

from clipadapter.heads import TextFeatures
from clipadapter.heads.zlap import Zlap

from .formulas import unit
from .golden_figures import doubles, golden

C, D, U = 4, 6, 15
NAMES = list("abcd")


@pytest.fixture
def case():
    rng = np.random.default_rng(4)
    text = unit(rng.standard_normal((C, D)))
    pictures = 9 * (text[np.arange(U) % C] + 0.4 * rng.standard_normal((U, D)) + 0.3)
    X = 9 * (text[[0, 1, 1]] + 0.4 * rng.standard_normal((3, D)) + 0.3)
    return {"X": X, "y": ["a", "b", "b"], "labels": [0, 1, 1], "text": text, "unlabelled": pictures}


def fitted(head, case):
    return head.fit(case["X"], case["y"], text=TextFeatures(NAMES, case["text"]), unlabelled=case["unlabelled"])


def chosen(x, rows, k, power=1.0, least=0.0):
    """Weights of the edges of one picture: the k nearest rows by cosine, those below the least cut off."""
    weights = np.zeros(len(rows))
    for j in sorted(range(len(rows)), key=lambda j: -(x @ rows[j]))[:k]:
        weights[j] = max((x @ rows[j] - least) / (1 - least), 0) ** power
    return weights


def plain(case, k, power, alpha, weight, least=0.0):
    """Rows of the graph (n, d) and scores of its nodes (n + c, c)."""
    rows = unit(case["unlabelled"])
    if weight:
        rows = np.concatenate([rows, unit(case["X"])])
    n = len(rows)
    W = np.zeros((n + C, n + C))
    for i in range(n):
        W[i, :n] = chosen(rows[i], rows, k, 1.0, least)
        W[i, n:] = chosen(rows[i], case["text"], k, power, least)
    W = W + W.T
    np.fill_diagonal(W, 0)
    degree = W.sum(axis=1)
    graph = W / np.sqrt(np.outer(degree, degree))
    seeds = np.zeros((n + C, C))
    seeds[n:] = np.eye(C)
    if weight:
        for i, label in enumerate(case["labels"]):
            seeds[U + i, label] = weight * alpha * graph[:U, n:].sum(axis=1).mean()
    return rows, np.linalg.inv(np.eye(n + C) - alpha * graph) @ seeds


def shares(scores):
    return scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("k", "power", "alpha"), [(5, 5.0, 0.3), (3, 2.0, 0.8)])
@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_unlabelled_pictures_get_the_score_of_the_graph(case, k, power, alpha, weight):
    head = fitted(Zlap(neighbours=k, power=power, alpha=alpha, support_weight=weight, tolerance=1e-12), case)
    _, scores = plain(case, k, power, alpha, weight)
    np.testing.assert_allclose(head.scores_.numpy(), scores, atol=1e-9)
    np.testing.assert_allclose(head.predict_proba(case["unlabelled"]), shares(scores[:U]), atol=1e-8)


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_new_pictures_get_the_inductive_score(case, weight):
    rows, scores = plain(case, 5, 5.0, 0.3, weight)
    new = np.random.default_rng(8).standard_normal((6, D)) + 0.4
    expected = [np.concatenate([chosen(x, rows, 5), chosen(x, case["text"], 5, 5.0)]) @ scores for x in unit(new)]
    found = fitted(Zlap(support_weight=weight, tolerance=1e-12), case).predict_proba(new)
    np.testing.assert_allclose(found, shares(np.array(expected)), atol=1e-8)


def test_stretched_cosines_reach_from_the_weakest_edge_of_the_graph_to_one(case):
    # Three neighbours, the picture itself among them, and three classes.
    rows = unit(np.concatenate([case["unlabelled"], case["X"]]))
    least = min(np.sort(rows @ ends.T)[:, -3].min() for ends in (rows, case["text"]))
    assert abs(least) > 0.01
    head = fitted(Zlap(neighbours=3, power=2.0, alpha=0.3, support_weight=10.0, tolerance=1e-12, stretch=True), case)
    _, scores = plain(case, 3, 2.0, 0.3, 10.0, least)
    np.testing.assert_allclose(head.scores_.numpy(), scores, atol=1e-9)
    new = unit(np.random.default_rng(8).standard_normal((6, D)) + 0.4)
    edges = [np.concatenate([chosen(x, rows, 3, 1.0, least), chosen(x, case["text"], 3, 2.0, least)]) for x in new]
    np.testing.assert_allclose(head.predict_proba(new), shares(np.array(edges) @ scores), atol=1e-8)


def test_a_picture_beside_a_shot_follows_its_label_against_the_text(case):
    beside = case["X"][:1] + 0.01
    case |= {"y": ["d", "b", "b"], "unlabelled": np.concatenate([case["unlabelled"], beside])}
    before, after = (fitted(Zlap(support_weight=weight), case).predict(beside)[0] for weight in (0, 100))
    assert (before, after) == ("a", "d")


def test_a_picture_without_any_edge_has_finite_logits(case):
    away = -unit(case["text"].mean(axis=0, keepdims=True) + case["unlabelled"].mean(axis=0) / 9)
    assert np.isfinite(fitted(Zlap(), case).logits(10 * away)).all()


RUNS = {"k5_g5_a0.3": {}, "k3_g3_a0.8": {"neighbours": 3, "power": 3.0, "alpha": 0.8}}
"""What the released code was run with, as changes of `Zlap.official`."""


def released(unlabelled, **changes):
    """Figures of the released code, its queries, and the head without shots on some of its pictures."""
    figures, _ = golden("zlap")
    T, Q, pictures = doubles(figures, "text_unit", "query_features_unit", unlabelled)
    names = [str(k) for k in range(len(T))]
    return figures, Q, Zlap.official(**changes).fit(T, names, text=TextFeatures(names, T), unlabelled=pictures)


# Its solver stops at a relative residual of 1e-6, which is 7e-7 in its scores.


@pytest.mark.parametrize("run", RUNS)
def test_released_code_gives_the_same_scores(run):
    figures, Q, head = released("query_features_unit", **RUNS[run])
    np.testing.assert_allclose(head.scores_[: len(Q)], figures[f"transductive_{run}"], atol=2e-6)
    np.testing.assert_allclose(head.predict_proba(Q), shares(figures[f"transductive_{run}"]), atol=1e-5)


@pytest.mark.parametrize("run", RUNS)
def test_released_code_gives_the_same_inductive_shares(run):
    figures, Q, head = released("unlabeled_features_unit", **RUNS[run])
    np.testing.assert_allclose(head.predict_proba(Q), shares(figures[f"inductive_{run}"]), atol=1e-5)


def test_released_code_gives_the_same_scores_with_stretched_cosines():
    figures, Q, head = released("query_features_unit", stretch=True)
    np.testing.assert_allclose(head.scores_[: len(Q)], figures["transductive_k5_g5_a0.3_scaled"], atol=2e-6)
