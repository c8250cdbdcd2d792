import numpy as np
import pytest
import torch

from clipadapter.errors import InputError
from clipadapter.heads import create_head, out_of_fold, select
from clipadapter.heads.linear_probe import LinearProbe
from clipadapter.heads.select import TEMPERATURES
from clipadapter.heads.support import EvaluationFeatures
from clipadapter.heads.zero_shot import ZeroShot
from clipadapter.testing import toy_features


def test_the_head_that_predicts_held_out_shots_is_chosen():
    X, y, text = toy_features()
    heads = {"zero-shot": ZeroShot(), "linear-probe": LinearProbe(C=10.0)}
    misled = type(text)(text.labels, text.embeddings[[1, 2, 0]], text.logit_scale)  # zero-shot is always wrong
    assert isinstance(select(heads, X, y, misled).best, LinearProbe)
    found = select({"zero-shot": ZeroShot(), "linear-probe": LinearProbe(C=1e-6)}, X, y, text)
    assert isinstance(found.best, ZeroShot)
    assert found.candidates[0].excess_loss == 0
    assert found.candidates[1].excess_loss > 3 * found.candidates[1].standard_error > 0


def test_a_grid_makes_every_combination():
    X, y, text = toy_features()
    found = select("linear-probe", X, y, text, grid={"C": [0.1, 1.0], "input_norm": [True, False]})
    names = {candidate.name for candidate in found.candidates}
    assert names == {f"C={C}, input_norm={norm}" for C in (0.1, 1.0) for norm in (True, False)}
    assert found.n_held_out == 12


def test_views_are_held_out_at_one_shot():
    X, y, text = toy_features((1, 1, 1))
    views = np.stack([X, X + 0.1, X - 0.1], axis=1)
    assert select("linear-probe", views, y, text).strategy == "views"
    with pytest.raises(InputError, match="nothing can be held out"):
        select("linear-probe", X, y, text)


def test_a_test_part_is_refused_by_its_type():
    X, y, text = toy_features()
    marked = X.view(EvaluationFeatures)
    for refused in (marked, marked[:6]):
        with pytest.raises(InputError, match="marked for evaluation"):
            select("linear-probe", refused, y[: len(refused)], text)
        with pytest.raises(InputError, match="marked for evaluation"):
            ZeroShot().fit(refused, y[: len(refused)], text=text)
    assert ZeroShot().fit(X, y, text=text).logits(marked).shape == (12, 3)


@pytest.mark.parametrize(
    ("heads", "grid", "words"),
    [
        ("zero-shot", {"alpha": [1]}, "no parameter of ZeroShot is called 'alpha'"),
        ({}, {}, "nothing to choose from"),
        ("linear-probe", {"C": []}, "nothing to choose from"),
        ("linear-probe", {"C": list(range(1, 5000))}, "4999 candidates are too many"),
    ],
)
def test_bad_searches_are_named(heads, grid, words):
    X, y, text = toy_features()
    with pytest.raises(InputError, match=words):
        select(heads, X, y, text, grid=grid)


@pytest.mark.parametrize("noise", [0.1, 1.0, 3.0])
def test_the_temperature_is_the_best_of_all_that_could_be_tried(noise):
    X, y, text = toy_features((6, 6, 6), noise=noise)
    found = select({"ss-text": create_head("ss-text")}, X, y, text).candidates[0]
    held_out = out_of_fold(create_head("ss-text"), X, y, text)
    logits, labels = torch.from_numpy(held_out.logits).double(), torch.from_numpy(held_out.labels)
    losses = [float(torch.nn.functional.cross_entropy(logits / t, labels)) for t in TEMPERATURES.tolist()]
    assert found.loss == pytest.approx(min(losses), abs=1e-9)
    assert found.temperature == pytest.approx(float(TEMPERATURES[int(np.argmin(losses))]))
