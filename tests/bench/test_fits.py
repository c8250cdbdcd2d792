import random

import numpy as np
import pytest
import torch

from clipadapter.bench import BASELINES, default_heads, few_shot, read_runs
from clipadapter.errors import InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import Head, head_info, list_heads
from clipadapter.heads.linear_probe import LinearProbe
from clipadapter.heads.zero_shot import ZeroShot

CALLS = []


@pytest.fixture(autouse=True)
def nothing_seen():
    CALLS.clear()


class SpyHead(Head):
    """Notes what it is fitted to and in which order it is asked."""

    def __init__(self, name="spy", seed=0):
        self.name = name
        self.seed = seed

    def _fit(self, shots):
        CALLS.append(("fit", self.name, self.seed, shots.views.numpy().copy(), shots.labels.tolist()))
        self.text_ = shots.text

    def _logits(self, X):
        CALLS.append(("logits", self.name, self.seed, X.numpy().copy(), None))
        return X @ self.text_.T.to(X.dtype)


class FailingHead(Head):
    def _fit(self, shots):
        if len(shots.labels) < 4:
            raise RuntimeError("two shots or more")
        self.text_ = shots.text

    def _logits(self, X):
        return X @ self.text_.T.to(X.dtype)


def draw(labels, shots, seed):
    """The draw of the papers in plain Python: one stream, class after class."""
    stream, rows = random.Random(seed), []
    for name in dict.fromkeys(labels):
        rows += stream.sample([row for row, label in enumerate(labels) if label == name], shots)
    return rows


def fits():
    return [entry for entry in CALLS if entry[0] == "fit"]


def test_a_head_is_fitted_to_the_drawn_rows_and_nothing_else(support, test_part, text):
    runs = few_shot({"spy": SpyHead()}, support, test_part, text, shots=[1, 3], seeds=[1, 2])
    expected = [draw(support.y, n, seed) for n in (1, 3) for seed in (1, 2)]
    assert [run.rows for run in runs] == expected
    for (_, _, _, views, labels), rows in zip(fits(), expected, strict=True):
        np.testing.assert_array_equal(views[:, 0], support.X[rows])
        assert labels == [("cat", "dog").index(support.y[row]) for row in rows]
    fitted = np.concatenate([views[:, 0] for _, _, _, views, _ in fits()])
    assert not any((row == fitted).all(axis=1).any() for row in test_part.X)


def test_every_head_gets_the_same_rows(support, test_part, text):
    heads = {"a": SpyHead("a"), "b": SpyHead("b")}
    runs = few_shot(heads, support, test_part, text, shots=[2], seeds=[1, 2])
    assert [(run.head, run.seed) for run in runs] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    a, b = ([entry[3] for entry in fits() if entry[1] == name] for name in "ab")
    np.testing.assert_array_equal(a, b)


def test_the_test_part_is_opened_after_the_fit_once(support, test_part, text):
    few_shot({"spy": SpyHead()}, support, test_part, text, shots=[1], seeds=[1])
    assert [entry[0] for entry in CALLS] == ["fit", "logits"]
    np.testing.assert_array_equal(CALLS[1][3], test_part.X)


def test_a_head_with_a_seed_gets_that_of_the_draw(support, test_part, text):
    few_shot({"spy": SpyHead(seed=7)}, support, test_part, text, shots=[1], seeds=[3, 5])
    assert [entry[2] for entry in fits()] == [3, 5]


def test_the_given_heads_stay_unfitted(support, test_part, text):
    head = SpyHead()
    few_shot({"spy": head}, support, test_part, text, shots=[1], seeds=[1])
    assert vars(head) == {"name": "spy", "seed": 0}


def test_all_views_of_a_shot_are_fitted_to(text, test_part):
    X = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    support = FeatureSet(X, ("cat", "cat", "dog", "dog"), ("cat", "dog"))
    few_shot({"spy": SpyHead()}, support, test_part, text, shots=[2], seeds=[1])
    rows = draw(support.y, 2, 1)
    np.testing.assert_array_equal(fits()[0][3], X[rows])


