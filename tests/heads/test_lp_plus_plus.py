"""LP++ against its formulas, replayed in plain numpy."""

import numpy as np
import pytest
import torch

from clipadapter.heads import TextFeatures
from clipadapter.heads.lp_plus_plus import LpPlusPlus
from clipadapter.heads.training import training_bar
from clipadapter.testing import toy_features

from .formulas import softmax, unit
from .golden_figures import doubles, golden
from .small_shots import NAMES, fit_unequal_shots, unequal_shots

D = 12
SEEN = [0, 1, 3]


@pytest.fixture
def case():
    return unequal_shots(seed=7, noise=0.8)


def fit(case, **params):
    return fit_unequal_shots(LpPlusPlus(**params), case)


def replay(case, epochs):
    """Weights, biases and text weights of the three classes that have shots."""
    X, target, text = case
    f, t, onehot = unit(X), text[SEEN], np.eye(4)[target][:, SEEN]
    n, similarity = len(f), f @ t.T
    weight = np.array([sum(f[i] for i in range(n) if target[i] == k) for k in SEEN])
    own = [np.mean([similarity[i, j] for i in range(n) if target[i] == k]) for j, k in enumerate(SEEN)]
    alpha = np.full(3, 250 * np.mean(own))
    lr_weight = 4 * n / np.linalg.eigvalsh(f.T @ f).max()
    lr_bias = min(lr_weight, 4)
    lr_alpha = n / (4 * max((similarity[:, j] ** 2).sum() for j in range(3)))
    bias, velocity_weight, velocity_bias = np.zeros(3), np.zeros_like(weight), np.zeros(3)
    for epoch in range(1, epochs + 1):
        excess = (softmax(f @ weight.T + bias + alpha * similarity) - onehot) / n
        velocity_weight = 0.9 * velocity_weight + excess.T @ f
        velocity_bias = 0.9 * velocity_bias + excess.sum(axis=0)
        weight, bias = weight - lr_weight * velocity_weight, bias - lr_bias * velocity_bias
        if epoch % 10 == 0:
            alpha = alpha - lr_alpha * (excess * similarity).sum(axis=0)
    return weight, bias, alpha


def logits_by_hand(case, weight, bias, alpha):
    X, _, text = case
    return unit(X) @ (weight + alpha[:, None] * text[SEEN]).T + bias


@pytest.mark.parametrize("epochs", [9, 10, 300])
@pytest.mark.parametrize("d", [D, 3])  # the six shots are fewer than 2 d, or not: the sums are made in another order
def test_epochs_of_the_default_are_steps_with_cleared_gradients(d, epochs):
    case = unequal_shots(seed=7, noise=0.8, d=d)
    fitted = fit(case, epochs=epochs, logit_adjustment=0.0)
    weight, bias, alpha = replay(case, epochs)
    np.testing.assert_allclose(fitted.alpha_.numpy()[SEEN], alpha, rtol=1e-9)
    np.testing.assert_allclose(fitted.bias_.numpy()[SEEN], bias, rtol=1e-7, atol=1e-9)
    expected = logits_by_hand(case, weight, bias, alpha)
    np.testing.assert_allclose(fitted.logits(case[0])[:, SEEN], expected, rtol=1e-9, atol=1e-9)
    # The class without shots has its text and the average of the others.
    np.testing.assert_allclose(fitted.weight_[2], weight.mean(axis=0) + alpha.mean() * case[2][2], rtol=1e-8)
    assert fitted.bias_[2] == pytest.approx(bias.mean(), abs=1e-9)


def test_literal_biases_start_as_those_of_a_linear_layer(case):
    drawn = np.concatenate([fit(case, literal=True, epochs=0, seed=seed).bias_.numpy()[SEEN] for seed in range(60)])
    assert np.abs(drawn).max() <= 1 / np.sqrt(D)
    assert drawn.std() == pytest.approx(1 / np.sqrt(3 * D), rel=0.15)
    assert not fit(case, epochs=0).bias_.any()


def test_large_problems_run_fewer_epochs(monkeypatch):
    X, y, text = toy_features()
    seen = []
    bar = "clipadapter.heads.lp_plus_plus.training_bar"
    monkeypatch.setattr(bar, lambda epochs, **options: seen.append(epochs) or training_bar(epochs, **options))
    multiplications = 2 * 12 * 3 * 16  # of an epoch: there and back, 12 shots, 3 classes, width 16
    for work, epochs in ((1e12, 300), (100 * multiplications, 100), (1, 50)):
        monkeypatch.setattr("clipadapter.heads.lp_plus_plus.MAX_TRAINING_MULTIPLICATIONS", work)
        LpPlusPlus().fit(X, y, text=text)
        assert seen[-1] == epochs


def test_biases_stay_small_where_features_have_no_common_direction():
    rng = np.random.default_rng(0)
    X, text = rng.standard_normal((200, 100)), TextFeatures(NAMES, rng.standard_normal((4, 100)))
    y = np.repeat(NAMES, [20, 80, 50, 50])
    literal, clean = (LpPlusPlus(literal=flag).fit(X, y, text=text).bias_.abs().max() for flag in (True, False))
    assert clean < 10
    assert literal > 2 * clean


def test_released_code_gives_the_same_start_steps_and_logits_before_and_after_its_text_weights_move(monkeypatch):
    figures, parameters = golden("lpp")
    X, T, bias = doubles(figures, "support_raw", "text_raw", "init_bias")
    assert parameters["momentum"] == 0.9
    assert parameters["alpha_update_every"] == 10
    monkeypatch.setattr(LpPlusPlus, "_initial_bias", lambda *_: torch.from_numpy(bias.copy()))
    text = TextFeatures([str(k) for k in range(len(T))], T)
    y = figures["support_labels"].astype(str)
    start, *trained = (LpPlusPlus.official(epochs=epochs).fit(X, y, text=text) for epochs in (0, 9, 10, 20))
    for head, epochs in zip(trained, (9, 10, 20), strict=True):
        found, expected = head.logits(*doubles(figures, "query_raw")), figures[f"f64_logits_epoch{epochs}"]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)
    weight = start.weight_.numpy() - start.alpha_.numpy()[:, None] * unit(figures["text_raw"])
    np.testing.assert_allclose(weight, figures["init_weight"], atol=1e-5)
    np.testing.assert_allclose(start.alpha_, figures["init_alpha"].repeat(5), rtol=1e-7)
