"""SS-Text-U against its formulas in plain loops, and against outputs of the authors' code."""

import numpy as np
import pytest
import torch

from clipadapter.errors import InputError
from clipadapter.heads import TextFeatures
from clipadapter.heads.ss_text import SsText
from clipadapter.heads.ss_text_u import SsTextU, class_marginal, labelled_part, solve_class_vectors

from .golden_figures import doubles, golden

SCALE = 12.0
LABELS = ["0", "0", "1", "0"]
C, D, U = 3, 5, 11


def drawn(seed=1):
    """Shots, text, pictures without labels, and queries; class 2 has no shot."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal(D) + rng.standard_normal((C, D))
    X, pictures = (means[rows] + 0.5 * rng.standard_normal((len(rows), D)) for rows in ([0, 0, 1, 0], np.arange(U) % C))
    return 7 * X, TextFeatures(list("012"), means + rng.standard_normal(means.shape), SCALE), 5 * pictures, means


def fitted(head, seed=1):
    X, text, pictures, _ = drawn(seed)
    return head.fit(X, LABELS, text=text, unlabelled=pictures)


def test_without_updates_and_with_full_weight_of_shots_it_is_ss_text():
    X, text, _, q = drawn()
    head = fitted(SsTextU(updates=0, support_weight=1.0))
    np.testing.assert_allclose(head.logits(q), SsText().fit(X, LABELS, text=text).logits(q), rtol=1e-12)


def toy_pool(classes, size=60, c=6, d=24, seed=5):
    """Four shots of each class, and a pool of a few classes with its truth."""
    rng = np.random.default_rng(seed)
    means = 1.5 * rng.standard_normal(d) + rng.standard_normal((c, d))
    draw = lambda labels: means[labels] + 1.6 * rng.standard_normal((len(labels), d))  # noqa: E731
    labels, truth = np.repeat(np.arange(c), 4), rng.choice(classes, size)
    text = TextFeatures([str(k) for k in range(c)], means + rng.standard_normal(means.shape), 20.0)
    return draw(labels), labels.astype(str), text, draw(truth), truth.astype(str)


@pytest.mark.parametrize("classes", [[2], [1, 4], range(6)])
def test_frequencies_of_the_pool_are_found_and_a_pool_of_one_class_does_not_pull_the_others_to_it(classes):
    X, y, text, pool, truth = toy_pool(classes)
    ours, official, shots = (
        head.fit(X, y, text=text, unlabelled=pool) for head in (SsTextU(), SsTextU.official(), SsTextU(updates=0))
    )
    expected = np.bincount(truth.astype(int), minlength=6) / len(truth)
    np.testing.assert_allclose(ours.marginal_, expected, atol=0.15)
    if classes == [2]:
        right = [(head.predict(pool) == truth).mean() for head in (ours, shots, official)]
        assert right[0] >= right[1] > right[2] + 0.1, right


def test_an_unknown_marginal_is_refused_before_the_fit_and_a_class_without_shots_is_rare():
    with pytest.raises(InputError, match="marginal must be one of estimated, shots, uniform"):
        SsTextU(marginal="pool").check_parameters()
    head = fitted(SsTextU(marginal="shots", missing_class_ratio=2.0))
    np.testing.assert_allclose(head.marginal_, [3 / 4.5, 1 / 4.5, 0.5 / 4.5])


RUNS = {"raw": {}, "given": {}, "missing": {}, "mm0": {"updates": 0}, "ot0": {"rounds": 0}}
"""Runs of the released code on raw features and raw text, with the parameters that differ."""


def released_vectors(run):
    """Class vectors of our solver on the raw inputs of the released code."""
    figures, parameters = golden("ss_text_u")
    X, P, T = (torch.from_numpy(array) for array in doubles(figures, "support_raw", "unlabelled_raw", "text_raw"))
    labels = torch.from_numpy(figures["support_labels"])
    if run == "missing":
        X, labels = X[figures["missing_rows_kept"]], labels[figures["missing_rows_kept"]]
    marginal = class_marginal(torch.bincount(labels, minlength=len(T)).double())
    if run == "given":
        marginal = torch.from_numpy(figures["true_marginal"])
    scale = parameters["logit_scale"]
    fixed = 0.5 * labelled_part(X, labels, len(T), scale)
    params = {"updates": 3, "rounds": 10} | RUNS[run]
    return figures, solve_class_vectors(T, fixed, P, marginal, scale, start=T, **params).numpy(), scale


@pytest.mark.parametrize("run", RUNS)
def test_released_code_gives_the_same_class_vectors_and_logits_from_raw_features(run):
    figures, weight, scale = released_vectors(run)
    Q = figures["query_raw"].astype(float)
    norms = np.outer(np.linalg.norm(Q, axis=1), np.linalg.norm(weight, axis=1))
    np.testing.assert_allclose(scale * Q @ weight.T / norms, figures[f"f64_logits_{run}"], rtol=1e-9, atol=1e-11)
    if run == "raw":
        np.testing.assert_allclose(weight, figures["f64_prototypes_raw"], rtol=1e-9, atol=1e-11)


def released(scale, dtype=np.float64):
    figures, _ = golden("ss_text_u")
    X, P, T, Q = doubles(figures, "support_raw", "unlabelled_raw", "text_raw", "query_raw")
    X, P, T, Q = ((a / np.linalg.norm(a, axis=1, keepdims=True)).astype(dtype) for a in (X, P, T, Q))
    text = TextFeatures([str(k) for k in range(len(T))], T, scale)
    head = SsTextU.official().fit(X, figures["support_labels"].astype(str), text=text, unlabelled=P)
    return figures, head.logits(Q)


def test_released_code_gives_the_same_logits_also_at_a_scale_at_which_exp_overflows_in_float32():
    scale = golden("ss_text_u")[1]["logit_scale"]
    figures, logits = released(scale)
    np.testing.assert_allclose(logits, figures["f64_logits_unit"], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(released(scale, np.float32)[1], figures["logits_unit"], atol=1.9e-4)
    np.testing.assert_allclose(released(100.0)[1], figures["f64_logits_scale100"], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(released(100.0, np.float32)[1], figures["f64_logits_scale100"], atol=1e-3)
