"""The sentences of the demo, for made-up figures of every kind: none may say what the figures do not."""

import zlib

import numpy as np
import pytest

from clipadapter.demo import Results, describe_findings

EQUAL = {"a": 1000, "b": 1000, "c": 1000, "d": 1000}
UNEQUAL = {"flawless": 2000, "spot": 1000, "weave": 1000}


def right_pictures(share, counts, key):
    """Labels of test pictures, and which of them are right: that share of each class, others for each key."""
    order = np.random.default_rng(zlib.crc32(repr(key).encode()))
    right = [order.permutation(np.arange(n) < round(share * n)) for n in counts.values()]
    return [name for name, n in counts.items() for _ in range(n)], np.concatenate(right)


def results_of(values, counts=EQUAL, accuracy=None, shots=(1, 16), metric="accuracy"):
    """Results of heads that are wrong on other pictures than each other."""
    labels = right_pictures(0, counts, 0)[0]
    correct = {
        key: {seed: right_pictures(share, counts, (*key, 7))[1] for seed, share in enumerate(shares)}
        for key, shares in values.items()
    }
    return Results(metric, shots, values, accuracy or {}, correct, labels, len(counts), counts)


def findings(zero_shot=0.25, first=0.5, last=0.8, probe=(0.5, 0.8), adapter=(0.5, 0.8), counts=EQUAL, **changes):
    """The sentences for figures at 1 and 16 shots, of two draws that agree."""
    ends = {
        "zero-shot": (zero_shot, zero_shot),
        "auto": (first, last),
        "linear-probe": probe,
        "clip-adapter": adapter,
    }
    values = {(head, n): (pair[i],) * 2 for head, pair in ends.items() for i, n in enumerate((1, 16))}
    metric = "accuracy" if len(set(counts.values())) == 1 else "balanced_accuracy"
    results = results_of(values, counts, {"auto": last}, metric=metric)
    return " ".join(describe_findings(Results(**{**vars(results), **changes})))


def test_the_first_sentence_has_the_figure_of_auto():
    assert findings(last=0.8).startswith(
        "With 16 pictures of each class, auto is right on 80.0 % of the test pictures. "
    )
    unequal = findings(last=0.63, counts=UNEQUAL)
    assert unequal.startswith("With 16 pictures of each class, auto is right in 63.0 % of each class on average. ")


def test_auto_at_chance_is_not_praised():
    assert "on 25.5 % of the test pictures, which is not clearly above chance (25.0 %)." in findings(last=0.255)
    assert "on 10.0 % of the test pictures, which is below chance (25.0 %)." in findings(last=0.1)


@pytest.mark.parametrize(
    ("zero_shot", "sentence"),
    [
        (0.177, "is at 17.7 %, below chance (25.0 %): the names mislead this encoder."),
        (
            0.24,
            "is at 24.0 %, not clearly different from chance (25.0 %): the names tell this encoder little or nothing.",
        ),
        (
            0.26,
            "is at 26.0 %, not clearly different from chance (25.0 %): the names tell this encoder little or nothing.",
        ),
        (0.6, "is at 60.0 %, above chance (25.0 %): the names alone help this encoder."),
    ],
)
def test_zero_shot_is_compared_with_chance(zero_shot, sentence):
    assert sentence in findings(zero_shot=zero_shot)


@pytest.mark.parametrize(
    ("zero_shot", "last", "sentence"),
    [
        (0.2, 0.7, "The pictures add 50.0 points."),
        # Standard error of 70 % on 4,000 pictures: 0.72 points; of a difference 1.02; twice that is 2.05.
        (
            0.7,
            0.71,
            "The pictures add nothing that is clear here: the difference is +1.0 points, with a margin of error ",
        ),
        (
            0.71,
            0.7,
            "The pictures add nothing that is clear here: the difference is -1.0 points, with a margin of error ",
        ),
        (0.9, 0.7, "The pictures do harm here: auto is 20.0 points below the names alone."),
    ],
)
def test_the_gain_over_the_names_has_its_sign(zero_shot, last, sentence):
    assert sentence in findings(zero_shot=zero_shot, first=0.5, last=last)


@pytest.mark.parametrize(
    ("first", "sentence"),
    [
        (0.5, "More pictures help: auto goes from 50.0 % with 1 picture of each class to 70.0 % with 16."),
        (
            0.695,
            "More pictures did not clearly help: auto goes from 69.5 % with 1 picture of each class to 70.0 % with 16",
        ),
        (0.9, "More pictures did not help: auto goes from 90.0 % with 1 picture of each class to 70.0 % with 16."),
    ],
)
def test_more_shots_help_only_if_they_do(first, sentence):
    assert sentence in findings(first=first, last=0.7)


