import numpy as np
import torch
from scipy.optimize import minimize

from clipadapter.heads._lbfgs import descend


def test_it_finds_the_minimum_that_scipy_finds():
    rng = np.random.default_rng(0)
    A, b = rng.standard_normal((30, 6)), rng.integers(0, 2, 30) * 2 - 1.0

    def loss(x):
        margin = b * (A @ x)
        return np.logaddexp(0, -margin).mean() + 0.05 * x @ x, -A.T @ (b / (1 + np.exp(margin))) / 30 + 0.1 * x

    def evaluate(point):
        value, gradient = loss(point.numpy().ravel())
        return value, torch.from_numpy(gradient).view(2, 3)

    expected = minimize(loss, np.zeros(6), jac=True, tol=1e-12)
    start = torch.zeros(2, 3, dtype=torch.float64)
    found, iterations = descend(evaluate, start, evaluate(start), 1.0, 1e-9, 100)
    np.testing.assert_allclose(found.flatten(), expected.x, atol=1e-7)
    assert 3 < iterations < 30


def test_no_more_iterations_than_allowed():
    goal = torch.tensor([1.0, 10.0, 100.0])

    def evaluate(x):
        return float((goal * x.square()).sum() - x.sum()), 2 * goal * x - 1

    start = torch.zeros(3)
    assert descend(evaluate, start, evaluate(start), 0.001, 1e-9, 2)[1] == 2
