"""None of these: scores against formulas, refits and other libraries; thresholds against their promise."""

import json
from unittest import mock

import numpy as np
import pytest
from scipy.stats import t as student

from clipadapter.errors import ArtifactError, InputError
from clipadapter.metrics.detection import auroc
from clipadapter.uncertainty import class_gaussians, learn_rejector, ood, select_negative_labels
from clipadapter.uncertainty.ood import Rejector, _normal_tail_bound
from clipadapter.uncertainty.ood_scores import SCORES, MemoryBank
from clipadapter.utils.prediction import unit_rows

from .drawn_shots import D, world


def logits_of(rows, text):
    return 20 * unit_rows(rows) @ text.T


def with_scores(scores, *shots, **more):
    """A rejector by some scores alone, whichever the inputs allow; by all that they allow if none is named."""
    chosen = (lambda *args: list(scores)) if scores else ood._select_scores
    with mock.patch.object(ood, "_select_scores", chosen):
        return learn_rejector(*shots, **more)


def learned(*scores, seed=0, counts=(4,) * 5, **more):
    """A rejector by some scores, or by all of them; known and unknown pictures; and class text."""
    X, y, known, unknown, text, others = world(seed, counts=counts)
    given = {
        "logits": logits_of(X, text),
        "rows": np.arange(len(y)),
        "text": text,
        "scale": 20.0,
        "negative_labels": others,
        "names": ["tractor", "teapot", "newt"],
        "outliers": unknown[:20],
        **more,
    }
    return with_scores(scores, X, y, 5, **given), known, unknown[20:], text


def scored(rejector, rows, text):
    return rejector.scores(rows, logits_of(rows, text))


def reasons(rejector, rows, logits):
    return rejector.reasons_from_scores(rejector.part_scores(rows, logits), rows)


# Formulas


def test_scores_are_the_formulas_of_their_papers():
    rng = np.random.default_rng(0)
    z, rows, text, others, outliers = (rng.standard_normal(shape) for shape in ((9, 4), (9, 6), (4, 6), (7, 6), (3, 6)))
    means = unit_rows(rng.standard_normal((4, 6)))
    gaussians = class_gaussians.ClassGaussians(means, np.zeros((0, 6)), 2.0)
    bank = MemoryBank(gaussians, text, others, outliers, 3.0)
    a, b = np.exp(3 * rows @ text.T).sum(axis=1), np.exp(3 * rows @ others.T).sum(axis=1)
    expected = {
        "max-logit": [-max(row) for row in z],
        "text": 1 - (rows @ text.T).max(axis=1),
        "negative-labels": np.log(1 / (a / (a + b)) - 1),  # NegLabel's eq. 5 is a / (a + b)
        "mahalanobis": [min(((row - mean) ** 2).sum() / 2 for mean in means) for row in rows],
        "outliers": (rows @ outliers.T).max(axis=1) - (rows @ means.T).max(axis=1),
    }
    assert expected.keys() == SCORES.keys()
    for name, scores in expected.items():
        np.testing.assert_allclose(SCORES[name].of_pictures(bank, rows, z), scores)


def test_a_sure_answer_does_not_hide_a_picture_that_is_far_from_every_shot():
    rejector, known, _, text = learned("max-logit", "mahalanobis")
    strangers = np.random.default_rng(1).standard_normal((200, D))
    surest = np.tile(logits_of(known, text).max(), (200, 5))
    assert (rejector.scores(strangers, surest) > rejector.threshold(0.05).value).mean() > 0.75


# The threshold


def test_the_threshold_is_the_conformal_quantile():
    """Of r = 19: the ceil(20 (1 - rate))-th lowest."""
    rejector = learned("text", counts=(4, 4, 4, 4, 3))[0]
    part = rejector.parts[0]
    ordered = np.sort((rejector.held_out_scores[:, 0] - part.centre) / part.deviation)
    for rate, position in ((0.5, 10), (0.05, 19), (0.1, 18), (0.3, 14)):
        threshold = rejector.threshold(rate)
        assert threshold.value == pytest.approx(ordered[position - 1])
        assert (threshold.is_attainable, threshold.shots, threshold.min_rate) == (True, 19, 0.05)
    rejector = learned("text", counts=(4, 4, 4, 4, 2))[0]  # has too few shots
    threshold, lowest = rejector.threshold(0.05), rejector.threshold(1 / 19)
    assert (threshold.is_attainable, lowest.is_attainable, threshold.min_rate) == (False, True, 1 / 19)
    values = [lowest.value, threshold.value, *(rejector.threshold(rate).value for rate in (1e-3, 1e-9, 1e-17, 1e-300))]
    assert np.isfinite(values).all() and values == sorted(values) and values[1] < values[2]


