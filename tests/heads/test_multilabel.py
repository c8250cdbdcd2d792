"""Multi-label classification: what heads share for it, and the values that each head learns."""

import numpy as np
import pytest
import torch
from scipy.special import expit as sigmoid
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier

from clipadapter.errors import InputError
from clipadapter.heads import TextFeatures, create_head, head_info, list_heads, out_of_fold, select
from clipadapter.heads.auto.experts import fit_stacking, ridge_map
from clipadapter.heads.auto.head import LOG_WEIGHT_STD
from clipadapter.heads.clip_adapter import ClipAdapter
from clipadapter.heads.linear_probe import GRID, LinearProbe
from clipadapter.heads.losses import fit_bias
from clipadapter.heads.out_of_fold import iterative_stratification
from clipadapter.heads.tip_adapter import TipAdapter
from clipadapter.heads.zero_shot import ZeroShot
from clipadapter.testing.heads import toy_multilabel

from .formulas import unit

ABLE = {"zero-shot", "linear-probe", "clip-adapter", "clip-adapter-trained-ratio", "tip-adapter", "auto"}


def drawn(n=40, c=4, d=6, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    return X, (X[:, :c] + rng.standard_normal((n, c)) > 0.5).astype(int)


def test_these_heads_support_multilabel_targets():
    assert {name for name in list_heads() if head_info(name).cls.multilabel} == ABLE


def test_labels_may_be_any_kind_of_zeros_and_ones_and_wrong_ones_are_named():
    X, Y, text = toy_multilabel()
    fits = [LinearProbe(C=1.0).fit(X, kind) for kind in (Y, Y.tolist(), torch.from_numpy(Y), Y.astype(float))]
    for head in fits[1:]:
        np.testing.assert_array_equal(head.logits(X), fits[0].logits(X))  # the same sums in the same order
    assert fits[0].classes_.tolist() == [0, 1, 2]
    assert LinearProbe(C=1.0).fit(X, Y, text=text).classes_.tolist() == list(text.labels)
    with pytest.warns(UserWarning, match="column-vector"):
        head = LinearProbe(C=1.0).fit(X, np.repeat(["a", "b"], 12)[:, None])
    assert head.task_ == "single-label"
    for wrong, words in (
        (np.full((24, 3), 2), "something else in it"),
        (np.full((24, 3), "cat"), "something else in it"),
        (np.full((24, 3), np.nan), "something else in it"),
        (np.zeros((24, 2)), "2 columns but the class text has 3"),
        (np.zeros((23, 3)), "24 rows but y has 23 rows"),
    ):
        with pytest.raises(InputError, match=words):
            ZeroShot().fit(X, wrong, text=text)
    with pytest.raises(InputError, match="the solver is 'torch', but is 'sklearn'"):
        LinearProbe(C=1.0, solver="sklearn").fit(X, Y)


def test_bias_is_that_of_logistic_regression_on_a_constant():
    X, Y = drawn()
    logits = 3 * X[:, :4]
    found = fit_bias(torch.from_numpy(logits), torch.from_numpy(Y), prior_std=1e4).numpy()
    np.testing.assert_allclose(sigmoid(logits + found).sum(axis=0), Y.sum(axis=0), rtol=1e-5)


def test_bias_of_rare_classes_is_near_that_of_all():
    targets = torch.zeros(50, 3)
    targets[:25, 0], targets[:24, 1] = 1, 1
    zeros = torch.zeros(50, 3)
    loose, tight = fit_bias(zeros, targets, prior_std=100.0), fit_bias(zeros, targets, prior_std=0.1)
    assert loose[2] < -8
    assert float(tight.max() - tight.min()) < 0.5
    # Half of a third and 48 % of a third: common log-odds of 49.5 in 151.
    torch.testing.assert_close(tight.mean(), torch.tensor(np.log(49.5 / 101.5)).float(), atol=0.1, rtol=0)


def test_zero_shot_uses_the_bias_that_siglip_was_trained_with_or_gives_classes_their_share():
    X, Y, text = toy_multilabel(n=200)
    rows = unit(X.astype(float))
    siglip = TextFeatures(text.labels, text.embeddings, 110.0, logit_bias=-12.5)
    expected = sigmoid(110.0 * rows @ text.embeddings.T - 12.5)
    np.testing.assert_allclose(ZeroShot().fit(X, Y, text=siglip).predict_proba(X), expected, atol=1e-4)
    Y[:, 0] &= np.arange(200) % 2
    head = ZeroShot().fit(X, Y, text=text)
    np.testing.assert_allclose(head.predict_proba(X).mean(axis=0), Y.mean(axis=0), atol=0.02)
    other = head.for_classes(TextFeatures(["wolf", "fox"], np.eye(2, X.shape[1]), logit_scale=1.0))  # the mean bias
    np.testing.assert_allclose(other.logits(X), rows[:, :2] + float(head.bias_.mean()), atol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(40, 6), (40, 64), (400, 6)])
