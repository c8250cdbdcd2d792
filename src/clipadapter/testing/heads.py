"""Conformance checks of heads, one rule per check; authors of plug-ins run the same checks on their heads.

A check takes an unfitted head and raises AssertionError if the rule does not hold.
"""

from __future__ import annotations

import copy
import functools
import inspect
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from sklearn.exceptions import NotFittedError

from clipadapter.errors import InputError
from clipadapter.heads import ExactIncrementalHead, Head, IncrementalHead, TextFeatures
from clipadapter.heads.estimator import clone
from clipadapter.utils.prediction import unit_rows
from clipadapter.utils.towers import WordTower

Array = NDArray[Any]
CLASSES = ("cat", "dog", "owl")
OLD = np.arange(12) < 8  # the shots of the first two classes
HALF = np.arange(12) % 2 == 0  # every other shot of the toy's twelve: some of every class
MIN_SAME_COSINE = 0.999  # rows nearer than this are taken for the same picture
NUMBER_NAMES = ("10", "9", "2")  # class names that are numbers, in another order as numbers than as text


def toy_features(
    counts: tuple[int, ...] = (4, 4, 4),
    d: int = 16,
    noise: float = 0.3,
    seed: int = 0,
    names: tuple[str, ...] = CLASSES,
) -> tuple[Array, Array, TextFeatures]:
    """Separable features of three classes, with text features near the mean of each class.

    Args:
        counts: shots of each class.
        d: width.
        noise: spread of the pictures, relative to the distance of the classes.
        seed: of the draw.
        names: of the three classes.

    Returns:
        X (n, d) of length about 9, y (n,) names, text features with a text tower that knows the names.
    """
    rng = np.random.default_rng(seed)
    means = np.eye(len(names), d)
    X = np.concatenate([means[i] + noise / np.sqrt(d) * rng.standard_normal((n, d)) for i, n in enumerate(counts)])
    y = np.repeat(names, counts)
    rows = means + 0.1 * rng.standard_normal(means.shape)
    words = WordTower(dict(zip(names, torch.from_numpy(rows), strict=True)), d)
    text = TextFeatures(names, rows, logit_scale=20.0, tower=lambda: words)
    return (9 * X).astype(np.float32), y, text


def toy_multilabel(n: int = 24, noise: float = 0.3, seed: int = 0) -> tuple[Array, Array, TextFeatures]:
    """X (n, d), Y (n, 3), text: pictures are sums of the means of their classes; eight have all combinations."""
    rng = np.random.default_rng(seed)
    text = toy_features()[2]
    d, count = text.embeddings.shape[1], 2 ** len(CLASSES)
    numbers = np.concatenate([np.arange(count), rng.integers(count, size=max(0, n - count))])[:n]
    Y = numbers[:, None] >> np.arange(len(CLASSES)) & 1
    common = np.zeros(d)
    common[-1] = 1  # shared by all pictures, so that one without a class has a direction too
    X = common + Y @ np.eye(len(CLASSES), d) + noise / np.sqrt(d) * rng.standard_normal((n, d))
    return (9 * X).astype(np.float32), Y, text


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


def check_fit_has_no_side_effects(head: Head) -> None:
    """`fit` returns the head; no parameter, feature or global random state of Python, numpy or torch changes."""
    X, y, text = toy_features()
    features, embeddings, parameters = X.copy(), text.embeddings.copy(), copy.deepcopy(head.get_params())
    states = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist(), torch.get_rng_state()
    assert fit_head(head, X, y, text) is head
    head.logits(X)
    assert head.get_params() == parameters
    assert random.getstate() == states[0]
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    np.testing.assert_array_equal(X, features)
    np.testing.assert_array_equal(text.embeddings, embeddings)


def check_fit_learns(head: Head) -> None:
    """Separable shots are predicted correctly, and so are new pictures of the same classes."""
    X, y, text = toy_features()
    Q, truth, _ = toy_features(seed=1)
    fit_head(head, X, y, text)
    assert (head.predict(X) == y).all()
    assert (head.predict(Q) == truth).all()


def check_rows_are_independent(head: Head) -> None:
    """Logits of a picture do not depend on the other rows of X; a row of zeros, which has no direction, has some."""
    X, y, text = toy_features()
    X[0] = 0
    fit_head(head, X, y, text)
    np.testing.assert_allclose(head.logits(X)[2:5], head.logits(X[2:5]), rtol=1e-4, atol=1e-4)
    assert (head.predict(X[1:]) == y[1:]).all()
    assert np.isfinite(head.logits(np.zeros_like(X[:2]))).all()


