"""CLAP against its loss and gradient written out in numpy, and at the ends of its penalty."""

import numpy as np
import pytest

from clipadapter.heads import TextFeatures
from clipadapter.heads.clap import Clap
from clipadapter.heads.zs_lp import ZsLp

from .formulas import softmax, unit
from .golden_figures import doubles, golden
from .small_shots import SCALE, fit_unequal_shots, unequal_shots


@pytest.fixture
def case():
    return unequal_shots(seed=6, noise=0.5, offset=0.4)


def confidence_by_hand(X, target, text):
    """Mean zero-shot probability of the truth, class by class; the class without shots has none."""
    p = softmax(SCALE * unit(X) @ text.T)
    return np.array([np.mean([p[i, k] for i in range(len(X)) if target[i] == k]) for k in (0, 1, 3)])


def test_multipliers_are_means_over_all_views(case):
    X, target, text = case
    other = X[::-1].copy()
    views = np.stack([X, other], axis=1)
    fitted = fit_unequal_shots(Clap(epochs=0), (views, target, text))
    expected = (confidence_by_hand(X, target, text) + confidence_by_hand(other, target, text)) / 2
    np.testing.assert_allclose(fitted.multipliers_.numpy()[[0, 1, 3]], expected, rtol=1e-12)


def test_strength_zero_is_zs_lp(case):
    found, expected = (fit_unequal_shots(head, case).logits(case[0]) for head in (Clap(strength=0), ZsLp()))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


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