@pytest.mark.parametrize("C", [0.3, 30.0])
def test_linear_probe_is_one_logistic_regression_per_class(n, d, C):
    X, Y = drawn(n, 4, d)
    expected = OneVsRestClassifier(LogisticRegression(C=C, tol=1e-10, solver="newton-cholesky")).fit(unit(X), Y)
    found = LinearProbe(C=C, tol=1e-8).fit(X, Y)
    np.testing.assert_allclose(found.predict_proba(X), expected.predict_proba(unit(X)), atol=1e-5)
    Y[:, 1] = 0  # a class that no picture has gets its smoothed share
    np.testing.assert_allclose(LinearProbe(C=C).fit(X, Y).predict_proba(X)[:, 1], 0.5 / (n + 1))


def test_c_has_the_lowest_held_out_loss_of_scikit_learn():
    X, Y = drawn(48, 3, 24, seed=1)
    losses = dict.fromkeys(GRID, 0.0)
    for train, held in iterative_stratification(torch.from_numpy(Y), 3):
        for C in losses:
            model = OneVsRestClassifier(LogisticRegression(C=C, solver="newton-cholesky")).fit(unit(X)[train], Y[train])
            p = model.predict_proba(unit(X)[held])
            losses[C] -= np.log(np.where(Y[held] == 1, p, 1 - p)).sum()
    assert min(losses, key=losses.get) == LinearProbe().fit(X, Y).C_


def test_a_shot_in_the_cache_votes_for_each_class_it_has():
    X, Y, text = toy_multilabel()
    head = TipAdapter(alpha=2.0, beta=3.0).fit(X, Y, text=text)
    keys = unit(X.astype(float))
    zero_shot, affinities = 20.0 * keys @ text.embeddings.T, 2.0 * np.exp(-3.0 * (1 - keys @ keys.T))
    without_own = affinities * (1 - np.eye(len(X)))
    bias = fit_bias(torch.from_numpy(without_own @ Y + zero_shot), torch.from_numpy(Y)).numpy()
    np.testing.assert_allclose(head.logits(X), affinities @ Y + zero_shot + bias, rtol=1e-4, atol=1e-3)


def test_cache_off_is_zero_shot():
    X, Y, text = toy_multilabel()
    expected = ZeroShot().fit(X, Y, text=text).logits(X)
    np.testing.assert_allclose(TipAdapter(alpha=0.0).fit(X, Y, text=text).logits(X), expected, atol=1e-4)
    np.testing.assert_allclose(ClipAdapter(alpha=0.0, steps=1).fit(X, Y, text=text).logits(X), expected, atol=1e-4)


def test_adapter_is_trained_by_binary_cross_entropy():
    X, Y, text = toy_multilabel()
    head = ClipAdapter(alpha=0.3, epochs=1, noise=0, lr=1e-9, seed=3)
    head.fit(X, Y, text=text)
    p = head.predict_proba(X)  # as before the only step, since the rate is next to nothing
    expected = -np.log(np.where(Y == 1, p, 1 - p)).sum(axis=1).mean()
    np.testing.assert_allclose(head.loss_, expected, rtol=1e-4)


