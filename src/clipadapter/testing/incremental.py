"""Conformance checks of incremental heads; other heads pass them trivially."""

from __future__ import annotations

import copy

import numpy as np
from sklearn.exceptions import NotFittedError

from clipadapter.errors import InputError
from clipadapter.heads import ExactIncrementalHead, Head, IncrementalHead, TextFeatures
from clipadapter.heads.estimator import clone
from clipadapter.heads.text import Order
from clipadapter.testing.assertions import assert_raises, save_and_load
from clipadapter.testing.toy import CLASSES, Array, toy_features

HALF = np.arange(12) % 2 == 0  # every other shot of the toy's twelve: some of every class
OLD = np.arange(12) < 8  # the shots of the first two classes


def _select_text(text: TextFeatures, positions: list[int], order: Order = "given") -> TextFeatures:
    """Text features of some of the classes, in another order."""
    names, rows = [text.labels[i] for i in positions], text.embeddings[positions]
    return TextFeatures(names, rows, text.logit_scale, tower=text.tower, order=order)


def _fit_incremental(head: Head, X: Array, y: Array, text: TextFeatures | None) -> IncrementalHead | None:
    """The fitted head if it can `partial_fit`; None if it is not incremental or not updatable."""
    if not isinstance(head, IncrementalHead):
        return None
    fitted = clone(head).fit(X, y, text=text)
    return fitted if fitted.is_updatable else None


def _fit_exact(head: Head, X: Array, y: Array, text: TextFeatures | None) -> ExactIncrementalHead | None:
    fitted = _fit_incremental(head, X, y, text)
    return fitted if isinstance(fitted, ExactIncrementalHead) else None


def _assert_equal_heads(fitted: Head, expected: Head) -> None:
    """Equal classes, and equal logits of new pictures."""
    assert fitted.classes_.tolist() == expected.classes_.tolist()
    Q = toy_features(seed=1)[0]
    np.testing.assert_allclose(fitted.logits(Q), expected.logits(Q), rtol=1e-5, atol=1e-5)


def check_partial_fit_in_parts(head: Head) -> None:
    """Shots may come in parts, one by one, and as views: an exact head equals one fitted to all at once."""
    if not isinstance(head, IncrementalHead):
        return
    X, y, text = toy_features()
    full = _fit_incremental(head, X, y, text)
    if full is None:
        return
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


def check_partial_fit_with_new_classes(head: Head) -> None:
    """New classes are added: columns are sorted, or in the order of the text features if their `order` is "given"."""
    X, y, text = toy_features()
    fitted = _fit_incremental(head, X[OLD], y[OLD], _select_text(text, [0, 1]))
    if fitted is None:
        return
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


def check_unlearn(head: Head) -> None:
    """An exact head that unlearns shots, the last of a class included, equals a fit to the others."""
    X, y, text = toy_features()
    fitted = _fit_exact(head, X, y, text)
    if fitted is None:
        return
    assert fitted.unlearn(X[HALF], y[HALF], text=text) is fitted
    assert fitted.counts_.tolist() == [2, 2, 2]
    _assert_equal_heads(fitted, clone(head).fit(X[~HALF], y[~HALF], text=text))
    remaining = ~HALF & OLD
    fitted.unlearn(X[~OLD & ~HALF], y[~OLD & ~HALF], text=text)
    assert fitted.counts_.tolist() == [2, 2, 0]
    _assert_equal_heads(fitted, clone(head).fit(X[remaining], y[remaining], text=text))
    _assert_equal_heads(fitted.partial_fit(X[~remaining], y[~remaining], text=text), clone(head).fit(X, y, text=text))


def check_remap_classes(head: Head) -> None:
    """An exact head reorders, renames and adds classes, and removes one without shots."""
    X, y, text = toy_features()
    fitted = _fit_exact(head, X[OLD], y[OLD], text)
    if fitted is None:
        return
    rows = np.concatenate([text.embeddings[[1, 0]], np.ones((1, X.shape[1]))])
    after = TextFeatures(["hound", "cat", "fish"], rows, text.logit_scale, tower=text.tower, order="given")
    assert fitted.remap_classes(after.labels, [1, 0, -1], text=after) is fitted
    names = np.where(y[OLD] == "dog", "hound", y[OLD])
    _assert_equal_heads(fitted, clone(head).fit(X[OLD], names, text=after))
    fitted.remap_classes(["cat", "hound"], [1, 0], text=_select_text(after, [1, 0]))
    _assert_equal_heads(fitted, clone(head).fit(X[OLD], names, text=_select_text(after, [1, 0])))
    fitted.partial_fit(X[~OLD], ["fish"] * 4, text=after)
    _assert_equal_heads(fitted, clone(head).fit(X, np.concatenate([names, ["fish"] * 4]), text=after))


