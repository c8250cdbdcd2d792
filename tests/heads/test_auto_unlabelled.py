from dataclasses import replace

import numpy as np
import pytest
import torch

from clipadapter.heads import TextFeatures, out_of_fold
from clipadapter.heads.auto import head, unlabelled
from clipadapter.heads.auto.blocks import Mixture
from clipadapter.heads.auto.head import Auto
from clipadapter.heads.auto.unlabelled import fit_regression

C, D = 4, 48
NAMES = [f"class {i}" for i in range(C)]
GENERATOR = np.random.default_rng(0)
MEANS = GENERATOR.standard_normal((C, D)) / np.sqrt(D)
# Within each class the features vary mostly in a few directions, which a few shots don't show and many pictures do.
NUISANCE = GENERATOR.standard_normal((6, D)) / np.sqrt(D)
TEXT = TextFeatures(NAMES, MEANS + 1.2 * GENERATOR.standard_normal((C, D)) / np.sqrt(D), 30.0)


@pytest.fixture(autouse=True, scope="module")
def _few_folds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "MAX_REPEATS", 2)
        yield


def draw(counts, seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(C), counts)
    X = MEANS[labels] + 1.2 * rng.standard_normal((len(labels), 6)) @ NUISANCE
    X = X + 0.3 * rng.standard_normal((len(labels), D)) / np.sqrt(D)
    return X.astype(np.float32), np.array(NAMES)[labels]


X, Y = draw([4] * C, seed=1)
TEST = draw([50] * C, seed=2)
POOL = draw([40] * C, seed=3)[0]
FOREIGN = GENERATOR.standard_normal(D) + 0.01 * GENERATOR.standard_normal((50, D))
"""Pictures of one other thing."""


@pytest.fixture(scope="module")
def without():
    return Auto().fit(X, Y, TEXT)


@pytest.fixture(scope="module")
def with_pool():
    return Auto().fit(X, Y, TEXT, unlabelled=POOL)


def accuracy(model):
    return (model.predict(TEST[0]) == TEST[1]).mean()


def test_pictures_that_help_get_weight(without, with_pool):
    assert with_pool.unlabelled_gain_ > 0 and with_pool.unlabelled_share_ > 0.1
    assert accuracy(with_pool) > accuracy(without) + 0.05
    assert f"weight {with_pool.unlabelled_share_:.0%} (held-out shots gain" in with_pool.describe_unlabelled()


def test_pictures_that_tell_nothing_get_no_weight_and_change_nothing(without):
    fitted = Auto().fit(X, Y, TEXT, unlabelled=FOREIGN)
    assert fitted.unlabelled_gain_ <= 0 and fitted.unlabelled_share_ == 0
    assert fitted.describe_unlabelled() == "not used: held-out shots do not gain"
    np.testing.assert_array_equal(fitted.logits(TEST[0]), without.logits(TEST[0]))  # the same sums in the same order
    held_out = [out_of_fold(each, X, Y, TEXT, strategies=["own"]).logits for each in (fitted, without)]
    np.testing.assert_array_equal(*held_out)  # the same sums in the same order


def test_with_one_shot_per_class_the_weight_is_a_constant():
    fitted = Auto().fit(X[::4], Y[::4], TEXT, unlabelled=POOL)
    assert fitted.unlabelled_gain_ is None and fitted.unlabelled_share_ > 0
    assert "no shot can be held out" in fitted.describe_unlabelled()
    assert accuracy(fitted) > accuracy(Auto().fit(X[::4], Y[::4], TEXT))


def test_with_one_shot_per_class_pictures_of_few_classes_are_not_used():
    one_class = draw([40, 0, 0, 0], seed=3)[0]
    fitted = Auto().fit(X[1::4], Y[1::4], TEXT, unlabelled=one_class)
    assert fitted.unlabelled_share_ == 0 and "few of the classes" in fitted.describe_unlabelled()
    # the same sums in the same order
    np.testing.assert_array_equal(fitted.logits(TEST[0]), Auto().fit(X[1::4], Y[1::4], TEXT).logits(TEST[0]))


