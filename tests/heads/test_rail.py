"""RAIL against a ridge regression in numpy, and against the released code's figures."""

import numpy as np
import pytest
import torch

from clipadapter.heads import TextFeatures
from clipadapter.heads.rail import Rail, random_map

from .formulas import unit
from .golden_figures import doubles, golden


def drawn(counts, d=8, seed=0, dtype=np.float64):
    """Raw features, class names, class text and queries."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((len(counts), d))
    labels = np.repeat(np.arange(len(counts)), counts)
    X = (3 * means[labels] + rng.standard_normal((len(labels), d))).astype(dtype)
    text = TextFeatures(
        [str(i) for i in range(len(counts))], means + rng.standard_normal(means.shape), logit_scale=10.0
    )
    Q = means[rng.integers(len(counts), size=30)] + rng.standard_normal((30, d))
    return X, labels.astype(str), text, Q.astype(dtype)


def ridge(X, y, Q, c, phi=lambda x: x, lam=0.1):
    features, onehot = phi(unit(X)), np.eye(c)[y.astype(int)]
    gram = features.T @ features + lam * np.eye(features.shape[1])
    return phi(unit(Q)) @ np.linalg.solve(gram, features.T @ onehot)


def kernel_ridge(X, y, Q, c, lam=0.001):
    a, b = unit(X), unit(Q)
    K, k = (np.exp(-0.1 * ((rows[:, None] - a[None]) ** 2).sum(axis=2)) for rows in (a, b))
    return k @ np.linalg.solve(K + lam * np.eye(len(a)), np.eye(c)[y.astype(int)])


def regressed(head, Q):
    return head._regressed(torch.from_numpy(np.asarray(Q))).numpy()


def fused(head, Q):
    return head._fused(torch.from_numpy(np.asarray(Q))).numpy()


def random_relu(hidden, d, seed=0):
    weight = random_map(hidden, d, seed).numpy().astype(np.float64)
    return lambda x: np.maximum(x @ weight.T, 0)


@pytest.mark.parametrize("counts", [(1, 1, 1), (3, 0, 2), (9, 4, 7)], ids=["few", "unequal", "more than features"])
@pytest.mark.parametrize("hidden", [0, 5, 50])
def test_primal_is_a_ridge_regression_on_relu_features(counts, hidden):
    X, y, text, Q = drawn(counts)
    phi = random_relu(hidden, 8, seed=3) if hidden else (lambda x: x)
    found = regressed(Rail(hidden=hidden, seed=3).fit(X, y, text=text), Q)
    np.testing.assert_allclose(found, ridge(X, y, Q, 3, phi), rtol=1e-9, atol=1e-9)


def test_the_regression_is_mixed_in_where_zero_shot_names_a_learned_class():
    text = TextFeatures(["a", "b", "c"], np.eye(3), logit_scale=2.0)
    head = Rail(weight=0.75, ridge=1.0).fit([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], ["a", "b"], text=text)
    Q = [[0.0, 5.0, 0.0], [0.0, 0.6, 0.8]]  # the second looks like c, of which there is no shot
    e = np.exp([[0, 2, 0], [0, 1.2, 1.6]])
    p = e / e.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(regressed(head, Q), [[0, 0.5, 0], [0, 0.3, 0]], atol=1e-12)
    np.testing.assert_allclose(fused(head, Q), [0.25 * p[0] + [0, 0.75 * 0.5, 0], p[1]], rtol=1e-6)
    assert head.predict(Q).tolist() == ["b", "c"]


def test_logits_are_the_logarithm_of_the_answer_and_order_classes_as_it_does():
    X, y, text, Q = drawn((5, 3, 4, 2))
    head = Rail(weight=1.0).fit(X, y, text=text)
    answer, logits = fused(head, Q), head.logits(Q)
    assert (answer < 0).any()
    np.testing.assert_allclose(logits[answer > 0.1], np.log(answer[answer > 0.1]))
    low = answer[answer <= 0.1]
    np.testing.assert_allclose(logits[answer <= 0.1], np.log(0.1) + 10 * (low - 0.1))
    assert (logits.argsort(axis=1) == answer.argsort(axis=1)).all()


@pytest.mark.parametrize("hidden", [0, 12])
def test_memory_of_the_primal_form_is_bounded(hidden):
    def numbers(n, **params):
        X, y, text, _ = drawn((n, n))
        return sum(value.size for value in Rail(**params).fit(X, y, text=text).state().values())

    assert numbers(20, hidden=hidden) == numbers(300, hidden=hidden) < numbers(300, form="dual")
    assert numbers(1, hidden=hidden) < numbers(20, hidden=hidden)


def test_random_features_are_the_same_with_every_version():
    found = random_map(15000, 512, seed=0)
    assert float(found.abs().max()) <= 512**-0.5
    np.testing.assert_allclose(float(found.std()) * np.sqrt(3 * 512), 1.0, rtol=1e-3)
    raw = np.array([11749869230777074271, 4976686463289251617, 755828109848996024]) / 2.0**64  # PCG64's first from 0
    np.testing.assert_allclose(found[0, :3], (2 * raw - 1) / np.sqrt(512), atol=1e-8)
    assert not torch.equal(random_map(10, 4, seed=1), random_map(10, 4, seed=0))


@pytest.mark.parametrize("params", [{}, {"hidden": 600}, {"hidden": 100}, {"form": "dual"}], ids=str)
def test_single_precision_is_exact_to_five_places(params):
    """240 shots of width 64, all in one direction as features of CLIP are; recursive, and from scratch in numpy."""
    X, y, text, Q = drawn((40,) * 6, d=64, dtype=np.float32)
    X, Q = X + 20, Q + 5
    phi = random_relu(params["hidden"], 64) if "hidden" in params else (lambda x: x)
    reference = kernel_ridge if "form" in params else lambda *args: ridge(*args, phi)
    head = Rail(**params).fit(X, y, text=text)
    head.unlearn(X[::3], y[::3], text=text)
    for i in range(0, 240, 3):
        head.partial_fit(X[i : i + 1], y[i : i + 1], text=text)
    expected = reference(X.astype(np.float64), y, Q.astype(np.float64), 6)
    np.testing.assert_allclose(regressed(head, Q), expected, atol=1e-5)
    np.testing.assert_allclose(head.logits(Q), Rail(**params).fit(X, y, text=text).logits(Q), atol=1e-5)


class Given(Rail):
    """With the frozen matrix of the released code's run."""

    def _phi(self, rows):
        return (rows @ torch.from_numpy(golden("rail")[0]["expansion_weight"]).to(rows.dtype).T).relu()


