"""A warning where a pool has few of the classes, and none where it has all."""

import warnings

import numpy as np
import pytest

from clipadapter.errors import MethodWarning
from clipadapter.heads import TextFeatures, create_head

C, D = 8, 40
HEADS = ("transclip", "zlap")


def case(counts, seed, shots=4):
    """Shots of all classes, and a pool with these numbers of pictures of them."""
    rng = np.random.default_rng(seed)
    means = 1.5 * rng.standard_normal(D) + rng.standard_normal((C, D))
    draw = lambda labels: means[labels] + 1.5 * rng.standard_normal((len(labels), D))  # noqa: E731
    labels = np.repeat(np.arange(C), shots)
    text = TextFeatures([f"{k}" for k in range(C)], means + rng.standard_normal(means.shape), 20.0)
    return draw(labels), labels.astype(str), text, draw(np.repeat(np.arange(C), counts))


def fitted(head, counts, seed, **params):
    X, y, text, pool = case(counts, seed)
    return create_head(head, **params).fit(X, y, text=text, unlabelled=pool)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [2, 8, 30])
def test_a_balanced_pool_brings_no_warning(head, size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(2):
            fitted(head, [size] * C, seed)


@pytest.mark.parametrize("head", HEADS)
def test_a_pool_in_which_one_class_is_twice_as_frequent_brings_no_warning(head):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(head, [24] + [12] * (C - 1), 0)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("present", [1, 2])
def test_a_pool_of_few_classes_is_named_with_the_number_of_classes_and_other_heads(head, present):
    for seed in range(2):
        with pytest.warns(MethodWarning) as caught:
            fitted(head, [40] * present + [0] * (C - present), seed)
        (text,) = (str(warning.message) for warning in caught)
        start, end = (
            f"{head} expects pictures of all classes without labels, but these have an estimated ",
            " of 8 classes",
        )
        assert text.startswith(start) and "ss-text-u, stata or auto" in text
        assert float(text.removeprefix(start).split(end)[0]) == pytest.approx(present, abs=1.2)


@pytest.mark.parametrize("head", ["ss-text-u", "stata"])
def test_heads_for_such_pools_do_not_warn(head):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(head, [40] + [0] * (C - 1), 0)