def test_figures_are_those_that_can_be_counted(support, test_part, text):
    (run,) = few_shot({"zero-shot": ZeroShot()}, support, test_part, text, shots=[1], seeds=[1])
    assert (run.metrics.accuracy, run.n_test, run.n_classes) == (0.75, 4, 2)  # one cat of three looks like a dog
    assert run.metrics["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    # Cosines times the scale of 10, by hand.
    rows = [(2, 1, 0), (3, 1, 0), (1, 2, 0), (1, 3, 1)]
    losses = []
    for x, y, label in rows:
        logits = 10 * np.array([x, y]) / np.hypot(x, y)
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
    assert run.metrics["log_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_without_a_test_part_the_rest_is_tested_on(support, text):
    runs = few_shot({"spy": SpyHead()}, support, None, text, shots=[2], seeds=[1])
    undrawn = [row for row in range(10) if row not in runs[0].rows]
    np.testing.assert_array_equal(CALLS[-1][3], support.X[undrawn])
    assert (runs[0].n_test, runs[0].data.protocol) == (6, "rest")


def test_if_every_row_is_drawn_nothing_is_left_to_test_on(support, text):
    with pytest.raises(InputError, match="the shots are all 10 pictures, so that none is left to test on"):
        few_shot({"spy": SpyHead()}, support, None, text, shots=[5], seeds=[1])


def test_a_head_that_fails_is_recorded_and_the_others_still_run(support, test_part, text):
    heads = {"bad": FailingHead(), "zero-shot": ZeroShot()}
    runs = few_shot(heads, support, test_part, text, shots=[1, 2], seeds=[1])
    assert [run.error for run in runs] == ["RuntimeError: two shots or more", None, None, None]
    assert runs[0].metrics is None and runs[0].seconds is None
    assert all(run.metrics is not None for run in runs[1:])


def test_numbers_that_were_learned_are_recorded(support, test_part, text):
    (run,) = few_shot({"p": LinearProbe(C=3.0)}, support, test_part, text, shots=[2], seeds=[1])
    assert run.learned["C_"] == 3.0
    assert run.params["C"] == 3.0


def test_a_recorded_run_is_not_made_again(support, test_part, text, tmp_path):
    def go(seeds):
        return few_shot({"spy": SpyHead()}, support, test_part, text, [1], seeds, records=tmp_path / "runs.jsonl")

    first = go([1, 2])
    assert read_runs(tmp_path / "runs.jsonl") == first
    second = go([1, 2, 3])
    assert second[:2] == first
    assert [entry[2] for entry in fits()] == [1, 2, 3]


def test_other_data_make_another_run(support, test_part, text, tmp_path):
    for features in (test_part, test_part.take([0, 1, 3])):
        few_shot({"spy": SpyHead()}, support, features, text, [1], [1], records=tmp_path / "runs.jsonl")
    assert [run.n_test for run in read_runs(tmp_path / "runs.jsonl")] == [4, 3]


def test_a_run_that_failed_is_tried_again(support, test_part, text, tmp_path):
    for _ in range(2):
        few_shot({"bad": FailingHead()}, support, test_part, text, [1], [1], records=tmp_path / "runs.jsonl")
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2
    assert len(read_runs(tmp_path / "runs.jsonl")) == 1  # the last line of a key


def test_runs_are_recorded_one_by_one(support, test_part, text, tmp_path):
    class Stop(BaseException):
        pass

    class Interrupted(SpyHead):
        def _fit(self, shots):
            raise Stop

    with pytest.raises(Stop):
        few_shot(
            {"spy": SpyHead(), "stop": Interrupted()}, support, test_part, text, [1], [1], records=tmp_path / "r.jsonl"
        )
    assert [run.head for run in read_runs(tmp_path / "r.jsonl")] == ["spy"]


def test_global_random_state_is_left_alone(support, test_part, text):
    before = random.getstate(), torch.get_rng_state()
    few_shot({"p": LinearProbe()}, support, test_part, text, [2], [1])
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_of_two_encoders_features_a_head_for_one_gets_the_first(support, text):
    wide = FeatureSet(
        np.hstack([support.X, np.full((10, 3), 7.0)]),
        support.y,
        text.labels,
        blocks=[("final", support.X.shape[1]), ("other/final", 3)],
    )
    runs = few_shot({"spy": SpyHead()}, wide, None, text, [1], [1])
    assert runs[0].error is None
    np.testing.assert_array_equal(fits()[0][3][:, 0], support.X[runs[0].rows])


def test_by_default_every_registered_head_but_the_slow_takes_part_the_baselines_first():
    assert list(default_heads())[:2] == list(BASELINES)
    excluded = set(list_heads()) - set(default_heads())
    assert excluded == {name for name in list_heads() if head_info(name).facts.get("compare") is False}
    assert {"coop", "clip-lora"} <= excluded


@pytest.mark.parametrize(("shots", "seeds"), [([], [1]), ([1], [])])
def test_nothing_to_run_is_an_error(support, test_part, text, shots, seeds):
    with pytest.raises(InputError, match="there is nothing to run"):
        few_shot({"spy": SpyHead()}, support, test_part, text, shots, seeds)


def test_no_shots_is_an_error(support, test_part, text):
    with pytest.raises(InputError, match="shots must be 1 or more, but are 0, 2"):
        few_shot({"spy": SpyHead()}, support, test_part, text, [0, 2], [1])


def test_a_test_label_that_is_no_class_is_refused_before_any_fit(support, text):
    cow = FeatureSet([[1, 2]], ("cow",), ("cow",))
    with pytest.raises(InputError, match="no class of the model: cow"):
        few_shot({"spy": SpyHead()}, support, cow, text, [1], [1])
    assert not CALLS
