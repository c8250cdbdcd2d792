"""TIMO against the outputs of its authors' code, and against its formula in plain loops."""

import math

import numpy as np
import pytest

from clipadapter.heads import TextFeatures
from clipadapter.heads.gda import Gda
from clipadapter.heads.timo import GAMMAS, Timo

from .formulas import dot, unit, unit_list
from .golden_figures import golden

TENSORS, PARAMETERS = golden("timo")


def oracle(dtype):
    """Shots (n, v, d), labels, class text with its prompts, and queries, in the order of the authors' run."""
    views, prompts, queries = (
        TENSORS[name].astype(dtype) for name in ("support_views_raw", "prompts_raw", "query_raw")
    )
    names = [str(k) for k in range(len(prompts))]
    rows = [unit(one.astype(np.float64)).astype(dtype) for one in prompts]
    text = TextFeatures(names, np.stack([one.mean(axis=0) for one in rows]), prompts=rows)
    return views.transpose(1, 0, 2), TENSORS["support_labels"].astype(str), text, queries


@pytest.mark.parametrize(("gamma", "name"), [(50.0, "logits"), (1.0, "logits_gamma1")])
def test_official_gives_the_logits_of_the_authors_code(gamma, name):
    for dtype, figure, rtol, atol in ((np.float64, f"f64_{name}", 1e-9, 1e-8), (np.float32, name, 0, 2.1e-4)):
        views, labels, text, queries = oracle(dtype)
        fitted = Timo.official(alpha=float(TENSORS["alpha"][0]), gamma=gamma).fit(views, labels, text=text)
        np.testing.assert_allclose(fitted.logits(queries), TENSORS[figure], rtol, atol)


def drawn(counts=(3, 1, 2), prompts=(4, 1, 2), d=20, views=2, seed=0):
    rng = np.random.default_rng(seed)
    means = 2 * rng.standard_normal(d) + rng.standard_normal((len(counts), d))
    labels = np.repeat(np.arange(len(counts)), counts)
    X = means[labels][:, None] + 0.5 * rng.standard_normal((len(labels), views, d))
    rows = [means[k] + rng.standard_normal((p, d)) for k, p in enumerate(prompts)]
    names = [str(k) for k in range(len(counts))]
    text = TextFeatures(names, np.stack([unit(r).mean(axis=0) for r in rows]), logit_scale=30.0, prompts=rows)
    return X, labels.astype(str), text, means[rng.integers(len(counts), size=7)] + 0.5 * rng.standard_normal((7, d))


def paper_logits(X, y, text, Q, alpha, beta, gamma):
    """The paper's equations, class by class and prompt by prompt."""
    d, guided, rows, row_labels = X.shape[2], [], [], []
    for k, prompts in enumerate(text.prompts):
        own = [i for i, label in enumerate(y) if label == str(k)]
        keys = [unit_list([sum(column) / len(X[i]) for column in zip(*X[i], strict=True)]) for i in own]
        u = unit_list([sum(column) / len(keys) for column in zip(*keys, strict=True)])
        scores = [dot(u, prompt) for prompt in prompts]
        length = math.sqrt(sum(score**2 for score in scores))
        weights = [math.exp(gamma * score / length) for score in scores]
        mix = [sum(w * p[j] for w, p in zip(weights, prompts, strict=True)) for j in range(d)]
        guided.append(unit_list(mix))
        best = sorted(range(len(scores)), key=lambda j: -scores[j]) * 9
        for j in best[: len(scores) if beta is None else beta]:
            rows.append([scores[j] * value for value in prompts[j]])
            row_labels.append(k)
        for i in own:
            for view in X[i]:
                rows.append(unit_list(view))
                row_labels.append(k)
    rows, row_labels, c = np.array(rows), np.array(row_labels), len(guided)
    means = np.array([rows[row_labels == k].mean(axis=0) for k in range(c)])
    S = np.cov((rows - means[row_labels]).T)
    C = d * np.linalg.pinv((len(rows) - 1) * S + np.trace(S) * np.eye(d))
    return np.array(
        [
            [alpha * dot(q, t) + q @ C @ m - m @ C @ m / 2 - math.log(c) for t, m in zip(guided, means, strict=True)]
            for q in unit(Q)
        ]
    )


@pytest.mark.parametrize("d", [20, 6])  # with a basis of the span of shots and prompts, and without
@pytest.mark.parametrize("beta", [None, 1, 3, 7])
def test_logits_are_the_papers_formula(d, beta):
    X, y, text, Q = drawn(d=d)
    fitted = Timo(alpha=40.0, beta=beta, gamma=20.0).fit(X, y, text=text)
    np.testing.assert_allclose(fitted.logits(Q), paper_logits(X, y, text, Q, 40.0, beta, 20.0), rtol=1e-9, atol=1e-9)
    expected = paper_logits(X, y, text, Q, 300.0, 2, 5.0) / 10  # the default: alpha of ten logit scales, divided by ten
    np.testing.assert_allclose(Timo().fit(X, y, text=text).logits(Q), expected, rtol=1e-9, atol=1e-9)


def test_without_prompt_rows_it_is_gda_and_equal_rows_leave_the_text():
    X, y, text, Q = drawn()
    plain = text.with_prompts(None)
    expected = Gda.official(alpha=1.0).fit(X, y, text=plain).logits(Q)
    np.testing.assert_allclose(Timo(alpha=30.0, beta=0).fit(X, y, text=plain).logits(Q), expected, rtol=1e-9, atol=1e-9)
    text = TextFeatures(["a", "b"], np.eye(2), logit_scale=30.0)
    logits = Timo(beta=0).fit(np.eye(2), ["a", "b"], text=text).logits([[0.6, 0.8]])
    np.testing.assert_allclose(logits[0, 0] - logits[0, 1], 30.0 * (0.6 - 0.8), rtol=1e-9)


def test_search_chooses_a_sharp_gamma_if_half_of_the_prompts_are_wrong():
    """The first prompt of each class is that of the next class."""
    X, y, _, _ = drawn((6, 6, 6), (1, 1, 1), views=1)
    means = np.stack([X[y == str(k), 0].mean(axis=0) for k in range(3)])
    prompts = [np.stack([means[(k + 1) % 3], means[k]]) for k in range(3)]
    text = TextFeatures(["0", "1", "2"], np.stack([p.mean(axis=0) for p in prompts]), prompts=prompts)
    head = Timo(search=True).fit(X, y, text=text)
    assert head.gamma_ in GAMMAS
    np.testing.assert_allclose(unit(head.text_.numpy()), unit(np.stack([each[1] for each in text.prompts])), atol=0.05)


def test_alpha_is_chosen_from_eight_shots_a_class_on():
    """Text of other classes than the shots is useless: alpha is the least; with fewer shots it is fixed."""
    X, y, text, _ = drawn((8, 8, 8), (1, 1, 1))
    wrong = TextFeatures(text.labels, np.roll(text.embeddings, 1, axis=0), text.logit_scale)
    assert Timo().fit(X, y, text=wrong).alpha_ == 1.0 * text.logit_scale
    few = np.flatnonzero(np.arange(24) % 8 < 7)
    assert Timo().fit(X[few], y[few], text=wrong).alpha_ == 10.0 * text.logit_scale


def test_fits_of_folds_reuse_what_was_chosen():
    X, y, text, _ = drawn((8, 8, 8))
    head = Timo(search=True).fit(X, y, text=text)
    refit = head.refit_without(X, y, np.array([0]), text)
    assert (refit.alpha_, refit.beta_, refit.gamma_) == (head.alpha_, head.beta_, head.gamma_)
