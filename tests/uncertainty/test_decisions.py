import json

import numpy as np
import pytest
from scipy.stats import binomtest

from clipadapter.errors import ArtifactError, InputError, UnknownNameError
from clipadapter.uncertainty import (
    Answers,
    Calibrator,
    DecisionOptions,
    HeldOutAccuracy,
    Uncertainty,
    UncertaintyOptions,
    decisions,
    learn_conformal,
    learn_rejector,
)
from clipadapter.utils.prediction import PredictionColumns

from .drawn_shots import world

NAMES = ("cat", "dog", "cow")


def uncertainty(**asked):
    """Of three classes that lie on the axes, learned from eight shots each."""
    rng = np.random.default_rng(0)
    y = np.arange(24) % 3
    X = np.eye(3)[y] + 0.1 * rng.normal(size=(24, 3))
    calibrator = Calibrator(temperature=0.5)
    p = calibrator.probabilities(X)
    rejector = learn_rejector(X, y, 3, logits=X, text=np.eye(3))
    return Uncertainty(calibrator, rejector, learn_conformal(p, y), DecisionOptions(**asked), "folds")


def test_a_picture_unlike_every_class_is_marked_and_keeps_its_answer_unless_it_is_rejected():
    rows = np.array([[1.0, 0.0, 0.0], [-1.0, -0.9, -1.1]])
    found, rejecting = uncertainty().answer(rows, rows), uncertainty(reject=0.05).answer(rows, rows)
    like, unlike = (found.prediction(i, "x.jpg", NAMES) for i in range(2))
    assert (like.label, like.unlike_every_class, like.reason) == ("cat", False, None)
    assert (unlike.label, unlike.unlike_every_class) == ("dog", True)
    assert unlike.ood_score > found.ood_scores[0] == like.ood_score
    assert unlike.record()["unlike_every_class"] is True
    assert list(found.columns(NAMES).predictions(["x.jpg", "x.jpg"])) == [like, unlike]
    assert rejecting.rejected.tolist() == [False, True]
    said = rejecting.prediction(1, "x.jpg", NAMES)
    assert (said.label, said.nearest) == (None, "dog") and "than" in said.reason == unlike.reason
    said = Uncertainty().answer(rows, rows).prediction(1, "x.jpg", NAMES)  # has learned no scores
    assert (said.label, said.unlike_every_class, said.ood_score, said.reason) == ("dog", False, None, None)


def test_the_best_class_is_the_most_probable_one_unless_unequal_costs_decide():
    logits, rows = [[1.0, 0.0, 0.5]], [[1.0, 0.0, 0.0]]
    found = uncertainty(coverage=0.9).answer(logits, rows)
    assert found.probabilities[0] == pytest.approx(np.exp([2, 0, 1]) / np.exp([2, 0, 1]).sum())
    said = found.prediction(0, "x.jpg", NAMES, top=2)
    assert (said.label, said.nearest, said.reason, said.labels[0]) == ("cat", "cat", None, "cat")
    assert [name for name, _ in said.top] == ["cat", "cow"]
    found = uncertainty(costs=np.array([[0, 1, 1], [1, 0, 1], [50, 50, 0]])).answer(logits, rows)
    said = found.prediction(0, "x.jpg", NAMES, top=2)
    assert [name for name, _ in said.top] == ["cow", "cat"]
    assert (said.label, said.labels, said.probability) == ("cow", None, pytest.approx(found.probabilities[0, 2]))


def test_given_decisions_override_the_default():
    one = uncertainty(reject=0.1, coverage=0.9)
    strange = np.array([[-1.0, -1.0, -1.0]])
    assert one.answer(strange, strange).rejected.all()
    none = one.answer(strange, strange, one.decisions.with_changes({"reject": None, "coverage": None}))
    assert not none.rejected.any() and none.sets is None
    with pytest.raises(UnknownNameError, match="Did you mean 'reject'"):
        one.decisions.with_changes({"rejekt": 0.1})


