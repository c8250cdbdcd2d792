"""The linear probe against scikit-learn's, and its L-BFGS against that of torch."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from clipadapter.heads import linear_probe, softmax_regression
from clipadapter.heads.linear_probe import COARSE_GRID, LinearProbe, search_c
from clipadapter.heads.out_of_fold import stratified_folds
from clipadapter.heads.softmax_regression import descend, subsample
from clipadapter.testing import toy_features
from clipadapter.utils.functional import ABSENT_LOGIT

from .golden_figures import golden


def clusters(classes, shots, d, spread=1.5, seed=0):
    """Features with a common mean and a falling spectrum, as encoders have."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, d + 1) ** -0.5
    means = (0.5 + rng.standard_normal((classes, d))) * scale
    y = np.repeat(np.arange(classes), shots)
    return means[y] + spread * scale * rng.standard_normal((len(y), d)), y


@pytest.mark.parametrize("C", [0.1, 3.0, 100.0])
@pytest.mark.parametrize("input_norm", [True, False])
@pytest.mark.parametrize(("classes", "d"), [(4, 5), (4, 64), (2, 16)])
def test_equals_scikit_learn_on_the_same_features(C, input_norm, classes, d):
    X, y = clusters(classes, 6, d)
    rows = X / (np.linalg.norm(X, axis=1, keepdims=True) if input_norm else 1)
    expected = LogisticRegression(C=C, max_iter=50_000, tol=1e-9).fit(rows, y)
    fitted = LinearProbe(C=C, input_norm=input_norm, tol=1e-7).fit(X, y)
    if classes > 2:  # else scikit-learn has one row of weights
        np.testing.assert_allclose(fitted.weight_, expected.coef_, atol=1e-3)
    np.testing.assert_allclose(fitted.predict_proba(X), expected.predict_proba(rows), atol=1e-3)


def test_a_penalised_intercept_is_the_weight_of_a_column_of_ones():
    X, y = clusters(5, 4, 12)
    rows = np.hstack([X - X.mean(axis=0), np.ones((len(X), 1))])
    expected = LogisticRegression(C=3.0, fit_intercept=False, max_iter=50_000, tol=1e-9).fit(rows, y)
    model = softmax_regression.SoftmaxRegression(torch.from_numpy(X), torch.from_numpy(y), unit_intercept=True)
    model.solve(3.0, 1e-8, 1000)
    weight, bias = (part.numpy() for part in model.coefficients(5))
    np.testing.assert_allclose(weight, expected.coef_[:, :-1], atol=1e-4)
    np.testing.assert_allclose(bias + weight @ X.mean(axis=0), expected.coef_[:, -1], atol=1e-4)


@pytest.mark.parametrize("unit_intercept", [True, False])
def test_few_rows_and_many_take_the_same_path(unit_intercept, monkeypatch):
    X, y = (torch.from_numpy(part) for part in clusters(5, 6, 40))
    found = []
    for few, gram in ((0, None), (100, None), (100, X @ X.T)):
        monkeypatch.setattr(softmax_regression, "MAX_DUAL_RATIO", few)
        model = softmax_regression.SoftmaxRegression(
            X, y, y[:, None] * 0.1 + torch.eye(5)[y], unit_intercept=unit_intercept, gram=gram
        )
        assert model.rows.shape[0] == (30 if few == 0 else 32)
        found.append((model.solve(10.0, 1e-4, 100), model.solve(100.0, 1e-4, 7), *model.coefficients(5)))
    for other in found[1:]:
        assert other[:2] == found[0][:2]
        torch.testing.assert_close(other[2:], found[0][2:], rtol=1e-6, atol=1e-6)


