"""Splits of shots: which are held out."""

import torch

from clipadapter.heads.folds import hold_out_one_per_class


def test_one_shot_of_each_class_that_has_two_is_held_out():
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    train, held = hold_out_one_per_class(labels)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(6))
    assert sorted(labels[held].tolist()) == [0, 1]
    assert set(labels[train].tolist()) == {0, 1, 2}


def test_the_held_out_shot_depends_on_the_seed():
    labels = torch.zeros(20, dtype=torch.int64)
    assert len({hold_out_one_per_class(labels, seed)[1].item() for seed in range(8)}) > 1
