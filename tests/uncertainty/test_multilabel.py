import json

import numpy as np
import pytest
from scipy.special import expit as sigmoid
from sklearn.linear_model import LogisticRegression

from clipadapter.errors import ArtifactError, InputError
from clipadapter.uncertainty.multilabel import MultiLabel, _best_threshold, learn_multilabel


def answers(n, slope=2.0, bias=-3.0, c=4, seed=0):
    """Logits of which sigmoid(slope * x + bias) are the true probabilities."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal((n, c))
    return logits, (rng.random((n, c)) < sigmoid(slope * logits + bias)).astype(int)


def test_many_shots_have_the_slope_and_bias_of_platt():
    logits, targets = answers(20_000, slope=np.array([0.8, 1.0, 1.2, 1.0]), bias=np.array([-2.0, -1.0, 0.0, -1.0]))
    found = learn_multilabel(logits, targets)
    for k in range(4):
        model = LogisticRegression(C=np.inf, tol=1e-8).fit(logits[:, [k]], targets[:, k])
        assert found.slope[k] == pytest.approx(model.coef_[0, 0], rel=0.02)
        assert found.bias[k] == pytest.approx(model.intercept_[0], abs=0.03)


def test_few_shots_have_nearly_the_slope_and_bias_of_all():
    logits, targets = answers(30)
    targets[:, 0] = 0
    targets[4, 0] = 1
    found = learn_multilabel(logits, targets)
    assert np.ptp(np.log(found.slope)) < 0.4
    assert found.bias[0] < found.bias[1:].min()
    assert found.bias[0] > found.bias[1:].min() - 2


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_probabilities_follow_logits_of_any_scale(scale):
    logits, targets = answers(400)
    found = learn_multilabel(logits, targets).probabilities(logits)
    # Slopes are drawn to one in the logits' own unit, which many shots outweigh.
    other = learn_multilabel(scale * logits, targets).probabilities(scale * logits)
    np.testing.assert_allclose(other, found, atol=0.08)


def f1_score(targets, predicted):
    return 2 * (targets * predicted).sum() / (targets.sum() + predicted.sum())


def test_thresholds_make_expected_f1_largest():
    # F1 of one, two and three predicted pictures of 0.8, 0.5, 0.1 is 2 * 0.8 / 2.4, 2 * 1.3 / 3.4 and 2 * 1.4 / 4.4.
    assert _best_threshold(np.array([0.5, 0.1, 0.8])) == pytest.approx(1.3 / 3.4)
    logits, targets = answers(2000, slope=1.0, bias=-2.0)
    rule = learn_multilabel(logits, targets)
    p = rule.probabilities(logits)
    for k in range(4):
        f1 = [f1_score(targets[:, k], p[:, k] >= t) for t in np.arange(0.05, 0.95, 0.03)]
        assert f1_score(targets[:, k], p[:, k] >= rule.thresholds[k]) > max(f1) - 0.015
        assert rule.thresholds[k] == pytest.approx(max(f1) / 2, abs=0.03)  # Lipton et al.


def test_the_fewer_shots_a_class_has_the_nearer_is_its_threshold_to_the_others():
    logits, targets = answers(3000, slope=1.0, bias=np.array([-4.0, 0.0, 0.0, 0.0]))
    many = learn_multilabel(logits, targets)
    few = learn_multilabel(logits[:40], targets[:40])
    assert many.thresholds[0] < many.thresholds[1:].min() - 0.1
    assert few.thresholds[0] > many.thresholds[0] + 0.02


@pytest.mark.parametrize("targets", [np.zeros((9, 2)), np.ones((9, 2)), np.eye(9, 2)])
def test_rare_and_common_classes_have_thresholds(targets):
    rule = learn_multilabel(np.random.default_rng(0).standard_normal((9, 2)), targets)
    assert np.isfinite(rule.slope).all()
    assert ((rule.thresholds >= 0) & (rule.thresholds <= 1)).all()
    assert learn_multilabel(np.zeros((1, 2)), np.zeros((1, 2))).n == 1


def test_state_comes_back_and_a_damaged_one_is_refused():
    logits, targets = answers(50)
    rule = learn_multilabel(logits, targets)
    facts, arrays = rule.state()
    again = MultiLabel.from_state(json.loads(json.dumps(facts)), arrays, 4)
    np.testing.assert_array_equal(again.decide(logits), rule.decide(logits))
    assert again.n == 50
    wrong = {"slope": [1.0, 1.0, 1.0, -1.0], "thresholds": [0.5, 0.5, 0.5, 1.5], "bias": [0.0, 0.0, 0.0, np.nan]}
    for name, values in [*wrong.items(), ("bias", list("abcd"))]:
        with pytest.raises(ArtifactError, match="a value of its .* is out of range"):
            MultiLabel.from_state(facts, {**arrays, name: np.array(values)}, 4)
    with pytest.raises(ArtifactError, match=r"which does not fit \(3,\)"):
        MultiLabel.from_state(facts, arrays, 3)
    with pytest.raises(ArtifactError, match="damaged"):
        MultiLabel.from_state({}, arrays, 4)


def test_wrong_input_is_named():
    zeros = np.zeros((3, 2))
    for logits, targets, words in (
        (zeros, zeros[:2], "don't match"),
        (zeros[:0], zeros[:0], "don't match"),
        (zeros * np.nan, zeros, "finite"),
        (zeros, zeros + 2, "zeros and ones"),
    ):
        with pytest.raises(InputError, match=words):
            learn_multilabel(logits, targets)


def test_without_held_out_shots_the_default_rule_applies():
    rule = MultiLabel.default(2)
    logits = np.log([[0.24 / 0.76, 0.26 / 0.74]])
    np.testing.assert_allclose(rule.probabilities(logits), [[0.24, 0.26]])
    assert rule.decide(logits).tolist() == [[False, True]]
