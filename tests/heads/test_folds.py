"""Splits of shots: which are held out."""

import torch

from clipadapter.heads.out_of_fold import hold_out_one_per_class, stratified_folds


def test_one_shot_of_each_class_that_has_two_is_held_out():
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    train, held = hold_out_one_per_class(labels)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(6))
    assert sorted(labels[held].tolist()) == [0, 1]
    assert set(labels[train].tolist()) == {0, 1, 2}


def test_the_held_out_shot_depends_on_the_seed():
    labels = torch.zeros(20, dtype=torch.int64)
    assert len({hold_out_one_per_class(labels, seed)[1].item() for seed in range(8)}) > 1


def test_each_row_of_a_class_that_has_two_is_held_out_once_and_every_class_is_always_trained_on():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    splits = stratified_folds(labels, 4)
    assert sorted(row for _, held in splits for row in held.tolist()) == [0, 1, 2, 3, 4]
    for train, held in splits:
        assert set(labels[train].tolist()) == {0, 1, 2} and not set(train.tolist()) & set(held.tolist())
    assert stratified_folds(torch.arange(5), 3) == []