def test_a_preconditioner_and_blocks_of_rows_lead_to_the_optimum_of_scikit_learn(monkeypatch):
    X, y = clusters(5, 12, 16)
    expected = LogisticRegression(C=10.0, max_iter=50_000, tol=1e-9).fit(X, y)
    monkeypatch.setattr(softmax_regression, "MAX_DUAL_RATIO", 0)
    monkeypatch.setattr(softmax_regression, "MAX_EXACT_PASS_COST", 0)
    monkeypatch.setattr(softmax_regression, "MAX_LOGITS", 5 * 7)
    linear = softmax_regression.LinearOffset(
        torch.arange(5.0, dtype=torch.float64), torch.from_numpy(X), torch.eye(5, 16, dtype=torch.float64)
    )
    offsets = np.arange(5.0) + X[:, :5]
    for offset in (None, linear):
        model = softmax_regression.SoftmaxRegression(torch.from_numpy(X), torch.from_numpy(y), offset)
        assert len(model.blocks) == 9
        model.solve(10.0, 1e-8, 1000)
        weight, bias = (part.numpy() for part in model.coefficients(5))
        if offset is None:
            logits = expected.coef_ @ X.T + expected.intercept_[:, None]
            np.testing.assert_allclose(weight @ X.T + bias[:, None], logits, atol=1e-4)
        else:
            monkeypatch.setattr(softmax_regression, "MAX_EXACT_PASS_COST", 10**9)
            whole = softmax_regression.SoftmaxRegression(
                torch.from_numpy(X), torch.from_numpy(y), torch.from_numpy(offsets)
            )
            whole.solve(10.0, 1e-8, 1000)
            np.testing.assert_allclose(weight, whole.coefficients(5)[0].numpy(), atol=1e-4)


def test_a_dear_solve_stops_at_its_bound_of_multiplications(monkeypatch):
    X, y = (torch.from_numpy(part) for part in clusters(30, 8, 16, spread=3.0))
    monkeypatch.setattr(softmax_regression, "MAX_EXACT_PASS_COST", 0)
    model = softmax_regression.SoftmaxRegression(X, y)
    evaluations = []
    monkeypatch.setattr(model, "_value", lambda *of, value=model._value: evaluations.append(1) or value(*of))
    cost_of_one = 2 * model.rows.numel() * 30
    model.solve(1000.0, 1e-9, 1000, max_cost=8 * cost_of_one)
    assert 8 <= len(evaluations) <= 10  # a line search that has begun is ended
    penalty = model._penalty(1000.0)
    stopped = model._value(model.point, penalty)[0]
    model.solve(1000.0, 1e-9, 1000)
    optimum = model._value(model.point, penalty)[0]
    assert optimum < stopped < optimum + 0.25 * (model.start[0] - optimum)


def test_equal_rows_leave_the_shares_of_the_classes():
    fitted = LinearProbe(logit_adjustment=0.0, C=1.0, tol=1e-6).fit(np.ones((4, 3)), ["a", "b", "b", "b"])
    np.testing.assert_allclose(fitted.predict_proba([[1.0, 1.0, 1.0]]), [[0.25, 0.75]], atol=1e-4)


def test_c_that_is_chosen_has_the_lowest_held_out_loss_of_scikit_learn():
    X, y = clusters(5, 6, 16, spread=3.0)
    rows = X / np.linalg.norm(X, axis=1, keepdims=True)
    losses = dict.fromkeys(linear_probe.GRID, 0.0)
    for train, held in stratified_folds(torch.tensor(y), 3):
        for C in losses:
            model = LogisticRegression(C=C, max_iter=5000).fit(rows[train], y[train])
            found = model.predict_proba(rows[held])
            losses[C] -= np.log(found[np.arange(len(held)), y[held]]).sum()
    assert losses[LinearProbe().fit(X, y).C_] == min(losses.values())


@pytest.mark.parametrize(
    ("classes", "shots", "d"), [(10, 3, 64), (1000, 16, 1024), (10, 20_000, 1024), (2000, 2, 4096)]
)
def test_a_subsample_keeps_the_cost_of_a_pass_below_the_bound_and_all_rows_of_a_cheap_one(classes, shots, d):
    labels = torch.arange(classes * shots) % classes
    kept = subsample(labels, d, seed=0)
    counts = torch.bincount(labels[kept])
    counts = counts[counts > 0]
    assert len(kept) * len(counts) * d <= softmax_regression.MAX_PASS_COST
    assert len(counts) >= 10
    assert counts.min() >= min(shots, 3)
    assert shots != 3 or kept.tolist() == list(range(30))