def check_same_seed_same_result(head: Head) -> None:
    """Two fits of equal heads give equal logits."""
    X, y, text = toy_features()
    first, second = (fit_head(clone(head), X, y, text).logits(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)


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


def check_numbers_of_shots(head: Head) -> None:
    """Classes may have different numbers of shots, with text features even none; one shot and two classes will do."""
    X, y, text = toy_features((5, 1, 2))
    assert (fit_head(clone(head), X, y, text).predict(X) == y).all()
    for counts in ((5, 0, 2), (1, 1, 1)):
        X, y, text = toy_features(counts)
        logits = fit_head(clone(head), X, y, text).logits(X)
        assert logits.shape == (len(X), len(CLASSES))
        assert np.isfinite(logits).all()
    X, y, text = toy_features((3, 3, 0))
    text = TextFeatures(CLASSES[:2], np.eye(2, X.shape[1]), tower=text.tower)
    assert fit_head(head, X, y, text).logits(X).shape == (6, 2)


def check_state_round_trip(head: Head) -> None:
    """The state, saved as safetensors and loaded, gives the same logits to the bit: its arrays have the C order."""
    X, y, text = toy_features()
    expected = fit_head(head, X, y, text).logits(X)
    # Loaded arrays have this order. Products of arrays in another one are sums in another order, on some processors.
    assert all(np.asarray(value).flags.c_contiguous for value in head.state().values())
    np.testing.assert_array_equal(save_and_load(head, text).logits(X), expected)


def check_picture_features_are_declared(head: Head) -> None:
    """No learned array has features of shots as rows, raw or centred, but those that ``picture_features`` names."""
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


def check_bad_input_raises(head: Head) -> None:
    """Wrong widths, values that are not finite, unknown labels, missing rows and single classes raise errors."""
    X, y, text = toy_features()
    is_first = X[0, 0] == X
    one = TextFeatures(["cat"], text.embeddings[:1], tower=text.tower)
    refused: list[tuple[type[Exception], str, tuple[Array, Array, TextFeatures]]] = [
        (InputError, "made by the same encoder", (X[:, :-1], y, text)),
        (ValueError, "NaN", (np.where(is_first, np.nan, X), y, text)),
        (ValueError, "infinity", (np.where(is_first, np.inf, X), y, text)),
        (InputError, "wolf", (X, np.where(y == "cat", "wolf", y), text)),
        (InputError, "labels", (X, y[:-1], text)),
        (InputError, "two classes", (X[:2], y[:2], one)),
    ]
    for error, message, arguments in refused:
        assert_raises(error, message, functools.partial(fit_head, clone(head), *arguments))
    fitted = fit_head(clone(head), X, y, text)
    assert_raises(NotFittedError, "not fitted", lambda: clone(head).logits(X))
    assert_raises(InputError, "features", lambda: fitted.logits(X[:, :-1]))
    assert_raises(ValueError, "NaN", lambda: fitted.logits(np.full_like(X, np.nan)))


def check_missing_text(head: Head) -> None:
    """Without text, of all classes or of one, a head learns from shots, or raises InputError if `needs_text`."""
    X, y, text = toy_features()
    rows = np.where(np.arange(3)[:, None] == 1, np.nan, text.embeddings)
    partial = TextFeatures(CLASSES, rows, text.logit_scale, tower=text.tower)
    cases: list[tuple[TextFeatures | None, str]] = [(None, "class text"), (partial, "there is none of dog")]
    for given, message in cases:
        if head.needs_text:
            assert_raises(InputError, message, lambda given=given: fit_head(clone(head), X, y, given))  # type: ignore[misc]
        else:
            assert (fit_head(clone(head), X, y, given).predict(X) == y).all()


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


def check_multilabel_fit(head: Head) -> None:
    """A multi-label head learns the targets; another head raises an error that names the multi-label heads."""
    X, Y, text = toy_multilabel()
    if not head.multilabel:
        # This error comes first, whatever else the head would need.
        try:
            head.fit(X, Y, text=text, unlabelled=X if head.transductive else None)
        except InputError as error:
            assert "single-label head" in str(error) and "zero-shot" in str(error), str(error)
            return
        raise AssertionError("multi-label targets were accepted by a head with multilabel = False")
    assert head.fit(X, Y, text=text) is head
    assert head.task_ == "multilabel"
    logits, p = head.logits(X), head.predict_proba(X)
    assert logits.shape == Y.shape and np.isfinite(logits).all()
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-logits.astype(np.float64))), rtol=1e-6)
    assert (head.predict(X) == (logits > 0)).all()
    Q, truth, _ = toy_multilabel(seed=1)
    scores = head.logits(Q)
    for k in range(len(CLASSES)):  # area under the ROC curve above 0.9
        pairs = scores[truth[:, k] == 1, k][:, None] > scores[truth[:, k] == 0, k]
        assert pairs.mean() > 0.9, f"{CLASSES[k]} is not separated from the rest"


