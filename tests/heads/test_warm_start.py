"""Warm starts end near the fit from scratch, also if classes were added, removed or renamed."""

import copy
import functools

import numpy as np
import pytest
import torch
from sklearn.base import clone

from clipadapter.heads import TextFeatures, create_head, head_info, list_heads, out_of_fold
from clipadapter.heads.training import TrainConfig
from clipadapter.utils.towers import WordTower

D, SCALE = 24, 30.0
EVERY = [f"{first}{second}" for first in "abcdefghijklmnop" for second in "xyz"]
OLD = [name for name in EVERY if name != "ez"]
NEW = [*(name for name in EVERY[::-1] if name not in ("cy", "dx")), "renamed"]
"""In another order, with "ez" and without "cy"; "dx" has another name."""
WARM = {name for name in list_heads() if head_info(name).cls.supports_warm_start}
FITTED = sorted(WARM - {"kgcoop", "prograd", "prolip"})
"""Without those whose fit is that of CoOp or RLA: they have another loss, or other columns."""
TUNER = {"n_ctx": 2, "lr": 0.02, "checkpoint": None}
LESS = {
    "clip-adapter": {"steps": 120},
    "svl-adapter": {"hidden": 32, "epochs": 30},
    "coop": {**TUNER, "epochs": 10},
    "cocoop": {**TUNER, "epochs": 3, "batch_size": 16, "ctx_init": None},
}
"""Less work than by default."""


def direction(name, kind=0):
    """A unit vector (d,) for each name, the same whatever others there are."""
    rng = np.random.default_rng([kind, *map(ord, name)])
    found = rng.standard_normal(D)
    return found / np.linalg.norm(found)


def class_text(names):
    tower = WordTower({name: torch.from_numpy(direction(name)) for name in names}, D)
    return TextFeatures(names, [direction(name) for name in names], SCALE, tower=lambda: tower, order="given")


def pictures(names, n, seed):
    """Features and labels, n a class, around a mean that is near the text; what is renamed looks as it did."""
    X, y = [], []
    for name in names:
        mean = direction("dx" if name == "renamed" else name) + 0.5 * direction(name, kind=1)
        X.append(mean + 0.8 / np.sqrt(D) * np.random.default_rng([seed, *map(ord, name)]).standard_normal((n, D)))
        y += [name] * n
    return np.concatenate(X).astype(np.float32), np.array(y)


def shots(names):
    return pictures(names, 6, 0)


def queries(names):
    return pictures(names, 20, 1)


def small(name):
    return create_head(name, **LESS.get(name, {}))


def fitted(head, names, before=None, part=None):
    X, y = shots(names) if part is None else part
    text = class_text(names)
    return head.fit(X, y, text=text) if before is None else head.fit_from(before, X, y, text=text)


@functools.cache
def earlier(name):
    return fitted(small(name), OLD)


@functools.cache
def two_fits(name):
    """From the earlier head, and from the beginning."""
    return fitted(small(name), NEW, earlier(name)), fitted(small(name), NEW)


def is_warm(head):
    return "changed_" in head.state()


def test_these_heads_support_warm_starts():
    of_features = {"clap", "clip-adapter", "cross-modal", "hoso", "linear-probe", "lp++", "rla", "svl-adapter"}
    assert of_features | {"taskres", "zs-lp", "cocoop", "coop", "kgcoop", "prograd", "prolip"} == WARM


@pytest.mark.parametrize("name", FITTED)
def test_a_warm_start_ends_near_the_fit_from_scratch_also_that_of_a_loaded_head(name):
    before, (warm, full) = earlier(name), two_fits(name)
    X, y = queries(NEW)
    assert (is_warm(warm), is_warm(full)) == (True, False)
    assert warm.classes_.tolist() == NEW
    right, expected = ((head.predict(X) == y).mean() for head in (warm, full))
    assert expected > 0.6
    assert right == pytest.approx(expected, abs=0.015)
    assert (warm.predict(X) == full.predict(X)).mean() > 0.95
    loaded = small(name).load_state(before.state(), before.classes_, D).attach(class_text(OLD))
    # the same sums in the same order
    np.testing.assert_array_equal(fitted(small(name), NEW, loaded).logits(X), warm.logits(X))
    if name in ("clip-adapter", "hoso"):
        assert warm.alpha_ == before.alpha_ != full.alpha_  # it keeps the chosen ratio
    if name in ("linear-probe", "lp++", "zs-lp"):  # a plain fit of the same object starts from scratch
        again = fitted(clone(warm).fit_from(before, *shots(NEW), text=class_text(NEW)), NEW)
        assert not is_warm(again)
        np.testing.assert_array_equal(again.logits(X), full.logits(X))  # the same sums in the same order


def test_refits_reuse_the_ratios_of_both_branches():
    head = fitted(create_head("clip-adapter", branch="both", steps=20), NEW)
    head.alpha_ = head.beta_ = 0.234
    X, y = shots(NEW)
    found = head.refit_without(X, y, np.arange(0, len(y), 6), class_text(NEW))
    assert (found.alpha_, found.beta_) == (0.234, 0.234)


@pytest.mark.parametrize(
    ("name", "chosen", "is_warm_start"),
    [("linear-probe", "C_", False), ("linear-probe", "C_", True), ("clip-adapter", "alpha_", True)],
)
def test_a_refit_without_some_shots_reuses_what_was_chosen_among_all(name, chosen, is_warm_start):
    """To search a ratio again in each fold takes many times as long as a fit with it."""
    head = copy.copy(two_fits(name)[not is_warm_start])
    setattr(head, chosen, 0.123)
    X, y = shots(NEW)
    held = np.arange(0, len(y), 6)
    assert getattr(head.refit_without(X, y, held, class_text(NEW)), chosen) == pytest.approx(0.123)
    anew = head.refit_without(X, y, held, class_text(NEW), reuse_chosen=False)
    assert getattr(anew, chosen) != pytest.approx(0.123)
    stay = np.setdiff1d(np.arange(len(y)), held)
    expected = fitted(small(name), NEW, part=(X[stay], y[stay]))
    np.testing.assert_array_equal(anew.logits(X), expected.logits(X))  # the same sums in the same order


