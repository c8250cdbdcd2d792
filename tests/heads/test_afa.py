"""AFA: Gaussians by plain loops, the optimum of its adapters, and what it must keep and spare in planted streams."""

import numpy as np
import torch

from clipadapter.heads import TextFeatures
from clipadapter.heads.afa import Afa, ClassGaussians
from clipadapter.heads.zero_shot import ZeroShot

from .formulas import unit

D, PER_TASK, TASKS, SCALE = 48, 4, 3, 20.0
NAMES = [f"class {i:02}" for i in range(PER_TASK * TASKS)]


def world(seed=0, noise=0.9, doubt=0.8):
    """Means and text of classes; text lies where the mean does, turned by the same map for all, and is not sure."""
    rng = np.random.default_rng(seed)
    means = unit(rng.standard_normal((len(NAMES), D)))
    turn = np.eye(D) + 0.8 * rng.standard_normal((D, D)) / np.sqrt(D)
    text = unit(unit(means @ turn) + doubt * rng.standard_normal(means.shape) / np.sqrt(D))
    everywhere = unit(rng.standard_normal(D))

    def pictures(classes, n):
        labels = np.repeat(classes, n)
        found = means[labels] + everywhere + noise * rng.standard_normal((len(labels), D)) / np.sqrt(D)
        return (7 * found).astype(np.float32), np.array(NAMES)[labels]

    return pictures, TextFeatures(NAMES, text, SCALE)


def stream(pictures, text, n=6):
    """(tasks, tasks) accuracies after each task, and the pictures that they are of."""
    head, tasks = Afa(), np.arange(len(NAMES)).reshape(TASKS, PER_TASK)
    tests = [pictures(task, 30) for task in tasks]
    found = np.zeros((TASKS, TASKS))
    for t, task in enumerate(tasks):
        head.partial_fit(*pictures(task, n), text=text)
        found[t] = [(head.predict(X) == y).mean() for X, y in tests]
    return found, tests


def test_what_was_learned_is_not_forgotten():
    found, _ = stream(*world())
    assert found.diagonal().min() > 0.75
    assert (found[-1] >= found.diagonal() - 0.05).all()


def test_what_has_not_come_yet_is_told_better_than_by_zero_shot():
    gains = []
    for seed in range(2):
        pictures, text = world(seed, doubt=1.2)
        found, tests = stream(pictures, text)
        zero_shot = ZeroShot().fit(*pictures([0], 1), text=text)
        before = [(zero_shot.predict(X) == y).mean() for X, y in tests]
        gains += [found[t, i] - before[i] for i in range(TASKS) for t in range(i)]
    assert np.mean(gains) > 0.02
    assert min(gains) > -0.1


def shots_of(counts, seed=1):
    pictures, text = world(seed)
    X, y = (np.concatenate(parts) for parts in zip(*(pictures([i], n) for i, n in enumerate(counts)), strict=True))
    return X, y, text


COUNTS = [3, 1, 0, 4, 2, 0, 2, 5, 1, 2, 3, 0]


def sums_of(X, y):
    x = unit(X.astype(np.float64))
    return np.stack([x[y == name].sum(axis=0) for name in NAMES])


def known_by_loops(X, y, text, ridge):
    """Centre, guesses, W and R as `ClassGaussians` defines them; each class's guess by a regression without it."""
    sums, t = sums_of(X, y), unit(unit(text.embeddings.astype(np.float64)) - unit(text.embeddings).mean(axis=0))
    seen = [i for i, n in enumerate(COUNTS) if n]
    means = np.stack([sums[i] / COUNTS[i] for i in seen])
    centre = means.mean(axis=0)
    around = means - centre
    g = sum(t[i] @ m for i, m in zip(seen, around, strict=True)) / sum(t[i] @ t[i] for i in seen)
    guessed = np.zeros_like(sums)
    for i in range(len(NAMES)):
        others = [j for j, k in enumerate(seen) if k != i]
        A = t[[seen[j] for j in others]]
        left = around[others] - g * A
        map_ = np.linalg.solve(A.T @ A + ridge * np.eye(D), A.T @ left)
        guessed[i] = g * t[i] + t[i] @ map_
    x = unit(X.astype(np.float64))
    within = sum(((x[y == NAMES[i]] - m) ** 2).sum() for i, m in zip(seen, means, strict=True))
    wrong = np.mean([((m - guessed[i]) ** 2).sum() for i, m in zip(seen, around, strict=True)])
    spread = (within + 0.7 * wrong) / (len(X) - len(seen) + 1)
    doubt = max(wrong - np.mean([spread / COUNTS[i] for i in seen]), 0.1 * spread)
    return sums, centre, guessed, spread, doubt


def log_density(x, n, total, guess, centre, spread, doubt):
    """40 dimensions, up to a constant, and how far the mean is that of shots."""
    trust = n * doubt / (n * doubt + spread)
    mean = trust * (total / n if n else 0) + (1 - trust) * (centre + guess)
    variance = spread + doubt * (1 - trust)
    return -20 * (np.log(variance) + ((x - mean) ** 2).sum() / variance), trust


def frozen(X, text):
    return SCALE * unit(X.astype(np.float64)) @ unit(text.embeddings.astype(np.float64)).T


