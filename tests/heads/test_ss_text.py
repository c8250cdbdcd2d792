"""SS-Text against its formula in plain loops, and its closed-form answers against refits."""

import numpy as np
import pytest

from clipadapter.heads import TextFeatures
from clipadapter.heads.prototype import Prototype
from clipadapter.heads.ss_text import SsText
from clipadapter.heads.ss_text_u import held_out_logits

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


def test_lambda_has_a_floor():
    X, y, text, _ = drawn()
    low, floor = (SsText(anchor=lam).fit(X, y, text=text).weight_.numpy() for lam in (1e-9, 1e-3))
    np.testing.assert_array_equal(low, floor)


def test_held_out_logits_are_those_of_refits():
    X, y, text, _ = drawn((3, 1, 2, 0))
    head = SsText()
    found = held_out_logits(head._check_shots(X, y, text)[0])
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
def test_released_code_gives_the_same_logits_also_where_a_class_has_no_shot(mode):
    figures, X, y, text, Q = released()
    some = figures["missing_rows_kept"]
    assert len(set(y[some])) < len(text.labels)
    for rows, name in ((slice(None), f"f64_logits_{mode}"), (some, f"f64_missing_logits_{mode}")):
        found = SsText.official(**MODES[mode]).fit(X[rows], y[rows], text=text).logits(Q)
        np.testing.assert_allclose(found, figures[name], rtol=1e-9, atol=1e-11)


def test_released_code_without_text_is_the_limit_of_loose_anchors_and_prototype():
    figures, X, y, text, Q = released()
    for head in (SsText(anchor=1e-14, floor=0.0), Prototype(mix=0.0)):
        np.testing.assert_allclose(head.fit(X, y, text=text).logits(Q), figures["f64_logits_ss"], rtol=1e-9, atol=1e-9)