def test_decisions_without_a_learned_part_or_the_answers_of_the_folds_are_refused():
    for asked in ({"reject": 0.1}, {"coverage": 0.9}):
        with pytest.raises(InputError, match="two shots of each class"):
            Uncertainty().answer([[1.0, 0.0]], [[1.0, 0.0]], DecisionOptions(**asked))
    p = Calibrator().probabilities(np.eye(3))
    by_folds = Uncertainty(conformal=learn_conformal(p, np.arange(3), method="cv+", folds=np.array([0, 1, 1])))
    with pytest.raises(InputError, match="all folds"):
        by_folds.answer(np.eye(3), np.eye(3), DecisionOptions(coverage=0.5))
    assert by_folds.answer(np.eye(3), np.eye(3), DecisionOptions(coverage=0.5), [np.eye(3)] * 2).sets.shape == (3, 3)


def test_a_loaded_state_gives_equal_predictions_and_a_damaged_one_is_refused():
    one = uncertainty(reject=0.1, coverage=0.8, costs=1 - np.eye(3))
    state, arrays = one.state()
    again = Uncertainty.from_state(state, arrays, classes=3)
    rows = np.random.default_rng(1).normal(size=(9, 3))
    before, after = one.answer(rows, rows), again.answer(rows, rows)
    assert before.reasons == after.reasons
    for name in ("probabilities", "best", "ood_scores", "rejected", "sets"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    for facts, classes, words in (
        ({"reject": 2.0}, 3, "its 'reject' is 2.0"),
        ({"coverage": "all"}, 3, "its 'coverage' is 'all'"),
        ({}, 4, "3 classes"),
    ):
        with pytest.raises(ArtifactError, match=words):
            Uncertainty.from_state({**state, **facts}, arrays, classes)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"reject": 1.5}, "between 0 and 1"), ({"calibration": "isotonic"}, "vector"), ({"sets": "jackknife"}, "cross")],
)
def test_invalid_options_list_the_valid_ones(options, words):
    with pytest.raises(InputError, match=words):
        UncertaintyOptions(**options)


class FixedCache:
    """Test-time adaptation whose probabilities are given."""

    def __init__(self, probabilities):
        self.probabilities = np.array(probabilities)

    def adapt(self, features, logits):
        return np.log(self.probabilities)


def test_adapted_probabilities_decide_the_class_but_not_rejection_and_sets():
    rows = np.array([[1.0, 0.0, 0.0], [-1.0, -0.9, -1.1]])
    cache = FixedCache([[0.1, 0.7, 0.2], [1e-9, 1e-9, 1.0]])
    model = uncertainty(reject=0.1, coverage=0.8)
    plain, found = model.answer(rows, rows), model.answer(rows, rows, cache=cache)
    assert plain.best[0] == 0 and found.best.tolist() == [1, 2]
    np.testing.assert_allclose(found.probabilities, cache.probabilities, atol=1e-8)
    np.testing.assert_array_equal(found.ood_scores, plain.ood_scores)
    assert found.rejected.tolist() == plain.rejected.tolist() == [False, True]
    assert plain.sets[0].tolist() == [True, False, False] and found.sets[0, 1]
    # Neither less nor more than the set without adaptation and the class.
    np.testing.assert_array_equal(found.sets[0, [0, 2]] & ~plain.sets[0, [0, 2]], [False, False])


def test_votes_of_views_decide_the_class_unless_there_are_costs(monkeypatch):
    monkeypatch.setattr(decisions, "vote", lambda views: (np.array([2]), np.array([[0.6, 0.1, 0.3]])))
    views = np.array([[[1.0, 0.0, 0.5], [0.0, 0.0, 0.5]]])
    assert uncertainty().answer(views[:, 0], views, view_logits=views).best.tolist() == [2]
    costs = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    assert uncertainty(costs=costs).answer(views[:, 0], views, view_logits=views).best.tolist() == [0]


