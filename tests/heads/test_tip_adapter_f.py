"""Tip-Adapter-F: its training against gradients and AdamW written out by hand."""

import numpy as np
import pytest

from clipadapter.heads.tip_adapter import TipAdapter
from clipadapter.heads.tip_adapter_f import TipAdapterF

from .assertions import assert_loss_falls, assert_refused, assert_steps_are_epochs, assert_trains_on_views
from .formulas import AdamW, cosine_rate, softmax, unit
from .small_shots import released_shots, three_classes

D, SCALE = 6, 20.0


@pytest.fixture
def case():
    return three_classes(D, SCALE)


def trained_by_hand(X, labels, text, steps, alpha, beta, lr=1e-3, eps=1e-4, decay=0.01):
    """Full-batch AdamW on the keys: the gradient by the chain rule, the rate along a cosine, step by step."""
    x, onehot = unit(X), np.eye(len(text.labels))[labels]
    keys, optimizer = x.copy(), AdamW(eps, decay)
    for step in range(steps):
        affinity = np.exp(-beta * (1 - x @ keys.T))  # (m, n)
        logits = SCALE * x @ text.embeddings.T + alpha * affinity @ onehot
        error = (softmax(logits) - onehot) / len(x)  # (m, c)
        gradient = (alpha * beta * affinity * (error @ onehot.T)).T @ x
        keys = optimizer.step(keys, gradient, cosine_rate(lr, step, steps))
    return keys


@pytest.mark.parametrize(("alpha", "beta"), [(1.17, 1.0), (1.0, 5.5)])
def test_training_is_adamw_on_the_keys(case, alpha, beta):
    X, labels, y, text = case
    head = TipAdapterF(alpha=alpha, beta=beta, epochs=10).fit(X, y, text=text)
    keys = trained_by_hand(X, labels, text, 10, alpha, beta)
    np.testing.assert_allclose(head.keys_.numpy(), keys, rtol=1e-9, atol=1e-12)
    affinity = np.exp(-beta * (1 - unit(X) @ keys.T))
    expected = SCALE * unit(X) @ text.embeddings.T + alpha * affinity @ np.eye(3)[labels]
    np.testing.assert_allclose(head.logits(X), expected, rtol=1e-9)


def test_no_epoch_is_tip_adapter(case):
    X, _, y, text = case
    expected = TipAdapter(alpha=2.0, beta=3.0).fit(X, y, text=text).logits(X)
    np.testing.assert_array_equal(TipAdapterF(alpha=2.0, beta=3.0, epochs=0).fit(X, y, text=text).logits(X), expected)


def test_alpha_zero_leaves_the_keys_but_for_weight_decay(case):
    X, _, y, text = case
    head = TipAdapterF(alpha=0.0, epochs=3, weight_decay=0.0).fit(X, y, text=text)
    np.testing.assert_allclose(head.keys_.numpy(), unit(X), rtol=1e-12)


def test_keys_leave_unit_length_and_labels_stay(case):
    X, labels, y, text = case
    head = TipAdapterF().fit(X, y, text=text)
    assert head.labels_.tolist() == labels.tolist()
    assert np.abs(np.linalg.norm(head.keys_.numpy(), axis=1) - 1).max() > 1e-3


def test_training_lowers_the_loss_of_the_shots():
    assert_loss_falls(TipAdapterF)


def test_views_are_training_rows():
    assert_trains_on_views(lambda X, y, text: TipAdapterF().fit(X, y, text=text).keys_.numpy())


def test_seed_changes_the_order_of_small_batches(case):
    X, _, y, text = case
    first, again, other = (TipAdapterF(batch_size=2, seed=s).fit(X, y, text=text).keys_.numpy() for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0


@pytest.mark.parametrize(("steps", "epochs"), [(70, 24), (3, 20)])
def test_without_epochs_there_are_enough_for_the_steps(case, steps, epochs):
    assert_steps_are_epochs(TipAdapterF, "keys_", case, steps, epochs)


def test_presets_have_the_published_values():
    preset = TipAdapterF.preset("eurosat")
    assert (preset.alpha, preset.beta, preset.epochs) == (2.0, 1.0, 100)
    assert TipAdapterF.preset("imagenet").epochs == 20


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"alpha": -1.0}, "alpha must be 0 or more"),
        ({"epochs": -1}, "epochs must be 0 or more"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"batch_size": 0}, "batch_size must be positive"),
    ],
)
def test_bad_parameters_are_named(params, words):
    assert_refused(TipAdapterF(**params), words)


@pytest.fixture
def released():
    return released_shots("tip_adapter")


def test_released_code_trains_to_these_keys_and_logits(released):
    figures, X, y, text, Q = released
    head = TipAdapterF.preset("imagenet", epochs=10, draw_views=False).fit(X, y, text=text)
    np.testing.assert_allclose(head.keys_, figures["F_keys_step10"], atol=2e-7)  # float32 there
    np.testing.assert_allclose(head.logits(Q), figures["f64_F_logits_step10"], rtol=1e-10, atol=1e-10)


def test_released_code_trains_to_these_keys_in_one_step(released):
    figures, X, y, text, _ = released
    head = TipAdapterF.preset("imagenet", epochs=1, draw_views=False).fit(X, y, text=text)
    np.testing.assert_allclose(head.keys_, figures["F_keys_step1"], atol=2e-7)


def test_released_code_answers_so_with_other_parameters_than_it_trained_with(released):
    figures, X, y, text, Q = released
    head = TipAdapterF.preset("imagenet", epochs=1, draw_views=False).fit(X, y, text=text)
    # Its epoch was chosen by the queries, which is not repeated here: it was the first one.
    np.testing.assert_array_equal(figures["F_keys_best"], figures["F_keys_step1"])
    beta, alpha = figures["F_searched_beta_alpha"]
    head.load_state({**head.state(), "alpha_": alpha, "beta_": beta}, head.classes_, head.n_features_in_)
    np.testing.assert_allclose(head.logits(Q), figures["f64_F_logits_searched"], rtol=1e-10, atol=1e-10)


def test_views_need_not_be_training_rows(case):
    X, _, y, text = case
    noise = np.random.default_rng(0).standard_normal(X.shape)
    views = np.stack([X, X + noise, X - noise], axis=1)  # the mean is X
    plain, kept = (TipAdapterF(draw_views=False).fit(data, y, text=text).keys_ for data in (X, views))
    np.testing.assert_allclose(kept, plain, rtol=1e-9)