def check_multilabel_state_round_trip(head: Head) -> None:
    """A loaded multi-label head gives the same logits; a new single-label fit leaves nothing of the multi-label one."""
    if not head.multilabel:
        return
    X, Y, text = toy_multilabel()
    expected = head.fit(X, Y, text=text).logits(X)
    loaded = save_and_load(head, text)
    assert loaded.task_ == "multilabel"
    np.testing.assert_array_equal(loaded.logits(X), expected)
    np.testing.assert_array_equal(loaded.predict(X), head.predict(X))
    X, y, text = toy_features()
    fresh = clone(head).fit(X, y, text=text)
    assert head.fit(X, y, text=text).task_ == "single-label"
    np.testing.assert_array_equal(head.logits(X), fresh.logits(X))
    assert head.state().keys() == fresh.state().keys()


def check_multilabel_rare_classes(head: Head) -> None:
    """Classes of no picture, of one and of all, and a single picture, give finite logits."""
    if not head.multilabel:
        return
    X, Y, text = toy_multilabel()
    Y = np.array(Y)
    Y[:, 0], Y[:, 1], Y[:, 2] = 0, np.arange(len(Y)) == 3, 1
    for rows in (slice(None), slice(3, 4)):
        assert np.isfinite(head.fit(X[rows], Y[rows], text=text).logits(X)).all()
        views = np.stack([X[rows], 1.01 * X[rows]], axis=1)
        assert np.isfinite(head.fit(views, Y[rows].astype(bool), text=text).logits(X)).all()


def _select_text(text: TextFeatures, positions: list[int]) -> TextFeatures:
    """Text features of some of the classes, in another order."""
    names, rows = [text.labels[i] for i in positions], text.embeddings[positions]
    return TextFeatures(names, rows, text.logit_scale, tower=text.tower, order="given")


def _of_updatable(kind: Any, rows: Any) -> Callable[[Callable[..., None]], Callable[[Head], None]]:
    """Decorator: a check gets the toy's features too, and the head fitted to some rows; it is for updatable heads."""

    def decorate(check: Callable[..., None]) -> Callable[[Head], None]:
        @functools.wraps(check)
        def run(head: Head) -> None:
            X, y, text = toy_features()
            fitted = clone(head).fit(X[rows], y[rows], text=text) if isinstance(head, kind) else None
            if fitted is not None and fitted.is_updatable:
                check(head, fitted, X, y, text)

        del run.__wrapped__  # which has further parameters
        return run

    return decorate


def _assert_equal_heads(fitted: Head, expected: Head) -> None:
    """Equal classes, and equal logits of new pictures."""
    assert fitted.classes_.tolist() == expected.classes_.tolist()
    Q = toy_features(seed=1)[0]
    np.testing.assert_allclose(fitted.logits(Q), expected.logits(Q), rtol=1e-5, atol=1e-5)


@_of_updatable(IncrementalHead, slice(None))
def check_partial_fit_in_parts(head: Head, full: Any, X: Array, y: Array, text: TextFeatures) -> None:
    """Shots may come in parts, one by one, and as views: an exact head equals one fitted to all at once."""
    fitted = clone(head).partial_fit(X[HALF], y[HALF], text=text)
    assert fitted.partial_fit(X[~HALF], y[~HALF], text=text) is fitted
    assert fitted.classes_.tolist() == list(CLASSES)
    assert fitted.counts_.tolist() == [4, 4, 4]
    assert (fitted.predict(X[~HALF]) == y[~HALF]).all()
    if not fitted.exact:
        return
    _assert_equal_heads(fitted, full)
    single = clone(head).fit(X[:1], y[:1], text=text)
    for i in reversed(range(1, len(X))):
        single.partial_fit(X[i : i + 1], y[i : i + 1], text=text)
    _assert_equal_heads(single, full)
    views = np.stack([X, 1.01 * X[::-1]], axis=1)
    parts = clone(head).fit(views[HALF], y[HALF], text=text).partial_fit(views[~HALF], y[~HALF], text=text)
    _assert_equal_heads(parts, clone(head).fit(views, y, text=text))


