"""What heads that go on learning must do; others do nothing here."""

from __future__ import annotations

import copy

import numpy as np
from safetensors.numpy import load, save
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from clipadapter.errors import InputError
from clipadapter.heads import Exact, Head, Streaming, TextFeatures
from clipadapter.heads.text import Order
from clipadapter.testing._toy import CLASSES, Array, expect, toy_features

HALF = np.arange(12) % 2 == 0
"""Every other shot of the toy's twelve: some of every class."""
OLD = np.arange(12) < 8
"""The shots of the first two classes."""


def _text_of(text: TextFeatures, places: list[int], order: Order = "given") -> TextFeatures:
    """Some of the classes, in another order."""
    names, rows = [text.labels[i] for i in places], text.embeddings[places]
    return TextFeatures(names, rows, text.logit_scale, tower=text.tower, order=order)


def _fitted(head: Head, X: Array, y: Array, text: TextFeatures | None) -> Streaming | None:
    """The head if it streams, fitted; None if it does not, or was told not to keep what that needs."""
    if not isinstance(head, Streaming):
        return None
    fitted = clone(head).fit(X, y, text=text)
    return fitted if fitted.updatable else None


def _exact(head: Head, X: Array, y: Array, text: TextFeatures | None) -> Exact | None:
    fitted = _fitted(head, X, y, text)
    return fitted if isinstance(fitted, Exact) else None


def _same(found: Head, expected: Head) -> None:
    """Equal classes, and equal logits of new pictures."""
    assert found.classes_.tolist() == expected.classes_.tolist()
    Q = toy_features(seed=1)[0]
    np.testing.assert_allclose(found.logits(Q), expected.logits(Q), rtol=1e-5, atol=1e-5)


def check_stream_in_parts(head: Head) -> None:
    """Shots may come in parts, one by one too, and as views: an exact head ends as if all had come at once."""
    if not isinstance(head, Streaming):
        return
    X, y, text = toy_features()
    whole = _fitted(head, X, y, text)
    if whole is None:
        return
    found = clone(head).partial_fit(X[HALF], y[HALF], text=text)
    assert found.partial_fit(X[~HALF], y[~HALF], text=text) is found
    assert found.classes_.tolist() == list(CLASSES)
    assert found.counts_.tolist() == [4, 4, 4]
    assert (found.predict(X[~HALF]) == y[~HALF]).all()
    if not found.exact:
        return
    _same(found, whole)
    single = clone(head).fit(X[:1], y[:1], text=text)
    for i in reversed(range(1, len(X))):
        single.partial_fit(X[i : i + 1], y[i : i + 1], text=text)
    _same(single, whole)
    views = np.stack([X, 1.01 * X[::-1]], axis=1)
    parts = clone(head).fit(views[HALF], y[HALF], text=text).partial_fit(views[~HALF], y[~HALF], text=text)
    _same(parts, clone(head).fit(views, y, text=text))


def check_stream_of_classes(head: Head) -> None:
    """Classes may come too: columns are sorted, or in the order of their text if that keeps its order."""
    X, y, text = toy_features()
    found = _fitted(head, X[OLD], y[OLD], _text_of(text, [0, 1]))
    if found is None:
        return
    turned = _text_of(text, [2, 1, 0])
    for part, wanted in ((turned, turned.labels), (turned.with_order("sorted"), CLASSES)):
        going = copy.copy(found).partial_fit(X[~OLD], y[~OLD], text=part)
        assert going.classes_.tolist() == list(wanted)
        assert going.counts_.tolist() == [4, 4, 4]
        assert (going.predict(X[~OLD]) == y[~OLD]).all()
        if going.exact:
            _same(going, clone(head).fit(X, y, text=part))
    if head.needs_text:
        return
    late = y != "cat"
    alone = clone(head).fit(X[late], y[late]).partial_fit(X[~late], y[~late])
    assert alone.classes_.tolist() == ["cat", "dog", "owl"]
    assert (alone.predict(X) == y).all() or not alone.exact
    known = clone(head).partial_fit(X[OLD], y[OLD], classes=list(CLASSES)).partial_fit(X[~OLD], y[~OLD])
    if known.exact:
        _same(known, clone(head).fit(X, y))


def check_stream_takes_back(head: Head) -> None:
    """An exact head unlearns shots, the last of a class too, and is what a fit to the others is."""
    X, y, text = toy_features()
    found = _exact(head, X, y, text)
    if found is None:
        return
    assert found.unlearn(X[HALF], y[HALF], text=text) is found
    assert found.counts_.tolist() == [2, 2, 2]
    _same(found, clone(head).fit(X[~HALF], y[~HALF], text=text))
    rest = ~HALF & OLD
    found.unlearn(X[~OLD & ~HALF], y[~OLD & ~HALF], text=text)
    assert found.counts_.tolist() == [2, 2, 0]
    _same(found, clone(head).fit(X[rest], y[rest], text=text))
    _same(found.partial_fit(X[~rest], y[~rest], text=text), clone(head).fit(X, y, text=text))


