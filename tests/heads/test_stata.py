"""StatA against its formulas in plain numpy loops, and against outputs of the authors' code."""

import numpy as np
import pytest
import torch

from clipadapter.heads import SupportSet, TextFeatures
from clipadapter.heads.class_frequencies import estimate_frequencies
from clipadapter.heads.ss_text import SsText
from clipadapter.heads.ss_text_u import held_out_calibration
from clipadapter.heads.stata import StatA

from .formulas import neighbour_graph, softmax, unit
from .golden_figures import doubles, golden

C, D, U, SCALE = 4, 6, 14, 10.0
NAMES = list("abcd")
LABELS = [0, 0, 1, 2]


@pytest.fixture
def case():
    """A pool of the first three of four classes; the last class has no shot either."""
    rng = np.random.default_rng(3)
    text = unit(rng.standard_normal((C, D)))
    draw = lambda labels: 7 * (text[labels] + 0.35 * rng.standard_normal((len(labels), D)) + 0.4)  # noqa: E731
    return {"X": draw(LABELS), "text": text, "unlabelled": draw(np.arange(U) % 3), "new": draw([0, 3])}


def fitted(head, case, labels=LABELS):
    text = TextFeatures(NAMES, case["text"], SCALE)
    return head.fit(case["X"], [NAMES[label] for label in labels], text=text, unlabelled=case["unlabelled"])


def plain(case, anchors, weight=0.0, shared=False):
    """Assignments (u, c), means and variances (c, d): one picture, one class and one coordinate at a time."""
    shots = [(unit(x), label) for x, label in zip(case["X"], LABELS, strict=True)] if weight else []
    rows = [*unit(case["unlabelled"]), *(x for x, _ in shots)]
    prior = SCALE * unit(case["unlabelled"]) @ case["text"].T
    n, W = len(rows), neighbour_graph(rows, 3)
    z = [*softmax(prior), *(np.eye(C)[label] for _, label in shots)]
    w = [1.0] * U + [weight] * len(shots)
    v0 = sum(z[i][k] * (rows[i] - anchors[k]) ** 2 for i in range(U) for k in range(C)) / U
    mu, v = [*anchors], [v0] * C
    for update in range(11):
        density = np.array(
            [[-0.5 * (((f - m) ** 2 / s) + np.log(s)).sum() for m, s in zip(mu, v, strict=True)] for f in rows[:U]]
        )
        for _ in range(5):
            near = [sum((W[j, i] + W[i, j]) * z[j] for j in range(n)) for i in range(U)]
            z[:U] = [softmax(prior[i] + 0.02 * density[i] + near[i] / 6) for i in range(U)]
        if update == 10:
            break
        for k in range(C):
            count = sum(z[i].argmax() == k for i in range(U)) + weight * sum(label == k for _, label in shots)
            beta = count / (1 + count)
            total = sum(w[i] * z[i][k] for i in range(n))
            mu[k] = unit(beta * unit(sum(w[i] * z[i][k] * rows[i] for i in range(n))) + (1 - beta) * anchors[k])
            deviation = sum(w[i] * z[i][k] * (rows[i] - mu[k]) ** 2 for i in range(n)) / total
            v[k] = beta * deviation + (1 - beta) * (v0 + (anchors[k] - mu[k]) ** 2)
        if shared:
            totals = [sum(w[i] * z[i][k] for i in range(n)) for k in range(C)]
            v = [sum(totals[k] * v[k] for k in range(C)) / sum(totals)] * C
    return np.array(z[:U]), np.array(mu), np.array(v)