def test_c_chosen_on_some_of_the_classes_is_that_of_all(monkeypatch):
    X, y = clusters(40, 6, 16, spread=3.0)
    everything = LinearProbe().fit(X, y)
    monkeypatch.setattr(softmax_regression, "MAX_PASS_COST", 100_000)
    assert len(subsample(torch.tensor(y), 16, seed=0)) < len(y)
    assert LinearProbe().fit(X, y).C_ == everything.C_


def test_one_wrong_label_among_single_shots_does_not_choose_c():
    X, y = clusters(9, 1, 16, spread=0.3)
    wrong = y.copy()
    wrong[0] = wrong[1]
    assert LinearProbe().fit(X, wrong).C_ == LinearProbe().fit(X, y).C_ == linear_probe.ONE_SHOT_C


@pytest.mark.parametrize("shape", [(4, 5), (4, 64), (2, 8)])
def test_solver_of_scikit_learn_stops_where_it_stops(shape):
    X, y = clusters(shape[0], 6, shape[1])
    expected = LogisticRegression(C=1e4, max_iter=1000).fit(X, y)
    fitted = LinearProbe.official(C=1e4).fit(X, y)
    np.testing.assert_allclose(fitted.predict_proba(X), expected.predict_proba(X), rtol=1e-9, atol=1e-12)
    assert fitted.n_iter_ == expected.n_iter_[0]


@pytest.mark.parametrize("head", [LinearProbe(), LinearProbe.official(C=1.0)])
def test_a_class_without_a_shot_is_never_predicted(head):
    for counts, seen in (((4, 0, 4), {"cat", "owl"}), ((4, 0, 0), {"cat"})):
        X, y, text = toy_features(counts)
        fitted = head.fit(X, y, text=text)
        assert (fitted.logits(X)[:, 1] == ABSENT_LOGIT).all()
        assert set(fitted.predict(X)) == seen


@pytest.mark.parametrize("run", ["shot1_seed1", "shot16_seed3"])
def test_released_search_finds_the_same_c_and_its_probe_the_same_classes(run):
    figures, _ = golden("lpclip")
    rows, held = figures[f"train_index_{run}"], figures[f"val_index_{run}"]
    X, y = figures["train_features"][rows], figures["train_labels"][rows]
    val, truth = figures["val_features"][held], figures["val_labels"][held]

    def accuracy(C):
        return (LinearProbe.official(C=C).fit(X, y).predict(val) == truth).mean()

    np.testing.assert_allclose([accuracy(C) for C in COARSE_GRID], figures[f"coarse_val_acc_{run}"], rtol=1e-12)
    path = search_c(accuracy)
    np.testing.assert_allclose(path, figures[f"c_path_{run}"], rtol=1e-12)
    found = LinearProbe.official(C=path[-1]).fit(X, y).predict(figures["test_features"])
    np.testing.assert_array_equal(found, figures[f"test_pred_{run}"])


def test_units_change_no_iteration_and_there_are_no_more_than_allowed():
    scale = torch.logspace(0, 2, 50, dtype=torch.float64)
    start = torch.zeros(1, 50, dtype=torch.float64)

    def iterations(unit, allowed=500):
        def evaluate(x):
            x = x / unit
            return float((scale * x.square()).sum() - x.sum()), (2 * scale * x - 1) / unit

        return descend(evaluate, start, evaluate(start), 1e-3 * unit**2, 1e-6 / unit, allowed)[1]

    assert iterations(1.0) == iterations(2.0**-10) == iterations(2.0**10) < 100
    assert iterations(1.0, 2) == 2
