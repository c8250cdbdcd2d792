"""Out-of-fold logits: which shots are held out, which strategy applies when, and what each of them fits."""

import copy
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipadapter.heads import create_head, mean_shots_per_class, out_of_fold
from clipadapter.heads.linear_probe import LinearProbe
from clipadapter.heads.out_of_fold import hold_out_one_per_class, join_folds, stratified_folds
from clipadapter.testing import toy_features
from clipadapter.testing.heads import toy_multilabel


def test_folds_are_fits_without_the_shot():
    X, y, text = toy_features()
    found = out_of_fold(LinearProbe(C=10.0), X, y, text, folds=4)
    assert sorted(found.rows) == list(range(12))
    for start in range(0, 12, 3):  # with four shots and four folds each fold holds one shot of every class
        rows = found.rows[start : start + 3]
        others = np.setdiff1d(np.arange(12), rows)
        expected = LinearProbe(C=10.0).fit(X[others], y[others], text=text).logits(X[rows])
        np.testing.assert_allclose(found.logits[start : start + 3], expected, rtol=1e-4, atol=1e-4)
    X, Y, text = toy_multilabel()  # is held out by iterative stratification
    found = out_of_fold(LinearProbe(C=1.0), X, Y, text)
    assert found.strategy == "folds"
    assert len(set(found.rows)) == len(found.rows) > len(X) - 3
    np.testing.assert_array_equal(found.labels, Y[found.rows])
    assert mean_shots_per_class(["a", "b", "b", "b"]) == 2.0
    assert mean_shots_per_class([[1, 0, 1], [1, 0, 0]]) == 1.5  # without the class that has no shot


def test_the_first_strategy_that_applies_is_taken():
    X, y, text = toy_features()
    views = np.stack([X, X + 0.1], axis=1)
    every = ("own", "folds", "views")
    probe, single = LinearProbe(C=1.0), [0, 4, 8]
    assert out_of_fold(create_head("auto").fit(X, y, text=text), X, y, text, strategies=every).strategy == "own"
    assert out_of_fold(probe, X, y, text, strategies=every).strategy == "folds"
    found = out_of_fold(probe, views[single], y[single], text, strategies=every)
    assert found.strategy == "views"
    expected = LinearProbe(C=1.0).fit(X[single], y[single], text=text).logits(X[single] + 0.1)
    np.testing.assert_allclose(found.logits, expected, rtol=1e-5)
    assert out_of_fold(probe, X[single], y[single], text, strategies=every) is None
    assert out_of_fold(create_head("transclip"), X, y, text) is None


@pytest.mark.parametrize("keep_heads", [False, True])
def test_a_fitted_head_divides_few_shots_several_times_unless_its_heads_are_kept(keep_heads):
    X, y, text = toy_features()
    head = LinearProbe(C=1.0).fit(X, y, text=text)
    before = copy.deepcopy(head.state())
    found = out_of_fold(head, X, y, text, keep_heads=keep_heads)
    assert len(found.rows) == len(y) * (1 if keep_heads else 3)
    assert sorted(found.first_per_shot.rows) == list(range(len(y)))
    assert len(found.heads) == (4 if keep_heads else 0)
    for name, value in before.items():
        np.testing.assert_array_equal(head.state()[name], value)


def test_of_very_many_held_out_shots_some_are_predicted(monkeypatch):
    X, y, text = toy_features((20, 20, 20), noise=2.0)
    head = create_head("tip-adapter").fit(X, y, text=text)
    expected = out_of_fold(head, X, y, text)
    module = sys.modules[out_of_fold.__module__]  # the package has the function under its name
    monkeypatch.setattr(module, "MAX_HELD_OUT_LOGITS", 3 * 30)
    found = out_of_fold(head, X, y, text)
    assert len(found.rows) == len(found.logits) == 30
    in_both = found.rows[:, None] == expected.rows
    np.testing.assert_array_equal(found.labels, expected.labels[in_both.argmax(axis=1)])
    assert found.logit_scale_ratio == pytest.approx(expected.logit_scale_ratio, abs=0.2)


def test_join_folds_scales_the_logits_of_the_folds_to_those_of_the_fit_to_all_shots():
    X, y, text = toy_features()
    shots = LinearProbe()._check_shots(X, y, text)[0]
    folds = stratified_folds(shots.labels, 2)
    # The fit to all shots has logits twice as large as those of the folds, which have their number as their logits.
    found = join_folds(shots, folds, lambda i, rows: (2.0 if i == 0 else 1.0) * shots.X[rows, :3] + i)
    assert found.strategy == "own"
    assert found.shots_per_class == 2.0
    own = [float(shots.X[train, :3].std(dim=1).mean()) for train, _ in folds]
    ratio = 2 * float(shots.X[:, :3].std(dim=1).mean()) / np.mean(own)
    assert found.logit_scale_ratio == pytest.approx(ratio)
    expected = torch.cat([shots.X[held_out, :3] + i for i, (_, held_out) in enumerate(folds, 1)])
    np.testing.assert_allclose(found.logits, ratio * expected, rtol=1e-5)
    np.testing.assert_array_equal(found.rows, torch.cat([held_out for _, held_out in folds]))
    np.testing.assert_array_equal(found.labels, shots.labels[found.rows])


def test_one_shot_of_each_class_that_has_two_is_held_out_by_seed():
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    splits = [hold_out_one_per_class(labels, seed) for seed in range(8)]
    for train, held in splits:
        assert sorted([*train.tolist(), *held.tolist()]) == list(range(6))
        assert sorted(labels[held].tolist()) == [0, 1]
    assert len({tuple(held.tolist()) for _, held in splits}) > 1


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_each_row_of_a_class_that_has_two_is_held_out_once_and_every_class_is_always_trained_on(labels):
    classes = torch.tensor(labels)
    splits = stratified_folds(classes, 4)
    held_out = sorted(row for _, held in splits for row in held.tolist())
    assert held_out == [row for row, label in enumerate(labels) if labels.count(label) > 1]
    for train, held in splits:
        assert set(classes[train].tolist()) == set(labels) and not set(train.tolist()) & set(held.tolist())