@pytest.mark.parametrize("rate", [0.05, 0.01])
def test_normal_tail_bound_the_held_out_shots_lies_students_bound_on_one_more(rate):
    scores = np.sort(np.random.default_rng(0).normal(size=8))
    bound = scores.mean() + student.ppf(1 - rate, 7) * scores.std(ddof=1) * np.sqrt(1 + 1 / 8)
    assert _normal_tail_bound(scores, rate) == pytest.approx(max(bound, scores[-1]), rel=0.02)
    assert _normal_tail_bound(np.array([0.0, 1.0]), rate) == np.inf  # of two nothing is rejected
    assert _normal_tail_bound(np.array([-9.0, 0.0, 0.1]), 0.4) >= 0.1


@pytest.mark.parametrize("scores", [(), ("text",), ("mahalanobis",), ("max-logit",)])
@pytest.mark.parametrize("counts", [(2,) * 5, (8,) * 5])
def test_the_set_rate_of_pictures_of_the_classes_is_rejected(scores, counts):
    realised = []
    for seed in range(40):
        rejector, known, _, text = learned(
            *scores, seed=seed, counts=counts, outliers=None, negative_labels=None, names=()
        )
        realised.append((scored(rejector, known, text) > rejector.threshold(0.2).value).mean())
    error = np.std(realised) / np.sqrt(len(realised))
    r = 5 * counts[0]
    wanted = 1 - np.ceil((r + 1) * 0.8) / (r + 1)
    assert wanted - 0.07 - 3 * error < np.mean(realised) < wanted + 0.03 + 3 * error


def test_with_one_shot_per_class_the_rate_is_an_upper_bound():
    realised = []
    for seed in range(40):
        rejector, known, _, text = learned(seed=seed, counts=(1,) * 5, logits=None, rows=None)
        threshold = rejector.threshold(0.2)
        assert threshold.rate_is_upper_bound
        realised.append((scored(rejector, known, text) > threshold.value).mean())
    assert np.mean(realised) < 0.2


@pytest.mark.parametrize(
    ("scores", "counts", "shots"),
    [
        (("text",), (1,) * 5, 5),  # text is exact with one shot per class, and so are logits of other views of it
        (("max-logit",), (1,) * 5, 5),
        (("mahalanobis",), (1, 2, 3, 2, 2), 9),  # the only shot of a class sets no threshold where others have two
        (("outliers",), (1, 2, 3, 2, 2), 9),
        ((), (1, 2, 3, 2, 2), 9),
    ],
)
def test_shots_that_can_be_held_out_set_the_threshold(scores, counts, shots):
    threshold = learned(*scores, counts=counts)[0].threshold(0.2)
    assert (threshold.rate_is_upper_bound, threshold.shots) == (False, shots)


# What is summed


def test_the_sum_is_better_than_its_scores_and_so_are_negative_labels_and_outliers_like_the_unknown_pictures():
    def area(*scores, **more):
        found = [learned(*scores, seed=seed, **more) for seed in range(12)]
        return np.mean([auroc(scored(r, k, t), scored(r, u, t)) for r, k, u, t in found])

    no_names, no_outliers = {"negative_labels": None, "names": ()}, {"outliers": None}
    of_sum = area(**no_names, **no_outliers)
    single = [area(score, **no_names, **no_outliers) for score in ("text", "mahalanobis", "max-logit")]
    assert of_sum > max(0.75, np.mean(single))
    assert min(area(**no_names), area(**no_outliers)) > of_sum + 0.01


def test_an_uninformative_score_has_no_weight():
    X, y, *_ = world()
    rng = np.random.default_rng(1)
    rejector = learn_rejector(X, y, 5, logits=np.zeros((20, 5)), text=rng.standard_normal((5, D)))
    weights = {part.name: part.weight for part in rejector.parts}
    assert weights["max-logit"] == 0
    assert weights["mahalanobis"] > 0


def test_the_weight_is_the_distance_of_simulated_outliers_in_deviations():
    X, y, _, _, text, _ = world()
    rejector = learn_rejector(X, y, 5, text=text, logits=logits_of(X, text))
    cosines = unit_rows(X) @ text.T
    known = 1 - cosines.max(axis=1)
    strangers = [1 - max(row[k] for k in range(5) if k != label) for row, label in zip(cosines, y, strict=True)]
    expected = (np.mean(strangers) - known.mean()) / np.sqrt((known.var() + np.var(strangers)) / 2)
    weight = next(part.weight for part in rejector.parts if part.name == "text")
    assert weight == pytest.approx(expected)


