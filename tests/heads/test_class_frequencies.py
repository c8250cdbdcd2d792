"""Class frequencies of pictures without labels, against EM in plain loops; a warning where few classes are there."""

import math
import warnings

import numpy as np
import pytest
import torch

from clipadapter.errors import MethodWarning
from clipadapter.heads import TextFeatures, create_head
from clipadapter.heads.class_frequencies import balancing_bias, effective_number, estimate_frequencies


def plain_em(logits, steps=400):
    """EM with a Dirichlet prior that has the weight of one picture, then BIC against equal frequencies."""
    m, c = logits.shape
    p = [[math.exp(v) / sum(math.exp(w) for w in row) for v in row] for row in logits.tolist()]
    r = [1 / c] * c
    for _ in range(steps):
        counts = [1 / c] * c
        for row in p:
            total = sum(a * b for a, b in zip(r, row, strict=True))
            for k in range(c):
                counts[k] += r[k] * row[k] / total
        r = [count / (m + 1) for count in counts]
    gain = sum(math.log(sum(a * b for a, b in zip(r, row, strict=True)) * c) for row in p)
    parameters = math.exp(-sum(a * math.log(a) for a in r)) - 1
    weight = 1 / (1 + math.exp(0.5 * parameters * math.log(m) - gain))
    return [weight * a + (1 - weight) / c for a in r]


@pytest.mark.parametrize("truth", [[0] * 20, [0] * 9 + [1] * 8, [0, 1, 2, 3] * 5])
@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_frequencies_are_those_of_em_and_bic(truth, sharpness):
    rng = np.random.default_rng(0)
    logits = sharpness * (np.eye(4)[truth] + 0.3 * rng.standard_normal((len(truth), 4)))
    found = estimate_frequencies(torch.from_numpy(logits))
    np.testing.assert_allclose(found, plain_em(logits), atol=1e-4)


def test_a_bias_is_added_to_the_logits():
    logits, bias = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, -1.0, 0.0])
    torch.testing.assert_close(estimate_frequencies(logits, bias), estimate_frequencies(logits + bias))


def test_logits_that_say_nothing_leave_frequencies_equal():
    torch.testing.assert_close(estimate_frequencies(torch.zeros(500, 8)), torch.full((8,), 1 / 8))


@pytest.mark.parametrize("present", [1, 3, 8])
def test_the_effective_number_is_that_of_equally_frequent_classes(present):
    frequencies = torch.zeros(8)
    frequencies[:present] = 1 / present
    assert effective_number(frequencies) == pytest.approx(present)


def test_with_its_bias_a_model_predicts_the_classes_of_many_shots_equally_often():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [400, 300, 500])
    logits = torch.from_numpy(np.eye(3)[labels] + [2.0, 0.0, -1.0] + 0.5 * rng.standard_normal((1200, 3)))
    p = (logits + balancing_bias(logits, torch.from_numpy(labels))).softmax(dim=1).numpy()
    means = np.mean([p[labels == k].mean(axis=0) for k in range(3)], axis=0)
    np.testing.assert_allclose(means, [1 / 3] * 3, atol=0.01)


def test_a_class_without_shots_has_no_bias():
    logits = torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]])
    bias = balancing_bias(logits, torch.tensor([0, 1]))
    assert bias[2] == 0 and bias[0] < 0 < bias[1]


C, D = 8, 40
HEADS = ("transclip", "zlap")


def fit(head, counts, seed):
    """The head, fitted to shots of all classes, and to a pool with these numbers of pictures of them."""
    rng = np.random.default_rng(seed)
    means = 1.5 * rng.standard_normal(D) + rng.standard_normal((C, D))
    draw = lambda labels: means[labels] + 1.5 * rng.standard_normal((len(labels), D))  # noqa: E731
    labels = np.repeat(np.arange(C), 4)
    text = TextFeatures([f"{k}" for k in range(C)], means + rng.standard_normal(means.shape), 20.0)
    shots, pool = draw(labels), draw(np.repeat(np.arange(C), counts))
    create_head(head).fit(shots, labels.astype(str), text=text, unlabelled=pool)


FEW = [40] + [0] * (C - 1)
QUIET = [
    *((head, counts) for head in HEADS for counts in ([2] * C, [8] * C, [30] * C, [24] + [12] * (C - 1))),
    ("ss-text-u", FEW),  # made for such pools
    ("stata", FEW),
]


@pytest.mark.parametrize(("head", "counts"), QUIET)
def test_a_pool_that_suits_the_head_brings_no_warning(head, counts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(2):
            fit(head, counts, seed)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("present", [1, 2])
def test_a_pool_of_few_classes_is_named_with_the_number_of_classes_and_other_heads(head, present):
    for seed in range(2):
        with pytest.warns(MethodWarning) as caught:
            fit(head, [40] * present + [0] * (C - present), seed)
        (text,) = (str(warning.message) for warning in caught)
        start = f"{head} expects pictures of all classes without labels, but these have an estimated "
        assert text.startswith(start) and "ss-text-u, stata or auto" in text
        assert float(text.removeprefix(start).split(" of 8 classes")[0]) == pytest.approx(present, abs=1.2)