def check_partial_fit_after_loading(head: Head) -> None:
    """A loaded head continues like the original, and a new fit starts from scratch."""
    X, y, text = toy_features()
    fitted = _fit_incremental(head, X[HALF], y[HALF], text)
    if fitted is None:
        return
    loaded = save_and_load(fitted, text)
    assert isinstance(loaded, IncrementalHead)
    for each in (fitted, loaded):
        each.partial_fit(X[~HALF], y[~HALF], text=text)
    np.testing.assert_array_equal(loaded.logits(X), fitted.logits(X))
    assert loaded.state().keys() == fitted.state().keys()
    fresh = clone(head).fit(X[HALF], y[HALF], text=text)
    np.testing.assert_array_equal(loaded.fit(X[HALF], y[HALF], text=text).logits(X), fresh.logits(X))


def check_partial_fit_leaves_copies_unchanged(head: Head) -> None:
    """Updates change neither the arguments nor a shallow copy of the head, which shares its learned tensors."""
    X, y, text = toy_features()
    fitted = _fit_incremental(head, X[HALF], y[HALF], text)
    if fitted is None:
        return
    features, embeddings = X.copy(), text.embeddings.copy()
    changes = [lambda: fitted.partial_fit(X[~HALF], y[~HALF], text=text)]
    if isinstance(fitted, ExactIncrementalHead):
        exact = fitted
        changes += [lambda: exact.unlearn(X[:1], y[:1], text=text)]
        changes += [lambda: exact.remap_classes(CLASSES[::-1], [2, 1, 0], text=_select_text(text, [2, 1, 0]))]
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
    if isinstance(head, ExactIncrementalHead):
        unfitted = clone(head)
        assert_raises(NotFittedError, "not fitted", lambda: unfitted.unlearn(X, y, text=text))
    fitted = clone(head).fit(X[OLD], y[OLD], text=text)
    logits = fitted.logits(X)
    if not fitted.is_updatable:
        assert_raises(InputError, "set ", lambda: fitted.partial_fit(X, y, text=text))
        if isinstance(fitted, ExactIncrementalHead):
            assert_raises(InputError, "set ", lambda: fitted.unlearn(X[:1], y[:1], text=text))
            assert_raises(InputError, "set ", lambda: fitted.remap_classes(CLASSES, [0, 1, 2], text=text))
        np.testing.assert_array_equal(fitted.logits(X), logits)
        return
    assert_raises(
        InputError, "lacks classes", lambda: fitted.partial_fit(X[:4], y[:4], text=_select_text(text, [0, 2]))
    )
    assert_raises(InputError, "with class text", lambda: fitted.partial_fit(X, y))
    assert_raises(InputError, "wolf", lambda: fitted.partial_fit(X, np.where(y == "cat", "wolf", y), text=text))
    narrow = TextFeatures(CLASSES, text.embeddings[:, 1:], text.logit_scale, tower=text.tower)
    assert_raises(InputError, "features", lambda: fitted.partial_fit(X[:, 1:], y, text=narrow))
    assert_raises(ValueError, "NaN", lambda: fitted.partial_fit(np.full_like(X, np.nan), y, text=text))
    if isinstance(fitted, ExactIncrementalHead):
        assert_raises(
            InputError, "can't unlearn more", lambda: fitted.unlearn(X[[0, 0, 0, 0, 0]], y[[0] * 5], text=text)
        )
        assert_raises(InputError, "'owl' has 0 shots", lambda: fitted.unlearn(X[-1:], y[-1:], text=text))
        assert_raises(InputError, "no shot would remain", lambda: fitted.unlearn(X[OLD], y[OLD], text=text))
        assert_raises(
            InputError,
            "unlearn them first",
            lambda: fitted.remap_classes(CLASSES[1:], [1, 2], text=_select_text(text, [1, 2])),
        )
        assert_raises(InputError, "one origin", lambda: fitted.remap_classes(CLASSES, [0, 1, 1], text=text))
        assert_raises(
            InputError,
            "another order",
            lambda: fitted.remap_classes(CLASSES, [0, 1, 2], text=_select_text(text, [2, 1, 0])),
        )
    if not head.needs_text:
        without_text = clone(head).fit(X[OLD], y[OLD])
        assert_raises(InputError, "without class text", lambda: without_text.partial_fit(X, y, text=text))
    np.testing.assert_array_equal(fitted.logits(X), logits)
    assert fitted.classes_.tolist() == list(CLASSES) and fitted.counts_.tolist() == [4, 4, 0]


INCREMENTAL_CHECKS = tuple(value for name, value in list(globals().items()) if name.startswith("check_"))
