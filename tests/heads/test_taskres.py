"""TaskRes against its formula and its optimizer written out in numpy."""

import numpy as np
import pytest
import torch

from clipadapter.errors import InputError
from clipadapter.heads import TextFeatures
from clipadapter.heads.taskres import TaskRes
from clipadapter.testing import toy_features

from .golden_figures import doubles, golden
from .small_shots import fit_unequal_shots, unequal_shots


def test_text_norm_is_a_tenth_of_the_scale_and_half_of_it_is_twice_alpha():
    case = unequal_shots(seed=3, noise=0.3)
    auto, four, short = (
        fit_unequal_shots(TaskRes(alpha=alpha, text_norm=norm), case).logits(case[0])
        for alpha, norm in ((1.0, "auto"), (1.0, 4.0), (0.5, 2.0))
    )
    np.testing.assert_allclose(auto, four, rtol=1e-12)
    np.testing.assert_allclose(short, four, rtol=1e-9)
    for norm, words in (
        ("long", "text_norm must be 'auto', a positive number"),
        (0.0, "text_norm must be 'auto', a positive number"),
        ([1.0, 2.0], "text_norm has 2 numbers, but there are 3 classes"),
    ):
        X, y, text = toy_features()
        with pytest.raises(InputError, match=words):
            TaskRes(text_norm=norm).fit(X, y, text=text)


def test_official_epochs_follow_the_shots_of_the_largest_class_as_in_the_authors_scripts():
    labels = [torch.tensor([0] * shots + [1, 2]) for shots in (1, 2, 4, 8, 16)]
    assert [TaskRes.official().planned_epochs(each) for each in labels] == [100, 100, 100, 200, 200]


def released(**changes):
    """Figures of the released code, its queries, and the literal head fitted to its inputs with its length of text."""
    figures, parameters = golden("taskres")
    X, T, Q = doubles(figures, "support_raw", "text_raw", "query_raw")
    text = TextFeatures([str(k) for k in range(len(T))], T, parameters["logit_scale"])
    # The released schedule is CoOp's; the figures were made at a constant rate.
    head = TaskRes.official(
        **{"schedule": "constant", "warmup_epochs": 0, "text_norm": np.linalg.norm(T, axis=1).tolist(), **changes}
    )
    assert head.lr == parameters["lr"]
    return figures, Q, head.fit(X, figures["support_labels"].astype(str), text=text)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize(("decay", "run"), [({}, "wd5e-4"), ({"weight_decay": 0.0}, "wd0")])
def test_released_code_begins_at_zero_shot_and_gives_the_same_residual_loss_and_logits(alpha, decay, run):
    figures, Q, head = released(alpha=alpha, epochs=0)
    np.testing.assert_allclose(head.logits(Q), figures["f64_logits_x0"], rtol=1e-10, atol=1e-10)
    _, _, head = released(alpha=alpha, epochs=10, **decay)
    np.testing.assert_allclose(head.logits(Q), figures[f"f64_logits_step10_alpha{alpha}_{run}"], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(head.residual_, figures[f"residual_step10_alpha{alpha}_{run}"], atol=5e-7)  # float32
    assert head.loss_ == pytest.approx(figures[f"losses_alpha{alpha}_{run}"][-1], abs=5e-6)