def test_coefficients_and_left_out_logits_equal_plain_loops(monkeypatch):
    """Weighted ridge regression by its normal equations, and a refit without each picture."""
    monkeypatch.setattr(unlabelled, "REFINEMENTS", 0)
    rng = np.random.default_rng(0)
    rows, labels = rng.standard_normal((9, 5)), [0, 0, 1, 2]
    logits = rng.standard_normal((5, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    target = np.concatenate([np.eye(3)[labels], p])
    counts = target.sum(axis=0)
    weights = [9 / 3 * sum(target[i, k] / counts[k] for k in range(3)) for i in range(9)]
    rarity = np.log(counts).mean() - np.log(counts)

    def fit(kept):
        A, B = 0.3 * np.eye(5), np.zeros((5, 3))
        for i in kept:
            A += weights[i] * np.outer(rows[i], rows[i])
            B += weights[i] * np.outer(rows[i], target[i] - 1 / 3)
        return np.linalg.solve(A, B)

    found = fit_regression(torch.tensor(rows @ rows.T), torch.tensor(labels), 3, torch.tensor(logits))
    expected = fit(range(9))
    np.testing.assert_allclose(rows.T @ found[0].numpy(), expected - expected.mean(axis=1, keepdims=True), rtol=1e-9)
    np.testing.assert_allclose(found[1], 0.1 * rarity, rtol=1e-9)
    for i in range(4, 9):
        left_out = rows[i] @ fit([j for j in range(9) if j != i]) + 0.1 * rarity
        np.testing.assert_allclose(found[2][i - 4], left_out - left_out.mean(), rtol=1e-8)


def test_a_fold_sees_neither_features_nor_labels_of_held_out_shots(monkeypatch):
    """Other features and labels of the shots that a fold holds out leave its teacher and its regression as they are."""
    calls, teachers = [], []
    fit, predict = unlabelled.fit_regression, Mixture.logits

    def recorded(self, train, *args):
        teachers.append((self, train, args))
        return predict(self, train, *args)

    monkeypatch.setattr(Mixture, "logits", recorded)
    monkeypatch.setattr(unlabelled, "fit_regression", lambda *args: (calls.append(args), fit(*args))[1])
    Auto().fit(X, Y, TEXT, unlabelled=POOL)
    with_pictures = [args for args in calls if len(args[3])]
    assert len(with_pictures) == 1 + len(teachers) and len(calls) == 1 + 2 * len(teachers) and len(teachers) == 8
    n = len(X)
    everything = calls[0][0]
    for (teacher, train, args), (products, labels, _, teacher_logits) in zip(teachers, with_pictures[1:], strict=True):
        kept = torch.cat([train, torch.arange(n, len(everything))])
        torch.testing.assert_close(products, everything[kept][:, kept])
        torch.testing.assert_close(labels, teacher.inputs.labels[train])
        others = torch.ones(n, dtype=torch.bool)
        others[train] = False
        changed = replace(teacher, inputs=_damage(teacher.inputs, others))
        torch.testing.assert_close(predict(changed, train, *args), teacher_logits)


def _damage(inputs, rows):
    z, labels = inputs.z.clone(), inputs.labels.clone()
    z[rows], labels[rows] = 7.0, (labels[rows] + 1) % C
    return replace(inputs, z=z, labels=labels, gram=z @ z.T)


def test_pictures_that_are_shots_are_left_out_and_many_are_drawn(monkeypatch):
    fitted = Auto().fit(X, Y, TEXT, unlabelled=np.concatenate([3 * X, POOL]))
    assert len(fitted.kept_pictures_) == len(POOL)
    monkeypatch.setattr(unlabelled, "MAX_PICTURES", 20)
    few = Auto().fit(X, Y, TEXT, unlabelled=POOL).kept_pictures_
    assert few.shape == (20, D)
    rows = {tuple(row) for row in Auto().fit(X, Y, TEXT, unlabelled=few).kept_pictures_}
    assert rows == {tuple(row) for row in few}  # a refit sees the same values


def test_a_shot_is_left_out_though_its_features_differ_by_rounding():
    """Features in bfloat16 of another batch differ from those of the shot by cosines up to 1 - 1e-5."""
    noise = np.random.default_rng(5).standard_normal(X.shape)
    noise *= np.linalg.norm(X, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)

    def kept(cosine):
        copies = X + np.tan(np.arccos(cosine)) * noise
        return len(Auto().fit(X, Y, TEXT, unlabelled=np.concatenate([copies, POOL])).kept_pictures_)

    assert kept(1 - 1e-5) == len(POOL)
    assert kept(1 - 1e-3) == len(POOL) + len(X)


def test_a_refit_uses_the_kept_pictures_and_a_fit_without_them_forgets_them(with_pool):
    again = Auto().fit_from(with_pool, X, Y, TEXT)
    np.testing.assert_array_equal(again.logits(TEST[0]), with_pool.logits(TEST[0]))  # the same sums in the same order
    assert len(with_pool.refit_without(X, Y, np.array([0]), TEXT).kept_pictures_) == len(POOL)
    assert again.fit(X, Y, TEXT).kept_pictures_ is None and again.describe_unlabelled() == ""


def test_why_pictures_are_not_used():
    only_text = Auto().fit(X[:12], Y[:12], TEXT, unlabelled=POOL)
    assert only_text.describe_unlabelled() == "not used: a class has no shot"
    too_few = Auto().fit(X, Y, TEXT, unlabelled=np.concatenate([X, POOL[:2]]))
    assert too_few.describe_unlabelled() == "not used: too few are left without those that are shots"
    targets = (Y[:, None] == np.array(NAMES)).astype(int)
    several = Auto().fit(X, targets, TEXT, unlabelled=POOL)
    assert several.describe_unlabelled() == "not used: pictures may have several labels"


def test_blocks_that_are_not_used_stay_unused_and_a_smaller_copy_keeps_its_pictures(without):
    rng = np.random.default_rng(7)

    def with_blocks(features):
        noise = 10 * rng.standard_normal((len(features), 8)).astype(np.float32)
        return np.hstack([features, 2 * features[:, ::-1], noise])

    blocks = [("final", D), ("inner", D), ("noise", 8)]
    shots, pool, test = with_blocks(X), with_blocks(POOL), with_blocks(TEST[0])
    fitted = Auto().fit(shots, Y, TEXT, unlabelled=pool, blocks=blocks)
    assert fitted.unlabelled_share_ > 0
    parts = {name: part.std(axis=1).mean() for name, part in fitted.block_logits(fitted.kept_pictures_).items()}
    for name, share in fitted.block_shares().items():
        assert share == pytest.approx(parts.get(name, 0) / sum(parts.values()), rel=1e-3)
    small = fitted.restrict_blocks(fitted.used_blocks())
    columns = np.concatenate([np.arange(0, D), np.arange(D, 2 * D)])
    if small.used_blocks() == ("final", "inner"):
        np.testing.assert_allclose(small.logits(test[:, columns]), fitted.logits(test), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(small.kept_pictures_, fitted.kept_pictures_[:, columns])
    assert (fitted.predict(test) == TEST[1]).mean() >= accuracy(without)