@pytest.mark.parametrize(
    ("probe", "adapter", "sentence"),
    [
        (
            (0.5, 0.7),
            (0.6, 0.8),
            "clip-adapter is ahead by 10.0 points with 16 pictures (80.0 % against 70.0 %) and by 10.0 points with 1 "
            "picture (60.0 % against 50.0 %).",
        ),
        (
            (0.5, 0.7),
            (0.4, 0.6),
            "the linear probe is ahead by 10.0 points with 16 pictures (60.0 % against 70.0 %) and by 10.0 points with "
            "1 picture (40.0 % against 50.0 %).",
        ),
        (
            (0.5, 0.7),
            (0.501, 0.699),
            "the two can't be told apart with 16 pictures (69.9 % against 70.0 %) and with 1 picture (50.1 % against "
            "50.0 %).",
        ),
        (
            (0.5, 0.7),
            (0.6, 0.6),
            "the linear probe is ahead by 10.0 points with 16 pictures (60.0 % against 70.0 %); clip-adapter is ahead "
            "by 10.0 points with 1 picture (60.0 % against 50.0 %).",
        ),
    ],
)
def test_the_adapter_and_the_probe_are_compared_honestly(probe, adapter, sentence):
    assert sentence in findings(probe=probe, adapter=adapter)


def test_a_constant_answer_is_named_where_classes_are_unequal():
    below = findings(last=0.6, counts=UNEQUAL, accuracy={"auto": 0.47})
    assert "Always answering 'flawless' is right on 50.0 % of the test pictures and finds no other class; " in below
    assert below.endswith("auto with 16 pictures of each class is right on 47.0 %, not more than that.")
    above = findings(last=0.6, counts=UNEQUAL, accuracy={"auto": 0.58})
    assert above.endswith("is right on 58.0 %, more than that.")
    assert "Always answering" not in findings(counts=EQUAL)


def test_draws_that_differ_widen_the_margin():
    results = results_of({("auto", 1): (0.3, 0.7), ("auto", 16): (0.8, 0.6)})
    # Differences +50 and -10 points: standard error 30 points, so a mean of 20 points is within the margin.
    assert results.difference(("auto", 16), ("auto", 1)).sign == 0


def test_heads_that_are_wrong_on_the_same_pictures_differ_clearly_by_less():
    first, second = np.arange(400) < 300, np.arange(400) < 288  # right on 75 and 72 %, on the same pictures
    correct = {("auto", 16): {1: first, 2: first}, ("zero-shot", 16): {1: second, 2: second}}
    values = {("auto", 16): (0.75, 0.75), ("zero-shot", 16): (0.72, 0.72)}
    results = Results("accuracy", (16,), values, {}, correct, ["a"] * 400, 1, {"a": 400})
    difference = results.difference(("auto", 16), ("zero-shot", 16))
    # 12 of 400 differences are 1: standard error sqrt(0.03 * 0.97 / 399). With own pictures it would be 3.1 points.
    assert difference.value == pytest.approx(0.03)
    assert difference.margin == pytest.approx(2 * (0.03 * 0.97 / 399) ** 0.5)
    assert difference.sign == 1


def test_one_number_of_shots_is_not_compared_with_itself():
    values = {(head, 4): (0.6,) for head in ("zero-shot", "linear-probe", "clip-adapter", "auto")}
    text = " ".join(describe_findings(results_of(values, accuracy={"auto": 0.6}, shots=(4,))))
    assert "More pictures" not in text
    assert text.endswith("the two can't be told apart with 4 pictures (60.0 % against 60.0 %).")


def test_what_failed_is_left_out():
    assert describe_findings(results_of({})) == []
    only = describe_findings(results_of({("zero-shot", 16): (0.6,)}))
    assert only == [
        "zero-shot, which has only the class names, is at 60.0 %, above chance (25.0 %): the names alone help this "
        "encoder."
    ]


def test_the_standard_error_is_that_of_a_proportion():
    results = results_of({}, {"a": 50, "b": 50})
    assert results.standard_error(0.5) == pytest.approx(0.05)  # sqrt(0.5 * 0.5 / 100)
    unequal = results_of({}, {"a": 75, "b": 25}, metric="balanced_accuracy")
    assert unequal.standard_error(0.5) == pytest.approx(0.5 * (0.25 / 75 + 0.25 / 25) ** 0.5)