@_of_updatable(IncrementalHead, OLD)
def check_partial_fit_with_new_classes(head: Head, _: Any, X: Array, y: Array, text: TextFeatures) -> None:
    """New classes are added: columns are sorted, or in the order of the text features if their `order` is "given"."""
    fitted: Any = clone(head).fit(X[OLD], y[OLD], text=_select_text(text, [0, 1]))
    reversed_text = _select_text(text, [2, 1, 0])
    for part, expected in ((reversed_text, reversed_text.labels), (reversed_text.with_order("sorted"), CLASSES)):
        updated = copy.copy(fitted).partial_fit(X[~OLD], y[~OLD], text=part)
        assert updated.classes_.tolist() == list(expected)
        assert updated.counts_.tolist() == [4, 4, 4]
        assert (updated.predict(X[~OLD]) == y[~OLD]).all()
        if updated.exact:
            _assert_equal_heads(updated, clone(head).fit(X, y, text=part))
    if head.needs_text:
        return
    late = y != "cat"
    without_text = clone(head).fit(X[late], y[late]).partial_fit(X[~late], y[~late])
    assert without_text.classes_.tolist() == ["cat", "dog", "owl"]
    assert (without_text.predict(X) == y).all() or not without_text.exact
    known = clone(head).partial_fit(X[OLD], y[OLD], classes=list(CLASSES)).partial_fit(X[~OLD], y[~OLD])
    if known.exact:
        _assert_equal_heads(known, clone(head).fit(X, y))


@_of_updatable(ExactIncrementalHead, slice(None))
def check_unlearn(head: Head, fitted: Any, X: Array, y: Array, text: TextFeatures) -> None:
    """An exact head that unlearns shots, the last of a class included, equals a fit to the others."""
    assert fitted.unlearn(X[HALF], y[HALF], text=text) is fitted
    assert fitted.counts_.tolist() == [2, 2, 2]
    _assert_equal_heads(fitted, clone(head).fit(X[~HALF], y[~HALF], text=text))
    remaining = ~HALF & OLD
    fitted.unlearn(X[~OLD & ~HALF], y[~OLD & ~HALF], text=text)
    assert fitted.counts_.tolist() == [2, 2, 0]
    _assert_equal_heads(fitted, clone(head).fit(X[remaining], y[remaining], text=text))
    _assert_equal_heads(fitted.partial_fit(X[~remaining], y[~remaining], text=text), clone(head).fit(X, y, text=text))


@_of_updatable(ExactIncrementalHead, OLD)
def check_remap_classes(head: Head, fitted: Any, X: Array, y: Array, text: TextFeatures) -> None:
    """An exact head reorders, renames and adds classes, and removes one without shots."""
    rows = np.concatenate([text.embeddings[[1, 0]], np.ones((1, X.shape[1]))])
    after = TextFeatures(["hound", "cat", "fish"], rows, text.logit_scale, tower=text.tower, order="given")
    assert fitted.remap_classes(after.labels, [1, 0, -1], text=after) is fitted
    names = np.where(y[OLD] == "dog", "hound", y[OLD])
    _assert_equal_heads(fitted, clone(head).fit(X[OLD], names, text=after))
    fitted.remap_classes(["cat", "hound"], [1, 0], text=_select_text(after, [1, 0]))
    _assert_equal_heads(fitted, clone(head).fit(X[OLD], names, text=_select_text(after, [1, 0])))
    fitted.partial_fit(X[~OLD], ["fish"] * 4, text=after)
    _assert_equal_heads(fitted, clone(head).fit(X, np.concatenate([names, ["fish"] * 4]), text=after))


@_of_updatable(IncrementalHead, HALF)
def check_partial_fit_after_loading(head: Head, fitted: Any, X: Array, y: Array, text: TextFeatures) -> None:
    """A loaded head continues like the original, and a new fit starts from scratch."""
    loaded = save_and_load(fitted, text)
    assert isinstance(loaded, IncrementalHead)
    for each in (fitted, loaded):
        each.partial_fit(X[~HALF], y[~HALF], text=text)
    np.testing.assert_array_equal(loaded.logits(X), fitted.logits(X))
    assert loaded.state().keys() == fitted.state().keys()
    fresh = clone(head).fit(X[HALF], y[HALF], text=text)
    np.testing.assert_array_equal(loaded.fit(X[HALF], y[HALF], text=text).logits(X), fresh.logits(X))


