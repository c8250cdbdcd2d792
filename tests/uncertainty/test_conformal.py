import json
import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipadapter.errors import ArtifactError, InputError
from clipadapter.uncertainty.conformal import Conformal, learn_conformal


def draw(r, c, seed=0):
    """Probabilities (r, c) without ties, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(c, 0.4), r)
    return p, np.array([rng.choice(c, p=row) for row in p], dtype=int).reshape(r)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("by_class", [False, True])
def test_split_sets_are_those_of_crepes(coverage, by_class):
    crepes = pytest.importorskip("crepes")
    p, y = draw(60, 4)
    q, _ = draw(40, 4, seed=1)
    model = crepes.ConformalClassifier().fit(1 - p[np.arange(60), y], bins=y if by_class else None)
    bins = [np.full(40, k) if by_class else None for k in range(4)]
    values = [model.predict_p(1 - q[:, [k]], bins=bins[k], smoothing=False)[:, 0] for k in range(4)]
    expected = np.stack(values, axis=1) > 1 - coverage + 1e-9
    found = learn_conformal(p, y, by_class=by_class, method="split").sets(q, coverage, empty=True)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("r", [9, 18, 24, 49, 99, 199])
@pytest.mark.parametrize("method", ["split", "cross"])
def test_the_rank_is_that_of_exact_arithmetic(r, method):
    """The theorem of "split" needs a whole rank; "cross" has the score between two shots."""
    scores = np.arange(1.0, r + 1)
    zeros = np.zeros(r, int)
    model = Conformal(scores, zeros, zeros, 2, method=method)
    for hundredths in range(1, 100):
        rank = Fraction(hundredths, 100) * (r + 1)
        if rank < 1 or method == "split":
            rank = math.ceil(rank)
        assert model.thresholds(hundredths / 100)[0] == pytest.approx(float(rank) if rank <= r else math.inf)


def test_a_class_at_the_threshold_is_in_the_set():
    shots = [[0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0.875, 0.125]]  # strangeness 0.25, 0.5, 0.75, 0.125
    tied, just_above = [[0.5, 0.5]], [[0.5 - 1e-9, 0.5 + 1e-9]]
    split = learn_conformal(shots, [0, 0, 0, 0], method="split")
    plus = learn_conformal(shots, [0, 0, 0, 0], method="cv+", folds=[0] * 4)
    for model, wrap in ((split, lambda q: q), (plus, lambda q: [q])):
        assert model.sets(wrap(tied), 0.6, empty=True).tolist() == [[True, True]]  # rank 3 of 0.125, 0.25, 0.5, 0.75
        assert model.sets(wrap(just_above), 0.6, empty=True).tolist() == [[False, True]]


def test_the_described_deviation_is_that_of_many_draws():
    # Of scores that are uniform the coverage is the threshold, the score of rank 50 x 0.9.
    coverage = [np.sort(np.random.default_rng(seed).random(49))[44] for seed in range(600)]
    text = learn_conformal(*draw(49, 3), method="split").describe_guarantee(0.9)
    said = float(text.split("varies by ")[1].split(" points")[0])
    assert said == pytest.approx(100 * np.std(coverage), rel=0.1)


@pytest.mark.parametrize("by_class", [False, True])
def test_cv_plus_in_loops(by_class):
    """Barber et al.: a class is in if the count of shots that are less strange is below (1 - a)(r + 1)."""
    p, y = draw(30, 3)
    folds = np.arange(30) % 3
    fold_p = np.stack([draw(8, 3, seed)[0] for seed in (5, 6, 7)])
    expected = np.zeros((8, 3), bool)
    for j, k in np.ndindex(8, 3):
        rows = [i for i in range(30) if not by_class or y[i] == k]
        less = sum(fold_p[folds[i], j, k] < p[i, y[i]] for i in rows)
        expected[j, k] = less < 0.8 * (len(rows) + 1) - 1e-9
    model = learn_conformal(p, y, by_class=by_class, method="cv+", folds=folds)
    np.testing.assert_array_equal(model.sets(fold_p, 0.8, empty=True), expected)


def test_cv_plus_sets_are_those_of_mapie():
    """MAPIE's cross-conformal sets by the same folds (its own score is 1 - p too)."""
    mapie = pytest.importorskip("mapie.classification")
    from sklearn.base import clone
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold

    X, y = make_classification(160, 6, n_informative=4, n_redundant=0, n_classes=3, random_state=0)
    train, labels, new = X[:90], y[:90], X[90:]
    cut, base = KFold(3), LogisticRegression()
    theirs = mapie.CrossConformalClassifier(
        base, confidence_level=0.9, conformity_score="lac", cv=cut, random_state=0
    ).fit_conformalize(train, labels)
    _, expected = theirs.predict_set(new, agg_scores="crossval")
    p, folds, fold_p = np.zeros((90, 3)), np.zeros(90, int), []
    for i, (rest, held) in enumerate(cut.split(train)):
        fitted = clone(base).fit(train[rest], labels[rest])
        p[held], folds[held] = fitted.predict_proba(train[held]), i
        fold_p.append(fitted.predict_proba(new))
    ours = learn_conformal(p, labels, method="cv+", folds=folds).sets(np.stack(fold_p), 0.9, empty=True)
    np.testing.assert_array_equal(ours, expected[:, :, 0])


