"""Small sets of shots that tests of several heads share, and the shots of the authors' code."""

import numpy as np

from clipadapter.heads import TextFeatures

from .formulas import unit
from .golden_figures import doubles, golden

NAMES = ["ant", "bee", "cow", "dog"]
SCALE = 40.0


def unequal_shots(seed, noise, offset=0.2, d=12):
    """Features, labels and class text (4, d) of unequal shots; the third class has none."""
    rng = np.random.default_rng(seed)
    target = np.array([0, 0, 0, 1, 3, 3])
    text = unit(rng.standard_normal((4, d)))
    X = 9 * (unit(text[target] + noise * rng.standard_normal((6, d))) + offset)
    return X, target, text


def fit_unequal_shots(head, case):
    """The head, fitted to `unequal_shots`."""
    X, target, text = case
    return head.fit(X, np.array(NAMES)[target], text=TextFeatures(NAMES, text, SCALE))


def three_classes(d=6, scale=20.0):
    """Features, positions of labels, labels and class text of six shots."""
    rng = np.random.default_rng(7)
    labels = np.array([0, 0, 0, 1, 2, 2])
    means = rng.standard_normal((3, d)) + 0.5
    X = 9 * (means[labels] + rng.standard_normal((len(labels), d)))
    text = TextFeatures(["a", "b", "c"], means + rng.standard_normal(means.shape), scale)
    return X, labels, np.array(text.labels)[labels], text


def released_shots(method):
    """Figures of the authors' code, and the views (n, v, d), labels, class text and queries that it was given."""
    figures, _ = golden(method)
    views, text, queries = doubles(figures, "support_views_raw", "text_raw", "query_raw")
    labels = [str(label) for label in figures["support_labels"]]
    return figures, views.transpose(1, 0, 2), labels, TextFeatures([str(i) for i in range(len(text))], text), queries