@_of_updatable(IncrementalHead, HALF)
def check_partial_fit_leaves_copies_unchanged(head: Head, fitted: Any, X: Array, y: Array, text: TextFeatures) -> None:
    """Updates change neither the arguments nor a shallow copy of the head, which shares its learned tensors."""
    features, embeddings = X.copy(), text.embeddings.copy()
    changes = [lambda: fitted.partial_fit(X[~HALF], y[~HALF], text=text)]
    if isinstance(head, ExactIncrementalHead):
        changes += [lambda: fitted.unlearn(X[:1], y[:1], text=text)]
        changes += [lambda: fitted.remap_classes(CLASSES[::-1], [2, 1, 0], text=_select_text(text, [2, 1, 0]))]
    for change in changes:
        before = copy.copy(fitted)
        logits, state = before.logits(X), {name: np.array(value) for name, value in before.state().items()}
        change()
        np.testing.assert_array_equal(before.logits(X), logits)
        for name, value in before.state().items():
            np.testing.assert_array_equal(value, state[name], err_msg=name)
    np.testing.assert_array_equal(X, features)
    np.testing.assert_array_equal(text.embeddings, embeddings)


def check_partial_fit_refuses_bad_input(head: Head) -> None:
    """Shots that can't be learned or unlearned raise errors, and the head stays unchanged."""
    if not isinstance(head, IncrementalHead):
        return
    X, y, text = toy_features()
    fitted: Any = clone(head).fit(X[OLD], y[OLD], text=text)
    logits = fitted.logits(X)
    if fitted.is_updatable:
        narrow = TextFeatures(CLASSES, text.embeddings[:, 1:], text.logit_scale, tower=text.tower)
        refused: list[tuple[type[Exception], str, str, tuple[Any, ...]]] = [
            (InputError, "lacks classes", "partial_fit", (X[:4], y[:4], _select_text(text, [0, 2]))),
            (InputError, "with class text", "partial_fit", (X, y, None)),
            (InputError, "wolf", "partial_fit", (X, np.where(y == "cat", "wolf", y), text)),
            (InputError, "features", "partial_fit", (X[:, 1:], y, narrow)),
            (ValueError, "NaN", "partial_fit", (np.full_like(X, np.nan), y, text)),
            (InputError, "can't unlearn more", "unlearn", (X[[0] * 5], y[[0] * 5], text)),
            (InputError, "'owl' has 0 shots", "unlearn", (X[-1:], y[-1:], text)),
            (InputError, "no shot would remain", "unlearn", (X[OLD], y[OLD], text)),
            (InputError, "unlearn them first", "remap_classes", (CLASSES[1:], [1, 2], _select_text(text, [1, 2]))),
            (InputError, "one origin", "remap_classes", (CLASSES, [0, 1, 1], text)),
            (InputError, "another order", "remap_classes", (CLASSES, [0, 1, 2], _select_text(text, [2, 1, 0]))),
        ]
    else:
        arguments = {"partial_fit": (X, y), "unlearn": (X[:1], y[:1]), "remap_classes": (CLASSES, [0, 1, 2])}
        refused = [(InputError, "set ", method, (*given, text)) for method, given in arguments.items()]
    for error, message, method, (first, second, given_text) in refused:
        if hasattr(type(fitted), method):
            change = functools.partial(getattr(fitted, method), first, second, text=given_text)
            assert_raises(error, message, change)
    if isinstance(head, ExactIncrementalHead):
        unlearn = clone(head).unlearn
        assert_raises(NotFittedError, "not fitted", lambda: unlearn(X, y, text=text))
    if fitted.is_updatable and not head.needs_text:
        without_text = clone(head).fit(X[OLD], y[OLD])
        assert_raises(InputError, "without class text", lambda: without_text.partial_fit(X, y, text=text))
    np.testing.assert_array_equal(fitted.logits(X), logits)
    assert fitted.classes_.tolist() == list(CLASSES)
    assert not fitted.is_updatable or fitted.counts_.tolist() == [4, 4, 0]


HEAD_CHECKS: tuple[Callable[[Head], None], ...] = tuple(
    value for name, value in list(globals().items()) if name.startswith("check_")
)
"""All checks, in the order of this file, in which failures are easiest to understand."""


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


def assert_raises(error: type[Exception], message: str, action: Callable[[], object]) -> None:
    """Fail unless an action raises this error with this text in its message."""
    try:
        action()
    except error as raised:
        assert message in str(raised), f"the message should say {message!r}, but is: {raised}"
        return
    raise AssertionError(f"{error.__name__} with {message!r} was not raised")


def save_and_load(head: Head, text: TextFeatures) -> Head:
    """A clone of a head with the head's state, after it was saved as safetensors and loaded."""
    state = load(save({name: np.asarray(value, order="C") for name, value in head.state().items()}))
    return clone(head).load_state(state, head.classes_.tolist(), head.n_features_in_).attach(text)
