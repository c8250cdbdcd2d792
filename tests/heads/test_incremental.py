"""Incremental heads: after any sequence of changes they equal a fit to the remaining shots."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from clipadapter.errors import InputError
from clipadapter.heads import TextFeatures, create_head, head_info, list_heads
from clipadapter.heads.gda import Gda
from clipadapter.heads.incremental import (
    ExactIncrementalHead,
    IncrementalHead,
    find_remaining_rows,
    pack_lower_triangle,
    unpack_lower_triangle,
)
from clipadapter.heads.nearest_mean import NearestMean
from clipadapter.heads.prototype import Prototype
from clipadapter.heads.rail import Rail
from clipadapter.testing import HEAD_CHECKS, check_head, toy_features

from ..failed_checks import names_of_failed_checks

INCREMENTAL_CHECKS = [
    check for check in HEAD_CHECKS if check.__name__.startswith(("check_partial_fit", "check_unlearn", "check_remap"))
]
HEADS = {
    "prototype": Prototype(),
    "prototype without text": Prototype(mix=0.0),
    "nearest-mean": NearestMean(),
    "gda": Gda(stream=True),
    "gda as published": Gda.official(stream=True),
    "gda for new classes": Gda(stream=True, neighbours=3),
    "rail": Rail(),
    "rail, 9 random features": Rail(hidden=9),
    "rail, 99 random features": Rail(hidden=99),
    "rail, dual": Rail(form="dual"),
}
NAMES = [f"class {i}" for i in range(6)]
D = 12


def test_incremental_heads_are_found_by_their_base_class_and_every_exact_one_is_tried_here():
    for name in list_heads():
        cls = head_info(name).cls
        assert issubclass(cls, IncrementalHead) == hasattr(cls, "partial_fit")
        assert not issubclass(cls, ExactIncrementalHead) or (name in HEADS and create_head(name).exact)


@pytest.fixture(scope="module")
def world():
    """Raw features of 20 pictures of each class, two views, and the text of each class."""
    rng = np.random.default_rng(0)
    means = 1 + rng.standard_normal((len(NAMES), D))
    pictures = 3 * (means[:, None, None] + 0.7 * rng.standard_normal((len(NAMES), 20, 2, D)))
    return pictures, dict(zip(NAMES, means + rng.standard_normal(means.shape), strict=True))


class Stream:
    """A head that is changed at random, and the shots that it should have learned."""

    def __init__(self, head, world, seed, views, with_text):
        self.rng, (self.pictures, self.rows) = np.random.default_rng(seed), world
        self.head, self.views, self.with_text = clone(head), views, with_text
        self.classes, self.shots, self.fresh = NAMES[:3], [], dict.fromkeys(NAMES, 0)
        first = [self.new(name) for name in self.classes[: 3 if not with_text else 2]]
        self.head.fit(*self.given(first), text=self.text)
        self.shots += first

    @property
    def text(self):
        if not self.with_text:
            return None
        return TextFeatures(self.classes, [self.rows[name] for name in self.classes], logit_scale=15.0, order="given")

    def new(self, name):
        self.fresh[name] += 1
        return name, self.fresh[name] % 20

    def given(self, shots):
        """Features (n, d) or (n, v, d) and labels."""
        X = np.stack([self.pictures[NAMES.index(name), i, : self.views] for name, i in shots])
        return X[:, 0] if self.views == 1 else X, [name for name, _ in shots]

    def counts(self):
        return {name: sum(own == name for own, _ in self.shots) for name in self.classes}

    def more(self):
        self.learn([self.new(self.rng.choice(self.classes)) for _ in range(self.rng.integers(1, 6))])

    def a_new_class(self):
        fresh = [name for name in NAMES if name not in self.classes]
        if fresh:
            place = self.rng.integers(len(self.classes) + 1)
            self.classes = [*self.classes[:place], fresh[0], *self.classes[place:]]
            self.classes = self.classes if self.with_text else sorted(self.classes)
            self.learn([self.new(fresh[0]), self.new(self.rng.choice(self.classes))])

    def learn(self, shots):
        self.head.partial_fit(*self.given(shots), text=self.text)
        self.shots += shots

    def fewer(self):
        some = self.rng.permutation(len(self.shots))[: self.rng.integers(1, 4)]
        if len(some) < len(self.shots):
            gone = [self.shots[i] for i in some]
            self.head.unlearn(*self.given(gone), text=self.text)
            self.shots = [shot for i, shot in enumerate(self.shots) if i not in some]

    def another_order(self):
        origin = self.rng.permutation(len(self.classes))
        counts = self.counts()
        kept = [i for i in origin if counts[self.classes[i]] or self.rng.random() < 0.5]
        if len(kept) > 1:
            self.classes = [self.classes[i] for i in kept]
            self.head.remap_classes(self.classes, kept, text=self.text)

    def saved_and_loaded(self):
        state = {name: np.array(value) for name, value in self.head.state().items()}
        self.head = clone(self.head).load_state(state, self.head.classes_.tolist(), D)

    def check(self):
        assert self.head.classes_.tolist() == list(self.classes)
        assert self.head.counts_.tolist() == list(self.counts().values())
        expected, Q = clone(self.head), self.pictures[:, ::5, 0].reshape(-1, D)
        if self.with_text:
            expected.fit(*self.given(self.shots), text=self.text)
        else:
            expected.partial_fit(*self.given(self.shots), classes=self.classes)
        order = [expected.classes_.tolist().index(name) for name in self.classes]
        np.testing.assert_allclose(self.head.logits(Q), expected.logits(Q)[:, order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
@settings(deadline=None, max_examples=20, derandomize=True)
@given(
    changes=st.lists(
        st.sampled_from(["more", "more", "fewer", "a_new_class", "another_order", "saved_and_loaded"]), max_size=12
    ),
    seed=st.integers(0, 1000),
    views=st.sampled_from([1, 2]),
    with_text=st.booleans(),
)
def test_any_sequence_of_changes_equals_a_fit_from_scratch(name, world, changes, seed, views, with_text):
    head = HEADS[name]
    stream = Stream(head, world, seed, views, with_text or head.needs_text)
    for change in changes:
        getattr(stream, change)()
        stream.check()


@pytest.mark.parametrize("name", [name for name in HEADS if name not in list_heads() or name == "gda"])
def test_every_variant_keeps_the_rules_of_heads(name):
    check_head(clone(HEADS[name]))


class Broken(Prototype):
    """Breaks one rule."""

    fault = ""

    def _add_shots(self, shots):
        if self.fault == "learns the last shots only":
            self._init_sums(shots)
        super()._add_shots(shots)

    def _update_sums(self, shots, sign):
        before = self.sums_
        super()._update_sums(shots, 1 if self.fault == "takes nothing out" else sign)
        if self.fault == "changes its sums in place, those of its copies too":
            self.sums_ = before.copy_(self.sums_)

    def _remap_sums(self, origin):
        if self.fault != "leaves its sums where they were when classes move":
            return super()._remap_sums(origin)
        self.sums_ = torch.cat([self.sums_, self.sums_.new_zeros(9, self.sums_.shape[1])])[: len(origin)]
        return None

    def state(self):
        state = super().state()
        return {name: state[name] for name in state if self.fault != "does not save its sums" or name != "sums_"}

    def _check_same_use_of_text(self, text):
        if self.fault != "goes on without class text":
            super()._check_same_use_of_text(text)


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("learns the last shots only", "check_partial_fit_in_parts"),
        ("takes nothing out", "check_unlearn"),
        ("leaves its sums where they were when classes move", "check_remap_classes"),
        ("changes its sums in place, those of its copies too", "check_partial_fit_leaves_copies_unchanged"),
        ("does not save its sums", "check_partial_fit_after_loading"),
        ("goes on without class text", "check_partial_fit_refuses_bad_input"),
    ],
)
def test_the_checks_find_broken_heads(fault, rule, monkeypatch):
    assert rule not in names_of_failed_checks(INCREMENTAL_CHECKS, Broken)
    monkeypatch.setattr(Broken, "fault", fault)
    assert rule in names_of_failed_checks(INCREMENTAL_CHECKS, Broken, (AssertionError, AttributeError))


def test_gda_keeps_its_sums_with_stream():
    X, y, text = toy_features()
    plain, streams = (Gda(stream=stream).fit(X, y, text=text) for stream in (False, True))
    np.testing.assert_array_equal(plain.logits(X), streams.logits(X))  # the same sums in the same order
    assert (plain.is_updatable, streams.is_updatable) == (False, True)
    assert set(streams.state()) - set(plain.state()) == {"products_", "sums_", "rows_"}
    with pytest.raises(InputError, match="stream=True"):
        plain.set_params(stream=True).partial_fit(X, y, text=text)
    with pytest.raises(InputError, match="leave stream at False"):
        Gda.base_to_new(stream=True).fit(X, y)


def test_gda_makes_up_new_classes_from_the_views_that_are_left():
    X, y, text = toy_features((5, 5, 5))
    half = np.arange(15) % 2 == 0
    head = Gda(neighbours=4, stream=True).fit(X[half], y[half], text=text)
    head.partial_fit(X[~half], y[~half], text=text).unlearn(X[:4], y[:4], text=text)
    others = TextFeatures(["p", "q"], np.random.default_rng(0).standard_normal((2, X.shape[1])))
    expected = Gda(neighbours=4).fit(X[4:], y[4:], text=text).for_classes(others).logits(X)
    np.testing.assert_allclose(head.for_classes(others).logits(X), expected, rtol=1e-5)


def test_shots_with_other_numbers_of_views_count_by_their_views():
    X, y, text = toy_features()
    X = X.astype(np.float64)
    views = np.stack([X, X[::-1]], axis=1)
    mixed = Gda.official(stream=True).fit(views, y, text=text).partial_fit(X, y, text=text)
    rows = np.concatenate([X, X[::-1], X])
    np.testing.assert_allclose(mixed.logits(X), Gda.official().fit(rows, [*y, *y, *y], text=text).logits(X), rtol=1e-9)


def test_a_packed_triangle_is_unpacked_to_the_lower_half():
    matrix = torch.arange(25.0).reshape(5, 5)
    assert pack_lower_triangle(matrix).tolist() == [0, 5, 6, 10, 11, 12, 15, 16, 17, 18, 20, 21, 22, 23, 24]
    assert torch.equal(unpack_lower_triangle(pack_lower_triangle(matrix)), matrix.tril())
    assert unpack_lower_triangle(torch.zeros(0)).shape == (0, 0)


def test_rows_are_found_despite_rounding_and_each_once():
    rows = torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(0).standard_normal((6, 32))), dim=1)
    rows[4] = rows[1]
    labels = torch.tensor([0, 0, 1, 1, 0, 0])
    noisy = rows[[1, 3, 4]] + 1e-4 * torch.from_numpy(np.random.default_rng(1).standard_normal((3, 32)))
    assert find_remaining_rows(rows, labels, noisy.float(), labels[[1, 3, 4]]).tolist() == [0, 2, 5]
    with pytest.raises(InputError, match="was not learned"):
        find_remaining_rows(rows, labels, rows[[1, 4, 1]], labels[[1, 4, 1]])
