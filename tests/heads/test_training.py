import math

import pytest
import torch

from clipadapter.heads._folds import held_out_folds
from clipadapter.heads._training import Recipe, minimise


def recipe(**changes):
    values = {
        "optimizer": "sgd",
        "lr": 0.1,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_epochs": 0,
        "epochs": None,
        "steps": 10,
        "batch_size": 4,
        "seed": 0,
        "progress": False,
    }
    return Recipe(**{**values, **changes})


def record(n, n_views=1, **changes):
    """Rows and views of every step."""
    seen = []
    weight = torch.zeros(1, requires_grad=True)

    def loss(rows, views):
        seen.append((rows.tolist(), views.tolist()))
        return (weight - 1).square().sum()

    minimise([weight], loss, n, n_views, recipe(**changes))
    return seen, weight


def test_steps_make_as_many_epochs_as_needed():
    assert len(record(8, steps=50)[0]) == 50
    assert len(record(8, steps=51)[0]) == 52
    assert len(record(8, epochs=3)[0]) == 6


def test_epochs_that_are_not_given_are_at_least_twenty():
    assert len(record(40, steps=10)[0]) == 20 * 10


def test_an_epoch_takes_each_row_at_most_once_and_leaves_out_an_incomplete_batch():
    seen, _ = record(10, epochs=1)
    rows = [row for batch, _ in seen for row in batch]
    assert len(rows) == 8
    assert len(set(rows)) == 8


def test_few_rows_are_one_batch():
    assert record(3, epochs=2)[0] == [([0, 1, 2], [0, 0, 0])] * 2


def test_views_are_drawn_from_all():
    views = {view for _, batch in record(4, n_views=3, epochs=20)[0] for view in batch}
    assert views == {0, 1, 2}


def test_gradient_descent_by_hand():
    _, weight = record(4, epochs=2)
    # w <- w - 0.1 * 2 (w - 1), twice from 0
    assert weight.item() == pytest.approx(0.36)


def test_cosine_by_epoch_with_warm_up_is_the_recipe_of_coop():
    made = recipe(schedule="cosine-epoch", warmup_epochs=1, lr=2e-3)
    rates = [made.rate(epoch * 5, 5, 200) for epoch in range(200)]
    assert rates[0] == 1e-5
    assert rates[1] == 2e-3
    assert rates[101] == pytest.approx(1e-3)
    assert rates[2] == pytest.approx(2e-3 * 0.5 * (1 + math.cos(math.pi / 200)))


def test_cosine_by_step_falls_from_lr_to_zero():
    rates = [recipe(schedule="cosine", lr=1.0).rate(step, 1, 100) for step in range(100)]
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.5)
    assert rates[99] < 1e-3
    assert rates == sorted(rates, reverse=True)


def test_folds_hold_out_each_shot_of_a_class_with_two_or_more_once():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    held = sorted(row for _, rows in held_out_folds(labels, 3) for row in rows.tolist())
    assert held == [0, 1, 2, 3, 4]


def test_folds_leave_every_class_a_shot_to_train_on():
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 3, 3])
    for train, held in held_out_folds(labels, 4):
        assert set(labels[train].tolist()) == {0, 1, 2, 3}
        assert not set(train.tolist()) & set(held.tolist())


def test_no_folds_at_one_shot():
    assert held_out_folds(torch.arange(5), 3) == []
