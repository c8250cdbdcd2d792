"""Conformance checks of heads, one rule per check; authors of plug-ins run the same checks on their heads.

A check takes an unfitted head and raises AssertionError if the rule does not hold.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import NotFittedError

from clipadapter.errors import InputError
from clipadapter.heads import Head, IncrementalHead, TextFeatures
from clipadapter.heads.estimator import clone
from clipadapter.testing.assertions import assert_raises, save_and_load
from clipadapter.testing.incremental import INCREMENTAL_CHECKS
from clipadapter.testing.multilabel import MULTILABEL_CHECKS
from clipadapter.testing.toy import CLASSES, Array, toy_features
from clipadapter.utils.prediction import unit_rows

NUMBER_NAMES = ("10", "9", "2")  # class names that are numbers, in another order as numbers than as text
MIN_SAME_COSINE = 0.999  # rows nearer than this are taken for the same picture


def check_constructor_only_stores(head: Head) -> None:
    """Every parameter is stored under its own name, and a clone has the same parameters."""
    for name, value in head.get_params(deep=False).items():
        assert getattr(head, name) is value
    assert clone(head).get_params() == head.get_params()


def check_parameters_are_documented(head: Head) -> None:
    """The class docstring names each parameter."""
    text = inspect.getdoc(type(head)) or ""
    missing = [name for name in head.get_params(deep=False) if f"{name}:" not in text]
    assert not missing, f"not in the docstring: {', '.join(missing)}"


def check_recipes_make_heads(head: Head) -> None:
    """Every recipe that the class lists makes a head of that class."""
    cls = type(head)
    assert all(type(cls.from_recipe(name)) is cls for name in cls.recipes)


def check_fit_returns_self_and_keeps_parameters(head: Head) -> None:
    """`fit` returns the head and changes no parameter."""
    before = copy.deepcopy(head.get_params())
    assert fit_head(head, *toy_features()) is head
    assert head.get_params() == before


def check_fit_learns(head: Head) -> None:
    """Separable shots are predicted correctly, and so are new pictures of the same classes."""
    X, y, text = toy_features()
    Q, truth, _ = toy_features(seed=1)
    fit_head(head, X, y, text)
    assert (head.predict(X) == y).all()
    assert (head.predict(Q) == truth).all()


def check_rows_are_independent(head: Head) -> None:
    """The logits of a picture do not depend on the other rows of X."""
    X, y, text = toy_features()
    fit_head(head, X, y, text)
    np.testing.assert_allclose(head.logits(X)[2:5], head.logits(X[2:5]), rtol=1e-4, atol=1e-4)


def check_same_seed_same_result(head: Head) -> None:
    """Two fits of equal heads give equal logits."""
    X, y, text = toy_features()
    first, second = (fit_head(clone(head), X, y, text).logits(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def check_global_randomness_is_untouched(head: Head) -> None:
    """`fit` does not change the global random state of Python, numpy and torch."""
    states = random.getstate(), _numpy_state(), torch.get_rng_state()
    fit_head(head, *toy_features())
    assert random.getstate() == states[0]
    assert _numpy_state() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def check_input_is_untouched(head: Head) -> None:
    """Neither the features nor the text features change."""
    X, y, text = toy_features()
    features, embeddings = X.copy(), text.embeddings.copy()
    fit_head(head, X, y, text).logits(X)
    np.testing.assert_array_equal(X, features)
    np.testing.assert_array_equal(text.embeddings, embeddings)


def check_number_types(head: Head) -> None:
    """float16, float64, lists and tensors give the predictions of float32, in a fit, in a prediction, or in both."""
    X, y, text = toy_features()
    expected = fit_head(clone(head), X, y, text).predict(X)
    for other in (X.astype(np.float16), X.astype(np.float64), X.tolist(), torch.from_numpy(X)):
        fitted = fit_head(clone(head), other, y, text)  # type: ignore[arg-type]
        assert (fitted.predict(other) == expected).all()
        assert (fitted.predict(X) == expected).all()
        assert (fitted.predict(X.astype(np.float64)) == expected).all()


def check_views(head: Head) -> None:
    """Features (n, v, d) with v views are accepted."""
    X, y, text = toy_features()
    views = np.stack([X, X * 1.01, X * 0.99], axis=1)
    assert (fit_head(head, views, y, text).predict(X) == y).all()


def check_unequal_shots(head: Head) -> None:
    """Classes may have different numbers of shots; with text features even none."""
    X, y, text = toy_features((5, 1, 2))
    assert (fit_head(clone(head), X, y, text).predict(X) == y).all()
    X, y, text = toy_features((5, 0, 2))
    logits = fit_head(head, X, y, text).logits(X)
    assert logits.shape == (len(X), len(CLASSES))
    assert np.isfinite(logits).all()


def check_one_shot(head: Head) -> None:
    """One shot per class is enough to fit."""
    X, y, text = toy_features((1, 1, 1))
    assert np.isfinite(fit_head(head, X, y, text).logits(X)).all()


def check_two_classes(head: Head) -> None:
    """Two classes have two logits."""
    X, y, text = toy_features((3, 3, 0))
    text = TextFeatures(CLASSES[:2], np.eye(2, X.shape[1]), tower=text.tower)
    assert fit_head(head, X, y, text).logits(X).shape == (6, 2)


def check_row_of_zeros(head: Head) -> None:
    """A row of zeros has no direction: it does not stop the fit, and its logits are finite."""
    X, y, text = toy_features()
    X[0] = 0
    fit_head(head, X, y, text)
    assert (head.predict(X[1:]) == y[1:]).all()
    assert np.isfinite(head.logits(np.zeros_like(X[:2]))).all()


def check_state_round_trip(head: Head) -> None:
    """The state, saved as safetensors and loaded, gives the same logits to the bit."""
    X, y, text = toy_features()
    expected = fit_head(head, X, y, text).logits(X)
    np.testing.assert_array_equal(save_and_load(head, text).logits(X), expected)


def check_picture_features_are_declared(head: Head) -> None:
    """No learned array has features of shots as rows, raw or centred, but those that ``picture_features`` names.

    Rows of another width, such as selected columns, are not compared.
    """
    X, y, text = toy_features(d=32, noise=2.0)
    pool = toy_features(d=32, noise=2.0, seed=2)[0] if head.transductive else None
    state = head.fit(X, y, text=text, unlabelled=pool).state()
    shots = unit_rows(X)
    class_means = [shots[y == name].mean(axis=0) for name in CLASSES]
    known = np.concatenate(
        [shots, *(unit_rows(shots - mean) for mean in (shots.mean(axis=0), np.mean(class_means, 0)))]
    )
    for name in state.keys() - set(head.picture_features):
        array = np.asarray(state[name], dtype=np.float64)
        for rows in (array, array.T):
            if rows.ndim > 1 and rows.shape[-1] == X.shape[1]:
                stored = (np.abs(unit_rows(rows.reshape(-1, X.shape[1])) @ known.T) > MIN_SAME_COSINE).any(axis=1)
                # A class vector can have the direction of one shot after a few steps of training.
                assert stored.sum() <= len(CLASSES), (
                    f"{name} has features of shots as {stored.sum()} rows: name it in picture_features"
                )


def check_unfitted_raises(head: Head) -> None:
    """`logits` before `fit` raises NotFittedError."""
    assert_raises(NotFittedError, "not fitted", lambda: head.logits(toy_features()[0]))


def check_bad_input_raises(head: Head) -> None:
    """Wrong widths, values that are not finite, unknown labels, missing rows and single classes raise errors."""
    X, y, text = toy_features()
    assert_raises(InputError, "made by the same encoder", lambda: fit_head(clone(head), X[:, :-1], y, text))
    assert_raises(ValueError, "NaN", lambda: fit_head(clone(head), np.where(X[0, 0] == X, np.nan, X), y, text))
    assert_raises(ValueError, "infinity", lambda: fit_head(clone(head), np.where(X[0, 0] == X, np.inf, X), y, text))
    assert_raises(InputError, "wolf", lambda: fit_head(clone(head), X, np.where(y == "cat", "wolf", y), text))
    assert_raises(InputError, "labels", lambda: fit_head(clone(head), X, y[:-1], text))
    one = TextFeatures(["cat"], text.embeddings[:1], tower=text.tower)
    assert_raises(InputError, "two classes", lambda: fit_head(clone(head), X[:2], y[:2], one))
    fitted = fit_head(clone(head), X, y, text)
    assert_raises(InputError, "features", lambda: fitted.logits(X[:, :-1]))
    assert_raises(ValueError, "NaN", lambda: fitted.logits(np.full_like(X, np.nan)))


def check_missing_text(head: Head) -> None:
    """Without text features a head fits, or raises InputError if `needs_text`."""
    _check_optional_text(head, None, "class text")


def check_class_without_text(head: Head) -> None:
    """A class without text is learned from its shots, or the head raises InputError if `needs_text`."""
    text = toy_features()[2]
    rows = np.where(np.arange(3)[:, None] == 1, np.nan, text.embeddings)
    partial = TextFeatures(CLASSES, rows, text.logit_scale, tower=text.tower)
    _check_optional_text(head, partial, "there is none of dog")


def _check_optional_text(head: Head, text: TextFeatures | None, message: str) -> None:
    """With these text features a head fits, or raises InputError with this message if `needs_text`."""
    X, y, _ = toy_features()
    if head.needs_text:
        assert_raises(InputError, message, lambda: fit_head(head, X, y, text))
    else:
        assert (fit_head(head, X, y, text).predict(X) == y).all()


def check_unlabelled_pictures(head: Head) -> None:
    """A transductive head requires pictures without labels; others refuse them, or learn with and without them."""
    X, y, text = toy_features()
    if not head.transductive and head.accepts_unlabelled:
        expected = clone(head).fit(X, y, text=text).state()
        pool = toy_features(seed=2)[0]
        fitted = clone(head).fit(X, y, text=text, unlabelled=pool)
        assert (fitted.predict(X) == y).all()
        assert_raises(InputError, "unlabelled", lambda: clone(head).fit(X, y, text=text, unlabelled=pool[:, 1:]))
        state = fitted.fit(X, y, text=text).state()  # a fit without the pictures forgets them
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(state[name], value)
        return
    unlabelled = None if head.transductive else X
    assert_raises(InputError, "unlabelled", lambda: head.fit(X, y, text=text, unlabelled=unlabelled))


def check_presets_are_parameters(head: Head) -> None:
    """A head with each preset can be fitted, and `preset_note` says what the values are."""
    assert head.preset_note.endswith("."), "preset_note is a sentence that says what the values of presets are"
    for name in head.presets:
        assert np.isfinite(fit_head(type(head).preset(name), *toy_features()).logits(toy_features()[0])).all()


def check_text_part(head: Head) -> None:
    """`text_logits` has the shape of the logits, and is equal for all classes if the text features are."""
    X, y, text = toy_features()
    part = fit_head(head, X, y, text).text_logits(X)
    if part is None:
        return
    assert part.shape == (len(X), len(CLASSES))
    assert not head.needs_text or np.ptp(part, axis=1).min() > 0, (
        "a head that needs text has text_logits that differ between classes"
    )
    loaded_part = save_and_load(head, text).text_logits(X)
    assert loaded_part is not None, "what text_logits needs is not part of the state"
    np.testing.assert_array_equal(loaded_part, part)
    basis = np.linalg.svd(text.embeddings.astype(np.float64))[2][: len(CLASSES)]
    across = X - X @ basis.T @ basis  # orthogonal to all text features: only noise is left
    part = head.text_logits(across)
    assert part is not None
    np.testing.assert_allclose(np.ptp(part, axis=1), 0, atol=1e-4)


def check_logits_have_one_column_per_class(head: Head) -> None:
    """Logits are (m, c), finite, of sorted classes; predictions are their argmax; probabilities are their softmax."""
    X, y, text = toy_features()
    reversed_text = TextFeatures(text.labels[::-1], text.embeddings[::-1], text.logit_scale, tower=text.tower)
    for part, classes in ((reversed_text, CLASSES), (reversed_text.with_order("given"), CLASSES[::-1])):
        logits = fit_head(head, X, y, part).logits(X)
        assert list(head.classes_) == list(classes)
        assert logits.shape == (len(X), len(CLASSES))
        assert np.isfinite(logits).all()
        assert (head.predict(X) == y).all()
        assert (head.predict(X) == head.classes_[logits.argmax(axis=1)]).all()
        p = np.exp(logits.astype(np.float64))
        np.testing.assert_allclose(head.predict_proba(X), p / p.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-12)
        np.testing.assert_allclose(np.exp(head.predict_log_proba(X)), head.predict_proba(X), rtol=1e-9, atol=1e-300)


def check_numbers_as_labels(head: Head) -> None:
    """Integer labels, with text features whose names are these numbers: classes and predictions are sorted integers."""
    X, names, text = toy_features(names=NUMBER_NAMES)
    y = names.astype(np.int32)
    fit_head(head, X, y, text)
    assert head.classes_.dtype == y.dtype and head.classes_.tolist() == [2, 9, 10]
    np.testing.assert_array_equal(head.predict(X), y)
    as_texts = fit_head(clone(head), X, names, text)
    assert as_texts.classes_.tolist() == ["10", "2", "9"]
    np.testing.assert_array_equal(as_texts.predict(X), names)
    if not isinstance(head, IncrementalHead) or not head.is_updatable:
        return
    two = TextFeatures(NUMBER_NAMES[:2], text.embeddings[:2], text.logit_scale, tower=text.tower)
    head = clone(head).fit(X[:8], y[:8], text=two)
    assert head.classes_.dtype == y.dtype and head.classes_.tolist() == [9, 10]
    head.partial_fit(X[8:], y[8:], text=text)
    assert head.classes_.dtype == y.dtype and head.classes_.tolist() == [2, 9, 10]
    np.testing.assert_array_equal(head.predict(X), y)
    head.partial_fit(X[:1], names[:1], text=text)
    assert head.classes_.dtype == y.dtype and head.predict(X).dtype == y.dtype


HEAD_CHECKS: tuple[Callable[[Head], None], ...] = (
    *(value for name, value in list(globals().items()) if name.startswith("check_")),
    *MULTILABEL_CHECKS,
    *INCREMENTAL_CHECKS,
)
"""All checks, in the order of the files, in which failures are easiest to understand."""


def check_head(head: Head) -> None:
    """Run every check on clones of an unfitted head.

    Raises:
        AssertionError: at the first rule that does not hold; the traceback names the check.

    >>> from clipadapter.heads import create_head
    >>> check_head(create_head("zero-shot"))
    """
    for check in HEAD_CHECKS:
        check(clone(head))


def fit_head(head: Head, X: Array, y: Array, text: TextFeatures | None) -> Head:
    """Fit a head, with pictures without labels if it is transductive."""
    return head.fit(X, y, text=text, unlabelled=toy_features(seed=2)[0] if head.transductive else None)


def _numpy_state() -> list[int]:
    state: Any = np.random.get_state()
    return [int(word) for word in state[1]]