def test_shots_in_another_order_or_not_all_compared_at_once_give_the_same_rejector(monkeypatch):
    X, y, known, _, text, _ = world()
    order = np.random.default_rng(1).permutation(len(y))
    given = {"logits": logits_of(X[order], text), "rows": order, "text": text, "outliers": known[:9] + 5}
    expected = learn_rejector(X, y, 5, **given)
    turned = learn_rejector(X[order], y[order], 5, **{**given, "rows": None})
    np.testing.assert_allclose(scored(turned, known, text), scored(expected, known, text), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(ood, "MAX_COMPARISONS", 0)
    monkeypatch.setattr(class_gaussians, "MAX_DISTANCES", 3 * 5)
    found = learn_rejector(X, y, 5, **given)
    assert found.threshold(0.2).value == pytest.approx(expected.threshold(0.2).value)
    np.testing.assert_allclose(scored(found, known, text), scored(expected, known, text), rtol=1e-9)
    monkeypatch.setattr(ood, "MAX_JUDGED_COMPARISONS", 5 * 12)  # without logits, 12 shots are drawn
    assert len(learn_rejector(X, y, 5, text=text).held_out_scores) == 12


@pytest.mark.parametrize("small", range(5))
def test_a_covariance_of_some_shots_has_contrasts_whichever_class_is_small(small, monkeypatch):
    counts = np.full(5, 60)
    counts[small] = 1
    X, y, known, *_ = world(counts=counts)
    rows, new, order = unit_rows(X), unit_rows(known), np.random.default_rng(1).permutation(len(y))
    expected, _ = class_gaussians.fit_class_gaussians(rows, y, 5)
    monkeypatch.setattr(class_gaussians, "MAX_COVARIANCE_NUMBERS", 59 * X.shape[1])  # less than any other class has
    found, _ = class_gaussians.fit_class_gaussians(rows, y, 5)
    again, _ = class_gaussians.fit_class_gaussians(rows[order], y[order], 5)
    assert np.median(found.nearest(new)) == pytest.approx(np.median(expected.nearest(new)), rel=0.2)
    assert found.floor == again.floor


def test_only_some_shots_may_be_held_out():
    X, y, known, _, text, _ = world()
    rows = np.flatnonzero(y != 2)
    rejector = learn_rejector(X, y, 5, text=text, logits=logits_of(X[rows], text), rows=rows)
    assert len(rejector.held_out_scores) == 16
    full = learn_rejector(X, y, 5, text=text, logits=logits_of(X, text))
    np.testing.assert_allclose(rejector.held_out_scores, full.held_out_scores[rows])


@pytest.mark.parametrize("counts", [(3, 0, 2, 2, 1), (0, 1, 1, 1, 1)])
def test_classes_without_shots_are_scored_by_logits_and_text(counts):
    rejector, known, _, text = learned(counts=counts)
    assert not {part.name for part in rejector.parts} & {"mahalanobis", "outliers"}
    assert np.isfinite(scored(rejector, known, text)).all()
    X = np.eye(D)[0] + 0.1 * np.random.default_rng(0).standard_normal((6, D))
    for shots in (X, X[:1]):  # one class is enough
        rejector = learn_rejector(shots, np.zeros(len(shots), int), 1, text=np.eye(D)[:1])
        near, far = rejector.scores(np.eye(D)[:2], np.zeros((2, 1)))
        assert near < far


# Reasons


def test_reasons_name_the_largest_part():
    X = np.eye(6)[[0, 0, 0, 1, 1, 1]] + 0.05 * np.random.default_rng(0).standard_normal((6, 6))
    text, tractor, photo = np.eye(6)[:2], np.eye(6)[2:3], np.eye(6)[3:4]
    names = {"negative_labels": tractor, "names": ["tractor"]}
    for score, picture, given, reason in (
        ("negative-labels", tractor, {"text": text, **names}, "nearer to 'tractor' than to any class name"),
        ("outliers", photo, {"outliers": photo}, "closer to an outlier picture than to any class mean"),
        ("mahalanobis", photo, {}, "farther from every class than all of the shots are"),
        ("max-logit", photo, {"logits": X @ text.T}, "less like any class than all of the shots are"),
        ("text", photo, {"text": text}, "less like any class name than all of the shots are"),
    ):
        rejector = with_scores([score], X, [0, 0, 0, 1, 1, 1], 2, **given)
        assert reasons(rejector, picture, np.zeros((1, 2))) == [reason]
    middle = X[[int(np.argsort(rejector.held_out_scores[:, 0])[3])]]
    assert reasons(rejector, middle, np.zeros((1, 2))) == ["less like any class name than 50 % of the shots are"]
    rejector, _, unknown, text = learned()  # by all scores: the part that adds most
    assert reasons(rejector, unknown[:1], np.full((1, 5), -1e3)) == ["less like any class than all of the shots are"]


# Saved and loaded


@pytest.mark.parametrize("scores", [(), *((name,) for name in SCORES)])
def test_a_saved_rejector_answers_the_same(scores):
    rejector, known, _, text = learned(*scores)
    facts, arrays = rejector.state()
    again = Rejector.from_state(json.loads(json.dumps(facts)), {name: array.copy() for name, array in arrays.items()})
    np.testing.assert_array_equal(scored(again, known, text), scored(rejector, known, text))
    assert again.threshold(0.1) == rejector.threshold(0.1)
    answers = logits_of(known, text)
    assert reasons(again, known, answers) == reasons(rejector, known, answers)
    assert all(array.dtype == np.float32 for name, array in arrays.items() if name != "held_out_scores")


@pytest.mark.parametrize(
    "change",
    [
        lambda f, a: f.pop("rate_is_upper_bound"),
        lambda f, a: f.update(rate_is_upper_bound=1),
        lambda f, a: f.update(scale=0.0),
        lambda f, a: f.update(floor=None),
        lambda f, a: f.update(negative_label_names=["tractor"]),
        lambda f, a: f.update(parts=[]),
        lambda f, a: f["parts"][0].update(name="eval"),
        lambda f, a: f["parts"][0].update(deviation=0.0),
        lambda f, a: f["parts"][0].update(weight=float("nan")),
        lambda f, a: f["parts"][0].pop("weight"),
        lambda f, a: a.pop("held_out_scores"),
        lambda f, a: a.pop("means"),
        lambda f, a: a.pop("negative_labels"),
        lambda f, a: a.update(text=a["text"][:, :3]),
        lambda f, a: a.update(text=a["text"][:3]),
        lambda f, a: a.update(means=a["means"] * np.nan),
        lambda f, a: a.update(held_out_scores=a["held_out_scores"][:, :1]),
        lambda f, a: a.update(held_out_scores=a["held_out_scores"][:0]),
        lambda f, a: a.update(outliers=a["outliers"].astype(int)),
        lambda f, a: a.update(other=a["text"]),
    ],
)
def test_a_spoilt_rejector_is_refused(change):
    facts, arrays = learned()[0].state()
    change(facts, arrays)
    with pytest.raises(ArtifactError, match="the model's rejector.* is damaged"):
        Rejector.from_state(facts, arrays)


# Errors


def test_missing_or_invalid_inputs_are_named():
    for change, words in (
        ({"text": np.ones((5, 3))}, r"class text must have shape \(5, 12\), but have \(5, 3\)"),
        ({"names": ["a"]}, r"negative labels must have shape \(1, 12\)"),
        ({"outliers": np.full((2, D), np.nan)}, r"outlier \(background\) features are not all finite"),
        ({"rows": np.arange(3)}, r"held-out predictions \(20, 5\) of rows \(3,\)"),
    ):
        with pytest.raises(InputError, match=words):
            learned(**change)
    with pytest.raises(InputError, match="at least one shot"):
        learn_rejector(np.zeros((0, D)), np.zeros(0, int), 2)
    with pytest.raises(InputError, match="two shots of some class"):
        learn_rejector(np.ones((1, D)), [0], 1)
    many = np.random.default_rng(0).standard_normal((600, D))  # of these outliers some are drawn, always the same
    (rejector, known, _, text), (again, *_) = (learned(outliers=many) for _ in range(2))
    assert rejector.memory.outliers.shape == (512, D)
    np.testing.assert_array_equal(rejector.memory.outliers, again.memory.outliers)
    with pytest.raises(InputError, match="of width 12"):
        rejector.scores(known[:, :5], logits_of(known, text))
    for rate in (0, 1, -0.1):
        with pytest.raises(InputError, match="between 0 and 1"):
            rejector.threshold(rate)
    assert rejector.scores(known[:0], np.zeros((0, 5))).shape == (0,)


# Distractors


def test_a_name_that_shares_a_word_with_a_class_or_is_nearer_to_it_than_names_to_each_other_is_no_distractor():
    names = ["tabby cat", "Sports_Car", "coffee cups", "teapot"]
    assert list(select_negative_labels(["cats", "car side", "cup"], np.eye(9)[:3], names, np.eye(9)[3:7])) == [3]
    assert len(select_negative_labels(["a"], np.eye(2)[:1], [], np.zeros((0, 2)))) == 0
    with pytest.raises(InputError, match="a row for each name"):
        select_negative_labels(["a"], np.eye(2)[:1], ["b"], np.zeros((2, 2)))
    angles = lambda *degrees: np.stack([f(np.radians(degrees)) for f in (np.cos, np.sin)], axis=1)  # noqa: E731
    text = angles(-20, 90, 135, 180, 225, 275)  # half are within 45 degrees of another
    assert list(select_negative_labels(["a1", "a2"], angles(0, 40), list("uvwxyz"), text)) == [1, 2, 3, 4, 5]
    # Were the classes alike, a name as near as they are to each other would be a thing of its own.
    assert list(select_negative_labels(["a1", "a2"], angles(0, 19), list("uvwxyz"), text)) == [0, 1, 2, 3, 4, 5]
