"""ZS-LP against its authors' code, and what a class without shots does to the training of others."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from clipadapter.heads import TextFeatures
from clipadapter.heads.taskres import TaskRes
from clipadapter.heads.zs_lp import ZsLp

from .golden_figures import doubles, golden
from .small_shots import SCALE, fit_unequal_shots, unequal_shots


@pytest.fixture
def case():
    return unequal_shots(seed=4, noise=0.3)


def fit(case, **params):
    return fit_unequal_shots(ZsLp(**params), case)


@pytest.mark.parametrize(
    ("head", "optimizer"),
    [
        (ZsLp(), lambda weight: torch.optim.SGD([weight], lr=0.1, momentum=0.9)),
        (TaskRes(alpha=1.0, weight_decay=0.0, gce_q=0.0), lambda weight: torch.optim.Adam([weight], lr=2e-3)),
    ],
)
def test_in_training_a_class_without_shots_stays_at_its_text_as_in_a_plain_torch_loop(head, optimizer, case):
    head.set_params(text_norm=10.0, schedule="constant", epochs=20, logit_adjustment=0.0)
    X, target, text = (torch.as_tensor(each) for each in case)
    weight = (10 * text).clone().requires_grad_()
    steps = optimizer(weight)
    for _ in range(20):
        steps.zero_grad()
        logits = SCALE * normalize(X) @ normalize(weight).T
        torch.nn.functional.cross_entropy(logits, target).backward()
        weight.grad[2] = 0  # the third class has no shot
        steps.step()
    found = normalize(fit_unequal_shots(head, case).weight_)
    torch.testing.assert_close(found, normalize(weight.detach()), rtol=1e-9, atol=1e-12)


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
