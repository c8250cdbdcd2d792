"""A whole look at a stream: what is found, what is not, and what can't be looked at."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.errors import DataError, InputError
from clipadapter.monitor import CHECKS, watch
from clipadapter.monitor.messages import of_shares
from clipadapter.uncertainty import UncertaintyOptions

USUAL, OTHER = (0.6, 0.3, 0.1), (0.1, 0.3, 0.6)


def changed(found):
    return {finding.check for finding in found.findings if finding.found}


def test_nothing_is_found_where_nothing_changed(world):
    model = world.model()
    found = watch(model, world.stream(model))
    assert not found.drift
    assert found.sentence().startswith("no drift was found (p = ")
    assert (found.reference, found.reference_pictures, found.pictures) == ("shots", 24, 90)
    assert [finding.check for finding in found.findings] == list(CHECKS)


def test_false_alarms_are_as_rare_as_was_asked(world):
    model = world.model(k=16)
    alarms = sum(watch(model, world.stream(model, m=40), alpha=0.1, window=40, seed=i).drift for i in range(30))
    assert alarms <= 8  # 3 and 3 sd; shots and their folds are the same in all


def test_other_shares_are_found_named_and_not_taken_for_other_looks(world):
    model = world.model()
    found = watch(model, world.stream(model, OTHER, 120))
    assert changed(found) == {"shares"}
    assert "'owl' is 1." in found.sentence() and "usually 33 %" in found.sentence()
    owl = found.classes[2]
    assert owl.low <= 0.6 <= owl.high and owl.usual == pytest.approx(1 / 3)


def test_usual_shares_can_be_told(world):
    model = world.model()
    stream = world.stream(model, OTHER, 120)
    assert changed(watch(model, stream, usual={"cat": 0.1, "dog": 0.3, "owl": 0.6})) == set()
    assert changed(watch(model, stream, usual={"cat": 0.6})) == {"shares"}


def test_usual_pictures_tell_what_is_usual(world):
    model = world.model()
    usual = world.stream(model, USUAL, 120)
    same = watch(model, world.stream(model, USUAL, 120), reference=usual)
    assert (changed(same), same.reference, same.reference_pictures) == (set(), "pictures", 120)
    other = watch(model, world.stream(model, OTHER, 120), reference=usual)
    assert changed(other) == {"shares"}
    assert other.classes[0].usual == pytest.approx(0.6, abs=0.12)


@pytest.mark.parametrize("by_pictures", [False, True])
def test_other_looks_are_found_whatever_the_shares(world, by_pictures):
    model = world.model()
    usual = world.stream(model, USUAL, 120) if by_pictures else None
    found = watch(model, world.stream(model, OTHER, 120, spread=1.8), reference=usual)
    assert "looks" in changed(found)
    assert "the pictures look different (p = 0.00" in found.sentence()


def test_pictures_of_none_of_the_classes_are_found(world):
    model = world.model()
    strange = world.rng.normal(0, 1, (40, 12)) - 4
    found = watch(model, [*world.stream(model, m=60), *world.paths(model, strange)], window=20)
    assert "none" in changed(found)
    assert "% are none of the classes (promised 5 %)" in found.sentence()
    assert found.none.low <= found.none.now <= found.none.high
    assert found.windows[-1].none[0] > 0.9 > 0.3 > found.windows[0].none[0]
    assert found.windows[-1].distance > found.windows[-1].chance


def test_where_the_looks_changed_shares_are_only_said_to_seem_so(world):
    classes = watch(model := world.model(), world.stream(model, OTHER, 120)).classes
    assert " is 1." in of_shares(classes, 0.01, sure=True)
    assert " seems 1." in of_shares(classes, 0.01, sure=False)
    gone = [
        replace(one, now=now, usual=usual, p=0.001)
        for one, now, usual in zip(classes, (0, 1, 0.2), (0.5, 0, 0.3), strict=True)
    ]
    told = of_shares(gone, 0.01, sure=True)
    assert "'dog' is new (100 %, usually 0 %)" in told and "'cat' has nearly vanished (0 %, usually 50 %)" in told


def test_windows_cover_the_stream_in_its_order(world):
    model = world.model()
    times = [float(i) for i in range(95)]
    found = watch(model, world.stream(model, m=95), times=times, window=30)
    assert [(one.start, one.end) for one in found.windows] == [(0, 32), (32, 64), (64, 95)]
    assert [one.begins for one in found.windows] == [0.0, 32.0, 64.0]
    assert all(sum(one.shares) == pytest.approx(1) for one in found.windows)
    assert len(watch(model, world.stream(model, m=400)).windows) == 11  # of 34 pictures or more


def test_what_cannot_be_read_or_came_before_is_told_and_left_out(world):
    model = world.model()
    stream = world.stream(model, m=60)
    found = watch(model, [stream[0].with_name("bad1"), *stream, *stream[:7]], times=[float(i) for i in range(68)])
    assert (found.pictures, found.repeated, found.skipped) == (60, 7, (("bad1", "not an image"),))
    assert found.windows[0].begins == 1.0


def test_too_few_pictures_are_no_ground_for_a_verdict(world):
    model = world.model()
    few, enough, small = world.stream(model, m=19), world.stream(model, m=20), world.model(k=2)
    with pytest.raises(DataError, match="the stream has 19 different pictures that can be used.* give 20 or more"):
        watch(model, few)
    with pytest.raises(DataError, match="the stream has 1 different pictures"):
        watch(model, enough[:1] * 30)
    with pytest.raises(DataError, match="the reference has 19 different"):
        watch(model, enough, reference=few)
    with pytest.raises(DataError, match="the model has kept shots of 6 different"):
        watch(small, world.stream(small))
    with pytest.raises(DataError, match="there are no pictures"):
        watch(model, [])
    with pytest.raises(DataError, match="none of the 1 pictures can be read"):
        watch(model, [few[0].with_name("bad")])


def test_models_whose_shots_say_nothing_need_usual_pictures(world):
    model = world.model(k=1)
    with pytest.raises(InputError, match="one shot a class there is nothing to say what is usual: give pictures"):
        watch(model, world.stream(model))
    usual = world.stream(model, m=60)
    assert watch(model, world.stream(model, m=60), reference=usual).pictures == 60
    model.support_ = model.support_.take([])
    with pytest.raises(InputError, match="saved without its shots"):
        watch(model, world.stream(model))
    for flag, word in (
        ("transductive", "transductive"),
        ("tunes_encoder", "trained again"),
        ("needs_tower", "trained"),
    ):
        model = world.model()
        setattr(model.head_, flag, True)
        with pytest.raises(InputError, match=word):
            watch(model, world.stream(model))


def test_a_model_that_cannot_tell_strange_pictures_is_looked_at_without(world):
    model = world.model()
    model.uncertainty_ = replace(model.uncertainty_, rejector=None)
    found = watch(model, world.stream(model))
    assert found.findings[2].p is None and "two shots a class" in found.findings[2].words
    assert found.none is None and found.windows[0].none is None
    assert found.findings[0].corrected <= 2 * found.findings[0].p + 1e-12  # two checks, not three


def test_two_shots_a_class_do_not_say_how_frequent_classes_are(world):
    model = world.model(counts=(2, 2, 3))
    model.support_ = replace(model.support_, X=np.asarray(model.support_.X))
    import clipadapter.monitor.detection as own

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "LEAST", 5)
        found = watch(model, world.stream(model))
    assert found.findings[1].p is None and "three" not in found.findings[1].words
    assert found.findings[1].words.startswith("it takes 3 shots a class")


def test_a_check_that_is_left_out_is_not_counted(world):
    model = world.model()
    stream = world.stream(model, OTHER, 120)
    found = watch(model, stream, skip=("shares",))
    assert found.findings[1].words == "left out" and not found.drift
    with pytest.raises(InputError, match=r"no check is called 'look'; there are: looks, shares, none"):
        watch(model, stream, skip=("look",))
    with pytest.raises(InputError, match="every check is left out"):
        watch(model, stream, skip=tuple(CHECKS))


def test_the_rate_is_the_models_own_unless_another_is_asked(world):
    model = world.model(uncertainty=UncertaintyOptions(reject=0.2))
    assert watch(model, world.stream(model)).none.rate == 0.2
    assert watch(model, world.stream(model), reject=0.1).none.rate == 0.1


def test_what_is_out_of_range_is_told(world):
    model = world.model()
    stream = world.stream(model)
    for alpha in (0.0, 0.7):
        with pytest.raises(InputError, match="alpha is the chance of a false alarm"):
            watch(model, stream, alpha=alpha)
    with pytest.raises(InputError, match="a window needs 20 pictures or more"):
        watch(model, stream, window=5)
    with pytest.raises(InputError, match="leave usual out, or the reference"):
        watch(model, stream, reference=stream, usual={"cat": 0.5})
    with pytest.raises(InputError, match="not fitted"):
        watch(FewShotClassifier("toy"), stream)


def test_pictures_with_several_labels_are_refused():
    dots = [np.full((8, 8, 3), value, np.uint8) for value in (0, 60, 120, 250)]
    model = FewShotClassifier("toy", "linear-probe", cache=None).fit(dots, [("a",), ("a", "b"), ("b",), ()])
    with pytest.raises(InputError, match="this model's pictures may have several"):
        watch(model, [])


def test_json_and_plot_tell_all(world, tmp_path):
    model = world.model()
    found = watch(model, world.stream(model, OTHER, 80), times=[1.7e9 + 3600 * i for i in range(80)])
    told = json.loads(json.dumps(found.to_dict()))
    assert told["drift"] and told["verdict"] == found.sentence()
    assert set(told["windows"][0]["shares"]) == {"cat", "dog", "owl"}
    assert set(told["windows"][0]["none"]) == {"now", "low", "high"}
    assert found.to_png(tmp_path / "drift.png").is_file()
    with Image.open(tmp_path / "drift.png") as image:
        assert image.format == "PNG" and image.width > 1000
    bare = replace(found, none=None, windows=tuple(replace(one, none=None, distance=None) for one in found.windows))
    assert bare.to_png(tmp_path / "bare.png").is_file()


def test_the_same_seed_finds_the_same(world):
    model = world.model()
    stream = world.stream(model)
    assert watch(model, stream, seed=1) == watch(model, stream, seed=1)


def test_nothing_is_fitted_anew_to_the_model(world):
    model = world.model()
    before = {name: value.copy() for name, value in model.head_.state().items()}
    watch(model, world.stream(model))
    assert all(np.array_equal(value, before[name]) for name, value in model.head_.state().items())
