"""Drift detection as a whole: what is found, what is not, and which inputs are errors."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import fisher_exact

from clipadapter import FewShotClassifier
from clipadapter.errors import ArtifactError, DataError, InputError
from clipadapter.monitor import CHECKS, detect_drift, detection
from clipadapter.monitor.detection import reference_from_shots
from clipadapter.monitor.report import describe_label_shift, format_percent
from clipadapter.monitor.shift import fisher_p_value, holm
from clipadapter.uncertainty import UncertaintyOptions

EQUAL_PRIORS = (1 / 3, 1 / 3, 1 / 3)
PRIORS, CHANGED_PRIORS = (0.6, 0.3, 0.1), (0.1, 0.3, 0.6)


def significant_checks(report):
    return {result.check for result in report.checks if result.is_significant}


def test_nothing_is_found_if_nothing_changed_and_the_same_seed_gives_the_same_report(world):
    model = world.model()
    stream = world.stream(model)
    report = detect_drift(model, stream)
    assert not report.has_drift
    assert report.summary().startswith("no drift was found (p = ")
    assert (report.reference, report.n_reference, report.n_pictures) == ("shots", 24, 90)
    assert [result.check for result in report.checks] == list(CHECKS)
    assert detect_drift(model, stream) == report


def test_false_alarms_are_as_rare_as_alpha(world):
    model = world.model(k=16)
    reports = (detect_drift(model, world.stream(model, m=40), alpha=0.1, window=40, seed=i) for i in range(30))
    assert sum(report.has_drift for report in reports) <= 8  # 3 and 3 sd; shots and their folds are the same in all


def test_changed_priors_are_found_unless_they_were_given_or_skipped_and_not_taken_for_changed_features(world):
    model = world.model()
    stream = world.stream(model, CHANGED_PRIORS, 120)
    report = detect_drift(model, stream)
    assert significant_checks(report) == {"label-shift"}
    assert "'owl' is 1." in report.summary() and "usually 33 %" in report.summary()
    owl = report.classes[2]
    assert owl.low <= 0.6 <= owl.high and owl.reference == pytest.approx(1 / 3)
    as_given = detect_drift(model, stream, reference_priors={"cat": 0.1, "dog": 0.3, "owl": 0.6})
    assert significant_checks(as_given) == set()
    assert significant_checks(detect_drift(model, stream, reference_priors={"cat": 0.6})) == {"label-shift"}
    skipped = detect_drift(model, stream, skip=("label-shift",))
    assert skipped.checks[1].message == "skipped" and not skipped.has_drift


def test_pictures_can_be_the_reference(world):
    model = world.model()
    reference = world.stream(model, PRIORS, 120)
    same = detect_drift(model, world.stream(model, PRIORS, 120), reference=reference)
    assert (significant_checks(same), same.reference, same.n_reference) == (set(), "pictures", 120)
    other = detect_drift(model, world.stream(model, CHANGED_PRIORS, 120), reference=reference)
    assert significant_checks(other) == {"label-shift"}
    assert other.classes[0].reference == pytest.approx(0.6, abs=0.12)


@pytest.mark.parametrize("by_pictures", [False, True])
def test_changed_features_are_found_for_any_priors(world, by_pictures):
    model = world.model()
    reference = world.stream(model, PRIORS, 120) if by_pictures else None
    report = detect_drift(model, world.stream(model, CHANGED_PRIORS, 120, spread=1.8), reference=reference)
    assert "covariate-shift" in significant_checks(report)
    assert "the pictures look different (p = 0.00" in report.summary()


def test_pictures_of_none_of_the_classes_are_found(world):
    model = world.model()
    outliers = world.rng.normal(0, 1, (40, 12)) - 4
    report = detect_drift(model, [*world.stream(model, m=60), *world.paths(model, outliers)], window=20)
    assert "ood-rate" in significant_checks(report)
    assert "% are none of the classes (target 5 %)" in report.summary()
    assert report.ood_rate.low <= report.ood_rate.current <= report.ood_rate.high
    first, last = report.windows[0], report.windows[-1]
    assert last.ood_rate[0] > 0.9 > 0.3 > first.ood_rate[0]
    assert last.distance > last.distance_limit


def test_small_shares_have_two_digits():
    assert [format_percent(share) for share in (0.314, 0.0043, 0.0)] == ["31 %", "0.43 %", "0 %"]


def test_the_message_on_priors_says_seems_if_the_features_changed(world):
    classes = detect_drift(model := world.model(), world.stream(model, CHANGED_PRIORS, 120)).classes
    assert " is 1." in describe_label_shift(classes, 0.01, is_reliable=True)
    assert " seems 1." in describe_label_shift(classes, 0.01, is_reliable=False)
    changed = [
        replace(prior, current=current, reference=reference, p_value=0.001)
        for prior, current, reference in zip(classes, (0, 1, 0.2), (0.5, 0, 0.3), strict=True)
    ]
    message = describe_label_shift(changed, 0.01, is_reliable=True)
    assert "'dog' is new (100 %, usually 0 %)" in message
    assert "'cat' has nearly vanished (0 %, usually 50 %)" in message


@pytest.mark.parametrize("by_pictures", [False, True])
def test_intervals_of_a_weak_model_contain_the_true_priors(world, by_pictures):
    n_covered = n_intervals = 0
    for _ in range(6):
        model = world.model(k=7, spread=9.0)  # right for half of the pictures
        reference = world.stream(model, PRIORS, 60, spread=9.0) if by_pictures else None
        stream = world.stream(model, PRIORS, 100, spread=9.0)
        report = detect_drift(model, stream, reference=reference, skip=("covariate-shift",))
        assert report.knows_confusions
        n_covered += sum(one.low <= true <= one.high for one, true in zip(report.classes, PRIORS, strict=True))
        n_intervals += 3
    assert n_covered >= 15  # of 18


def test_windows_cover_the_stream_in_its_order(world):
    model = world.model()
    times = [float(i) for i in range(95)]
    report = detect_drift(model, world.stream(model, m=95), times=times, window=30)
    assert [(window.start, window.end) for window in report.windows] == [(0, 32), (32, 64), (64, 95)]
    assert [window.start_time for window in report.windows] == [0.0, 32.0, 64.0]
    assert all(sum(window.priors) == pytest.approx(1) for window in report.windows)
    assert len(detect_drift(model, world.stream(model, m=400)).windows) == 11  # of 34 pictures or more


def test_unreadable_and_repeated_pictures_are_counted_and_left_out(world):
    model = world.model()
    stream = world.stream(model, m=60)
    paths = [stream[0].with_name("bad1"), *stream, *stream[:7]]
    report = detect_drift(model, paths, times=[float(i) for i in range(68)])
    assert (report.n_pictures, report.n_repeated, report.skipped) == (60, 7, (("bad1", "not an image"),))
    assert report.windows[0].start_time == 1.0


def test_too_few_pictures_are_refused_before_one_is_read(world, monkeypatch):
    model = world.model()
    nineteen, twenty, small = world.stream(model, m=19), world.stream(model, m=20), world.model(k=2)
    with pytest.raises(DataError, match="the stream has 1 different pictures"):
        detect_drift(model, twenty[:1] * 30)
    with pytest.raises(DataError, match="the model has kept shots of 6 different"):
        detect_drift(small, world.stream(small))
    with pytest.raises(DataError, match="none of the 20 pictures can be read"):
        detect_drift(model, [twenty[0].with_name("bad")] * 20)
    monkeypatch.setattr(detection, "observe", None)
    monkeypatch.setattr(detection, "reference_from_pictures", None)
    for stream, reference, words in (
        (nineteen, None, "the stream has 19 different pictures that can be used.* give 20 or more"),
        ([], None, "the stream has 0 different"),
        (twenty, nineteen, "the reference has 19 different"),
    ):
        with pytest.raises(DataError, match=words):
            detect_drift(model, stream, reference=reference)


def test_models_whose_shots_cannot_be_held_out_need_a_reference(world):
    model = world.model(k=1)
    with pytest.raises(InputError, match="no shot can be held out, since no class has two: give pictures"):
        detect_drift(model, world.stream(model))
    report = detect_drift(model, world.stream(model, m=60), reference=world.stream(model, m=60))
    assert report.n_pictures == 60 and not report.knows_confusions
    model.support_ = model.support_.take([])
    with pytest.raises(InputError, match="saved without its shots"):
        detect_drift(model, world.stream(model))
    for flag, word in (("transductive",) * 2, ("tunes_encoder", "trained again"), ("needs_tower", "trained")):
        model = world.model()
        setattr(model.head_, flag, True)
        with pytest.raises(InputError, match=word):
            detect_drift(model, world.stream(model))


def test_the_reject_rate_is_that_of_the_model_unless_another_is_given_and_is_not_checked_without_a_rejector(world):
    model = world.model(uncertainty=UncertaintyOptions(reject=0.2))
    assert detect_drift(model, world.stream(model)).ood_rate.target == 0.2
    assert detect_drift(model, world.stream(model), reject=0.1).ood_rate.target == 0.1
    model.uncertainty_ = replace(model.uncertainty_, rejector=None)
    report = detect_drift(model, world.stream(model))
    assert report.checks[2].p_value is None and "two shots per class" in report.checks[2].message
    assert report.ood_rate is None and report.windows[0].ood_rate is None
    assert report.checks[0].corrected_p_value <= 2 * report.checks[0].p_value + 1e-12  # two checks, not three


def test_priors_are_not_tested_with_two_shots_per_class(world, monkeypatch):
    model = world.model(counts=(2, 2, 3))
    model.support_ = replace(model.support_, X=np.asarray(model.support_.X))
    monkeypatch.setattr(detection, "MIN_PICTURES", 5)
    report = detect_drift(model, world.stream(model))
    assert report.checks[1].p_value is None
    assert report.checks[1].message.startswith("it takes 3 shots per class")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 0.0}, "the probability of a false alarm, must be between 0.0001 and 0.5"),
        ({"alpha": 0.7}, "must be between 0.0001 and 0.5"),
        ({"window": 5}, "a window needs 20 pictures or more, but is 5"),
        ({"reference": [], "reference_priors": {"cat": 0.5}}, "reference_priors=.* or a reference .*, not both"),
        ({"skip": ("look",)}, "no check is called 'look'; there are: covariate-shift, label-shift, ood-rate"),
        ({"skip": tuple(CHECKS)}, "all checks are skipped"),
    ],
)
def test_arguments_out_of_range_are_errors(options, words, world):
    model = world.model()
    with pytest.raises(InputError, match=words):
        detect_drift(model, world.stream(model), **options)


def test_a_damaged_model_whose_probabilities_are_not_finite_is_refused(world):
    """Also where its logits are finite: a positive temperature may be as small as this."""
    model = world.model()
    calibrator = replace(model.uncertainty_.calibrator, temperature=1e-320)
    model.uncertainty_ = replace(model.uncertainty_, calibrator=calibrator)
    for reference in (None, world.stream(model)):
        with np.errstate(all="ignore"), pytest.raises(ArtifactError, match="probabilities that are not finite"):
            detect_drift(model, world.stream(model), reference=reference)


def test_multilabel_and_unfitted_models_are_refused():
    images = [np.full((8, 8, 3), value, np.uint8) for value in (0, 60, 120, 250)]
    model = FewShotClassifier("toy", "linear-probe", cache=None)
    with pytest.raises(InputError, match="not fitted"):
        detect_drift(model, [])
    with pytest.raises(InputError, match="this model is multi-label"):
        detect_drift(model.fit(images, [("a",), ("a", "b"), ("b",), ()]), [])


def test_json_and_plot_have_all_parts(world, tmp_path, monkeypatch):
    """Files of --history have the keys of the JSON: another key is another format."""
    monkeypatch.setattr("clipadapter.rendering.plots.DPI", 30)
    model = world.model()
    times = [1.7e9 + 3600 * i for i in range(80)]
    report = detect_drift(model, world.stream(model, CHANGED_PRIORS, 80), times=times)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["has_drift"] and data["summary"] == report.summary() and data["format"] == 1
    assert set(data["windows"][0]["priors"]) == {"cat", "dog", "owl"}
    assert list(data) == [
        *("format", "has_drift", "summary", "n_pictures", "n_repeated", "skipped", "reference", "n_reference"),
        *("alpha", "checks", "classes", "ood_rate", "windows", "knows_confusions", "is_reliable"),
        "alpha_is_exact",
    ]
    assert list(data["checks"][0]) == ["check", "p_value", "corrected_p_value", "is_significant", "message"]
    assert list(data["classes"][0]) == ["name", "reference", "current", "low", "high", "p_value"]
    assert list(data["ood_rate"]) == ["target", "reference", "current", "low", "high"]
    assert list(data["windows"][0]) == [
        *("start", "end", "start_time", "ood_rate", "mean_confidence", "distance", "distance_limit", "priors")
    ]
    assert report.plot(tmp_path / "drift.png").is_file()
    with Image.open(tmp_path / "drift.png") as image:
        assert image.format == "PNG" and image.width > 300
    windows = tuple(replace(window, ood_rate=None, distance=None) for window in report.windows)
    assert replace(report, ood_rate=None, windows=windows).plot(tmp_path / "empty.png").is_file()


@pytest.mark.parametrize(
    ("rejected", "m", "reference_rejected", "n"), [(5, 50, 2, 80), (0, 50, 4, 80), (30, 90, 4, 80), (3, 3, 0, 1)]
)
def test_the_p_value_is_that_of_fishers_test(rejected, m, reference_rejected, n):
    table = [[rejected, m - rejected], [reference_rejected, n - reference_rejected]]
    expected = fisher_exact(table, alternative="greater").pvalue
    p_value = fisher_p_value(np.arange(m) < rejected, np.arange(n) < reference_rejected)
    assert p_value == pytest.approx(expected)


def test_false_alarms_are_rare_if_the_threshold_is_a_score_of_the_reference():
    rng, p_values = np.random.default_rng(0), []
    for _ in range(2000):
        shots, stream = rng.normal(size=40), rng.normal(size=100)
        threshold = np.sort(shots)[38]  # one of 40 is above it, for a rate of 5 % of 41
        p_values.append(fisher_p_value(stream > threshold, shots > threshold))
    for alpha in (0.01, 0.05, 0.2):
        assert np.mean(np.array(p_values) <= alpha) <= alpha + 3.3 * np.sqrt(alpha * (1 - alpha) / 2000)


def test_corrected_p_values_keep_their_order():
    assert holm([]) == []
    assert holm([0.001, 0.02, 0.9]) == pytest.approx([0.003, 0.04, 0.9])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])


def test_shots_and_new_pictures_are_predicted_by_fits_of_one_kind(world):
    shot_confidences, new_confidences = [], []
    for _ in range(20):
        model = world.model(k=4, spread=4.0)
        reference = reference_from_shots(model, None, None)
        pictures = world.draw(EQUAL_PRIORS, 200, spread=4.0)[0]
        shot_confidences.append(reference.sample.probabilities.max(axis=1).mean())
        new_confidences.append(reference.held_out.predict(pictures).max(axis=1).mean())
    assert abs(np.mean(shot_confidences) - np.mean(new_confidences)) < 0.03


def test_new_pictures_are_predicted_by_each_fold_in_turn(world):
    predict = reference_from_shots(world.model(k=5), None, None).held_out.predict
    pictures = world.draw(EQUAL_PRIORS, 12)[0]
    by_first_fold = np.concatenate([predict(pictures[i : i + 1]) for i in range(12)])
    together = predict(pictures)
    assert np.allclose(together[::5], by_first_fold[::5]) and not np.allclose(together, by_first_fold)


def test_shots_above_the_threshold_are_counted(world):
    model = world.model()
    rejected = reference_from_shots(model, 0.2, None).sample.rejected
    scores = model.uncertainty_.rejector.weighted_sum(model.uncertainty_.rejector.held_out_scores)
    assert rejected.tolist() == (scores > np.sort(scores)[19]).tolist()  # the 20th of 24: ceil(25 * 0.8)
    assert rejected.sum() == 4 and reference_from_shots(model, None, None).sample.rejected is None
