"""The sentences of the demo, for made-up figures of every kind: none may say what the figures do not."""

import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from clipadapter.demo import Results

EQUAL = {"a": 1000, "b": 1000, "c": 1000, "d": 1000}
UNEQUAL = {"flawless": 2000, "spot": 1000, "weave": 1000}


def right_pictures(share, counts, key):
    """Labels of test pictures, and which of them are right: that share of each class, others for each key."""
    order = np.random.default_rng(zlib.crc32(repr(key).encode()))
    right = [order.permutation(np.arange(n) < round(share * n)) for n in counts.values()]
    return [name for name, n in counts.items() for _ in range(n)], np.concatenate(right)


def data_of(counts, metric="accuracy"):
    """As much of `DemoData` as the sentences read."""
    return SimpleNamespace(metric=metric, chance=1 / len(counts), test_counts=counts)


def results_of(values, counts=EQUAL, shots=(1, 16), metric="accuracy"):
    """Results of heads that are wrong on other pictures than each other."""
    labels = right_pictures(0, counts, 0)[0]
    runs = [SimpleNamespace(head="auto", shots=n, seed=0, metrics=None) for n in shots]  # failed
    for (head, n), shares in values.items():
        for seed, share in enumerate(shares):
            correct = right_pictures(share, counts, (head, n, 7))[1]
            own = SimpleNamespace(head=head, shots=n, seed=seed, metrics={metric: share}, correct_pictures=correct)
            runs.append(own)
    return Results(runs, data_of(counts, metric), labels)


def results(zero_shot=0.25, first=0.5, last=0.8, counts=EQUAL):
    """Figures at 1 and 16 shots, of two draws that agree."""
    ends = {"zero-shot": (zero_shot, zero_shot), "auto": (first, last)}
    values = {(head, n): (pair[i],) * 2 for head, pair in ends.items() for i, n in enumerate((1, 16))}
    metric = "accuracy" if len(set(counts.values())) == 1 else "balanced_accuracy"
    return results_of(values, counts, metric=metric)


def findings(**figures):
    return " ".join(results(**figures).findings())


def test_the_table_has_the_names_alone_a_few_pictures_and_the_most():
    assert results(zero_shot=0.18, last=0.934, counts=UNEQUAL).table().splitlines() == [
        "balanced accuracy on 4,000 test pictures",
        "        class names alone   18.0 % ± 0.0",
        "  1 picture of each class   50.0 % ± 0.0",
        "16 pictures of each class   93.4 % ± 0.0",
    ]
    one_draw = results_of({("zero-shot", 8): (0.5,), ("auto", 4): (1.0,)}, {"a": 5, "b": 5}, shots=(4, 8))
    assert one_draw.table().splitlines()[1:] == [
        "        class names alone   50.0 %",
        " 4 pictures of each class  100.0 %",
        " 8 pictures of each class  failed",
    ]


@pytest.mark.parametrize(
    ("zero_shot", "last", "sentence"),
    [
        (
            0.177,
            0.8,
            "chance is 25.0 %): 17.7 %. 16 pictures of each class: 80.0 %. That is +62.3 points, more than",
        ),
        # Standard error of 70 % on 4,000 pictures: 0.72 points; of a difference 1.02; twice that is 2.05.
        (0.7, 0.71, "16 pictures of each class: 71.0 %. That is +1.0 points, within the margin of error (2.0)."),
        (0.71, 0.7, "16 pictures of each class: 70.0 %. That is -1.0 points, within the margin of error (2.0)."),
        (0.9, 0.7, "That is -20.0 points, more than the margin of error ("),
    ],
)
def test_names_and_pictures_are_compared_with_each_other_and_with_chance(zero_shot, last, sentence):
    assert sentence in findings(zero_shot=zero_shot, last=last)


@pytest.mark.parametrize(("first", "sign"), [(0.5, "+20.0 points, more"), (0.695, "+0.5 points, within"), (0.9, "-20")])
def test_the_most_shots_are_compared_with_the_fewest(first, sign):
    text = results(first=first, last=0.7).findings()[1]
    assert text.startswith(f"1 picture of each class: {100 * first:.1f} %. 16 pictures of each class: 70.0 %. That is ")
    assert sign in text


def test_draws_that_differ_widen_the_margin():
    draws = results_of({("auto", 1): (0.3, 0.7), ("auto", 16): (0.8, 0.6)})
    # Differences +50 and -10 points: standard error 30 points, so a mean of 20 points is within the margin.
    difference, margin = draws.difference(("auto", 16), ("auto", 1))
    assert abs(difference) <= margin


def test_heads_that_are_wrong_on_the_same_pictures_differ_clearly_by_less():
    first, second = np.arange(400) < 300, np.arange(400) < 288  # right on 75 and 72 %, on the same pictures
    runs = [
        SimpleNamespace(head=head, shots=16, seed=seed, metrics={}, correct_pictures=correct)
        for head, correct in (("auto", first), ("zero-shot", second))
        for seed in (1, 2)
    ]
    results = Results(runs, data_of({"a": 400}), ["a"] * 400)
    difference, margin = results.difference(("auto", 16), ("zero-shot", 16))
    # 12 of 400 differences are 1: standard error sqrt(0.03 * 0.97 / 399). With own pictures it would be 3.1 points.
    assert difference == pytest.approx(0.03)
    assert margin == pytest.approx(2 * (0.03 * 0.97 / 399) ** 0.5)
    assert difference > margin


def test_one_number_of_shots_is_not_compared_with_itself_and_what_failed_is_left_out():
    values = {(head, 4): (0.6,) for head in ("zero-shot", "auto")}
    (names,) = results_of(values, shots=(4,)).findings()
    assert names.startswith("The class names alone")
    assert results_of({}).findings() == []
    assert results_of({("zero-shot", 16): (0.6,)}).findings() == []