def test_pictures_of_the_pool_have_class_frequencies_between_the_estimated_and_equal_ones(case):
    # Without mixture and neighbours the logits are those of the anchors, plus the logarithm of the frequencies.
    params = {"likelihood": 0, "smoothness": 0}
    rows = case["X"][0] + np.random.default_rng(0).standard_normal((U, D))  # of one class
    case["unlabelled"] = rows
    found, without = (fitted(StatA(frequencies=on, **params), case).predict_log_proba(rows) for on in (True, False))
    estimated = estimate_frequencies(torch.from_numpy(without)).numpy()
    assert estimated.max() > 0.4
    frequencies = estimated * 1 / 5 + 1 / 4 * 4 / 5  # one shot per class on average
    p = np.exp(without) * frequencies
    np.testing.assert_allclose(np.exp(found), p / p.sum(axis=1, keepdims=True), rtol=1e-8)
    new = [fitted(StatA(frequencies=on, **params), case).logits(case["new"]) for on in (True, False)]
    np.testing.assert_allclose(*new, rtol=1e-9)


@pytest.mark.parametrize(("weight", "shared"), [(2.0, False), (2.0, True), (0.0, False)])
def test_shots_are_rows_of_the_graph_and_of_the_means_and_a_new_picture_gets_one_update(case, weight, shared):
    head = fitted(StatA.official(support_weight=weight, shared_variance=shared), case)
    z, mu, v = plain(case, case["text"], weight, shared)
    np.testing.assert_allclose(head.means_, mu, rtol=1e-9)
    np.testing.assert_allclose(head.variances_, v, rtol=1e-8)
    np.testing.assert_allclose(head.predict_proba(case["unlabelled"]), z, rtol=1e-8)
    if weight:
        return
    x, rows = unit(case["new"][0]), unit(case["unlabelled"])
    near = sum((rows[j] @ x) * z[j] for j in sorted(range(U), key=lambda j: -(rows[j] @ x))[:3]) / 3
    density = np.array([-0.5 * (((x - m) ** 2 / s) + np.log(s)).sum() for m, s in zip(mu, v, strict=True)])
    expected = softmax(SCALE * case["text"] @ x + 0.02 * density + near)
    np.testing.assert_allclose(head.predict_proba(x[None])[0], expected, rtol=1e-8)


def test_each_batch_is_assigned_without_the_others(case):
    stream = fitted(StatA(batch_size=5), case)
    for start in (0, 5, 10):  # the last has four pictures
        part = case["unlabelled"][start : start + 5]
        alone = fitted(StatA(), {**case, "unlabelled": part})
        np.testing.assert_allclose(stream.logits(part), alone.logits(part), rtol=1e-9)
    np.testing.assert_allclose(stream.means_, alone.means_, rtol=1e-9)
    whole = fitted(StatA(batch_size=U), case).logits(case["unlabelled"])
    # the same sums in the same order
    np.testing.assert_array_equal(whole, fitted(StatA(), case).logits(case["unlabelled"]))


def test_anchors_are_the_class_vectors_of_text_and_shots_and_means_without_either(case):
    case["text"][3] = -unit(case["unlabelled"].mean(axis=0))
    head = fitted(StatA(), case)
    # SS-Text: the text vector, plus the scale times the share of the class in the shots times the sum of its shots.
    for k in range(C):
        own = [unit(x) for x, label in zip(case["X"], LABELS, strict=True) if label == k]
        expected = unit(case["text"][k] + SCALE * len(own) / 4 * sum(own))
        np.testing.assert_allclose(head.anchors_[k], expected, rtol=1e-9)
    assert "d" not in head.predict(case["unlabelled"])
    np.testing.assert_allclose(head.means_[3], head.anchors_[3], rtol=1e-9)


@pytest.mark.parametrize("size", [1, 2])
def test_a_pool_of_one_or_two_pictures(case, size):
    for head in (StatA(), StatA.official(), StatA.official(alpha=0), StatA.official(neighbours=30)):
        fitted(head, {**case, "unlabelled": case["unlabelled"][:size]})
        assert np.isfinite(head.logits(np.concatenate([case["unlabelled"], case["new"]]))).all()


RUNS = {
    "all": {},
    "few": {},
    "otherbeta": {"soft": True},
    "nolap": {"smoothness": 0.0},
    "alpha20": {"alpha": 20.0},
    "small": {},
}
"""Runs of the released code, with the parameters of `StatA.official` that differ."""


