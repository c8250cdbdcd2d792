import pytest

from clipadapter.metrics.continual import continual_metrics

# Rows: after task 0, 1, 2, 3. Columns: tasks 0, 1, 2, 3.
MATRIX = [
    [80.0, 40.0, 20.0, 10.0],
    [90.0, 70.0, 40.0, 20.0],
    [60.0, 80.0, 50.0, 60.0],
    [70.0, 50.0, 60.0, 90.0],
]


def test_matrices_worked_out_by_hand():
    metrics = continual_metrics(MATRIX)
    assert metrics.per_task["transfer"] == (None, 40.0, 30.0, 30.0)  # 40; (20 + 40) / 2; (10 + 20 + 60) / 3
    assert metrics.per_task["average"] == (75.0, 60.0, 42.5, 45.0)
    assert metrics.per_task["last"] == (70.0, 50.0, 60.0, 90.0)
    assert metrics.per_task["forgetting"] == (20.0, 30.0, -10.0, None)  # 90 - 70; 80 - 50; 50 - 60
    means = {"transfer": 100 / 3, "average": 222.5 / 4, "last": 67.5, "forgetting": 40 / 3}
    assert {name: metrics.mean(name) for name in means} == pytest.approx(means)
    # A task without a right prediction counts: RAIL's code leaves cells of 0 out, and would say 50 here.
    assert continual_metrics([[80, 30, 0], [70, 90, 50], [60, 85, 95]]).per_task["transfer"] == (None, 30.0, 25.0)


def test_a_single_task_has_no_transfer_and_no_forgetting():
    metrics = continual_metrics([[0.75]])
    assert (metrics.mean("average"), metrics.mean("last")) == (0.75, 0.75)
    assert (metrics.mean("transfer"), metrics.mean("forgetting")) == (None, None)
    assert metrics.per_task["transfer"] == metrics.per_task["forgetting"] == (None,)


def test_forward_transfer_is_what_was_gained_before_a_task_is_learned():
    metrics = continual_metrics(MATRIX, before=[5.0, 30.0, 50.0, 50.0])
    assert metrics.per_task["forward_transfer"] == (None, 10.0, -10.0, 10.0)  # 40 - 30; 40 - 50; 60 - 50
    assert metrics.mean("forward_transfer") == pytest.approx(10 / 3)
    assert set(continual_metrics(MATRIX).per_task["forward_transfer"]) == {None}
    assert continual_metrics(MATRIX).mean("forward_transfer") is None
    assert continual_metrics([[0.75]], before=[0.5]).mean("forward_transfer") is None
