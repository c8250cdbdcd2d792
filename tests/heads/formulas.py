"""Formulas of the papers in plain numpy and plain loops, for expected values. Nothing here imports the package."""

import math

import numpy as np


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(z):
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def unit_list(v):
    """A list of numbers at length one, in plain loops."""
    norm = math.sqrt(sum(x * x for x in v))
    return [x / norm for x in v]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def neighbour_graph(rows, k):
    """(n, n) cosines of unit rows to their k nearest others, not below zero; 0 elsewhere."""
    graph = np.zeros((len(rows), len(rows)))
    for i in range(len(rows)):
        others = sorted((j for j in range(len(rows)) if j != i), key=lambda j: -(rows[i] @ rows[j]))
        for j in others[:k]:
            graph[i, j] = max(rows[i] @ rows[j], 0)
    return graph


def cosine_rate(lr, step, steps):
    """The rate of a step, counted from 0, that falls from lr to zero along a cosine."""
    return lr * 0.5 * (1 + math.cos(math.pi * step / steps))


class AdamW:
    """AdamW by its definition: the decay is no part of the gradient. Without decay it is Adam."""

    def __init__(self, eps=1e-8, decay=0.0):
        self.eps, self.decay, self.first, self.second, self.steps = eps, decay, 0.0, 0.0, 0

    def step(self, value, gradient, rate):
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        return value * (1 - rate * self.decay) - rate * first / (np.sqrt(second) + self.eps)