RUNS = {
    "primal": (Given, {"hidden": 64}),
    "primal_noexp": (Rail, {}),
    "dual": (Rail, {"form": "dual"}),
    "dual2": (Rail, {"form": "dual", "gamma": 1.0, "ridge": 0.1}),
}


@pytest.mark.parametrize("name", RUNS)
def test_released_code_gives_the_same_after_each_task(name):
    figures, parameters = golden("rail")
    X, T, Q = doubles(figures, "features", "text_unit", "query_features")
    text, y = TextFeatures([str(k) for k in range(6)], T), figures["labels"].astype(str)
    cls, params = RUNS[name]
    head, batch = cls(**params), parameters["update_batch"]
    for task in range(3):
        rows = np.flatnonzero(figures["task"] == task)
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            head.partial_fit(X[part], y[part], text=text)
        found, answer = regressed(head, Q), fused(head, Q)
        k = sum(parameters["classes_per_task"][: task + 1])
        # Of the largest number: the released dual form rounds its kernel, of condition 7500, to float32.
        expected = figures[f"{name}_out_task{task}"]
        np.testing.assert_allclose(found[:, :k], expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()))
        assert not found[:, k:].any()
        expected = figures[f"{name}_fused_task{task}"]
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)
        assert (head.logits(Q).argmax(axis=1) == expected.argmax(axis=1)).all()
        if name.startswith("primal"):
            weight = head.weight_.numpy()[:, :k].T
            np.testing.assert_allclose(weight, figures[f"{name}_weight_task{task}"], rtol=0, atol=1e-5)
