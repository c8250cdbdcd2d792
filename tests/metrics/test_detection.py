"""Detection of unknown pictures against scikit-learn, plain loops and values by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from clipadapter.errors import InputError
from clipadapter.metrics.detection import aurc, auroc, fpr_at, risk_coverage

# Few distinct values: most draws have ties.
values = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


@settings(deadline=None, max_examples=20)
@given(values, values)
def test_auroc_is_scikit_learns(known, unknown):
    expected = roc_auc_score([0] * len(known) + [1] * len(unknown), known + unknown)
    assert auroc(known, unknown) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(values, values, st.sampled_from([0.25, 0.5, 0.8, 0.95, 1.0]))
def test_fpr_is_the_least_over_thresholds_that_let_enough_known_pass(known, unknown, tpr):
    allowed = [t for t in known if sum(k <= t for k in known) / len(known) >= tpr - 1e-12]
    expected = min(sum(u <= t for u in unknown) / len(unknown) for t in allowed)
    assert fpr_at(known, unknown, tpr) == pytest.approx(expected)


def test_a_share_that_is_no_binary_number_lets_no_further_one_pass_and_infinite_scores_are_ordered_as_others():
    assert fpr_at(range(20), [18.5, 19.5], 0.95) == 0
    assert fpr_at(range(100), [6.5, 8.0], 0.07) == 0  # 0.07 * 100 is 7.000000000000001
    assert auroc([0, 1], [np.inf, np.inf]) == 1
    assert auroc([0, np.inf], [np.inf]) == 0.75


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=7))
def test_the_area_is_the_mean_over_all_orders_of_ties(rows):
    confidence, correct = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    rng, areas = np.random.default_rng(0), []
    for _ in range(100):
        order = np.lexsort((rng.random(len(rows)), -confidence))
        wrong = [not correct[i] for i in order]
        areas.append(np.mean([sum(wrong[: i + 1]) / (i + 1) for i in range(len(rows))]))
    assert aurc(confidence, correct) == pytest.approx(np.mean(areas), abs=5 * np.std(areas) / 10 + 1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: auroc([], [1]), r"known scores .* shape \(0,\)"),
        (lambda: auroc([1], [[1]]), r"unknown scores .* shape \(1, 1\)"),
        (lambda: fpr_at([1.0, np.nan], [1]), "1 NaN"),
        (lambda: fpr_at([1], [1], 0), "tpr .* is 0"),
        (lambda: fpr_at([1], [1], 1.5), "tpr .* is 1.5"),
        (lambda: risk_coverage([1, 2], [True]), "2 confidences .* one for each"),
    ],
)
def test_wrong_input_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call()
