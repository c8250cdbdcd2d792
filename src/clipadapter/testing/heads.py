"""What every head must do, one rule a check; plug-in authors run the same on theirs."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from clipadapter.errors import InputError
from clipadapter.heads import Head, TextFeatures
from clipadapter.testing._classes import CLASS_CHECKS
from clipadapter.testing._classes import fit as _fit
from clipadapter.testing._several import SEVERAL_CHECKS
from clipadapter.testing._streaming import STREAMING_CHECKS
from clipadapter.testing._toy import CLASSES, expect, toy_features


def _numpy_state() -> list[int]:
    state: Any = np.random.get_state()
    return [int(word) for word in state[1]]


def check_constructor_only_stores(head: Head) -> None:
    """Every parameter is kept under its own name, and a clone has the same."""
    for name, value in head.get_params(deep=False).items():
        assert getattr(head, name) is value
    assert clone(head).get_params() == head.get_params()


def check_parameters_are_documented(head: Head) -> None:
    """The class docstring names each parameter."""
    text = inspect.getdoc(type(head)) or ""
    missing = [name for name in head.get_params(deep=False) if f"{name}:" not in text]
    assert not missing, f"not in the docstring: {', '.join(missing)}"


def check_fit_returns_self_and_keeps_parameters(head: Head) -> None:
    """`fit` gives the head back and changes no parameter."""
    before = copy.deepcopy(head.get_params())
    assert _fit(head, *toy_features()) is head
    assert head.get_params() == before


def check_fit_learns(head: Head) -> None:
    """Separable shots are told apart, and so are new pictures like them."""
    X, y, text = toy_features()
    Q, truth, _ = toy_features(seed=1)
    _fit(head, X, y, text)
    assert (head.predict(X) == y).all()
    assert (head.predict(Q) == truth).all()


def check_rows_are_independent(head: Head) -> None:
    """The answer for a picture does not depend on the others asked with it."""
    X, y, text = toy_features()
    _fit(head, X, y, text)
    np.testing.assert_allclose(head.logits(X)[2:5], head.logits(X[2:5]), rtol=1e-4, atol=1e-4)


def check_same_seed_same_result(head: Head) -> None:
    """Two fits of equal heads give equal logits."""
    X, y, text = toy_features()
    first, second = (_fit(clone(head), X, y, text).logits(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def check_global_randomness_is_untouched(head: Head) -> None:
    """Neither Python's, numpy's nor torch's global generator moves."""
    states = random.getstate(), _numpy_state(), torch.get_rng_state()
    _fit(head, *toy_features())
    assert random.getstate() == states[0]
    assert _numpy_state() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def check_input_is_untouched(head: Head) -> None:
    """Neither the features nor the class text change."""
    X, y, text = toy_features()
    kept, vectors = X.copy(), text.embeddings.copy()
    _fit(head, X, y, text).logits(X)
    np.testing.assert_array_equal(X, kept)
    np.testing.assert_array_equal(text.embeddings, vectors)


def check_number_types(head: Head) -> None:
    """float16, float64, lists and tensors give the answer of float32."""
    X, y, text = toy_features()
    expected = _fit(clone(head), X, y, text).predict(X)
    for other in (X.astype(np.float16), X.astype(np.float64), X.tolist(), torch.from_numpy(X)):
        fitted = _fit(clone(head), other, y, text)  # type: ignore[arg-type]
        assert (fitted.predict(other) == expected).all()


def check_views(head: Head) -> None:
    """(n, v, d) features are taken, the plain view first."""
    X, y, text = toy_features()
    views = np.stack([X, X * 1.01, X * 0.99], axis=1)
    assert (_fit(head, views, y, text).predict(X) == y).all()


def check_unequal_shots(head: Head) -> None:
    """Classes may have different numbers of shots; with class text even none."""
    X, y, text = toy_features((5, 1, 2))
    assert (_fit(clone(head), X, y, text).predict(X) == y).all()
    X, y, text = toy_features((5, 0, 2))
    logits = _fit(head, X, y, text).logits(X)
    assert logits.shape == (len(X), len(CLASSES))
    assert np.isfinite(logits).all()


def check_one_shot(head: Head) -> None:
    """One shot a class is enough to fit."""
    X, y, text = toy_features((1, 1, 1))
    assert np.isfinite(_fit(head, X, y, text).logits(X)).all()


def check_two_classes(head: Head) -> None:
    """Two classes have two logits."""
    X, y, text = toy_features((3, 3, 0))
    text = TextFeatures(CLASSES[:2], np.eye(2, X.shape[1]), tower=text.tower)
    assert _fit(head, X, y, text).logits(X).shape == (6, 2)


def check_row_of_zeros(head: Head) -> None:
    """A row of zeros has no direction: among the shots it does not stop the fit, as a query it has finite logits."""
    X, y, text = toy_features()
    X[0] = 0
    _fit(head, X, y, text)
    assert (head.predict(X[1:]) == y[1:]).all()
    assert np.isfinite(head.logits(np.zeros_like(X[:2]))).all()


def check_state_round_trip(head: Head) -> None:
    """What was learned survives safetensors bytes, to the last bit of the logits."""
    X, y, text = toy_features()
    expected = _fit(head, X, y, text).logits(X)
    state = load(save({name: np.asarray(value, order="C") for name, value in head.state().items()}))
    again = clone(head).load_state(state, head.classes_.tolist(), head.n_features_in_).attach(text)
    np.testing.assert_array_equal(again.logits(X), expected)


def check_unfitted_raises(head: Head) -> None:
    """Asking before `fit` is an error."""
    expect(NotFittedError, "not fitted", lambda: head.logits(toy_features()[0]))


