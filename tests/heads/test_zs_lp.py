"""ZS-LP against gradient descent on a cosine classifier, written out in numpy."""

import numpy as np
import pytest

from clipadapter.heads import TextFeatures
from clipadapter.heads.zs_lp import ZsLp
from clipadapter.testing import toy_features

from .assertions import assert_refused, assert_uses_views
from .formulas import softmax, unit
from .golden_figures import doubles, golden
from .small_shots import SCALE, fit_unequal_shots, unequal_shots


@pytest.fixture
def case():
    return unequal_shots(seed=4, noise=0.3)


def zs_lp_by_hand(X, target, base, rates, momentum=0.9):
    """SGD with momentum by its definition; the class without shots stays."""
    weight, velocity = base.copy(), np.zeros_like(base)
    f, onehot = unit(X), np.eye(len(base))[target]
    for rate in rates:
        excess = (softmax(SCALE * f @ unit(weight).T) - onehot) / len(X)
        gradient = np.zeros_like(weight)
        for k in (0, 1, 3):
            w = unit(weight[k])
            toward = SCALE * (f - np.outer(f @ w, w)) / np.linalg.norm(weight[k])
            gradient[k] = excess[:, k] @ toward
        velocity = momentum * velocity + gradient
        weight = weight - rate * velocity
    return weight


def fit(case, **params):
    return fit_unequal_shots(ZsLp(**params), case)


def test_twenty_steps_are_the_published_recipe(case):
    X, target, text = case
    lengths = np.array([9.0, 8.0, 11.0, 10.0])
    fitted = fit(case, text_norm=lengths.tolist(), schedule="constant", epochs=20, logit_adjustment=0.0)
    weight = zs_lp_by_hand(X, target, text * lengths[:, None], [0.1] * 20)
    np.testing.assert_allclose(fitted.weight_.numpy(), weight, rtol=1e-9)
    np.testing.assert_allclose(fitted.logits(X), SCALE * unit(X) @ unit(weight).T, rtol=1e-9)


def test_official_schedule_is_one_epoch_of_warm_up_and_a_cosine_over_all(case):
    X, target, text = case
    fitted = fit(case, **{**ZsLp.official(text_norm=10.0).get_params(), "epochs": 8})
    rates = [1e-5] + [0.1 * 0.5 * (1 + np.cos(np.pi * epoch / 8)) for epoch in range(7)]
    np.testing.assert_allclose(fitted.weight_.numpy(), zs_lp_by_hand(X, target, 10 * text, rates), rtol=1e-9)


def test_a_class_without_shots_keeps_its_text_and_answers_by_it():
    X, y, text = toy_features((4, 0, 4))
    fitted = ZsLp().fit(X, y, text=text)
    np.testing.assert_allclose(unit(fitted.weight_.numpy())[1], text.embeddings[1], atol=1e-6)
    assert fitted.predict(text.embeddings).tolist() == ["cat", "dog", "owl"]


def test_twice_the_text_length_is_a_quarter_of_the_rate(case):
    short, long = (fit(case, text_norm=norm, lr=lr).logits(case[0]) for norm, lr in ((5.0, 0.05), (10.0, 0.2)))
    np.testing.assert_allclose(short, long, rtol=1e-9)


def test_text_norm_auto_is_a_tenth_of_the_scale(case):
    auto, four = (fit(case, text_norm=norm).logits(case[0]) for norm in ("auto", 4.0))
    np.testing.assert_allclose(auto, four, rtol=1e-12)


def test_views_are_used_in_training():
    assert_uses_views(ZsLp(epochs=20))


def test_the_loss_falls():
    X, y, text = toy_features(noise=2.0)
    losses = [ZsLp(epochs=epochs).fit(X, y, text=text).loss_ for epochs in (1, 100)]
    assert losses[1] < losses[0] / 2


def test_bad_length_is_named():
    assert_refused(ZsLp(text_norm=[1.0, -1.0, 1.0]), "text_norm must be 'auto', a positive number")


@pytest.mark.parametrize(("run", "length"), [("zslp_raw", None), ("zslp_unit", 1.0)])
def test_released_code_gives_the_same_weights_loss_and_logits(run, length):
    figures, parameters = golden("clap")
    X, T, Q = doubles(figures, "support_features", "text_raw", "query_features")
    text = TextFeatures([str(k) for k in range(len(T))], T, parameters["logit_scale"])
    # The released schedule is CoOp's; these figures were made at a constant rate.
    head = ZsLp.official(schedule="constant", warmup_epochs=0, epochs=parameters["steps"])
    head.set_params(text_norm=length or np.linalg.norm(T, axis=1).tolist(), lr=parameters["lr"][run[5:]])
    head.fit(X, figures["support_labels"].astype(str), text=text)
    # The released code ran in float32, in which its own rounding is 1.5e-6 in the weights and 2e-5 in the logits.
    np.testing.assert_allclose(head.weight_, figures[f"weights20_{run}"], atol=5e-6)
    np.testing.assert_allclose(head.logits(Q), figures[f"logits20_{run}"], atol=1e-4)
    assert head.loss_ == pytest.approx(figures[f"loss_{run}"][-1], abs=1e-5)
