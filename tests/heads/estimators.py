"""Heads as scikit-learn's checks want them: `fit(X, y)` is all that they call."""

import numpy as np
import torch

from clipadapter.heads import IncrementalHead, TextFeatures, create_head
from clipadapter.heads.support import as_labels, as_views, is_multilabel
from clipadapter.utils.towers import WordTower

FEW = {"epochs": 2, "steps": 2, "folds": 2, "n_ctx": 1, "channels": 1.0}
"""Parameters of heads that need text: short fits, and both of the two features that there are in some checks."""
SHORT = {"steps": 5, "epochs": 2, "folds": 2}
"""Enough training for a head that begins at its class text to tell the toy's classes."""


def short_training(name):
    """Parameters of a registered head for a fit of a few steps, or of a few epochs where it counts no steps."""
    known = create_head(name).get_params()
    short = {key: value for key, value in SHORT.items() if key in known}
    return short | {"epochs": None} if {"steps", "epochs"} <= short.keys() else short


def create_short(name):
    """A registered head that trains for a few steps."""
    return create_head(name, **short_training(name))


def with_own_text(name):
    """A registered head that takes its class text, and pictures without labels, from X and y, if it needs some."""
    head = create_head(name)
    cls = type(head)
    few = {**FEW, "batch_size": 64} if cls.needs_tower_to_predict else FEW if cls.needs_text else {"folds": 2}
    if cls.__name__ in ("ClipAdapter", "ClipAdapterReplay"):
        few = {**few, "alpha": 0.3}  # a ratio that is chosen takes four trainings for one
    head.set_params(**{key: value for key, value in few.items() if key in head.get_params()})
    if not cls.needs_text:
        return head
    if cls.__name__ not in globals():

        def fit(self, X, y, text=None, unlabelled=None, blocks=None):
            # A tower in single precision rounds prompts differently by the size of a batch: the checks allow 1e-7.
            scale = 1.0 if cls.needs_tower_to_predict else 20.0
            return cls.fit(self, X, y, text=text_of(X, y, scale=scale), unlabelled=X if cls.transductive else None)

        def partial_fit(self, X, y, text=None, classes=None):
            known = [] if classes is None else [*classes]
            text = text_of(X, y, [*known, *getattr(self, "classes_", [])])
            return cls.partial_fit(self, X, y, text=text)

        def tags(self):
            # Two passes in large batches leave prompts of each picture's own untrained: check_fit_learns trains them.
            tags = cls.__sklearn_tags__(self)
            tags.classifier_tags.poor_score = cls.needs_tower_to_predict
            return tags

        methods = {"fit": fit, "__sklearn_tags__": tags}
        if issubclass(cls, IncrementalHead):
            methods["partial_fit"] = partial_fit
        # Where pickle looks for it.
        globals()[cls.__name__] = type(cls)(cls.__name__, (cls,), {**methods, "__module__": __name__})
    return globals()[cls.__name__](**head.get_params())


def text_of(X, y, more=(), scale=20.0):
    """Class text that points where the shots of each class lie; bad input is refused as heads do."""
    rows = as_views(X)[:, 0]
    n, d = rows.shape
    if is_multilabel(y):
        classes = np.arange(np.shape(y)[1])
        shots = [rows[np.asarray(y)[:, k] == 1] for k in classes]
    else:
        labels = as_labels(y, n)
        classes = np.unique([*labels.tolist(), *more])
        shots = [rows[labels == label] for label in classes]
    means = [own.mean(axis=0) if own.any() else np.eye(d)[k % d] for k, own in enumerate(shots)]
    vectors = [row if row.any() else np.eye(d)[k % d] for k, row in enumerate(means)]
    names = [str(label) for label in classes]
    tower = WordTower({name: torch.from_numpy(np.float64(row)) for name, row in zip(names, vectors, strict=True)}, d)
    return TextFeatures(names, np.array(vectors), logit_scale=scale, tower=lambda: tower)
