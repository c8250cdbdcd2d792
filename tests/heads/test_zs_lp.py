"""ZS-LP against gradient descent on a cosine classifier, written out in numpy."""

import numpy as np
import pytest

from clipadapter.heads import TextFeatures
from clipadapter.heads.zs_lp import ZsLp

from .golden_figures import doubles, golden
from .small_shots import fit_unequal_shots, unequal_shots


@pytest.fixture
def case():
    return unequal_shots(seed=4, noise=0.3)


def fit(case, **params):
    return fit_unequal_shots(ZsLp(**params), case)


def test_text_norm_auto_is_a_tenth_of_the_scale(case):
    auto, four = (fit(case, text_norm=norm).logits(case[0]) for norm in ("auto", 4.0))
    np.testing.assert_allclose(auto, four, rtol=1e-12)


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