@pytest.mark.parametrize("d", [5, 60])
def test_ridge_is_that_of_scikit_learn(d):
    X, Y = drawn(30, 4, d)
    expected = Ridge(alpha=0.1, fit_intercept=False).fit(X, Y - Y.mean(axis=0)).coef_
    found = ridge_map(torch.from_numpy(X), torch.from_numpy(Y - Y.mean(axis=0)))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_stacking_weights_are_at_the_optimum_and_above_zero():
    rng = np.random.default_rng(0)
    logits, Y = [rng.standard_normal((50, 3)) for _ in range(2)], rng.integers(2, size=(50, 3))
    parts = [torch.from_numpy(x) for x in logits]
    weights, _, bias = fit_stacking(parts, torch.from_numpy(Y), [1.0, 2.0], [LOG_WEIGHT_STD] * 2, 0.5)
    residual = 0.5 * (sigmoid(weights[0] * logits[0] + weights[1] * logits[1] + bias.numpy()) - Y)
    own = bias.numpy() - bias.numpy().mean()  # what is drawn to nothing has a mean of nothing at the optimum
    for weight, x, median in zip(weights, logits, [1.0, 2.0], strict=True):
        assert weight > 0
        assert abs((residual * x).sum() * weight + np.log(weight / median) / LOG_WEIGHT_STD**2) < 1e-3
    np.testing.assert_allclose(residual.sum(axis=0) + own / 4, 0, atol=1e-3)


@pytest.mark.parametrize("with_text", [True, False])
def test_auto_is_better_than_its_parts_alone_or_near(with_text):
    X, Y, text = toy_multilabel(n=32, noise=2.0)
    Q, truth, _ = toy_multilabel(n=200, noise=2.0, seed=1)

    def loss(head):
        p = head.fit(X, Y, text=text if with_text or head.needs_text else None).predict_proba(Q)
        return -np.log(np.where(truth == 1, p, 1 - p)).sum(axis=1).mean()

    auto = loss(create_head("auto"))
    assert auto < loss(LinearProbe()) + 0.1
    assert not with_text or auto < loss(ZeroShot()) + 0.05
    assert auto < 3 * np.log(2)


def test_auto_takes_a_class_without_text_from_its_shots():
    X, Y, text = toy_multilabel(n=40)
    rows = np.where(np.arange(3)[:, None] == 1, np.nan, text.embeddings)
    head = create_head("auto").fit(X, Y, text=TextFeatures(text.labels, rows, text.logit_scale))
    assert (head.predict(X) == Y).mean(axis=0).min() > 0.9


def test_folds_hold_out_all_pictures_of_frequent_classes_once():
    targets = torch.from_numpy(drawn(40, 4)[1])
    splits = iterative_stratification(targets, 4)
    assert torch.cat([held for _, held in splits]).sort().values.tolist() == list(range(40))
    for train, held in splits:
        assert not set(train.tolist()) & set(held.tolist())
        # Every class has its share in every fold, but for what the other classes of its pictures leave open.
        assert ((targets[held].sum(dim=0) - targets.sum(dim=0) / 4).abs() <= 2).all()
    for seed in range(6):  # a class with a shot always keeps one in training
        targets = torch.from_numpy((np.random.default_rng(seed).random((12, 6)) < 0.2).astype(int))
        for train, _ in iterative_stratification(targets, 4, seed):
            assert (targets[train].sum(dim=0) >= targets.sum(dim=0).clamp_max(1)).all()


def test_select_takes_the_head_with_the_lowest_binary_loss():
    X, Y, text = toy_multilabel(n=32, noise=2.0)
    found = select("linear-probe", X, Y, text, grid={"C": [1e-6, 3.0]})
    assert found.best.C == 3.0
    assert found.strategy == "folds"
    held_out = out_of_fold(LinearProbe(C=3.0), X, Y, text)
    p = sigmoid(held_out.logits / found.candidates[0].temperature)
    loss = -np.log(np.where(held_out.labels == 1, p, 1 - p)).sum(axis=1).mean()
    np.testing.assert_allclose(found.candidates[0].loss, loss, rtol=1e-4)
    assert found.candidates[0].accuracy == ((held_out.logits > 0) == (held_out.labels > 0)).mean()
