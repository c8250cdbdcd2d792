"""A model of three clusters of features, and streams of pictures without files."""

from pathlib import Path

import numpy as np
import pytest

from clipadapter import FewShotClassifier
from clipadapter.errors import DataError
from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures
from clipadapter.utils.formatting import describe_unreadable

NAMES = ("cat", "dog", "owl")
WIDTH = 12
CENTRES = np.random.default_rng(5).normal(0, 2.2, (3, WIDTH))
EQUAL_PRIORS = (1 / 3, 1 / 3, 1 / 3)


class TableClassifier(FewShotClassifier):
    """A classifier whose pictures are rows of a table: the path "7" is row 7; "bad7" can't be read."""

    def extract_features(self, images, labels, class_names, views=None):
        names = [Path(image).name for image in images]
        rows = [i for i, name in enumerate(names) if not name.startswith("bad")]
        if not rows:
            raise DataError(describe_unreadable(len(images)))
        skipped = [(name, "not an image") for name in names if name.startswith("bad")]
        return FeatureSet(
            self.table[[int(names[i]) for i in rows]],
            tuple(labels[i] for i in rows),
            tuple(class_names),
            {"rows": rows, "skipped": skipped},
        )


class World:
    """Draws pictures and fits models."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)

    def draw(self, priors, m, offset=0.0, spread=1.0):
        """Features (m, d) of classes with these priors, and their classes."""
        y = self.rng.choice(3, p=priors, size=m)
        return CENTRES[y] + self.rng.normal(0, spread, (m, WIDTH)) + offset, y

    def model(self, k=8, head="prototype", counts=None, spread=1.0, **params):
        """A model fitted to k shots per class."""
        y = np.repeat(np.arange(3), k if counts is None else counts)
        X = CENTRES[y] + self.rng.normal(0, spread, (len(y), WIDTH))
        text = TextFeatures(NAMES, CENTRES / np.linalg.norm(CENTRES, axis=1, keepdims=True))
        model = TableClassifier("toy", head, cache=None, **params)
        model.table = np.zeros((0, WIDTH))
        return model.fit_features(FeatureSet(X, tuple(NAMES[i] for i in y), NAMES), text)

    @staticmethod
    def paths(model, features):
        """Paths for which a model extracts these features."""
        start = len(model.table)
        model.table = np.concatenate([model.table, features])
        return [Path(str(i)) for i in range(start, len(model.table))]

    def stream(self, model, priors=EQUAL_PRIORS, m=90, **changes):
        """Paths of new pictures."""
        return self.paths(model, self.draw(priors, m, **changes)[0])


@pytest.fixture
def world():
    return World()