def test_heads_of_cv_plus_folds_do_not_depend_on_their_held_out_shots():
    """Weights that saw a shot, and a C that was chosen with it, would answer for it. A warm start holds out 200."""
    warm, full = (out_of_fold(head, *shots(NEW), class_text(NEW)) for head in two_fits("linear-probe"))
    assert len(full.rows) == len(shots(NEW)[1]) > 280
    assert 200 <= len(warm.rows) < 260
    for before in two_fits("linear-probe"):
        head = copy.copy(before)
        head.C_ = 0.123
        own, folds = (out_of_fold(head, *shots(NEW), class_text(NEW), keep_heads=keep) for keep in (False, True))
        assert len(folds.heads) == 5
        assert not any(is_warm(each) or each.C_ == head.C_ for each in folds.heads)
        assert own.logits.shape != folds.logits.shape or not np.allclose(own.logits, folds.logits)


def test_auto_holds_out_its_shots_again_in_each_fit():
    """Its folds take most of its time, and tell of trust: they are those of a plain fit, and so is all the rest."""
    warm, full = fitted(create_head("auto"), NEW, fitted(create_head("auto"), OLD)), fitted(create_head("auto"), NEW)
    own = [out_of_fold(head, *shots(NEW), class_text(NEW), strategies=("own",)).logits for head in (warm, full)]
    np.testing.assert_array_equal(*own)  # the same sums in the same order


def test_a_warm_started_linear_probe_keeps_its_c_also_with_multilabel_targets():
    expected = fitted(create_head("linear-probe", C=earlier("linear-probe").C_), NEW)
    X = queries(NEW)[0]
    # the same sums in the same order
    np.testing.assert_array_equal(two_fits("linear-probe")[0].logits(X), expected.logits(X))
    X, y = shots(OLD)
    targets = (y[:, None] == np.unique(y)).astype(np.int64)
    before = create_head("linear-probe").fit(X, targets)
    before.C_ = 3.0  # none that would be chosen
    assert create_head("linear-probe").fit_from(before, X, targets).C_ == 3.0
    assert create_head("linear-probe").fit_from(before, X, y).C_ != 3.0


def part_of(change):
    """Shots of the old classes, changed."""
    X, y = shots(OLD)
    if change == "many more":
        return np.concatenate([X, X[::9]]), np.concatenate([y, y[::9]])
    if change == "many other labels":
        return X, np.where(np.arange(len(y)) % 16 == 0, "ax", y)
    return X[:, :20] if change == "width" else X, y


@pytest.mark.parametrize("change", ["many more", "many other labels", "width", "parameter", "scale"])
def test_a_fit_from_an_incompatible_head_starts_from_scratch(change):
    """Every head asks `find_warm_start`, which compares the two fits."""
    X, y = part_of(change)
    text = class_text(OLD)
    text = TextFeatures(OLD, text.embeddings[:, : X.shape[1]], 20.0 if change == "scale" else SCALE, tower=text.tower)
    head = small("rla").set_params(seed=int(change == "parameter"))
    warm = clone(head).fit_from(earlier("rla"), X, y, text=text)
    assert not is_warm(warm)
    # the same sums in the same order
    np.testing.assert_array_equal(warm.logits(X), clone(head).fit(X, y, text=text).logits(X))


def test_views_and_precision_of_the_shots_may_change():
    X, y = shots(OLD)
    for changed in (X[:, None].repeat(2, axis=1), X.astype(np.float64)):
        warm = small("clip-adapter").fit_from(earlier("clip-adapter"), changed, y, text=class_text(OLD))
        assert is_warm(warm)
        assert np.isfinite(warm.logits(queries(OLD)[0])).all()


def test_changes_add_up_until_the_next_fit_from_scratch():
    """Of 282 shots, 28 may have; one with another label counts for two, since a class lost it and a class got it."""
    X, y = shots(OLD)
    head, found = fitted(create_head("linear-probe", C=1.0), OLD), []
    for i in range(1, 17):
        labels = y.copy()
        labels[:i] = "pz"
        head = fitted(clone(head), OLD, head, (X, labels))
        found.append(int(head.state().get("changed_", -1)))
    assert found == [*range(2, 30, 2), -1, 2]


@pytest.mark.parametrize("name", ["clip-adapter", "hoso"])
def test_many_warm_starts_in_a_row_overfit_little_more_than_one_fit(name):
    """Twelve of them make three times the steps of a fit, which at full weight leave 0.32 and 0.62 of its loss."""
    full = head = earlier(name)
    for _ in range(12):
        head = fitted(small(name), OLD, head)
    X, y = shots(OLD)
    rows = np.arange(len(y)), [OLD.index(label) for label in y]
    loss, once = (-np.log(one.predict_proba(X)[rows]).mean() for one in (head, full))
    assert loss > 0.7 * once


@pytest.mark.parametrize("name", ["zs-lp", "svl-adapter", "hoso"])
def test_it_makes_a_quarter_of_the_passes(name, monkeypatch):
    count_epochs, counted = TrainConfig.count_epochs, []

    def counting(config, n):
        counted.append(count_epochs(config, n))
        return counted[-1]

    monkeypatch.setattr(TrainConfig, "count_epochs", counting)
    fitted(small(name), NEW, earlier(name))
    assert counted[-1] == round(counted[0] / 4)  # of the usual number