def test_no_set_is_empty_by_default():
    model = learn_conformal([[0.99, 0.01]] * 20, [0] * 20)
    sure, unsure = [0.995, 0.005], [0.45, 0.55]
    np.testing.assert_array_equal(model.sets([sure, unsure], empty=True), [[True, False], [False, False]])
    np.testing.assert_array_equal(model.sets([sure, unsure]), [[True, False], [False, True]])
    np.testing.assert_array_equal(model.sets([sure, unsure], best=[0, 0]), [[True, False], [True, False]])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from(["split", "cross"]))
def test_more_coverage_only_adds_classes(seed, by_class, how):
    p, y = draw(40, 3, seed)
    q, _ = draw(10, 3, seed + 1)
    model = learn_conformal(p, y, by_class=by_class, method=how)
    before = np.zeros((10, 3), bool)
    for coverage in (0.3, 0.6, 0.8, 0.9, 0.99):
        after = model.sets(q, coverage)
        assert (after >= before).all()
        before = after


@pytest.mark.parametrize(("coverage", "needed"), [(0.5, 1), (0.8, 4), (0.85, 6), (0.9, 9), (0.95, 19), (0.99, 99)])
@pytest.mark.parametrize("how", ["split", "cross", "cv+"])
def test_too_few_is_arithmetic(coverage, needed, how):
    """r shots attain r / (r + 1): below it shots decide about no class, and the words say so."""
    for r in (needed - 1, needed):
        if how == "cv+" and not r:
            continue  # no fold, so no fit to ask
        p, y = draw(r, 3) if r else (np.zeros((0, 3)), np.zeros(0, int))
        model = learn_conformal(p, y, method=how, folds=np.zeros(r, int) if how == "cv+" else None)
        strange = np.array([[1 - 2e-9, 1e-9, 1e-9]])
        everything = model.sets(strange[None] if how == "cv+" else strange, coverage).all()
        assert (model.explain_shortage(coverage) is not None) == (r < needed)
        assert everything == (r < needed and how != "cross")


def test_without_enough_shots_a_set_sums_to_the_rate_and_says_what_to_do():
    model = learn_conformal(*draw(8, 3))
    rows = [[0.5, 0.3, 0.2], [0.05, 0.91, 0.04], [0.45, 0.1, 0.45], [1 / 3, 1 / 3, 1 / 3]]
    np.testing.assert_array_equal(model.sets(rows, 0.9), [[1, 1, 1], [0, 1, 0], [1, 0, 1], [1, 1, 1]])
    assert model.explain_shortage(0.9) == (
        "90 % coverage needs 9 held-out shots, there are 8: a set has the classes that make up 90 % of the "
        "probability, which no shots confirm. Give more shots, or set a coverage of at most 0.888"
    )
    assert model.describe_guarantee(0.9) == f"{model.explain_shortage(0.9)}."  # no shots confirm it: no guarantee


def test_classes_with_too_few_shots_are_in_every_set():
    y = np.repeat([0, 1], [20, 4])
    p = np.array([[0.9, 0.1], [0.1, 0.9]])[y]
    model = learn_conformal(p, y, by_class=True)
    np.testing.assert_array_equal(model.sets([[0.999, 0.001], [0.001, 0.999]]), [[True, True], [False, True]])
    text = model.explain_shortage(0.9)
    assert "needs 9 held-out shots of each; 1 of 2 classes have fewer (the fewest: 4)" in text
    assert "or set a coverage of at most 0.8, or" in text
    assert learn_conformal(p, y).explain_shortage(0.9) is None
    assert text in model.describe_guarantee(0.9)


