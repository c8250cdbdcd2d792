"""SS-Text against its formula in plain loops, and its closed-form answers against refits."""

import math

import numpy as np
import pytest

from clipadapter.heads import TextFeatures
from clipadapter.heads.prototype import Prototype
from clipadapter.heads.ss_text import SsText

from .formulas import dot, unit_list
from .golden_figures import doubles, golden

SCALE = 40.0


def drawn(counts=(4, 4, 4), d=6, seed=2):
    rng = np.random.default_rng(seed)
    means = rng.standard_normal(d) + rng.standard_normal((len(counts), d))
    labels = np.repeat(np.arange(len(counts)), counts)
    X = (means[labels] + 0.5 * rng.standard_normal((len(labels), d))) * rng.uniform(8, 12, (len(labels), 1))
    text = TextFeatures(
        [str(i) for i in range(len(counts))], means + rng.standard_normal(means.shape), logit_scale=SCALE
    )
    return X, labels.astype(str), text, rng.standard_normal((7, d))


def plain_vectors(X, y, text, anchor, repel):
    """The paper's solution, class by class."""
    T = text.embeddings.astype(float).tolist()
    rows, vectors = [unit_list(x) for x in X], []
    for k, t in enumerate(T):
        own = [f for f, label in zip(rows, y, strict=True) if label == str(k)]
        if anchor == "class":
            lam = 1 / len(own) if own else math.inf
        elif anchor == "shots":
            lam = 1 / len(rows)
        elif anchor == "confidence":
            lam = 0.0
            for f in own:
                weights = [math.exp(SCALE * dot(f, other)) for other in T]
                lam += weights[k] / sum(weights) / len(own)
        else:
            lam = anchor
        total = [sum(column) for column in zip(*own, strict=True)] or [0.0] * len(t)
        vectors.append([a + (SCALE / (len(rows) * lam) * b if own else 0.0) for a, b in zip(t, total, strict=True)])
    if repel:
        mean = [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]
        away = [unit_list([2 * a - m for a, m in zip(w, mean, strict=True)]) for w in vectors]
        vectors = [[a - b for a, b in zip(w, v, strict=True)] for w, v in zip(vectors, away, strict=True)]
    return vectors


@pytest.mark.parametrize("counts", [(4, 4, 4), (1, 5, 2), (3, 0, 2)])
@pytest.mark.parametrize("repel", [False, True])
@pytest.mark.parametrize("anchor", ["class", "shots", "confidence", 0.1])
def test_logits_are_cosines_to_the_papers_class_vectors(anchor, repel, counts):
    X, y, text, Q = drawn(counts)
    vectors = plain_vectors(X, y, text, anchor, repel)
    expected = [[SCALE * dot(unit_list(q), unit_list(w)) for w in vectors] for q in Q]
    fitted = SsText(anchor=anchor, repel=repel).fit(X, y, text=text)
    np.testing.assert_allclose(fitted.logits(Q), expected, rtol=1e-5, atol=1e-4)


def test_balanced_shots_add_the_scale_over_the_number_of_classes_times_their_sum():
    X, y, text, _ = drawn((4, 4, 4))
    rows = X / np.linalg.norm(X, axis=1, keepdims=True)
    expected = text.embeddings + SCALE / 3 * np.array([rows[y == str(k)].sum(axis=0) for k in range(3)])
    np.testing.assert_allclose(SsText().fit(X, y, text=text).weight_, expected, rtol=1e-5)


@pytest.mark.parametrize("anchor", ["class", "shots", "confidence", 0.1])
def test_a_class_without_a_shot_keeps_its_text(anchor):
    X, y, text, _ = drawn((3, 0, 2))
    np.testing.assert_allclose(SsText(anchor=anchor).fit(X, y, text=text).weight_[1], text.embeddings[1], rtol=1e-6)


def test_lambda_has_a_floor():
    X, y, text, _ = drawn()
    low, floor = (SsText(anchor=lam).fit(X, y, text=text).weight_.numpy() for lam in (1e-9, 1e-3))
    np.testing.assert_array_equal(low, floor)


def test_official_is_the_mode_with_one_over_all_shots():
    assert SsText.official().get_params() == SsText(anchor="shots").get_params()
    assert SsText.official(anchor="class", repel=True).repel


@pytest.mark.parametrize("repel", [False, True])
@pytest.mark.parametrize("anchor", ["class", "shots", "confidence", 0.1])
def test_leave_one_out_is_a_refit(anchor, repel):
    X, y, text, _ = drawn((3, 1, 2, 0))
    head = SsText(anchor=anchor, repel=repel)
    found = head._leave_one_out(head._check_shots(X, y, text)[0])
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        expected = head.fit(X[others], y[others], text=text).logits(X[i : i + 1])
        np.testing.assert_allclose(found[i : i + 1], expected, rtol=1e-9, atol=1e-9)


MODES = {
    "plain": {},
    "plus": {"anchor": "class", "repel": True},
    "per_class": {"anchor": "class"},
    "balanced_repel": {"repel": True},
    "perf": {"anchor": "confidence"},
    "fixed": {"anchor": 0.1},
}
"""What the released code calls its modes, as changes of `SsText.official`."""


def released():
    """Figures of the released code, and its shots, labels, text and queries."""
    figures, parameters = golden("ss_text")
    X, T, Q = doubles(figures, "support_raw", "text_raw", "query_raw")
    text = TextFeatures([str(k) for k in range(len(T))], T, parameters["logit_scale"])
    return figures, X, figures["support_labels"].astype(str), text, Q


@pytest.mark.parametrize("mode", MODES)
def test_released_code_gives_the_same_logits(mode):
    figures, X, y, text, Q = released()
    found = SsText.official(**MODES[mode]).fit(X, y, text=text).logits(Q)
    np.testing.assert_allclose(found, figures[f"f64_logits_{mode}"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_released_code_gives_the_same_logits_where_a_class_has_no_shot(mode):
    figures, X, y, text, Q = released()
    rows = figures["missing_rows_kept"]
    assert len(set(y[rows])) < len(text.labels)
    found = SsText.official(**MODES[mode]).fit(X[rows], y[rows], text=text).logits(Q)
    np.testing.assert_allclose(found, figures[f"f64_missing_logits_{mode}"], rtol=1e-9, atol=1e-11)


def test_released_code_without_text_is_the_limit_of_loose_anchors_and_prototype():
    figures, X, y, text, Q = released()
    for head in (SsText(anchor=1e-14, floor=0.0), Prototype(mix=0.0)):
        np.testing.assert_allclose(head.fit(X, y, text=text).logits(Q), figures["f64_logits_ss"], rtol=1e-9, atol=1e-9)
