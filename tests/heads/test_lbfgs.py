import numpy as np
import torch
from scipy.optimize import minimize

from clipadapter.heads.softmax_regression import descend


def test_it_finds_the_minimum_that_scipy_finds():
    rng = np.random.default_rng(0)
    A, b = rng.standard_normal((30, 6)), rng.integers(0, 2, 30) * 2 - 1.0

    def loss(x):
        margin = b * (A @ x)
        return np.logaddexp(0, -margin).mean() + 0.05 * x @ x, -A.T @ (b / (1 + np.exp(margin))) / 30 + 0.1 * x

    def evaluate(point):
        value, gradient = loss(point.numpy().ravel())
        return value, torch.from_numpy(gradient).view(1, 2, 3)

    expected = minimize(loss, np.zeros(6), jac=True, tol=1e-12)
    start = torch.zeros(1, 2, 3, dtype=torch.float64)
    found, iterations = descend(evaluate, start, evaluate(start), 1.0, 1e-9, 100)
    np.testing.assert_allclose(found.flatten(), expected.x, atol=1e-7)
    assert 3 < iterations < 30


def test_no_more_iterations_than_allowed():
    goal = torch.tensor([1.0, 10.0, 100.0])

    def evaluate(x):
        return float((goal * x.square()).sum() - x.sum()), 2 * goal * x - 1

    start = torch.zeros(1, 3)
    assert descend(evaluate, start, evaluate(start), 0.001, 1e-9, 2)[1] == 2


def test_coordinates_in_another_basis_take_the_same_path():
    rng = torch.Generator().manual_seed(0)
    basis, goal = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((4, 4), (4,)))
    gram, scale = basis @ basis.T, torch.tensor([1.0, 3.0, 10.0, 30.0], dtype=torch.float64)

    def value(x):
        return float((scale * (x - goal) ** 2).sum() + (x - goal).pow(4).sum())

    def slope(x):
        return 2 * scale * (x - goal) + 4 * (x - goal).pow(3)

    def in_basis(point):
        x = point[0] @ basis
        coordinates = torch.linalg.solve(basis.T, slope(x))
        return value(x), torch.stack([coordinates, gram @ coordinates])

    plain, double = torch.zeros(1, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)

    def evaluate(point):
        return value(point[0]), slope(point[0])[None]

    for iterations in (1, 3, 6):
        expected, _ = descend(evaluate, plain, evaluate(plain), 0.01, 0.0, iterations)
        found, _ = descend(in_basis, double, in_basis(double), 0.01, 0.0, iterations)
        torch.testing.assert_close(found[0] @ basis, expected[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[1], gram @ found[0], rtol=1e-6, atol=1e-6)


def test_units_change_no_iteration():
    scale = torch.logspace(0, 2, 50, dtype=torch.float64)
    start = torch.zeros(1, 50, dtype=torch.float64)

    def iterations(unit):
        def evaluate(x):
            x = x / unit
            return float((scale * x.square()).sum() - x.sum()), (2 * scale * x - 1) / unit

        return descend(evaluate, start, evaluate(start), 1e-3 * unit**2, 1e-6 / unit, 500)[1]

    assert iterations(1.0) == iterations(2.0**-10) == iterations(2.0**10) < 100