def test_the_described_guarantee_is_what_is_proven():
    p, y = draw(100, 3)
    split, cross = (learn_conformal(p, y, method=how).describe_guarantee(0.9) for how in ("split", "cross"))
    plus = learn_conformal(p, y, method="cv+", folds=np.arange(100) % 4).describe_guarantee(0.9)
    assert split.startswith("At least 90 % of pictures have their class in the set")
    assert "No theorem" in cross and "higher" not in cross
    assert "proven is a little less than 80 %" in plus
    assert "each class's pictures" in learn_conformal(p, y, by_class=True).describe_guarantee(0.9)


@pytest.mark.parametrize("how", ["split", "cross", "cv+"])
@pytest.mark.parametrize("by_class", [False, True])
def test_state_goes_to_json_and_back(how, by_class):
    p, y = draw(30, 3)
    model = learn_conformal(p, y, by_class=by_class, method=how, folds=np.arange(30) % 3 if how == "cv+" else None)
    facts, arrays = model.state()
    back = Conformal.from_state(json.loads(json.dumps(facts)), arrays)
    q = np.stack([draw(9, 3, seed)[0] for seed in (1, 2, 3)])
    q = q if how == "cv+" else q[0]
    np.testing.assert_array_equal(back.sets(q), model.sets(q))
    assert back.describe_guarantee() == model.describe_guarantee()


@pytest.mark.parametrize(
    ("facts", "arrays"),
    [
        ({"method": "guess"}, {}),
        ({"by_class": 1}, {}),
        ({"n_classes": 2}, {}),
        ({"n_classes": True}, {}),
        ({}, {"scores": np.array([0.1, np.nan, 0.3])}),
        ({}, {"scores": np.array([0.3, 0.2, 0.1])}),
        ({}, {"scores": np.array([0.1, 0.2])}),
        ({}, {"labels": np.array([0, 1, 3])}),
        ({}, {"labels": np.array([0.0, 1.0, 2.0])}),
        ({}, {"folds": np.array([0, 0, -1])}),
        ({}, {"folds": np.array([0, 0, 10**9])}),
    ],
)
def test_damaged_state_is_refused(facts, arrays):
    good = learn_conformal(np.eye(3) * 0.7 + 0.1, [0, 1, 2]).state()
    with pytest.raises(ArtifactError, match="is damaged"):
        Conformal.from_state({**good[0], **facts}, {**good[1], **arrays})
    for part, name in ((0, "method"), (1, "scores")):
        state = [dict(each) for each in good]
        del state[part][name]
        with pytest.raises(ArtifactError, match=f"no '{name}'"):
            Conformal.from_state(*state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "guess"}, "no conformal method 'guess'"),
        ({"method": "cv+"}, "needs the fold"),
        ({"folds": [0, 1]}, "other methods take no folds"),
        ({"method": "cv+", "folds": [0]}, "one number per held-out shot"),
        ({"labels": [0, 2]}, "from 0 to 1, got 0 to 2"),
        ({"labels": [0]}, "don't match"),
        ({"probabilities": [[3.0, -1.0], [0.5, 0.5]]}, "logits are not accepted"),
        ({"probabilities": [[np.nan, 1.0], [0.5, 0.5]]}, "finite"),
    ],
)
def test_wrong_shots_are_named(change, words):
    given = {"probabilities": [[0.9, 0.1], [0.5, 0.5]], "labels": [0, 1], **change}
    with pytest.raises(InputError, match=words):
        learn_conformal(given.pop("probabilities"), given.pop("labels"), **given)


def test_pictures_of_other_shapes_and_coverages_out_of_range_are_refused():
    model = learn_conformal([[0.9, 0.1]], [0])
    plus = learn_conformal([[0.9, 0.1], [0.4, 0.6]], [0, 1], method="cv+", folds=[0, 1])
    for one, pictures, words in (
        (model, [[0.5, 0.3, 0.2]], r"\(m, 2\) for 'cross', got \(1, 3\)"),
        (plus, [[0.5, 0.5]], r"\(k, m, 2\)"),
        (plus, [[[0.5, 0.5]]] * 3, "2 fits, but 3"),
    ):
        with pytest.raises(InputError, match=words):
            one.sets(pictures)
    assert model.sets(np.zeros((0, 2))).shape == (0, 2)
    sets = partial(model.sets, [[0.5, 0.5]])
    for function in (model.explain_shortage, model.describe_guarantee, model.thresholds, sets):
        for coverage in (0, 1, 1.5, -0.1, float("nan")):
            with pytest.raises(InputError, match=r"such as 0\.9"):
                function(coverage)
