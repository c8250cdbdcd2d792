"""CLAP against its loss and gradient written out in numpy, and at the ends of its penalty."""

import numpy as np
import pytest

from clipadapter.heads import TextFeatures
from clipadapter.heads.clap import Clap
from clipadapter.heads.zero_shot import ZeroShot
from clipadapter.heads.zs_lp import ZsLp
from clipadapter.testing import toy_features

from .assertions import assert_refused
from .formulas import softmax, unit
from .golden_figures import doubles, golden
from .small_shots import SCALE, fit_unequal_shots, unequal_shots


@pytest.fixture
def case():
    return unequal_shots(seed=6, noise=0.5, offset=0.4)


def fit(case, **params):
    return fit_unequal_shots(Clap(**params), case)


def confidence_by_hand(X, target, text):
    """Mean zero-shot probability of the truth, class by class; the class without shots has none."""
    p = softmax(SCALE * unit(X) @ text.T)
    return np.array([np.mean([p[i, k] for i in range(len(X)) if target[i] == k]) for k in (0, 1, 3)])


def clap_by_hand(X, target, base, pull, steps, rate=0.1):
    """SGD with momentum on cross-entropy plus the mean over the classes of pull_k times the squared distance."""
    weight, velocity = base.copy(), np.zeros_like(base)
    f, onehot, value = unit(X), np.eye(len(base))[target], 0.0
    for _ in range(steps):
        p = softmax(SCALE * f @ unit(weight).T)
        value = -np.log(p[np.arange(len(X)), target]).mean() + (pull * ((weight - base) ** 2).sum(1)).mean()
        gradient = np.zeros_like(weight)
        for k in (0, 1, 3):
            w = unit(weight[k])
            toward = SCALE * (f - np.outer(f @ w, w)) / np.linalg.norm(weight[k])
            gradient[k] = (p - onehot)[:, k] @ toward / len(X) + 2 * pull[k] * (weight - base)[k] / len(base)
        velocity = 0.9 * velocity + gradient
        weight = weight - rate * velocity
    return weight, value


@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_twenty_steps_are_the_published_recipe(case, strength):
    X, target, text = case
    lengths = np.array([9.0, 8.0, 11.0, 10.0])
    recipe = {"text_norm": lengths.tolist(), "schedule": "constant", "epochs": 20, "logit_adjustment": 0.0}
    fitted = fit(case, strength=strength, **recipe)
    a, b, d = strength * confidence_by_hand(X, target, text)
    weight, value = clap_by_hand(X, target, text * lengths[:, None], np.array([a, b, 0, d]), 20)
    np.testing.assert_allclose(fitted.weight_.numpy(), weight, rtol=1e-9)
    np.testing.assert_allclose(fitted.logits(X), SCALE * unit(X) @ unit(weight).T, rtol=1e-9)
    assert fitted.loss_ == pytest.approx(value, rel=1e-9)


def test_multipliers_are_the_mean_probability_of_the_truth(case):
    expected = confidence_by_hand(*case)
    assert expected.max() - expected.min() > 0.1
    for kind, by_hand in (
        ("class", expected),
        ("relative", expected / expected.mean()),
        ("constant", np.full(3, expected.mean())),
    ):
        fitted = fit(case, multipliers=kind, epochs=0)
        np.testing.assert_allclose(fitted.multipliers_.numpy()[[0, 1, 3]], by_hand, rtol=1e-12)


def test_multipliers_are_means_over_all_views(case):
    X, target, text = case
    other = X[::-1].copy()
    views = np.stack([X, other], axis=1)
    fitted = fit_unequal_shots(Clap(epochs=0), (views, target, text))
    expected = (confidence_by_hand(X, target, text) + confidence_by_hand(other, target, text)) / 2
    np.testing.assert_allclose(fitted.multipliers_.numpy()[[0, 1, 3]], expected, rtol=1e-12)


def test_strength_zero_is_zs_lp(case):
    expected = fit_unequal_shots(ZsLp(), case).logits(case[0])
    np.testing.assert_allclose(fit(case, strength=0).logits(case[0]), expected, rtol=1e-9)


