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


def chosen(x, rows, k, power, least):
    """Weights of the edges of one picture: the k nearest rows by cosine, those below the least cut off."""
    weights = np.zeros(len(rows))
    for j in sorted(range(len(rows)), key=lambda j: -(x @ rows[j]))[:k]:
        weights[j] = max((x @ rows[j] - least) / (1 - least), 0) ** power
    return weights


def plain(case, k, power, alpha, least):
    """Rows of the graph (n, d) and scores of its nodes (n + c, c)."""
    rows = unit(np.concatenate([case["unlabelled"], case["X"]]))
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
    for i, label in enumerate(case["labels"]):
        seeds[U + i, label] = 10.0 * alpha * graph[:U, n:].sum(axis=1).mean()
    return rows, np.linalg.inv(np.eye(n + C) - alpha * graph) @ seeds


def shares(scores):
    return scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize(("k", "power", "alpha"), [(5, 5.0, 0.3), (3, 2.0, 0.8), (3, 2.0, 0.3)])
def test_unlabelled_pictures_get_the_score_of_the_graph_and_new_ones_the_inductive_score(
    case, k, power, alpha, stretch
):
    params = {"neighbours": k, "power": power, "alpha": alpha, "stretch": stretch}
    head = fitted(Zlap(support_weight=10.0, tolerance=1e-12, **params), case)
    least, ends = 0.0, (unit(np.concatenate([case["unlabelled"], case["X"]])), case["text"])
    if stretch:  # cosines reach from the weakest edge of the graph, to k neighbours with the picture itself, to one
        least = min(np.sort(ends[0] @ each.T)[:, -min(k, len(each))].min() for each in ends)
        assert abs(least) > 0.01
    rows, scores = plain(case, k, power, alpha, least)
    np.testing.assert_allclose(head.scores_.numpy(), scores, atol=1e-9)
    np.testing.assert_allclose(head.predict_proba(case["unlabelled"]), shares(scores[:U]), atol=1e-8)
    new = np.random.default_rng(8).standard_normal((6, D)) + 0.4
    edges = [[*chosen(x, rows, k, 1.0, least), *chosen(x, case["text"], k, power, least)] for x in unit(new)]
    np.testing.assert_allclose(head.predict_proba(new), shares(np.array(edges) @ scores), atol=1e-8)


def test_a_picture_beside_a_shot_follows_its_label_and_one_without_any_edge_has_finite_logits(case):
    beside = case["X"][:1] + 0.01
    case |= {"y": ["d", "b", "b"], "unlabelled": np.concatenate([case["unlabelled"], beside])}
    before, after = (fitted(Zlap(support_weight=weight), case).predict(beside)[0] for weight in (0, 100))
    assert (before, after) == ("a", "d")
    away = -unit(case["text"].mean(axis=0, keepdims=True) + case["unlabelled"].mean(axis=0) / 9)
    assert np.isfinite(fitted(Zlap(), case).logits(10 * away)).all()  # it has no edge


RUNS = {
    "k5_g5_a0.3": {},
    "k3_g3_a0.8": {"neighbours": 3, "power": 3.0, "alpha": 0.8},
    "k5_g5_a0.3_scaled": {"stretch": True},
}
"""What the released code was run with, as changes of `Zlap.official`."""


def released(unlabelled, **changes):
    """Figures of the released code, its queries, and the head without shots on some of its pictures."""
    figures, _ = golden("zlap")
    T, Q, pictures = doubles(figures, "text_unit", "query_features_unit", unlabelled)
    names = [str(k) for k in range(len(T))]
    return figures, Q, Zlap.official(**changes).fit(T, names, text=TextFeatures(names, T), unlabelled=pictures)


@pytest.mark.parametrize("run", RUNS)
def test_released_code_gives_the_same_scores_and_inductive_shares(run):
    """Its solver stops at a relative residual of 1e-6, which is 7e-7 in its scores."""
    figures, Q, head = released("query_features_unit", **RUNS[run])
    expected = figures[f"transductive_{run}"]
    np.testing.assert_allclose(head.scores_[: len(Q)], expected, atol=2e-6)
    np.testing.assert_allclose(head.predict_proba(Q), shares(expected), atol=1e-5)
    if f"inductive_{run}" in figures:  # not of the stretched cosines
        _, _, head = released("unlabeled_features_unit", **RUNS[run])
        np.testing.assert_allclose(head.predict_proba(Q), shares(figures[f"inductive_{run}"]), atol=1e-5)