def check_stream_is_rearranged(head: Head) -> None:
    """An exact head answers for classes in another order, renamed, for a new one, and without one that has no shot."""
    X, y, text = toy_features()
    found = _exact(head, X[OLD], y[OLD], text)
    if found is None:
        return
    rows = np.concatenate([text.embeddings[[1, 0]], np.ones((1, X.shape[1]))])
    after = TextFeatures(["hound", "cat", "fish"], rows, text.logit_scale, tower=text.tower, order="given")
    assert found.rearrange(after.labels, [1, 0, -1], text=after) is found
    names = np.where(y[OLD] == "dog", "hound", y[OLD])
    _same(found, clone(head).fit(X[OLD], names, text=after))
    found.rearrange(["cat", "hound"], [1, 0], text=_text_of(after, [1, 0]))
    _same(found, clone(head).fit(X[OLD], names, text=_text_of(after, [1, 0])))
    found.partial_fit(X[~OLD], ["fish"] * 4, text=after)
    _same(found, clone(head).fit(X, np.concatenate([names, ["fish"] * 4]), text=after))


def check_stream_is_saved(head: Head) -> None:
    """A head that was saved and loaded goes on as the one that was not, and forgets it all with a new fit."""
    X, y, text = toy_features()
    found = _fitted(head, X[HALF], y[HALF], text)
    if found is None:
        return
    state = load(save({name: np.asarray(value, order="C") for name, value in found.state().items()}))
    again = clone(head).load_state(state, found.classes_.tolist(), found.n_features_in_).attach(text)
    for one in (found, again):
        one.partial_fit(X[~HALF], y[~HALF], text=text)
    np.testing.assert_array_equal(again.logits(X), found.logits(X))
    assert again.state().keys() == found.state().keys()
    fresh = clone(head).fit(X[HALF], y[HALF], text=text)
    np.testing.assert_array_equal(again.fit(X[HALF], y[HALF], text=text).logits(X), fresh.logits(X))


def check_stream_leaves_others_alone(head: Head) -> None:
    """Going on changes neither what was given nor a copy of the head, though copies share what was learned."""
    X, y, text = toy_features()
    found = _fitted(head, X[HALF], y[HALF], text)
    if found is None:
        return
    kept, vectors = X.copy(), text.embeddings.copy()
    changes = [lambda: found.partial_fit(X[~HALF], y[~HALF], text=text)]
    if isinstance(found, Exact):
        exact = found
        changes += [lambda: exact.unlearn(X[:1], y[:1], text=text)]
        changes += [lambda: exact.rearrange(CLASSES[::-1], [2, 1, 0], text=_text_of(text, [2, 1, 0]))]
    for change in changes:
        before = copy.copy(found)
        answers, state = before.logits(X), {name: np.array(value) for name, value in before.state().items()}
        change()
        np.testing.assert_array_equal(before.logits(X), answers)
        for name, value in before.state().items():
            np.testing.assert_array_equal(value, state[name], err_msg=name)
    np.testing.assert_array_equal(X, kept)
    np.testing.assert_array_equal(text.embeddings, vectors)


def check_stream_refuses(head: Head) -> None:
    """What can't be learned or taken out is refused in words, and the head stays as it was."""
    if not isinstance(head, Streaming):
        return
    X, y, text = toy_features()
    if isinstance(head, Exact):
        unfitted = clone(head)
        expect(NotFittedError, "not fitted", lambda: unfitted.unlearn(X, y, text=text))
    found = clone(head).fit(X[OLD], y[OLD], text=text)
    answers = found.logits(X)
    if not found.updatable:
        expect(InputError, "set ", lambda: found.partial_fit(X, y, text=text))
        if isinstance(found, Exact):
            expect(InputError, "set ", lambda: found.unlearn(X[:1], y[:1], text=text))
            expect(InputError, "set ", lambda: found.rearrange(CLASSES, [0, 1, 2], text=text))
        np.testing.assert_array_equal(found.logits(X), answers)
        return
    expect(InputError, "lacks classes", lambda: found.partial_fit(X[:4], y[:4], text=_text_of(text, [0, 2])))
    expect(InputError, "with class text", lambda: found.partial_fit(X, y))
    expect(InputError, "wolf", lambda: found.partial_fit(X, np.where(y == "cat", "wolf", y), text=text))
    narrow = TextFeatures(CLASSES, text.embeddings[:, 1:], text.logit_scale, tower=text.tower)
    expect(InputError, "features", lambda: found.partial_fit(X[:, 1:], y, text=narrow))
    expect(ValueError, "NaN", lambda: found.partial_fit(np.full_like(X, np.nan), y, text=text))
    if isinstance(found, Exact):
        expect(InputError, "can't be taken out", lambda: found.unlearn(X[[0, 0, 0, 0, 0]], y[[0] * 5], text=text))
        expect(InputError, "'owl' has 0 shots", lambda: found.unlearn(X[-1:], y[-1:], text=text))
        expect(InputError, "no shot would be left", lambda: found.unlearn(X[OLD], y[OLD], text=text))
        expect(
            InputError, "unlearn them first", lambda: found.rearrange(CLASSES[1:], [1, 2], text=_text_of(text, [1, 2]))
        )
        expect(InputError, "one origin", lambda: found.rearrange(CLASSES, [0, 1, 1], text=text))
        expect(InputError, "another order", lambda: found.rearrange(CLASSES, [0, 1, 2], text=_text_of(text, [2, 1, 0])))
    if not head.needs_text:
        alone = clone(head).fit(X[OLD], y[OLD])
        expect(InputError, "without class text", lambda: alone.partial_fit(X, y, text=text))
    np.testing.assert_array_equal(found.logits(X), answers)
    assert found.classes_.tolist() == list(CLASSES) and found.counts_.tolist() == [4, 4, 0]


STREAMING_CHECKS = (
    check_stream_in_parts,
    check_stream_of_classes,
    check_stream_takes_back,
    check_stream_is_rearranged,
    check_stream_is_saved,
    check_stream_leaves_others_alone,
    check_stream_refuses,
)