def text_weight(X, y, text):
    z = frozen(X, text)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    agreed = np.mean([p[i, NAMES.index(name)] for i, name in enumerate(y)])
    return min(agreed / (1 - agreed), 2.0)


def test_logits_are_densities_frozen_logits_and_the_prior():
    X, y, text = shots_of(COUNTS)
    Q = world(2)[0]([0, 2, 5], 2)[0]
    known = known_by_loops(X, y, text, ridge=2.0)
    v, z = text_weight(X, y, text), frozen(Q, text)
    z = z - z.mean(axis=1, keepdims=True)
    expected = np.zeros(z.shape)
    for i, x in enumerate(unit(Q.astype(np.float64))):
        for k, n in enumerate(COUNTS):
            density, trust = log_density(x, n, known[0][k], known[2][k], known[1], *known[3:])
            expected[i, k] = density + (v * (1 - trust) * z[i, k] if n else max(v, 0.9) * z[i, k] - 0.3)
    found = Afa(penalty=None, ridge=2.0, text=0.9, prior=-0.3).fit(X, y, text=text).logits(Q)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_an_adapter_is_the_optimum_for_shots_that_are_judged_without_themselves():
    counts = [4, 1, 2, 3, 5, 2, 3, 2, 1, 2, 3, 2]
    X, y, text = shots_of(counts)
    labels, x, n = np.array([NAMES.index(name) for name in y]), unit(X.astype(np.float64)), len(X)
    plain, full = (Afa(penalty=penalty).fit(X, y, text=text) for penalty in (None, 0.5))
    vectors = torch.from_numpy(unit(text.embeddings.astype(np.float64)))
    known = ClassGaussians.fit(torch.tensor(counts), plain.sums_, vectors, 3.0)
    held = plain.logits(X).astype(np.float64)
    z = frozen(X, text)
    z = z - z.mean(axis=1, keepdims=True)
    for i, k in enumerate(labels):
        facts = known.text_means[k].numpy(), known.centre.numpy(), known.within_variance, known.text_variance
        density, trust = log_density(x[i], counts[k] - 1, known.sums[k].numpy() - x[i], *facts)
        held[i, k] = density + text_weight(X, y, text) * (1 - trust) * z[i, k]
    around = x - known.centre.numpy()

    def gradient(B):
        logits = held + around @ B.T
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (p / p.sum(axis=1, keepdims=True) - np.eye(len(NAMES))[labels]).T @ around / n + 0.5 / n * B

    B = full.residual_.numpy()
    assert np.linalg.norm(gradient(B)) < 0.01 * np.linalg.norm(gradient(0 * B))
    np.testing.assert_allclose(full.logits(X) - plain.logits(X), around @ B.T, atol=1e-3)


def test_an_adapter_is_of_the_classes_that_came_and_follows_them_into_another_order():
    pictures, text = world()
    head = Afa().fit(*pictures(range(4), 5), text=text)
    before, level = head.residual_, head.offset_
    assert before[:4].norm(dim=1).min() > 0 and before[4:].norm() == 0
    turned = TextFeatures(NAMES[::-1], text.embeddings[::-1], SCALE, order="given")
    head.partial_fit(*pictures(range(4, 8), 5), text=turned)
    torch.testing.assert_close(head.residual_.flip(0)[:4], before[:4])
    torch.testing.assert_close(head.offset_.flip(0)[:4], level[:4])
    assert head.residual_.flip(0)[4:8].norm(dim=1).min() > 0


def test_distillation_holds_what_the_previous_model_says_against_a_wrong_shot(monkeypatch):
    pictures, text = world()
    old, Q = pictures(range(8), 6), pictures([0], 100)[0]
    X, _ = pictures([0, 8, 8, 8], 1)

    def taken():
        """Probability that pictures of class 0 are given to class 8."""
        head = Afa(penalty=1e-3).fit(*old, text=text).partial_fit(X, [NAMES[8]] * len(X), text=text)
        return head.predict_proba(Q)[:, 8].mean()

    held = taken()
    monkeypatch.setattr(Afa, "_pseudo_features", lambda self, known, x, labels: x[:0])
    assert held < 0.8 * taken()


def test_without_adapters_the_order_of_shots_makes_no_difference():
    X, y, text = shots_of(COUNTS)
    order = np.random.default_rng(0).permutation(len(X))
    parts = Afa(penalty=None)
    for rows in np.array_split(order, 5):
        parts.partial_fit(X[rows], y[rows], text=text)
    expected = Afa(penalty=None).fit(X, y, text=text).logits(X)
    np.testing.assert_allclose(parts.logits(X), expected, rtol=1e-4, atol=1e-3)


def test_one_class_with_one_shot_leaves_the_others_to_zero_shot():
    pictures, text = world()
    head = Afa().fit(*pictures([0], 1), text=text)
    X = pictures(range(1, len(NAMES)), 5)[0]
    logits = head.logits(X)
    assert np.isfinite(logits).all()
    zero_shot = ZeroShot().fit(*pictures([0], 1), text=text)
    others = logits[:, 1:].argmax(axis=1) == zero_shot.logits(X)[:, 1:].argmax(axis=1)
    assert others.mean() > 0.95
