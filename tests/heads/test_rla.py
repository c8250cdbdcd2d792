"""RLA against its loss, gradient and Adam written out in numpy."""

import numpy as np
import pytest
import torch

from clipadapter.heads import TextFeatures
from clipadapter.heads.rla import Rla

from .golden_figures import doubles, golden
from .small_shots import fit_unequal_shots, unequal_shots


def test_the_penalty_is_one_over_shots_a_class_and_steps_are_bounded_whatever_their_number():
    case = unequal_shots(seed=6, noise=0.3)
    for penalty, expected in (("1/n", 1 / 2), ("auto", 0.4**2 / 2), (0.7, 0.7)):
        assert fit_unequal_shots(Rla(penalty=penalty, steps=1), case).penalty_ == pytest.approx(expected)
    labels = torch.arange(3).repeat(40)
    # 22 passes of 7 steps are the first over 150.
    assert [Rla(batch_size=size).planned_epochs(labels) for size in (None, 256, 16)] == [150, 150, 22]
    assert Rla.official().planned_epochs(labels) == 300  # full batches, as the authors published


@pytest.mark.parametrize(("schedule", "views"), [("cosine", 1), ("cosine", 3), ("constant", 1)])
def test_released_code_gives_the_same_map_loss_and_logits(schedule, views):
    figures, parameters = golden("prolip_rla")
    pre, Q, proj, T = doubles(figures, "pre_views", "query_pre", "proj", "text_unit")
    X, y = (pre[:views] @ proj).swapaxes(0, 1), figures["labels"].astype(str)
    text = TextFeatures([str(k) for k in range(len(T))], T, parameters["scale"])
    head = Rla.official(steps=parameters["steps"], schedule=schedule).fit(X, y, text=text)
    run = f"rla_vit_views{views}_{'cos' if schedule == 'cosine' else 'const'}"
    assert head.penalty_ == parameters["lambda"]
    # The released code ran in float32, in which its own rounding is 1e-6 in the map and 3e-5 in the logits.
    np.testing.assert_allclose(head.shift_.numpy() + np.eye(proj.shape[1]), figures[f"weight20_{run}"], atol=3e-6)
    assert head.loss_ == pytest.approx(figures[f"loss20_{run}"].item(), rel=3e-6)
    np.testing.assert_allclose(head.logits(Q @ proj), figures[f"logits20_{run}"], atol=1e-4)
