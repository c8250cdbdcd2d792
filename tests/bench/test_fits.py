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


class FailingHead(SpyHead):
    def _fit(self, shots):
        if len(shots.labels) < 4:
            raise RuntimeError("two shots or more")
        super()._fit(shots)


def draw(labels, shots, seed):
    """The draw of the papers in plain Python: one stream, class after class."""
    stream, rows = random.Random(seed), []
    for name in dict.fromkeys(labels):
        rows += stream.sample([row for row, label in enumerate(labels) if label == name], shots)
    return rows


def fits():
    return [entry for entry in CALLS if entry[0] == "fit"]


def test_heads_are_fitted_to_the_drawn_rows_alone_and_asked_once_after_that(support, test_part, text):
    heads = {name: SpyHead(name, seed=7) for name in "ab"}
    random_states = random.getstate(), torch.get_rng_state()
    runs = few_shot(heads, support, test_part, text, shots=[1, 3], seeds=[3, 5])
    draws = [(n, seed, draw(support.y, n, seed)) for n in (1, 3) for seed in (3, 5)]
    made = [(run.head, run.shots, run.seed, run.rows) for run in runs]
    assert made == [(name, *own) for own in draws for name in "ab"]
    assert [entry[0] for entry in CALLS] == ["fit", "logits"] * 8
    for run, fit, logits in zip(runs, CALLS[::2], CALLS[1::2], strict=True):
        assert fit[1:3] == (run.head, run.seed)  # a head with a seed gets that of the draw
        np.testing.assert_array_equal(fit[3][:, 0], support.X[run.rows])
        assert fit[4] == [("cat", "dog").index(support.y[row]) for row in run.rows]
        np.testing.assert_array_equal(logits[3], test_part.X)
    assert vars(heads["a"]) == {"name": "a", "seed": 7}  # unfitted
    assert random.getstate() == random_states[0] and torch.equal(torch.get_rng_state(), random_states[1])


def test_all_views_of_a_shot_are_fitted_to(text, test_part):
    X = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    support = FeatureSet(X, ("cat", "cat", "dog", "dog"), ("cat", "dog"))
    few_shot({"spy": SpyHead()}, support, test_part, text, shots=[2], seeds=[1])
    rows = draw(support.y, 2, 1)
    np.testing.assert_array_equal(fits()[0][3], X[rows])


def test_figures_are_those_that_can_be_counted_and_learned_numbers_are_recorded(support, test_part, text):
    (run,) = few_shot({"zero-shot": ZeroShot()}, support, test_part, text, shots=[1], seeds=[1])
    assert (run.metrics.accuracy, run.n_test, run.n_classes) == (0.75, 4, 2)  # one cat of three looks like a dog
    assert run.metrics["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    # Cosines times the scale of 10, by hand.
    X = np.array([[2, 1], [3, 1], [1, 2], [1, 3]])
    logits = 10 * X / np.linalg.norm(X, axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[range(4), [0, 0, 0, 1]]
    assert run.metrics["log_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    (run,) = few_shot({"p": LinearProbe(C=3.0)}, support, test_part, text, shots=[2], seeds=[1])
    assert run.learned["C_"] == run.params["C"] == 3.0


def test_without_a_test_part_the_rest_is_tested_on(support, text):
    runs = few_shot({"spy": SpyHead()}, support, None, text, shots=[2], seeds=[1])
    undrawn = [row for row in range(10) if row not in runs[0].rows]
    np.testing.assert_array_equal(CALLS[-1][3], support.X[undrawn])
    assert (runs[0].n_test, runs[0].data.protocol) == (6, "rest")
    with pytest.raises(InputError, match="the shots are all 10 pictures, so that none is left to test on"):
        few_shot({"spy": SpyHead()}, support, None, text, shots=[5], seeds=[1])


def test_a_head_that_fails_is_recorded_and_the_others_still_run(support, test_part, text):
    heads = {"bad": FailingHead(), "zero-shot": ZeroShot()}
    runs = few_shot(heads, support, test_part, text, shots=[1, 2], seeds=[1])
    assert [run.error for run in runs] == ["RuntimeError: two shots or more", None, None, None]
    assert runs[0].metrics is None and runs[0].seconds is None
    assert all(run.metrics is not None for run in runs[1:])


def test_records_are_written_one_by_one_and_only_failed_ones_are_made_again(support, test_part, text, tmp_path):
    class Stop(BaseException):
        pass

    class Interrupted(SpyHead):
        def _fit(self, shots):
            raise Stop

    file = tmp_path / "runs.jsonl"

    def go(seeds=(1,), features=test_part, **heads):
        return few_shot(heads or {"spy": SpyHead()}, support, features, text, [1], seeds, records=file)

    with pytest.raises(Stop):
        go(spy=SpyHead(), stop=Interrupted())
    assert [run.head for run in read_runs(file)] == ["spy"]
    first = go([1, 2])
    assert read_runs(file) == first == go([1, 2, 3])[:2]
    assert [entry[2] for entry in fits()] == [1, 2, 3]
    go(features=test_part.take([0, 1, 3]))  # other data make another run
    assert [run.n_test for run in read_runs(file)] == [4, 4, 4, 3]
    for _ in range(2):
        go(bad=FailingHead())
    assert len(file.read_text().splitlines()) == 6
    assert len(read_runs(file)) == 5  # the last line of a key


def test_of_two_encoders_features_a_head_for_one_gets_the_first(support, text):
    X, blocks = np.hstack([support.X, np.full((10, 3), 7.0)]), [("final", 2), ("other/final", 3)]
    wide = FeatureSet(X, support.y, text.labels, blocks=blocks)
    runs = few_shot({"spy": SpyHead()}, wide, None, text, [1], [1])
    assert runs[0].error is None
    np.testing.assert_array_equal(fits()[0][3][:, 0], support.X[runs[0].rows])


def test_by_default_every_registered_head_but_the_slow_takes_part_the_baselines_first():
    assert list(default_heads())[:2] == list(BASELINES)
    excluded = set(list_heads()) - set(default_heads())
    assert excluded == {name for name in list_heads() if head_info(name).facts.get("compare") is False}
    assert {"coop", "clip-lora"} <= excluded


@pytest.mark.parametrize(
    ("shots", "seeds", "label", "error"),
    [
        ([], [1], "cat", "there is nothing to run"),
        ([1], [], "cat", "there is nothing to run"),
        ([0, 2], [1], "cat", "shots must be at least 1, got 0"),
        ([1], [1], "cow", "no class of the model: cow"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_fit(support, text, shots, seeds, label, error):
    with pytest.raises(InputError, match=error):
        few_shot({"spy": SpyHead()}, support, FeatureSet([[1, 2]], (label,), (label,)), text, shots, seeds)
    assert not CALLS