def check_bad_input_raises(head: Head) -> None:
    """Other widths, values that are not finite, unknown labels, missing rows and single classes are errors."""
    X, y, text = toy_features()
    expect(InputError, "made by the same encoder", lambda: _fit(clone(head), X[:, :-1], y, text))
    expect(ValueError, "NaN", lambda: _fit(clone(head), np.where(X[0, 0] == X, np.nan, X), y, text))
    expect(ValueError, "infinity", lambda: _fit(clone(head), np.where(X[0, 0] == X, np.inf, X), y, text))
    expect(InputError, "wolf", lambda: _fit(clone(head), X, np.where(y == "cat", "wolf", y), text))
    expect(InputError, "labels", lambda: _fit(clone(head), X, y[:-1], text))
    one = TextFeatures(["cat"], text.embeddings[:1], tower=text.tower)
    expect(InputError, "two classes", lambda: _fit(clone(head), X[:2], y[:2], one))
    fitted = _fit(clone(head), X, y, text)
    expect(InputError, "features", lambda: fitted.logits(X[:, :-1]))
    expect(ValueError, "NaN", lambda: fitted.logits(np.full_like(X, np.nan)))


def check_text_is_asked_for(head: Head) -> None:
    """A head that needs class text says so; one that does not, fits without."""
    X, y, _ = toy_features()
    if head.needs_text:
        expect(InputError, "class text", lambda: _fit(head, X, y, None))
    else:
        assert (_fit(head, X, y, None).predict(X) == y).all()


def check_class_without_text(head: Head) -> None:
    """A class that is known by its shots alone is learned, or the head says that it needs text."""
    X, y, text = toy_features()
    rows = np.where(np.arange(3)[:, None] == 1, np.nan, text.embeddings)
    partial = TextFeatures(CLASSES, rows, text.logit_scale, tower=text.tower)
    if head.needs_text:
        expect(InputError, "there is none of dog", lambda: _fit(head, X, y, partial))
    else:
        assert (_fit(head, X, y, partial).predict(X) == y).all()


def check_unlabelled_pictures(head: Head) -> None:
    """A transductive head asks for pictures without labels; any other refuses them."""
    X, y, text = toy_features()
    given = None if head.transductive else X
    expect(InputError, "unlabelled", lambda: head.fit(X, y, text=text, unlabelled=given))


def check_leave_one_out_is_a_refit(head: Head) -> None:
    """Where a closed form gives leave-one-out logits, they are those of a fit without the shot."""
    X, y, text = toy_features((4, 2, 1))
    X = X.astype(np.float64)
    found = head.leave_one_out(X, y, text=text) if not head.transductive else None
    if found is None:
        return
    assert found.shape == (len(X), len(CLASSES))
    for i in range(len(X)):
        others = np.arange(len(X)) != i
        expected = _fit(clone(head), X[others], y[others], text).logits(X[i : i + 1])
        np.testing.assert_allclose(found[i : i + 1], expected, rtol=1e-5, atol=1e-5)


def check_presets_are_parameters(head: Head) -> None:
    """Each preset is a head that can be fitted, and a note says what the values are."""
    assert head.preset_note.endswith("."), "preset_note is a sentence that says what the values of presets are"
    for name in head.presets:
        assert np.isfinite(_fit(type(head).preset(name), *toy_features()).logits(toy_features()[0])).all()


def check_text_part(head: Head) -> None:
    """What is said to come from class text is as wide as the logits, and prefers no class where text prefers none."""
    X, y, text = toy_features()
    found = _fit(head, X, y, text).text_logits(X)
    if found is None:
        return
    assert found.shape == (len(X), len(CLASSES))
    assert not head.needs_text or np.ptp(found, axis=1).min() > 0, (
        "a head that needs text has a part that tells classes"
    )
    saved = {name: np.array(value) for name, value in head.state().items()}
    again = clone(head).load_state(saved, head.classes_.tolist(), head.n_features_in_).attach(text).text_logits(X)
    assert again is not None, "what tells the part is not among what is saved"
    np.testing.assert_array_equal(again, found)
    basis = np.linalg.svd(text.embeddings.astype(np.float64))[2][: len(CLASSES)]
    across = X - X @ basis.T @ basis  # the shots tell their classes there by noise alone, the text not at all
    part = head.text_logits(across)
    assert part is not None
    np.testing.assert_allclose(np.ptp(part, axis=1), 0, atol=1e-4)


HEAD_CHECKS: tuple[Callable[[Head], None], ...] = (
    check_constructor_only_stores,
    check_parameters_are_documented,
    check_fit_returns_self_and_keeps_parameters,
    check_fit_learns,
    check_rows_are_independent,
    check_same_seed_same_result,
    check_global_randomness_is_untouched,
    check_input_is_untouched,
    check_number_types,
    check_views,
    check_unequal_shots,
    check_one_shot,
    check_two_classes,
    check_row_of_zeros,
    check_state_round_trip,
    check_unfitted_raises,
    check_bad_input_raises,
    check_text_is_asked_for,
    check_class_without_text,
    check_unlabelled_pictures,
    check_leave_one_out_is_a_refit,
    check_presets_are_parameters,
    check_text_part,
    *CLASS_CHECKS,
    *SEVERAL_CHECKS,
    *STREAMING_CHECKS,
)
"""Every rule, in the order in which their failures are easiest to understand."""


def check_head(head: Head) -> None:
    """Run every check on clones of an unfitted head.

    Raises:
        AssertionError: at the first rule that does not hold; the traceback names the check.

    >>> from clipadapter.heads import create_head
    >>> check_head(create_head("zero-shot"))
    """
    for check in HEAD_CHECKS:
        check(clone(head))