@pytest.mark.parametrize("top", [1, 2, 5, 99])
@pytest.mark.parametrize("kind", ["plain", "sets", "multilabel"])
def test_columns_have_the_predictions_of_all_pictures_with_names_in_the_order_of_a_stable_sort(kind, top):
    """The decided class stands first."""
    rng, m, c = np.random.default_rng(0), 200, 12
    names = [f"class {k}" for k in range(c)]
    p = rng.integers(0, 6, (m, c)) / 6  # many are equal
    rejected = rng.random(m) < 0.3
    sets = rng.random((m, c)) < 0.3
    if kind == "multilabel":
        rejected = ~sets.any(axis=1)
        best = np.where(sets, p, p - 1).argmax(axis=1)
    else:
        best = rng.integers(0, c, m)  # by costs or votes it need not be the most probable one
        sets[np.arange(m), best] = True
    reasons = tuple("far" if no else None for no in rejected)

    def part(rows):
        own_sets = None if kind == "plain" else sets[rows]
        return Answers(p[rows], best[rows], None, rejected[rows], reasons[rows], own_sets, kind == "multilabel")

    answers, sources = part(slice(m)), [str(i) for i in range(m)]
    expected = [answers.prediction(i, sources[i], names, top) for i in range(m)]
    if kind != "multilabel":
        for i, said in enumerate(expected):
            order = [best[i], *(k for k in sorted(range(c), key=lambda k, i=i: -p[i, k]) if k != best[i])]
            assert [name for name, _ in said.top] == [names[k] for k in order][:top]
            in_set = () if rejected[i] else tuple(names[k] for k in order if sets[i, k])
            assert said.labels == (None if kind == "plain" else in_set)
    assert list(answers.columns(names, top).predictions(sources)) == expected
    parts = [part(rows).columns(names, top) for rows in (slice(0, 70), slice(70, 70), slice(70, m))]
    assert list(PredictionColumns.concatenate(parts).predictions(sources)) == expected


def test_the_accuracy_on_held_out_shots_counts_each_shot_once_and_has_wilsons_interval():
    logits, labels = np.eye(2)[[0, 1, 0, 1, 0]], np.array([0, 0, 1, 1, 1])
    rows = np.array([0, 0, 1, 2, 3])  # shot 0 twice, once right; shots 1 and 3 wrong, 2 right
    measured = HeldOutAccuracy.measure(logits, labels, rows, np.eye(2)[[0, 0, 0, 0, 0]], 0.5)
    assert (measured.accuracy, measured.shots, measured.zero_shot) == (1.5 / 4, 4, 1 / 4)
    all_right = HeldOutAccuracy.measure(np.eye(49), np.arange(49), np.arange(49), None, 0.8)
    assert all_right.accuracy == 1.0  # exactly: a model with 1.0000000000000002 would be refused
    exact = HeldOutAccuracy(0.75, 20, None)
    assert exact.interval == pytest.approx(binomtest(15, 20).proportion_ci(method="wilson"))
    assert exact.describe() == "about 75 % of 20 held-out pictures right (53 to 89 %)"
    assert "; too low, since each fit saw 50 % of them" in HeldOutAccuracy(0.75, 20, 0.5, seen=0.5).describe()


@pytest.mark.parametrize("change", [{"accuracy": 1.5}, {"shots": 0}, {"zero_shot": "half"}, {"seen": None}])
def test_an_accuracy_is_saved_with_the_model_and_refused_if_damaged(change):
    saved = HeldOutAccuracy(0.75, 20, 0.5, 0.75)
    facts, arrays = Uncertainty(accuracy=saved).state()
    assert Uncertainty.from_state(json.loads(json.dumps(facts)), arrays, classes=3).accuracy == saved
    facts["accuracy"] |= change
    with pytest.raises(ArtifactError, match="accuracy on held-out shots is damaged"):
        Uncertainty.from_state(facts, arrays, classes=3)


def test_at_most_five_percent_of_new_pictures_of_the_classes_are_marked():
    shares = []
    for seed in range(20):
        X, y, known, unknown, text, _ = world(seed, counts=(8,) * 5)
        one = Uncertainty(rejector=learn_rejector(X, y, 5, text=text))
        answers = [one.answer(np.zeros((300, 5)), pictures) for pictures in (known, unknown)]
        shares.append([np.mean([reason is not None for reason in each.reasons]) for each in answers])
    of_classes, of_others = np.mean(shares, axis=0)
    assert of_classes <= 0.05
    assert of_others > 0.25
