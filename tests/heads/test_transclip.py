"""TransCLIP against its formulas in plain numpy loops, one picture and one class at a time."""

import numpy as np
import pytest

from clipadapter.heads import TextFeatures
from clipadapter.heads.transclip import TransClip

from .formulas import neighbour_graph, softmax, unit
from .golden_figures import doubles, golden

C, D, U, SCALE = 3, 6, 14, 10.0
NAMES = ["a", "b", "c"]


@pytest.fixture
def case():
    rng = np.random.default_rng(3)
    text = unit(rng.standard_normal((C, D)))
    truth = np.arange(U) % C
    pictures = 7 * (text[truth] + 0.35 * rng.standard_normal((U, D)) + 0.4)
    X = 7 * (text[[0, 0, 1]] + 0.35 * rng.standard_normal((3, D)) + 0.4)
    return {"X": X, "y": ["a", "a", "b"], "labels": [0, 0, 1], "text": text, "unlabelled": pictures}


def fitted(head, case):
    return head.fit(case["X"], case["y"], text=TextFeatures(NAMES, case["text"], SCALE), unlabelled=case["unlabelled"])


def plain(case, prior, weight):
    """Assignments (u, c), centres and variance by the formulas of section 3 of the paper."""
    q, t = unit(case["unlabelled"]), case["text"]
    s, labels = (unit(case["X"]), case["labels"]) if weight else (np.empty((0, D)), [])
    rows, n = np.concatenate([q, s]), U + len(labels)
    affinity = neighbour_graph(rows, 3)
    zero_shot = np.array([softmax(SCALE * t @ x) for x in q])
    given = [np.eye(C)[label] for label in labels]
    z = [*zero_shot, *given]
    mu = np.empty((C, D))
    for k in range(C):
        if k in labels:
            mu[k] = unit(sum(x for x, label in zip(s, labels, strict=True) if label == k))
        else:
            best = sorted(range(U), key=lambda i: -zero_shot[i, k])[:8]
            mu[k] = unit(sum(zero_shot[i, k] * q[i] for i in best))
    variance = np.full(D, 1 / D)
    for update in range(11):
        density = np.array([[-0.5 * (((x - m) ** 2) / variance).sum() for m in mu] for x in q])
        for _ in range(5):
            near = [sum((affinity[i, j] + affinity[j, i]) * z[j] for j in range(n)) for i in range(U)]
            z[:U] = [softmax(prior * np.log(zero_shot[i]) + density[i] / 50 + near[i] / 6) for i in range(U)]
        if update == 10:
            break
        weights = [1.0] * U + [weight] * len(labels)
        for k in range(C):
            mu[k] = unit(sum(w * z[i][k] * rows[i] for i, w in enumerate(weights)))
        spread = sum(w * z[i][k] * (rows[i] - mu[k]) ** 2 for i, w in enumerate(weights) for k in range(C))
        variance = spread / sum(weights)
    return np.array(z[:U]), mu, variance


@pytest.mark.parametrize(("prior", "weight"), [(1.0, 0.0), (0.5, 1.0), (0.7, 4.0)])
def test_assignments_are_the_papers_formulas_and_a_new_picture_gets_one_update(case, prior, weight):
    head = fitted(TransClip(prior=prior, support_weight=weight), case)
    z, mu, variance = plain(case, prior, weight)
    np.testing.assert_allclose(head.centres_, mu, rtol=1e-10)
    np.testing.assert_allclose(head.variance_, variance, rtol=1e-9)
    np.testing.assert_allclose(head.predict_proba(case["unlabelled"]), z, rtol=1e-9)
    x = unit(np.random.default_rng(9).standard_normal(D) + 0.4)
    rows, assigned = unit(case["unlabelled"]), z
    if weight:
        rows, assigned = np.concatenate([rows, unit(case["X"])]), np.concatenate([z, np.eye(C)[case["labels"]]])
    best = sorted(range(len(rows)), key=lambda j: -(rows[j] @ x))[:3]
    near = sum(max(rows[j] @ x, 0) * assigned[j] for j in best) / 3
    density = np.array([-0.5 * (((x - m) ** 2) / variance).sum() for m in mu])
    expected = softmax(prior * np.log(softmax(SCALE * case["text"] @ x)) + density / 50 + near)
    np.testing.assert_allclose(head.predict_proba([5 * x])[0], expected, rtol=1e-9)


def test_released_code_begins_at_the_same_centres_and_ends_at_the_same_assignments_centres_and_variance():
    """In its zero-shot mode, in float32, in which its own rounding is 4e-6 in the assignments."""
    figures, parameters = golden("transclip_zeroshot")
    pictures, T = doubles(figures, "query_features_unit", "text_unit")
    names = [str(k) for k in range(len(T))]
    text = TextFeatures(names, T, parameters["scale"])
    called = {"neighbours": "neighbours", "confident": "confident_per_class", "inner": "inner_updates"}
    called |= {"updates": "outer_updates", "prior": "lambda_"}
    assert all(getattr(TransClip.official(), ours) == parameters[theirs] for ours, theirs in called.items())
    # The shots are of no account.
    head = TransClip.official(updates=0).fit(T, names, text=text, unlabelled=pictures)
    np.testing.assert_allclose(head.centres_, figures["mu_init"], atol=5e-7)
    head = TransClip.official().fit(T, names, text=text, unlabelled=pictures)
    np.testing.assert_allclose(head.predict_proba(figures["query_features_unit"]), figures["z"], atol=1e-5)
    np.testing.assert_allclose(head.centres_, figures["mu_final"], atol=5e-7)
    np.testing.assert_allclose(head.variance_, figures["var_final"], rtol=1e-5)