def released(rows, dtype, **params):
    """Assignments of our solver for pictures of the released code, and the head with its mixture.

    Its inputs have unit length in float32 only. The solver takes them as they are, as that code did.
    """
    figures, parameters = golden("stata")
    F, T = (torch.from_numpy(figures[name].astype(dtype)) for name in ("query_unit", "text_unit"))
    called = {"alpha": "alpha", "soft": "soft_beta", "smoothness": "lambda_laplacian", "neighbours": "n_neighbors"}
    called |= {"updates": "max_iter", "inner": "inner_steps"}
    assert all(getattr(StatA.official(), ours) == parameters[theirs] for ours, theirs in called.items())
    prior = (parameters["scale"] * F[rows] @ T.T).log_softmax(dim=1)
    head = StatA.official(**params)
    head.rows_, head.anchors_ = F[rows], T
    none = SupportSet(F[:0, None], torch.zeros(0, dtype=torch.int64), len(T), T, parameters["scale"])
    return head._fit_mixture(F[rows], prior, none).softmax(dim=1).numpy(), head


def test_frequencies_are_estimated_at_the_temperature_of_shots_that_ss_text_did_not_see():
    """Underconfident logits make EM end at few classes. The expected temperature is that of refits without a shot."""
    rng = np.random.default_rng(0)
    text = unit(np.ones((3, D)) + 0.01 * rng.standard_normal((3, D)))
    labels = np.repeat(np.arange(3), 4)
    X = 5 + np.eye(D)[labels] + 0.3 * rng.standard_normal((12, D))
    names, classes = np.array(NAMES)[labels], TextFeatures(NAMES[:3], text, SCALE)
    without = lambda i: SsText().fit(np.delete(X, i, axis=0), np.delete(names, i), text=classes)  # noqa: E731
    logits = np.concatenate([without(i).logits(X[i : i + 1]) for i in range(12)])
    losses = [-np.log(softmax(logits / t)[np.arange(12), labels]).mean() for t in 10 ** np.linspace(-2, 2, 81)]
    expected = 10 ** np.linspace(-2, 2, 81)[np.argmin(losses)]
    temperature, _ = held_out_calibration(StatA()._check_shots(X, names, classes, X)[0])
    assert temperature == pytest.approx(expected, rel=1e-5) and expected < 0.5
    one_each = StatA()._check_shots(X[::4], names[::4], classes, X)[0]
    assert held_out_calibration(one_each)[0] == 1.0


@pytest.mark.parametrize("run", RUNS)
def test_released_code_gives_the_same_assignments_means_and_variances(run):
    figures, _ = golden("stata")
    few = figures["few_class_rows"]
    z, head = released({"all": slice(None), "small": few[:8]}.get(run, few), np.float64, **RUNS[run])
    np.testing.assert_allclose(z, figures[f"f64_z_{run}"], rtol=1e-9, atol=1e-12)
    if run == "few":
        z, single = released(few, np.float32)
        np.testing.assert_allclose(z, figures["z_few"], atol=7.3e-6)
        for found in (head, single):
            np.testing.assert_allclose(found.means_, figures["mu_final_few"], atol=3.7e-6)
            np.testing.assert_allclose(found.variances_, figures["cov_final_few"], atol=1.8e-6)


def test_the_head_gives_the_same_assignments_of_a_stream():
    figures, parameters = golden("stata")
    F, T = doubles(figures, "query_unit", "text_unit")
    batches, names = figures["online_batches"], [str(k) for k in range(len(T))]
    assert len(np.unique(batches)) == batches.size
    head = StatA.official(batch_size=batches.shape[1])
    pictures = F[batches.ravel()]
    head.fit(T, names, text=TextFeatures(names, T, parameters["scale"]), unlabelled=pictures)
    expected = figures["f64_online_z"].reshape(batches.size, -1)
    np.testing.assert_allclose(head.predict_proba(pictures), expected, atol=1e-6)
