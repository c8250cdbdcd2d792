import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from clipadapter.heads import TextFeatures, softmax_regression
from clipadapter.heads.auto import experts, head
from clipadapter.heads.auto.experts import (
    EXPERTS,
    WRONG_LABEL_SHARE,
    ExpertInputs,
    fit_gda,
    fit_inverse_temperature,
    fit_kernel_ridge,
    fit_prototypes,
    fit_ridge,
    fit_stacking,
    leave_one_out_ridge_noise,
    mix_out_of_fold,
    noise_std,
    share_explained,
)
from clipadapter.heads.auto.head import Auto, _balance_training_rows
from clipadapter.heads.linear_probe import LinearProbe
from clipadapter.heads.zero_shot import ZeroShot
from clipadapter.utils.functional import unit


@pytest.fixture(autouse=True)
def _few_folds(monkeypatch):
    monkeypatch.setattr(head, "MAX_REPEATS", 1)


def world(shots, quality, c=12, d=64, spread=1.0, seed=0, per_class=20):
    """Shots, queries and class text of a synthetic encoder; quality 1: text at the class means, 0: anywhere."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((c, d)) / np.sqrt(d)
    text = quality * means + (1 - quality) * rng.standard_normal((c, d)) / np.sqrt(d)
    names = [f"class {i}" for i in range(c)]
    counts = [shots] * c if isinstance(shots, int) else shots

    def draw(numbers):
        X = np.concatenate(
            [means[i] + spread * rng.standard_normal((n, d)) / np.sqrt(d) for i, n in enumerate(numbers)]
        )
        return X.astype(np.float32), np.repeat(names, numbers)

    return (*draw(counts), TextFeatures(names, text, 30.0), *draw([per_class] * c))


def accuracies(X, y, text, Q, truth):
    """Of auto, of class text alone, and of shots alone."""
    heads = Auto(), ZeroShot(), LinearProbe()
    return np.array([(head.fit(X, y, text=text).predict(Q) == truth).mean() for head in heads])


@pytest.mark.parametrize(("shots", "quality"), [(1, 0.0), (1, 1.0), (4, 0.4), (16, 0.0)])
def test_it_keeps_up_with_the_better_of_text_and_shots(shots, quality):
    auto, *others = np.mean([accuracies(*world(shots, quality, seed=seed)) for seed in range(2)], axis=0)
    assert auto >= max(others) - 0.03


def test_text_and_shots_together_beat_either():
    auto, *others = accuracies(*world(4, 0.35, spread=2.2))
    assert auto > max(others) + 0.02


def crowded(c=24, d=64, seed=0):
    """One shot a class of an encoder whose pictures have much in common, to which some class text is nearer."""
    rng = np.random.default_rng(seed)
    X, y, text, Q, truth = world(1, 0.6, c=c, d=d, spread=2.0, seed=seed)
    common = 2 * rng.standard_normal(d) / np.sqrt(d)
    rows = text.embeddings + 0.15 * rng.standard_normal((c, 1)) * common
    X, Q = (part + common.astype(np.float32) for part in (X, Q))
    return X, y, TextFeatures(text.labels, rows, 30.0), Q, truth


def test_one_shot_a_class_shows_which_class_text_is_too_near_to_all_pictures():
    auto, *others = np.mean([accuracies(*crowded(seed=seed)) for seed in range(4)], axis=0)
    assert auto > max(others) + 0.12


def test_unequal_shots_do_not_make_a_class_likelier():
    counts = [1, 16] * 6
    X, y, text, Q, truth = world(counts, 0.3, spread=1.2)
    predicted = Auto().fit(X, y, text=text).predict(Q)
    rare = np.isin(predicted, text.labels[::2]).mean()
    assert 0.35 < rare < 0.65


def test_wrong_labels_do_not_silence_good_text():
    X, y, text, Q, truth = world(4, 0.9, spread=1.2)
    y[::10] = np.roll(y, 7)[::10]
    auto, zero_shot, _ = accuracies(X, y, text, Q, truth)
    assert auto >= zero_shot - 0.01


def test_text_that_explains_the_shots_starts_with_more_weight_so_that_wrong_labels_cost_less(monkeypatch):
    def mean_accuracy():
        found = []
        for seed in range(8):
            X, y, text, Q, truth = world(2, 1.0, spread=1.5, seed=seed)
            y[::5] = np.roll(y, 7)[::5]
            found.append((Auto().fit(X, y, text=text).predict(Q) == truth).mean())
        return np.mean(found)

    trusting = mean_accuracy()
    monkeypatch.setattr(head, "TEXT_PRIOR_SHOTS", np.inf)
    assert trusting > mean_accuracy() + 0.005


def test_held_out_shots_that_are_wrong_by_chance_do_not_leave_meaningless_text_alone():
    auto, zero_shot, probe = accuracies(*world(2, 0.0, c=4, spread=3.0, seed=5, per_class=60))
    assert zero_shot < probe - 0.2
    assert auto > probe - 0.1


def test_a_class_without_shots_is_predicted_by_its_text():
    X, y, text, Q, truth = world([4] * 11 + [0], 0.9)
    head = Auto().fit(X, y, text=text)
    assert (head.predict(Q)[truth == "class 11"] == "class 11").mean() > 0.8
    others = text.embeddings.copy()
    others[11] = -others[11]
    turned = Auto().fit(X, y, text=TextFeatures(text.labels, others, 30.0))
    assert (turned.predict(Q)[truth == "class 11"] == "class 11").mean() < 0.2


def test_a_class_without_text_is_predicted_by_its_shots():
    X, y, text, Q, truth = world(4, 0.9, spread=2.2)
    rows = text.embeddings.copy()
    rows[3] = np.nan
    predicted = Auto().fit(X, y, text=TextFeatures(text.labels, rows, 30.0)).predict(Q)
    assert (predicted[truth == "class 3"] == "class 3").mean() > 0.7
    assert (predicted == truth).mean() > (LinearProbe().fit(X, y).predict(Q) == truth).mean()


def expert_inputs(shots=3, c=4, d=10, seed=0):
    """With d 10 and 12 shots the primal forms are taken, with d 40 the dual ones."""
    rng = np.random.default_rng(seed)
    labels = torch.arange(c).repeat_interleave(shots)
    z = unit(torch.from_numpy(rng.standard_normal((c, d))[labels] + rng.standard_normal((c * shots, d))))
    return ExpertInputs(z, labels, c, None, 0.0)


@pytest.mark.parametrize("d", [10, 40])
def test_experts_are_their_closed_forms(d):
    part = expert_inputs(d=d)
    z, labels, target = part.z.numpy(), part.labels.numpy(), np.eye(4)[part.labels] - 0.25
    weight = fit_ridge(part).weight.numpy()
    np.testing.assert_allclose((z.T @ z + 0.1 * np.eye(d)) @ weight.T, z.T @ target, atol=1e-10)
    gram = np.array([[np.exp(a @ b - 1) for b in z] for a in z])
    expected = gram @ np.linalg.solve(gram + 0.03 * np.eye(len(z)), target)
    np.testing.assert_allclose(fit_kernel_ridge(part).logits(part.z, None).numpy(), expected, atol=1e-9)
    means = np.array([z[labels == k].mean(axis=0) for k in range(4)])
    expected = z @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    np.testing.assert_allclose(fit_prototypes(part).logits(part.z, None).numpy(), expected, atol=1e-12)
    rest = z - means[labels]
    covariance = rest.T @ rest / (len(z) - 1)
    inverse = d * np.linalg.inv((len(z) - 1) * covariance + np.trace(covariance) * np.eye(d))
    gda = fit_gda(part)
    np.testing.assert_allclose(gda.weight.numpy(), means @ inverse, atol=1e-9)
    np.testing.assert_allclose(gda.bias.numpy(), -0.5 * np.diag(means @ inverse @ means.T), atol=1e-9)


@pytest.mark.parametrize(("name", "shots"), [("ridge", 1), ("probe", 1), ("gda", 1), ("kernel-ridge", 2), ("probe", 2)])
def test_any_expert_can_be_left_out_of_the_table(name, shots, monkeypatch):
    X, y, text, Q, _ = world(shots, 0.5, c=4, d=16, per_class=5)
    text = TextFeatures(text.labels, text.embeddings[:, :12], text.logit_scale)
    more = {"text": text, "blocks": [("final", 12), ("inner", 4)], "unlabelled": Q}
    full = Auto().fit(X, y, **more).logits(Q)
    monkeypatch.delitem(EXPERTS, name)
    without = Auto().fit(X, y, **more).logits(Q)
    takes_part = shots > 1 or name in ("probe", "ridge")
    assert np.isfinite(without).all() and np.array_equal(full, without) is not takes_part


def test_leave_one_out_noise_is_that_of_fits_without_the_shot():
    part = expert_inputs(shots=1, c=6, d=40)
    squares = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        z, target = part.z.numpy()[others], (np.eye(6) - 1 / 6)[others]
        scores = part.z.numpy()[i] @ z.T @ np.linalg.solve(z @ z.T + 0.1 * np.eye(5), target)
        wrong = np.delete(scores, i)
        squares.append(((wrong - wrong.mean()) ** 2).sum())
    expected = np.sqrt((sum(squares) + 4 * 0.08**2) / (6 * 4 + 4))
    assert leave_one_out_ridge_noise(part) == pytest.approx(expected, rel=1e-9)


def test_noise_is_the_standard_deviation_of_wrong_classes():
    logits = torch.tensor([[9.0, 1.0, 3.0], [2.0, -7.0, 6.0]])
    assert noise_std(logits, torch.tensor([0, 1])) == pytest.approx(np.sqrt((2 * 1.0**2 + 2 * 2.0**2) / 2))


def test_inverse_temperature_grows_with_the_accuracy_of_the_text():
    logits, labels = 2 * torch.eye(10), torch.arange(10)
    factors = [fit_inverse_temperature(logits, torch.cat([labels[:k], labels[k:].flip(0)])) for k in (10, 8, 4, 0)]
    assert factors == sorted(factors, reverse=True)


def test_text_explains_a_share_of_the_log_loss_of_chance():
    logits = torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log()
    loss = -(3 * np.log(0.95 * 0.9 + 0.025) + np.log(0.95 * 0.4 + 0.025)) / 4
    assert share_explained(logits, torch.tensor([0, 1]), torch.tensor([1.5, 0.5])) == pytest.approx(
        1 - loss / np.log(2)
    )
    assert share_explained(-3 * logits, torch.tensor([0, 0]), torch.ones(2)) == 0


def stacking_problem():
    """Logits (3, 40, 5) of which the first expert is right, the last is wrong, and labels."""
    rng = np.random.default_rng(0)
    parts, labels = rng.standard_normal((3, 40, 5)), rng.integers(0, 5, 40)
    parts[0, np.arange(40), labels] += 2
    parts[2, np.arange(40), labels] -= 1
    return parts, labels


def test_stacking_weights_are_those_of_another_optimizer():
    parts, labels = stacking_problem()
    shares = np.random.default_rng(1).uniform(0.5, 1.5, 40)

    def loss(log_weights):
        total = ((log_weights - np.log(0.5)) ** 2).sum() / (2 * 0.7**2)
        for i in range(40):
            exponents = np.exp(np.exp(log_weights) @ (parts[:, i] - parts[:, i].mean(axis=1, keepdims=True)))
            probability = exponents[labels[i]] / exponents.sum()
            total -= shares[i] * np.log((1 - WRONG_LABEL_SHARE) * probability + WRONG_LABEL_SHARE / 5)
        return total

    expected = minimize(loss, np.zeros(3), method="Powell", options={"xtol": 1e-8, "ftol": 1e-12})
    found, log_posterior, _ = fit_stacking(
        list(torch.from_numpy(parts)), torch.from_numpy(labels), [0.5] * 3, [0.7] * 3, torch.from_numpy(shares)
    )
    assert -log_posterior == pytest.approx(expected.fun, abs=1e-6)
    np.testing.assert_allclose(np.log(found), expected.x, atol=0.01)


def test_out_of_fold_mixtures_do_not_depend_on_the_label_of_the_shot():
    parts, labels = (torch.from_numpy(part) for part in stacking_problem())
    shots = torch.cat([torch.arange(20), torch.arange(20).flip(0)])  # each shot is held out twice
    splits = [(shots, rows) for rows in shots.split(5)]

    def mix(labels):
        def choose(of):
            return fit_stacking([part[of] for part in parts], labels[of], [0.5] * 3, [1.0] * 3)[0]

        return mix_out_of_fold(list(parts), splits, choose(slice(None)), choose)

    before = mix(labels)
    for shot in (0, 7):
        own = shots == shot
        after = mix(torch.where(own, (labels + 1) % 5, labels))
        torch.testing.assert_close(after[own], before[own], rtol=0, atol=0)
        assert not torch.equal(after[~own], before[~own])


def test_of_unequal_shots_some_are_dropped_where_they_are_held_out_and_of_equal_ones_none():
    labels, train = torch.arange(4).repeat_interleave(3), torch.tensor([r for r in range(12) if r % 3])
    assert _balance_training_rows(labels, train, torch.arange(0, 12, 3), 0).sort().values.tolist() == train.tolist()
    labels, train, held = torch.tensor([0] * 16 + [1] + [2]), torch.arange(4, 18), torch.arange(4)
    assert {len(_balance_training_rows(labels, train, held, seed)) for seed in range(20)} == {14, 3}


@pytest.mark.parametrize("name", list(EXPERTS))
def test_experts_of_a_fold_are_those_of_its_own_rows(name):
    rng = torch.Generator().manual_seed(0)
    z = unit(torch.randn(24, 40, generator=rng, dtype=torch.float64))
    labels, rows, held = torch.arange(24) % 4, torch.arange(16), torch.arange(16, 24)
    part = ExpertInputs(z, labels, 4, None, 0.0, z @ z.T)
    alone = ExpertInputs(z[rows], labels[rows], 4, None, 0.0)
    found = EXPERTS[name].fit(part.take(rows)).logits(z[held], None, part.gram_block(held, rows))
    torch.testing.assert_close(found, EXPERTS[name].fit(alone).logits(z[held], None), rtol=1e-5, atol=1e-5)


def test_logits_that_are_not_held_at_once_give_the_same_predictions(monkeypatch):
    X, y, text, Q, _ = world([4] * 5 + [7], 0.5, c=6, d=16)
    expected = Auto().fit(X, y, text=text).logits(Q)
    for module in (experts, head, softmax_regression):
        monkeypatch.setattr(module, "MAX_LOGITS", 100)
    found = Auto().fit(X, y, text=text).logits(Q)
    np.testing.assert_allclose(found, expected, atol=5e-3)
    monkeypatch.setattr(head, "MAX_CALIBRATION_LOGITS", 6 * 13)  # the text is calibrated on half of the shots
    found = Auto().fit(X, y, text=text).logits(Q)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.97