def test_a_strong_pull_is_zero_shot(case):
    X = case[0]
    expected = fit_unequal_shots(ZeroShot(), case).logits(X)
    distance = [
        np.abs(fit(case, strength=s, lr=0.1 / s, epochs=500).logits(X) - expected).max() for s in (1.0, 100.0, 1e4)
    ]
    assert distance[0] > 1
    np.testing.assert_allclose(distance[1:], 0, atol=0.5)
    assert distance[2] < 0.01


def test_a_class_without_shots_keeps_its_text_and_answers_by_it():
    X, y, text = toy_features((4, 0, 4))
    fitted = Clap().fit(X, y, text=text)
    np.testing.assert_allclose(unit(fitted.weight_.numpy())[1], text.embeddings[1], atol=1e-6)
    assert fitted.predict(text.embeddings).tolist() == ["cat", "dog", "owl"]


def test_classes_whose_text_is_wrong_are_pulled_less():
    X, y, text = toy_features((8, 8, 8))
    wrong = TextFeatures(text.labels, text.embeddings[[0, 2, 1]], text.logit_scale)
    cat, dog, owl = Clap().fit(X, y, text=wrong).multipliers_.tolist()
    assert cat > 0.9
    assert max(dog, owl) < 0.1


def test_the_penalty_does_not_depend_on_the_length_of_class_text():
    X, y, text = toy_features()
    long = TextFeatures(text.labels, 17 * text.embeddings, text.logit_scale)
    short, other = (Clap().fit(X, y, text=t).logits(X) for t in (text, long))
    np.testing.assert_allclose(short, other, atol=1e-4)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"multipliers": "adaptive"}, "multipliers must be one of class, relative, constant, but is 'adaptive'"),
        ({"strength": -1.0}, "strength must be 0 or more"),
    ],
)
def test_bad_parameters_are_named(params, words):
    assert_refused(Clap(**params), words)


def test_official_is_300_epochs_with_one_of_warm_up():
    head = Clap.official()
    assert (head.epochs, head.warmup_epochs, head.lr) == (300, 1, 0.1)
    assert (head.strength, head.multipliers) == (1.0, "class")


def released(head, unit_text=False):
    """Figures of the released code, its queries, and a head fitted to its inputs with its length of text."""
    figures, parameters = golden("clap")
    X, T, Q = doubles(figures, "support_features", "text_raw", "query_features")
    text = TextFeatures([str(k) for k in range(len(T))], T, parameters["logit_scale"])
    rate = parameters["lr"]["unit" if unit_text else "raw"]
    head.set_params(text_norm=1.0 if unit_text else np.linalg.norm(T, axis=1).tolist(), lr=rate)
    return figures, Q, head.fit(X, figures["support_labels"].astype(str), text=text)


# The released code ran in float32, in which its own rounding is 1e-6 in the weights and 3e-5 in the logits.


@pytest.mark.parametrize(
    ("multipliers", "name"), [("class", "lambda"), ("relative", "lambda_corrected"), ("constant", "lambda_constant")]
)
def test_released_code_gives_the_same_multipliers_and_begins_at_zero_shot(multipliers, name):
    figures, Q, head = released(Clap.official(multipliers=multipliers, epochs=0))
    np.testing.assert_allclose(head.multipliers_, figures[name], atol=3e-6)
    np.testing.assert_allclose(head.logits(Q), figures["logits_init"], atol=1e-4)


@pytest.mark.parametrize("unit_text", [False, True])
@pytest.mark.parametrize(
    ("name", "changes"), [("clap", {"schedule": "constant", "warmup_epochs": 0}), ("clap_sched", {})]
)
def test_released_code_gives_the_same_weights_loss_and_logits(name, changes, unit_text):
    figures, Q, head = released(Clap.official(epochs=20, **changes), unit_text)
    run = f"{name}_{'unit' if unit_text else 'raw'}"
    np.testing.assert_allclose(head.weight_, figures[f"weights20_{run}"], atol=3e-6)
    np.testing.assert_allclose(head.logits(Q), figures[f"logits20_{run}"], atol=1e-4)
    assert head.loss_ == pytest.approx(figures[f"loss_{run}"][-1], abs=1e-5)
