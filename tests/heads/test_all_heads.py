"""Every registered head against every check; a new head needs no entry here."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.estimator_checks import check_estimator

from clipadapter import heads
from clipadapter.heads import Head, TextFeatures, create_head, head_info, list_heads
from clipadapter.heads.auto import head as auto_head
from clipadapter.heads.auto.experts import EXPERTS
from clipadapter.heads.base import HEADS
from clipadapter.heads.knn import Knn
from clipadapter.testing import HEAD_CHECKS, toy_features
from clipadapter.testing.heads import check_picture_features_are_declared
from clipadapter.utils import parallel
from clipadapter.utils.towers import WordTower

from ..failed_checks import names_of_failed_checks
from .estimators import create_short, with_own_text

NAMES = [name for name in list_heads() if not head_info(name).cls.tunes_encoder]
"""A head that tunes the encoder can't be fitted to features alone; see tests/tuners."""


LEARNING = {"check_constructor_only_stores", "check_fit_learns", "check_multilabel_fit", "check_presets_are_parameters"}
"""Rules that depend on how long a head trains: the head as it is created. All others hold after a few steps too."""


@pytest.fixture
def fewer_folds(monkeypatch):
    """The stacking of auto divides the shots once."""
    for repeats in ("MAX_REPEATS", "MAX_MULTILABEL_REPEATS"):
        monkeypatch.setattr(auto_head, repeats, 1)


@pytest.mark.usefixtures("fewer_folds")
@pytest.mark.parametrize("name", NAMES)
def test_head_passes_the_checks(name):
    """All rules are one test, whose error names the rule: 1,300 short tests take longer to hand out than to run."""
    excused = head_info(name).facts.get("xfail", {})
    for check in HEAD_CHECKS:
        rule = check.__name__
        head = create_head(name) if rule in LEARNING else create_short(name)
        if rule in excused:
            with pytest.raises(Exception):  # noqa: B017 # an excuse that is not needed any more is an error
                check(head)
            continue
        try:
            check(head)
        except Exception as error:
            error.add_note(f"{name} breaks the rule {rule}")
            raise


# Heads have the protocol of BaseEstimator, but import scikit-learn only when one of its tools is used.
@pytest.mark.filterwarnings("ignore:.*does not inherit from .sklearn.base.BaseEstimator:UserWarning")
@pytest.mark.usefixtures("fewer_folds")
@pytest.mark.parametrize("name", NAMES)
def test_a_head_is_a_scikit_learn_estimator(name, monkeypatch):
    """All 53 checks of scikit-learn are one test: 1,800 short tests take longer to hand out than to run."""
    monkeypatch.setattr(auto_head, "EXPERTS", {kind: EXPERTS[kind] for kind in ("ridge", "probe")})
    results = check_estimator(
        with_own_text(name), expected_failed_checks=head_info(name).facts.get("xfail"), on_skip=None
    )
    assert len(results) > 40
    assert [result["check_name"] for result in results if result["expected_to_fail"] and not result["exception"]] == []


def test_every_head_is_imported_from_the_package_and_says_what_the_values_of_its_presets_are():
    with_presets = set()
    for name in list_heads():
        cls = head_info(name).cls
        if cls.__module__.startswith("clipadapter.heads."):
            assert getattr(heads, cls.__name__) is cls
            assert cls.__name__ in heads.__all__
        if cls.presets:
            with_presets.add(name)
            assert cls.preset_note != Head.preset_note, name
    assert {"tip-adapter", "tip-adapter-f", "taskres"} <= with_presets


def test_a_registered_head_of_another_package_is_checked_too():
    @HEADS.register("test-only-broken")
    class Broken(Head):
        """Forgets its parameter."""

        def __init__(self, size: int = 1) -> None:
            self.other = size

        def _fit(self, shots):
            self.done_ = 1

        def _logits(self, X):
            return -X[:, :3]

    try:
        failed = names_of_failed_checks(HEAD_CHECKS, Broken)
        assert "check_constructor_only_stores" in failed
        assert "check_fit_learns" in failed
    finally:
        del HEADS._entries["test-only-broken"]


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=4, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 6), min_size=2, max_size=6).filter(lambda counts: sum(n > 0 for n in counts) > 1),
    d=st.sampled_from([7, 64, 300]),
    length=st.sampled_from([1e-3, 1.0, 1e4]),
    scale=st.sampled_from([1.0, 28.0, 120.0]),
    views=st.sampled_from([1, 3]),
)
def test_any_shape_imbalance_and_scale_gives_finite_logits(name, counts, d, length, scale, views):
    rng = np.random.default_rng(sum(counts) + d)
    names = [f"class {i}" for i in range(len(counts))]
    X = length * rng.standard_normal((sum(counts), views, d)).astype(np.float32)
    rows = rng.standard_normal((len(counts), d))
    words = WordTower({str(i): torch.from_numpy(row) for i, row in enumerate(rows)}, d)
    text = TextFeatures(names, rows, scale, tower=lambda: words)
    Q = length * rng.standard_normal((9, d)).astype(np.float32)
    head = create_short(name)
    head.fit(X, np.repeat(names, counts), text=text, unlabelled=Q if head.transductive else None)
    logits = head.logits(Q)
    assert logits.shape == (9, len(counts))
    assert np.isfinite(logits).all()


def test_stored_shots_that_are_not_declared_fail_a_check():
    class Undeclared(Knn):
        picture_features = ()

    check_picture_features_are_declared(Knn())
    with pytest.raises(AssertionError, match="keys_ has features of shots as 12 rows: name it in picture_features"):
        check_picture_features_are_declared(Undeclared())


@pytest.mark.usefixtures("fewer_folds")
@pytest.mark.parametrize(("name", "params"), [("auto", {}), ("clip-adapter", {"steps": 3})])
def test_threads_change_no_answer_and_no_logit_by_more_than_rounding(name, params, monkeypatch):
    monkeypatch.setattr(parallel, "MIN_PARALLEL_TASK_WORK", 0)
    X, y, text = toy_features((6, 6, 6), noise=2.0)
    before, logits = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            logits.append(create_head(name, **params).fit(X, y, text=text).logits(X))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*(each.argmax(axis=1) for each in logits))
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5 * np.abs(logits[0]).max())  # sums in another order
